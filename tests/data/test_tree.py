from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from crystal.data.tree import EXACT, WHOLE, Tree

CONF = Path(__file__).parents[2] / "conf"
weights = st.lists(st.floats(1e-4, 1), min_size=1, max_size=8)


def published(stage: str) -> list[float]:
    mixture = yaml.safe_load((CONF / "stage" / f"{stage}.yaml").read_text())[stage]["mixture"]
    return [entry["weight"] for entry in mixture.values()]


def counted(leaf: np.ndarray, n_leaves: int) -> np.ndarray:
    """(n, leaves): how many of the first 1, 2, ... n indices each leaf has."""
    return np.cumsum(leaf[:, None] == np.arange(n_leaves), axis=0)


@given(weights)
def test_every_prefix_is_within_the_bound(values):
    tree, n = Tree(values), 3000
    leaf, local = tree.locate(np.arange(n))
    assert sum(tree.parts) == WHOLE and min(tree.parts) >= 1
    counts = counted(leaf, len(values))
    off = counts - np.arange(1, n + 1)[:, None] * (np.array(tree.parts) / WHOLE)
    assert np.abs(off).max() <= tree.bound + 1e-6
    assert tree.counts(n) == counts[-1].tolist()
    np.testing.assert_array_equal(local, counts[np.arange(n), leaf] - 1)


@given(weights, st.integers(0, 2**40))
def test_far_indices_are_exact(values, start):
    tree, index = Tree(values), np.arange(start, start + 50)
    leaf, local = tree.locate(index)
    before, after = tree.counts(start), tree.counts(start + 50)
    for k, part in enumerate(tree.parts):
        assert local[leaf == k].tolist() == list(range(before[k], after[k]))
        assert abs(after[k] * WHOLE - (start + 50) * part) <= (tree.bound + 1e-6) * WHOLE
        np.testing.assert_array_equal(tree.index_of(k, local[leaf == k]), index[leaf == k])


@given(weights, st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(0, 7))
def test_the_inverse_of_the_inverse(values, locals_, leaf):
    tree, leaf = Tree(values), leaf % len(values)
    found, local = tree.locate(tree.index_of(leaf, np.array(locals_)))
    assert (found == leaf).all() and local.tolist() == locals_


@pytest.mark.parametrize("stage", "123")
def test_the_published_mixtures_are_met_within_one_row_at_every_prefix(stage):
    values = published(stage)
    tree, n = Tree(values), 100_000
    assert tree.bound <= 1
    off = counted(tree.locate(np.arange(n))[0], len(values)) - np.arange(1, n + 1)[:, None] * np.array(values)
    assert np.abs(off).max() <= 1


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(1e-4, 1), min_size=EXACT, max_size=24))
def test_many_leaves(values):
    tree = Tree(values)
    assert tree.bound < 1.2
    leaf, _ = tree.locate(np.arange(5000))
    off = np.bincount(leaf, minlength=len(values)) - 5000 * np.array(tree.parts) / WHOLE
    assert np.abs(off).max() <= tree.bound


def test_the_search_finds_the_tree_within_one():
    """Joining the two lightest again and again (Huffman) has 1.25 here: w/2 (1/w + 1/(w + tiny) + 1/(2w))."""
    assert Tree([0.4, 0.3, 0.299, 0.001]).bound < 1


def test_not_every_mixture_can_be_met_within_one():
    assert 1 < Tree([0.91347, 0.0435, 0.02277, 0.00601, 0.00438, 0.00354, 0.00319, 0.00257, 0.00057]).bound < 1.05
