"""Packing: documents' lengths -> which piece of which document stands where in which row of seq_len + 1 ids.

Rows do not overlap; every document ends in EOS, no BOS. `split` concatenates and splits, as CrystalCoder; `best_fit` cuts no document that
fits into a row. Where there is room for FIM, a piece costs its tokens and 4 more (EOS and three sentinels), so that FIM never overflows and
never cuts a middle; what is left of a row is padding. The surprise: nothing here touches a token. A plan is made of lengths alone, so rows
can be filled in any order by any number of processes.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

FIM_COST = 4
GROUP_DOCUMENTS = 1 << 16  # that best_fit sorts at once

# A document of an input file, `place` its line or row there, `tokens` without EOS, `bytes` of its text.
DOCUMENT = np.dtype([("place", "<u8"), ("tokens", "<u4"), ("bytes", "<u4")])
# `length` ids of a document from `start` on, EOS included where it ends there; `file` counts the input files of all readers.
PIECE = np.dtype([("file", "<u4"), ("place", "<u8"), ("start", "<u4"), ("length", "<u4")])
PACKINGS = ("split", "best_fit")


class Plan(NamedTuple):
    """Finished rows: their pieces, PIECE (m,), one behind the other, and how many each row has, int64 (n,)."""

    pieces: np.ndarray
    counts: np.ndarray


class Packer(Protocol):
    """Push documents in, take finished rows out."""

    def add(self, file: int, documents: np.ndarray) -> Plan:
        """Take documents, DOCUMENT (n,), of one input file; the rows that they finished."""

    def finish(self) -> Plan:
        """What is left, in rows that padding ends."""


def packer(packing: str, width: int, *, fim_room: bool) -> Packer:
    """The packer of that name for rows of `width` ids."""
    assert packing in PACKINGS and width > FIM_COST, "a row must hold one token and its FIM sentinels"
    if packing == "best_fit":
        return BestFit(width, fim_room=fim_room)
    return SplitWithRoom(width) if fim_room else Split(width)


class Split:
    """Concatenate and split: a row is full, whatever the document boundaries."""

    def __init__(self, width: int) -> None:
        self._width, self._used = width, 0
        self._open = np.empty(0, PIECE)  # of the unfinished row

    def add(self, file: int, documents: np.ndarray) -> Plan:
        ends = np.cumsum(documents["tokens"].astype(np.int64) + 1) + self._used
        if not len(ends):
            return _plan(self._open[:0], np.empty(0, np.int64), 0)
        total = int(ends[-1])
        cuts = np.union1d(ends, np.arange(self._width, total + 1, self._width))
        begins = np.concatenate([[self._used], cuts[:-1]])
        of = np.searchsorted(ends, begins, side="right")
        document_begins = np.concatenate([[self._used], ends[:-1]])
        new = _pieces(file, documents["place"][of], begins - document_begins[of], cuts - begins)
        pieces = np.concatenate([self._open, new])
        rows = np.concatenate([np.zeros(len(self._open), np.int64), begins // self._width])
        whole, self._used = divmod(total, self._width)
        self._open = pieces[rows == whole]
        return _plan(pieces[rows < whole], rows[rows < whole], whole)

    def finish(self) -> Plan:
        left, self._open, self._used = self._open, self._open[:0], 0
        return _plan(left, np.zeros(len(left), np.int64), int(len(left) > 0))


class SplitWithRoom:
    """Rows with room for FIM; a document that does not fit is cut and goes on in the next row."""

    def __init__(self, width: int) -> None:
        self._width, self._room = width, width
        self._open = np.empty(0, PIECE)

    def add(self, file: int, documents: np.ndarray) -> Plan:
        room, row, found = self._room, 0, []
        for place, tokens in zip(documents["place"].tolist(), documents["tokens"].tolist(), strict=True):
            start = 0
            while tokens - start + FIM_COST > room:
                if room > FIM_COST:
                    found.append((row, place, start, room - FIM_COST))
                    start += room - FIM_COST
                row, room = row + 1, self._width
            found.append((row, place, start, tokens - start + 1))
            room -= tokens - start + FIM_COST
        self._room = room
        rows, places, starts, lengths = np.array(found, np.int64).reshape(-1, 4).T
        pieces = np.concatenate([self._open, _pieces(file, places, starts, lengths)])
        rows = np.concatenate([np.zeros(len(self._open), np.int64), rows])
        self._open = pieces[rows == row]
        return _plan(pieces[rows < row], rows[rows < row], row)

    def finish(self) -> Plan:
        left, self._open, self._room = self._open, self._open[:0], self._width
        return _plan(left, np.zeros(len(left), np.int64), int(len(left) > 0))


class BestFit:
    """Best fit decreasing over groups of documents; only what is longer than a row is cut, into whole rows and a rest."""

    def __init__(self, width: int, *, fim_room: bool) -> None:
        self._width, self._cost = width, FIM_COST if fim_room else 1
        self._cut = width - FIM_COST if fim_room else width  # tokens of a document that fill a row
        self._waiting: list[tuple[int, np.ndarray]] = []
        self._n_waiting = 0

    def add(self, file: int, documents: np.ndarray) -> Plan:
        plans = [_plan(np.empty(0, PIECE), np.empty(0, np.int64), 0)]
        while len(documents):
            taken, documents = np.split(documents, [GROUP_DOCUMENTS - self._n_waiting])
            self._waiting.append((file, taken))
            self._n_waiting += len(taken)
            if self._n_waiting == GROUP_DOCUMENTS:
                plans.append(self.finish())
        return Plan(*(np.concatenate(columns) for columns in zip(*plans, strict=True)))

    def finish(self) -> Plan:
        pieces = np.concatenate([np.empty(0, PIECE), *(self._cut_long(file, documents) for file, documents in self._waiting)])
        self._waiting, self._n_waiting = [], 0
        rows = self._placed(pieces)
        order = np.argsort(rows, kind="stable")
        return _plan(pieces[order], rows[order], int(rows.max()) + 1 if len(rows) else 0)

    def _cut_long(self, file: int, documents: np.ndarray) -> np.ndarray:
        tokens = documents["tokens"].astype(np.int64)
        wholes = np.maximum(0, -((self._width - self._cost - tokens) // self._cut))  # rows that a document fills alone
        of = np.repeat(np.arange(len(documents)), wholes + 1)
        number = np.arange(len(of)) - np.repeat(np.cumsum(wholes + 1) - wholes - 1, wholes + 1)
        starts = number * self._cut
        lengths = np.where(number < wholes[of], self._cut, tokens[of] - starts + 1)
        return _pieces(file, documents["place"][of], starts, lengths)

    def _placed(self, pieces: np.ndarray) -> np.ndarray:
        """The row of each piece: the largest first, each into the fullest row that takes it."""
        costs = pieces["length"].astype(np.int64) + self._cost - 1
        order, rows = np.argsort(-costs, kind="stable"), np.empty(len(pieces), np.int64)
        open_rows: list[list[int]] = [[] for _ in range(self._width + 1)]  # by what is left in them
        some, n_rows = 0, 0  # the bits of `some`: which of those lists are not empty
        for k, cost in zip(order.tolist(), costs[order].tolist(), strict=True):
            fitting = some >> cost
            if fitting:
                room = cost + (fitting & -fitting).bit_length() - 1
                row = open_rows[room].pop()
                some ^= (not open_rows[room]) << room
            else:
                room, row, n_rows = self._width, n_rows, n_rows + 1
            rows[k] = row
            open_rows[room - cost].append(row)
            some |= 1 << (room - cost)
        return rows


def _pieces(file: int, places: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    pieces = np.empty(len(places), PIECE)
    pieces["file"], pieces["place"], pieces["start"], pieces["length"] = file, places, starts, lengths
    return pieces


def _plan(pieces: np.ndarray, rows: np.ndarray, n_rows: int) -> Plan:
    return Plan(pieces, np.bincount(rows, minlength=n_rows))
