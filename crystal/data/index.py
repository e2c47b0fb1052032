"""The index of a part: which pieces of which documents its rows are made of, and which rows a document is in.

The surprise: it is never read whole. Rows ask for their own few pieces, and a document is found through fences, so a corpus of 10^9 rows
answers as fast as a small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crystal.data.npy import NpyWriter
from crystal.data.pack import PIECE, Plan

FENCE_PIECES = 1 << 16
FENCE = np.dtype([("low_file", "<u4"), ("low_place", "<u8"), ("high_file", "<u4"), ("high_place", "<u8"), ("row", "<i8")])
INDEX = {"pieces": PIECE, "row_pieces": np.dtype("<i8"), "fences": FENCE}  # of a part, beside its shards


class Index(NamedTuple):
    """What the rows of a part are made of; see `IndexWriter`."""

    pieces: np.ndarray
    row_pieces: np.ndarray
    fences: np.ndarray


class IndexWriter:
    """Plans of rows -> the three files of an `Index` in a folder.

    pieces: PIECE (m,); row_pieces: int64 (n + 1,), row r has pieces[row_pieces[r] : row_pieces[r + 1]]; fences: for each FENCE_PIECES
    of the pieces the first and the last document among them and the row of the first, so that a document is found without a search of all.
    """

    def __init__(self, folder: Path) -> None:
        self._writers = {name: NpyWriter(folder / f"{name}.npy", (), dtype) for name, dtype in INDEX.items()}
        self._writers["row_pieces"].append(np.zeros(1, np.int64))
        self._waiting, self._rows = np.empty(0, PIECE), np.empty(0, np.int64)  # pieces behind the last fence and their rows
        self.n_rows = 0

    def append(self, plan: Plan) -> None:
        """Add finished rows."""
        n_pieces = self._writers["pieces"].n
        self._writers["pieces"].append(plan.pieces)
        self._writers["row_pieces"].append(n_pieces + np.cumsum(plan.counts))
        self._waiting = np.concatenate([self._waiting, plan.pieces])
        self._rows = np.concatenate([self._rows, np.repeat(self.n_rows + np.arange(len(plan.counts)), plan.counts)])
        self.n_rows += len(plan.counts)
        while len(self._waiting) >= FENCE_PIECES:
            self._fence()

    def close(self) -> dict[str, dict[str, Any]]:
        """The three files' entries for the manifest."""
        while len(self._waiting):
            self._fence()
        return {name: writer.close() for name, writer in self._writers.items()}

    def _fence(self) -> None:
        pieces, self._waiting = np.split(self._waiting, [FENCE_PIECES])
        rows, self._rows = np.split(self._rows, [FENCE_PIECES])
        order = np.lexsort((pieces["place"], pieces["file"]))
        low, high = pieces[order[0]], pieces[order[-1]]
        fence = np.array([(low["file"], low["place"], high["file"], high["place"], rows[0])], FENCE)
        self._writers["fences"].append(fence)


class PieceView:
    """Which pieces of documents rows are made of; rows are numbered as in the `RowView` of the same parts."""

    def __init__(self, parts: Sequence[tuple[Index, int, int]]) -> None:
        """`parts`: each part's index and the rows [start, end) of it."""
        self._parts = list(parts)
        self._ends = np.cumsum([end - start for _, start, end in parts], dtype=np.int64)

    def __getitem__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pieces of rows (n,), one behind the other, and int64 (n,): how many each row has."""
        indices = np.asarray(indices, dtype=np.int64)
        part_of = np.searchsorted(self._ends, indices, side="right")
        firsts, counts = np.empty_like(indices), np.empty_like(indices)
        for k in np.unique(part_of).tolist():
            here = part_of == k
            index, start, end = self._parts[k]
            rows = indices[here] - (self._ends[k] - (end - start)) + start
            firsts[here] = index.row_pieces[rows]
            counts[here] = index.row_pieces[rows + 1] - firsts[here]
        flat = np.repeat(firsts - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))
        found, part_of = np.empty(len(flat), PIECE), np.repeat(part_of, counts)
        for k in np.unique(part_of).tolist():
            found[part_of == k] = self._parts[k][0].pieces[flat[part_of == k]]
        return found, counts

    def rows_of(self, file: int, place: int) -> np.ndarray:
        """The rows, int64 in order, that hold any of the document at `place` of input file `file`."""
        found = [np.empty(0, np.int64)]
        for (index, start, end), until in zip(self._parts, self._ends.tolist(), strict=True):
            rows = np.array(sorted(_rows_of(index, file, place)), np.int64)
            found.append(rows[(rows >= start) & (rows < end)] - end + until)
        return np.concatenate(found)


def _rows_of(index: Index, file: int, place: int) -> set[int]:
    fences, found = index.fences, set()
    low = (fences["low_file"] < file) | ((fences["low_file"] == file) & (fences["low_place"] <= place))
    high = (fences["high_file"] > file) | ((fences["high_file"] == file) & (fences["high_place"] >= place))
    for k in np.flatnonzero(low & high).tolist():
        pieces = index.pieces[k * FENCE_PIECES : (k + 1) * FENCE_PIECES]
        numbers = k * FENCE_PIECES + np.flatnonzero((pieces["file"] == file) & (pieces["place"] == place))
        first = int(fences["row"][k])
        starts = index.row_pieces[first : first + len(pieces) + 1]  # a row has at least one piece
        found |= set((first + np.searchsorted(starts, numbers, side="right") - 1).tolist())
    return found
