"""Who gets index i, for ever, at fixed shares: a binary tree of roundings, exact in constant time and memory, and its inverse.

Of the first n indices of a node, its left branch of share p gets n p rounded to the nearest whole number, its right branch the rest.
So a node's count is off by at most 1/2 for its own rounding and by its share of what its parent is off, and leaf k by at most
w_k / 2 (1/w_k + 1/w_parent + 1/w_grandparent + ...), the root left out. The surprise: this depends on the tree, so the tree is searched
for; one within 1 exists for most weights, though not for all. Weights are rounded to 2^-31, which makes the arithmetic exact in int64 for
any index below 2^62 (q num + floor(r num / den) with r, num, den <= 2^31).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np

WHOLE = 1 << 31  # the integer that stands for weight 1
EXACT = 11  # among so many branches the best tree is searched for, in 3^10 steps; of more, pairs are joined first
HALVINGS = 6  # of the interval in which the least bound lies, where it is above 1

Branches: TypeAlias = "int | tuple[Branches, Branches]"


@dataclass(frozen=True, slots=True)
class _Share:
    """What one branch of a node gets of the node's first n indices: floor((n part + rounding) / whole)."""

    part: int
    whole: int
    rounding: int

    def split(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many indices below `index` go here, and whether it does itself."""
        whole, rest = np.divmod(index, self.whole)
        count, rest = np.divmod(rest * self.part + self.rounding, self.whole)
        return whole * self.part + count, rest + self.part >= self.whole

    def index_of(self, n: np.ndarray) -> np.ndarray:
        """The node's index that is the n-th, from 0, to go here: the least i with (i + 1) part + rounding >= (n + 1) whole."""
        whole, rest = np.divmod(n + 1, self.part)
        return whole * self.whole - (self.rounding - rest * self.whole) // self.part - 1


@dataclass(frozen=True, slots=True)
class _Node:
    """The shares of its two branches and the branches, of which those that are an int are leaves."""

    shares: tuple[_Share, _Share]
    branches: tuple[_Node | int, _Node | int]


class Tree:
    """Leaves 0, 1, ... with the given weights > 0. `parts`: these of WHOLE; `bound`: of any |count - n part / WHOLE|."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.parts = _integer_weights(weights)
        branches = _searched(self.parts)
        self.bound = _bound(branches, self.parts)
        self._root = _node(branches, self.parts)
        self._paths = dict(_paths(self._root))

    def locate(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each index, int64 (n,): its leaf, and how many indices before it have the same one."""
        leaf, local = np.empty_like(index), np.empty_like(index)
        for k, place, own in _walk(self._root, np.arange(len(index)), index):
            leaf[place], local[place] = k, own
        return leaf, local

    def index_of(self, leaf: int, local: np.ndarray) -> np.ndarray:
        """The inverse of `locate`, for one leaf."""
        for share in self._paths[leaf]:
            local = share.index_of(local)
        return local

    def counts(self, n: int) -> list[int]:
        """How many of the first n indices each leaf gets."""
        found = np.full(len(self.parts), n, np.int64)
        for leaf, path in self._paths.items():
            for share in reversed(path):
                found[leaf] = share.split(found[leaf])[0]
        return found.tolist()


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


def _searched(parts: Sequence[int]) -> Branches:
    """A tree of bound at most 1 where the search knows one, else of the least bound it finds."""
    found = _best(parts, 1.0)
    low, high = 1.0, _bound(found, parts)
    for _ in range(HALVINGS if high > 1 else 0):
        limit = (low + high) / 2
        other = _best(parts, limit)
        if _bound(other, parts) <= limit:
            found, high = other, limit
        else:
            low = limit
    return found


def _best(parts: Sequence[int], limit: float) -> Branches:
    """The tree that keeps most room under `limit`; within it if any tree is, where there are at most EXACT leaves.

    A branch's room is what 1/w_parent + 1/w_grandparent + ... may be, for all leaves in it to stay within the limit.
    """
    weights: list[int] = list(parts)
    rooms = [(2 * limit - 1) / weight for weight in weights]
    branches: list[Branches] = list(range(len(parts)))
    while len(weights) > EXACT:
        pairs = combinations(range(len(weights)), 2)
        a, b = max(pairs, key=lambda pair: min(rooms[pair[0]], rooms[pair[1]]) - 1 / (weights[pair[0]] + weights[pair[1]]))
        whole = weights[a] + weights[b]
        rooms[a], weights[a], branches[a] = min(rooms[a], rooms[b]) - 1 / whole, whole, (branches[a], branches[b])
        del rooms[b], weights[b], branches[b]
    return _exact(weights, rooms, branches)


def _exact(weights: Sequence[int], rooms: Sequence[float], branches: Sequence[Branches]) -> Branches:
    """Every set of branches, as bits, from the smallest on: its best tree joins the best ones of two sets that make it up."""
    n_sets = 1 << len(weights)
    weight, room, cut = [0] * n_sets, [0.0] * n_sets, [0] * n_sets
    for whole in range(1, n_sets):
        first = whole & -whole
        rest = other = whole ^ first
        weight[whole] = weight[rest] + weights[first.bit_length() - 1]
        if not rest:
            room[whole] = rooms[first.bit_length() - 1]
            continue
        best = -np.inf
        while other:  # every set of the rest but the empty one
            least = min(room[other], room[whole ^ other])
            if least > best:
                best, cut[whole] = least, other
            other = (other - 1) & rest
        room[whole] = best - 1 / weight[whole]

    def joined(whole: int) -> Branches:
        other = cut[whole]
        return (joined(whole ^ other), joined(other)) if other else branches[whole.bit_length() - 1]

    return joined(n_sets - 1)


def _weight(branches: Branches, parts: Sequence[int]) -> int:
    return parts[branches] if isinstance(branches, int) else _weight(branches[0], parts) + _weight(branches[1], parts)


def _bound(branches: Branches, parts: Sequence[int], above: float | None = None) -> float:
    """`above`: 1/w_parent + ... without the root; None of the root itself, whose count is never off."""
    if isinstance(branches, int):
        return 0.0 if above is None else (1 + above * parts[branches]) / 2
    here = 0.0 if above is None else above + 1 / _weight(branches, parts)
    return max(_bound(branch, parts, here) for branch in branches)


def _node(branches: Branches, parts: Sequence[int]) -> _Node | int:
    if isinstance(branches, int):
        return branches
    left, right = branches
    one, other = _weight(left, parts), _weight(right, parts)
    half = (one + other) // 2
    shares = _Share(one, one + other, half), _Share(other, one + other, one + other - 1 - half)
    return _Node(shares, (_node(left, parts), _node(right, parts)))


def _paths(node: _Node | int) -> Iterator[tuple[int, list[_Share]]]:
    """Each leaf with the shares on its way up."""
    if isinstance(node, int):
        yield node, []
        return
    for share, branch in zip(node.shares, node.branches, strict=True):
        for leaf, path in _paths(branch):
            yield leaf, [*path, share]


def _walk(node: _Node | int, place: np.ndarray, index: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(leaf, places in the batch, indices within the leaf) of every leaf that the indices reach."""
    if isinstance(node, int):
        yield node, place, index
        return
    before, left = node.shares[0].split(index)
    if left.any():
        yield from _walk(node.branches[0], place[left], before[left])
    if not left.all():
        yield from _walk(node.branches[1], place[~left], (index - before)[~left])
