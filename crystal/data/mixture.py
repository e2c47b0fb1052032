"""The mixture: a pure function from the global sample index to (stream, epoch, row), in constant memory.

A binary tree splits the indices: a node whose left branch has weight p sends index i left iff floor((i + 1) p) >
floor(i p), and of the first i indices exactly floor(i p) went left. So every prefix has every stream's share to within
`Mixture.bound` samples. The surprise: weights are rounded to 2^-31, which makes the arithmetic exact in int64 for any
index below 2^62 (q num + floor(r num / den) with r, num, den <= 2^31).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crystal.config import UserError
from crystal.data.permute import key_of, permute

WHOLE = 1 << 31  # the integer that stands for weight 1
WEIGHT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Stream:
    """A named sequence of rows; `weight` is its share of the samples."""

    name: str
    n_rows: int
    weight: float


@dataclass(frozen=True, slots=True)
class _Node:
    """`left` gets `left_weight` / `weight` of the node's indices; a branch that is an int is a stream."""

    left: _Node | int
    right: _Node | int
    left_weight: int
    weight: int

    def left_of(self, n: np.ndarray) -> np.ndarray:
        """How many of the first n indices go left: floor(n p), exactly."""
        whole, rest = np.divmod(n, self.weight)
        return whole * self.left_weight + rest * self.left_weight // self.weight


class Mixture:
    """`locate` says which row of which stream a sample is; every epoch of a stream is one permutation of its rows."""

    def __init__(self, streams: Sequence[Stream], *, seed: int) -> None:
        check_weights({stream.name: stream.weight for stream in streams})
        assert len({stream.name for stream in streams}) == len(streams), "a stream's name keys its order"
        for stream in streams:
            if stream.n_rows < 1:
                raise UserError(f"the stream {stream.name} has no rows; expected at least one; leave it out of the mixture")
        self.streams = tuple(streams)
        self.parts = _integer_weights([stream.weight for stream in streams])  # of WHOLE
        self._keys = [key_of("rows", seed, stream.name) for stream in streams]
        self._root = _oriented(_tree(self.parts))
        self.bound = _bound(self._root)

    def locate(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For global sample indices (n,): stream number, epoch, row in the stream, each int64 (n,)."""
        index = np.asarray(index, dtype=np.int64)
        stream, epoch, row = (np.empty_like(index) for _ in range(3))
        for k, place, local in _walk(self._root, np.arange(len(index)), index):
            n_rows = self.streams[k].n_rows
            stream[place] = k
            epoch[place], position = np.divmod(local, n_rows)
            row[place] = permute(position, n_rows, key=self._keys[k], epochs=epoch[place])
        return stream, epoch, row

    def samples(self, n: int) -> dict[str, int]:
        """How many of the first n samples each stream gives: within `bound` of n * parts / WHOLE."""
        counts = dict(_counts(self._root, n))
        return {stream.name: counts[k] for k, stream in enumerate(self.streams)}

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


def _integer_weights(weights: Sequence[float]) -> list[int]:
    """Integers >= 1 that sum to WHOLE, by largest remainder."""
    total = sum(weights)
    exact = [weight / total * WHOLE for weight in weights]
    parts = [max(1, int(value)) for value in exact]
    by_remainder = sorted(range(len(parts)), key=lambda k: (parts[k] - exact[k], k))
    missing = WHOLE - sum(parts)
    for k in by_remainder[: max(0, missing)]:
        parts[k] += 1
    parts[int(np.argmax(parts))] += WHOLE - sum(parts)
    return parts


def _tree(weights: Sequence[int]) -> _Node | int:
    """Huffman's tree: heavy streams near the root, where the deviations are small."""
    heap: list[tuple[int, int, _Node | int]] = [(weight, k, k) for k, weight in enumerate(weights)]
    heapq.heapify(heap)
    order = len(heap)
    while len(heap) > 1:
        light, _, right = heapq.heappop(heap)
        heavy, _, left = heapq.heappop(heap)
        heapq.heappush(heap, (light + heavy, order, _Node(left, right, heavy, light + heavy)))
        order += 1
    return heap[0][2]


def _oriented(node: _Node | int, low: float = 0.0, high: float = 0.0) -> _Node | int:
    """The tree with branches swapped where that keeps a heavy branch's deviations (see `_bound`) on both sides of 0."""
    if isinstance(node, int):
        return node
    left, right, weight = node.left, node.right, node.left_weight
    if -low > high:
        left, right, weight = right, left, node.weight - weight
    p = weight / node.weight
    left = _oriented(left, p * low - 1, p * high)
    return _Node(left, _oriented(right, (1 - p) * low, (1 - p) * high + 1), weight, node.weight)


def _walk(node: _Node | int, place: np.ndarray, index: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(stream, places in the batch, indices within the stream) of every stream that the indices reach."""
    if isinstance(node, int):
        return [(node, place, index)]
    before = node.left_of(index)
    left = node.left_of(index + 1) > before
    found = []
    if left.any():
        found += _walk(node.left, place[left], before[left])
    if not left.all():
        found += _walk(node.right, place[~left], (index - before)[~left])
    return found


def _counts(node: _Node | int, n: int) -> list[tuple[int, int]]:
    if isinstance(node, int):
        return [(node, n)]
    left = n * node.left_weight // node.weight
    return _counts(node.left, left) + _counts(node.right, n - left)


def _bound(node: _Node | int, low: float = 0.0, high: float = 0.0) -> float:
    """The largest |count - n weight| that can occur, by intervals down the tree.

    If a node's count is off by e in [low, high], its left branch is off by p e - f and its right branch by
    (1 - p) e + f, with one f in [0, 1) for the rounding of the node itself.
    """
    if isinstance(node, int):
        return max(-low, high)
    p = node.left_weight / node.weight
    return max(_bound(node.left, p * low - 1, p * high), _bound(node.right, (1 - p) * low, (1 - p) * high + 1))
