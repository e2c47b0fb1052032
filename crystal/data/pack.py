"""Packing: documents' tokens -> rows of seq_len + 1 ids. Rows do not overlap; documents are joined by EOS, no BOS.

Text is concatenated and split. Code keeps room for FIM: a row's pieces cost their length + 4 (EOS and three sentinels),
what is left is padding at the row's end, so `fim.permute_row` never overflows. The surprise: a piece that is cut at a
row's end has no EOS there, yet costs the same 4, because FIM would give it one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

FIM_COST = 4


class Packer(Protocol):
    """Push documents in, take finished rows out: sources come interleaved, so packing cannot pull."""

    def add(self, tokens: np.ndarray) -> np.ndarray:
        """Take one document's ids, without EOS; returns the rows it finished, shape (k, width)."""

    def finish(self) -> np.ndarray:
        """The last, incomplete row, padded: shape (0 or 1, width)."""


class TextPacker:
    """Concatenate and split: a row is full, whatever the document boundaries."""

    def __init__(self, width: int, *, eos_id: int, pad_id: int, dtype: np.dtype) -> None:
        self._eos_id, self._pad_id = eos_id, pad_id
        self._row, self._used = np.full(width, pad_id, dtype), 0

    def add(self, tokens: np.ndarray) -> np.ndarray:
        dtype = self._row.dtype
        stream = np.concatenate([self._row[: self._used], tokens.astype(dtype), np.array([self._eos_id], dtype)])
        whole = len(stream) - len(stream) % len(self._row)
        self._used = len(stream) - whole
        self._row[: self._used] = stream[whole:]
        return stream[:whole].reshape(-1, len(self._row))

    def finish(self) -> np.ndarray:
        self._row[self._used :] = self._pad_id
        rows = self._row[None][: int(self._used > 0)].copy()
        self._used = 0
        return rows


class CodePacker:
    """Rows with room for FIM; a document that does not fit is cut and goes on in the next row."""

    def __init__(self, width: int, *, eos_id: int, pad_id: int, dtype: np.dtype) -> None:
        assert width > FIM_COST, "a row must hold one token and its FIM sentinels"
        self._eos_id, self._pad_id = eos_id, pad_id
        self._row = np.full(width, pad_id, dtype)
        self._used, self._room = 0, width

    def add(self, tokens: np.ndarray) -> np.ndarray:
        rows: list[np.ndarray] = []
        while len(tokens) + FIM_COST > self._room:
            taken = max(0, self._room - FIM_COST)
            self._put(tokens[:taken])
            tokens = tokens[taken:]
            rows.append(self._next())
        self._put(tokens)
        self._put(np.array([self._eos_id]))
        self._room -= len(tokens) + FIM_COST
        return np.stack(rows) if rows else np.empty((0, len(self._row)), self._row.dtype)

    def finish(self) -> np.ndarray:
        used = self._used
        return self._next()[None][: int(used > 0)]

    def _put(self, tokens: np.ndarray) -> None:
        self._row[self._used : self._used + len(tokens)] = tokens
        self._used += len(tokens)

    def _next(self) -> np.ndarray:
        row = self._row
        self._row = np.full(len(row), self._pad_id, row.dtype)
        self._used, self._room = 0, len(row)
        return row


def pack(packer: Packer, documents: Iterable[np.ndarray], *, keep_last: bool = True) -> Iterator[np.ndarray]:
    """All rows of a stream of documents, one at a time; the incomplete last row padded, or dropped."""
    for tokens in documents:
        yield from packer.add(tokens)
    if keep_last:
        yield from packer.finish()
