"""Typed reading of a run's JSON: a wrong value is a `UserError` that names the file and the key, never a KeyError.

The surprise: NaN is a number here. A diverged run has losses that are not finite, and its report has to say so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crystal.config import UserError


class Fields:
    """One JSON object and the file it is from (`where` is the path of keys inside the file, for messages)."""

    def __init__(self, file: Path, value: Any, where: str = "") -> None:
        self.file, self.where = file, where
        if not isinstance(value, dict):
            raise self._wrong(where or "the whole file", value, "an object {...}")
        self.value: dict[str, Any] = value

    def _wrong(self, key: str, got: Any, expected: str) -> UserError:
        place = f"{self.where}.{key}" if self.where and key != self.where else key
        return UserError(
            f"{self.file}: {place} is {'missing' if got is None else ascii(got)[:60]}; expected {expected}; "
            "restore the file from the run, or give another run.dir"
        )

    def maybe_number(self, key: str) -> float | None:
        got = self.value.get(key)
        if got is None:
            return None
        if isinstance(got, bool) or not isinstance(got, int | float):
            raise self._wrong(key, got, "a number")
        return float(got)

    def number(self, key: str) -> float:
        got = self.maybe_number(key)
        if got is None:
            raise self._wrong(key, None, "a number")
        return got

    def maybe_count(self, key: str) -> int | None:
        got = self.value.get(key)
        if got is not None and (isinstance(got, bool) or not isinstance(got, int)):
            raise self._wrong(key, got, "a whole number")
        return got

    def count(self, key: str) -> int:
        got = self.maybe_count(key)
        if got is None:
            raise self._wrong(key, None, "a whole number")
        return got

    def maybe_text(self, key: str) -> str | None:
        got = self.value.get(key)
        if got is not None and not isinstance(got, str):
            raise self._wrong(key, got, "text")
        return got

    def text(self, key: str) -> str:
        got = self.maybe_text(key)
        if got is None:
            raise self._wrong(key, None, "text")
        return got

    def flag(self, key: str) -> bool:
        got = self.value.get(key)
        if not isinstance(got, bool):
            raise self._wrong(key, got, "true or false")
        return got

    def child(self, key: str) -> Fields:
        """The object under `key`; an empty one where the key is absent."""
        got = self.value.get(key)
        return Fields(self.file, {} if got is None else got, f"{self.where}.{key}".lstrip("."))

    def children(self, key: str) -> list[Fields]:
        """The objects in the list under `key`; none where the key is absent."""
        got = self.value.get(key)
        if got is not None and not isinstance(got, list):
            raise self._wrong(key, got, "a list of objects")
        return [Fields(self.file, item, f"{self.where}.{key}[{i}]".lstrip(".")) for i, item in enumerate(got or [])]

    def numbers(self, key: str) -> dict[str, float]:
        """The name -> number table under `key`, without its nulls; empty where the key is absent."""
        table = self.child(key)
        return {name: table.number(name) for name, got in table.value.items() if got is not None}

    def words(self, key: str) -> tuple[str, ...]:
        """Text, or a list of texts; empty where the key is absent."""
        got = self.value.get(key)
        items = [got] if isinstance(got, str) else [] if got is None else got
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise self._wrong(key, got, "text or a list of texts")
        return tuple(items)


def read_json(path: Path) -> Fields | None:
    """The object in `path`; None where there is no such file.

    Raises UserError where the file is not JSON: files of a run are written whole, so a torn one was damaged later.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a readable file; mend its permissions") from error
    try:
        value = json.loads(data)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); expected a whole file; restore it from the run") from None
    return Fields(path, value)
