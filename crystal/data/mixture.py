"""The mixture: a pure function from the global sample index to (stream, epoch, row) and its inverse, in constant memory.

Which stream a sample is of is decided by a tree (`tree.py`), whose counts are within `bound` samples of the weights at every
prefix; which row, by a keyed permutation for each epoch (`permute.py`). The surprise: weights may change at a sample, and nothing before it
moves: the tree begins anew there, while each stream goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crystal.config import UserError
from crystal.data.permute import key_of, permute, position_of
from crystal.data.tree import Tree

WEIGHT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Stream:
    """A named sequence of rows; `weight` is its share of the samples."""

    name: str
    n_rows: int
    weight: float


@dataclass(frozen=True, slots=True)
class _Phase:
    """From the sample `first` on, the tree's leaf j is stream `numbers[j]`, of which `before[number]` samples came before."""

    first: int
    tree: Tree
    numbers: np.ndarray
    before: np.ndarray

    def counts(self, end: int) -> np.ndarray:
        """How many of the samples below `end` each stream gives, int64 (streams,)."""
        counts = self.before.copy()
        counts[self.numbers] += self.tree.counts(end - self.first)
        return counts


class Mixture:
    """`locate` says which row of which stream a sample is; every epoch of a stream is one permutation of its rows.

    `changes`: (first sample, streams from there on), in order. `streams` are then all that occur, each once by its name, with the weight
    it first had.
    """

    def __init__(self, streams: Sequence[Stream], *, seed: int, changes: Sequence[tuple[int, Sequence[Stream]]] = ()) -> None:
        mixtures, by_name = [(0, streams), *changes], dict[str, Stream]()
        for _, some in mixtures:
            check_weights({stream.name: stream.weight for stream in some})
            assert len({stream.name for stream in some}) == len(some), "a stream's name keys its order"
            for stream in some:
                if stream.n_rows < 1:
                    raise UserError(f"the stream {stream.name} has no rows; expected at least one; leave it out of the mixture")
                assert by_name.setdefault(stream.name, stream).n_rows == stream.n_rows, "a stream keeps its rows"
        self.streams = tuple(by_name.values())
        numbers = {name: number for number, name in enumerate(by_name)}
        self._n_rows = np.array([stream.n_rows for stream in self.streams], np.int64)
        self._keys = np.array([key_of("rows", seed, stream.name) for stream in self.streams], np.uint64)
        self._phases: list[_Phase] = []
        before = np.zeros(len(self.streams), np.int64)
        for first, some in mixtures:
            before = self._phases[-1].counts(first) if self._phases else before
            own = np.array([numbers[stream.name] for stream in some], np.int64)
            self._phases.append(_Phase(first, Tree([stream.weight for stream in some]), own, before))
        self._firsts = np.array([phase.first for phase in self._phases], np.int64)
        assert (np.diff(self._firsts) > 0).all(), "changes come in order, after sample 0"

    @property
    def bound(self) -> float:
        """Counted from a change on, every stream has its share of the samples to within so many, wherever one stops."""
        return max(phase.tree.bound for phase in self._phases)

    def locate(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For global sample indices (n,): stream number, epoch, row in the stream, each int64 (n,)."""
        index = np.asarray(index, dtype=np.int64)
        stream, local = np.empty_like(index), np.empty_like(index)
        phase_of = np.searchsorted(self._firsts, index, side="right") - 1
        for number, phase in enumerate(self._phases):
            here = np.flatnonzero(phase_of == number)
            if len(here):
                leaf, before = phase.tree.locate(index[here] - phase.first)
                stream[here] = phase.numbers[leaf]
                local[here] = before + phase.before[stream[here]]
        n_rows = self._n_rows[stream]
        epoch, position = np.divmod(local, n_rows)
        return stream, epoch, permute(position, n_rows, keys=self._keys[stream], epochs=epoch)

    def index_of(self, stream: int, epoch: np.ndarray, row: np.ndarray) -> np.ndarray:
        """The inverse of `locate`: the global sample indices (n,) of a stream's rows (n,); -1 for what changes leave out for good."""
        epoch, row = (np.asarray(values, dtype=np.int64) for values in (epoch, row))
        n_rows = np.full_like(row, self._n_rows[stream])
        local = epoch * n_rows + position_of(row, n_rows, keys=np.full(len(row), self._keys[stream]), epochs=epoch)
        index = np.full_like(local, -1)
        for number, phase in enumerate(self._phases):
            leaf = np.flatnonzero(phase.numbers == stream)
            if not len(leaf):
                continue
            last = number == len(self._phases) - 1
            end = np.inf if last else self._phases[number + 1].before[stream]
            here = (local >= phase.before[stream]) & (local < end)
            index[here] = phase.first + phase.tree.index_of(int(leaf[0]), local[here] - phase.before[stream])
        return index

    def samples(self, n: int) -> dict[str, int]:
        """How many of the first n samples each stream gives."""
        phase = self._phases[int(np.searchsorted(self._firsts, n, side="right")) - 1]
        return dict(zip((stream.name for stream in self.streams), phase.counts(n).tolist(), strict=True))

    def epochs(self, n: int) -> dict[str, float]:
        """How many times the first n samples go through each stream."""
        counts = self.samples(n)
        return {stream.name: counts[stream.name] / stream.n_rows for stream in self.streams}


def check_weights(weights: dict[str, float]) -> None:
    """UserError unless every weight is positive and they sum to 1 within WEIGHT_TOLERANCE."""
    for name, weight in weights.items():
        if not weight > 0:
            raise UserError(f"the mixture's weight of {name} is {weight}; expected more than 0; leave the entry out instead")
    total = sum(weights.values())
    if not abs(total - 1) <= WEIGHT_TOLERANCE:
        raise UserError(f"the mixture's weights sum to {total:.6g}; expected 1; mend the weights of {', '.join(weights)}")
