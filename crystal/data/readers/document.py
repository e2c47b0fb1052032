"""What readers give and what they are asked. The surprise: a document may come as ids, where its corpus was tokenized before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from crystal.config import require


@dataclass(frozen=True, slots=True)
class Document:
    """One document as `text` or as `ids` (n,), never both; `index` is its line, row or number in `file`, from 0."""

    text: str | None
    source: str
    file: str
    index: int
    ids: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """What cannot be read, in the place of one document or of all behind it: `where` in `file`; `line`, what a UserError would say."""

    file: str
    where: str
    line: str


class Reader(Protocol):
    """What `prepare` asks of a corpus."""

    @property
    def code(self) -> bool:
        """Whether rows are packed with room for FIM."""

    def identity(self) -> dict[str, Any]:
        """What decides the documents: class, path, options, and "files": the bytes of each of `files()`, in their order."""

    def files(self) -> list[str]:
        """Names relative to the path, in reading order; UserError where there are none."""

    def read(self, file: str) -> Iterator[Document | Broken]:
        """The documents of one of `files()`; UserError where it cannot be opened or holds something else altogether."""

    def part(self, document: Document) -> str:
        """The train part that the document belongs to."""


def check_source(source: str) -> None:
    """UserError unless `source` can name a folder, or one in another."""
    expected = "letters, digits, _, . and -, and / between names"
    require(re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", source) is not None, f"a reader's source={source!r}", expected, "mend it")
