"""HumanEval+ and MBPP+: evalplus's problems, whose answers are compared with the reference's on hundreds of inputs.

The surprise: the reference solution runs in the judge, in a namespace of its own, because it may call itself by the very name that the
check takes from the program.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from benchmarks.code import hub, oracle
from benchmarks.code.problems import BenchmarkAbsent, Kind, Problem, checked_limit, fingerprint, parsed, read
from crystal.config import UserError

KEYS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")


class _Plus:
    """What both have in common. `path`: the published jsonl or jsonl.gz (None: what the package evalplus has, or fetches)."""

    name: str
    kind: Kind
    release: Literal["HumanEvalPlus", "MbppPlus"]

    def __init__(self, path: str | None = None, limit: int | None = None, timeout_s: float | None = None) -> None:
        self.path, self.limit, self.timeout_s = path, checked_limit(limit), timeout_s

    @property
    def source(self) -> str:
        return Path(self.path).name if self.path else f"evalplus/{self.release.lower()}_release"

    @property
    def version(self) -> str:
        return fingerprint(self._bytes)

    def problems(self) -> list[Problem]:
        rows = parsed(self._bytes, KEYS, self.path or self.source, self.release)
        return [plus_problem(row, self.kind) for row in rows[: self.limit]]

    def examples(self) -> list[Problem]:
        return []

    @cached_property
    def _bytes(self) -> bytes:
        return read(self.path or _from_package(self.release), self.name)


class HumanEvalPlus(_Plus):
    """HumanEval's 164 problems with some 80 times the tests."""

    name = "humaneval_plus"
    kind: Kind = "humaneval"
    release = "HumanEvalPlus"


class MbppPlus(_Plus):
    """378 of MBPP's sanitized problems with some 35 times the tests; the prompt is a docstring, as MBPP's.

    Nothing passes task 255 here: its answers are lists of millions of tuples, more than the sandbox lets through.
    """

    name = "mbpp_plus"
    kind: Kind = "mbpp"
    release = "MbppPlus"


def plus_problem(row: Mapping[str, Any], kind: Kind) -> Problem:
    """A row of evalplus's files; its stored `test` is not used."""
    entry_point, number = row["entry_point"], int(row["task_id"].rpartition("/")[2])
    inputs = [list(arguments) for arguments in (*row["base_input"], *row["plus_input"])]
    restored = f"[_oracle['restored']({number}, one) for one in _json.loads(_inputs)]"
    what = restored if kind == "mbpp" else "_json.loads(_inputs)"
    given = (
        "import json as _json\n"
        f"_oracle = {{'__name__': 'oracle'}}\nexec({Path(oracle.__file__).read_text(encoding='utf-8')!r}, _oracle)\n"
        f"_reference = {{'__name__': 'reference'}}\nexec({row['prompt'] + row['canonical_solution']!r}, _reference)\n"
        f"_inputs = {json.dumps(inputs)!r}\n"
    )
    check = f"_oracle['check_all']({kind!r}, {entry_point!r}, {entry_point}, _reference[{entry_point!r}], {what}, {row['atol']!r})\n"
    return Problem(
        task_id=row["task_id"],
        prompt=row["prompt"],
        preamble=row["prompt"] if kind == "humaneval" else "",
        check=check,
        given=given,
        names=(entry_point,),
        entry_point=entry_point,
        statement=row["prompt"] if kind == "humaneval" else str(ast.get_docstring(ast.parse(row["prompt"]))),
        canonical=row["canonical_solution"],
    )


def _from_package(release: str) -> str:
    """The file that the installed evalplus reads, fetched by it where its cache has none."""
    try:
        from evalplus.data import humaneval, mbpp
        from evalplus.data.utils import get_dataset_metadata, make_cache
    except ImportError as error:
        raise UserError(
            f"{release} asked for without a file, but the package evalplus cannot be imported ({error}); its problems come from there; "
            "pip install evalplus, or give path=FILE"
        ) from error
    if release == "HumanEvalPlus":
        given, version = humaneval.HUMANEVAL_OVERRIDE_PATH, humaneval.HUMANEVAL_PLUS_VERSION
    else:
        given, version = mbpp.MBPP_OVERRIDE_PATH, mbpp.MBPP_PLUS_VERSION
    if given:
        return str(given)
    url, path = get_dataset_metadata(release, version, False)
    try:
        if not Path(path).exists():
            hub.knock(url)
            make_cache(url, path)
    except OSError as error:
        raise BenchmarkAbsent(
            f"evalplus has no {release} in its cache, and {url} could not be had ({type(error).__name__}); give path=FILE (its jsonl)"
        ) from error
    return str(path)
