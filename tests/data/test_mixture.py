from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystal.config import UserError
from crystal.data.mixture import WHOLE, Mixture, Stream
from crystal.data.permute import permute

weights = st.lists(st.floats(1e-4, 1), min_size=1, max_size=13)


def mixture(values, n_rows=7, seed=0):
    total = sum(values)
    return Mixture([Stream(f"s{k}", n_rows, value / total) for k, value in enumerate(values)], seed=seed)


@given(weights)
def test_every_prefix_is_within_the_bound_and_the_bound_below_two(values):
    mix = mixture(values)
    stream, _, _ = mix.locate(np.arange(3000))
    assert sum(mix.parts) == WHOLE
    assert mix.bound < 2
    n = np.arange(1, 3001)
    for k, part in enumerate(mix.parts):
        off = np.cumsum(stream == k) - n * (part / WHOLE)
        assert np.abs(off).max() <= mix.bound + 1e-6
    counts = mix.samples(3000)
    assert [counts[f"s{k}"] for k in range(len(values))] == np.bincount(stream, minlength=len(values)).tolist()


@given(weights, st.integers(0, 2**40))
def test_far_indices_are_exact(values, start):
    mix = mixture(values)
    stream, epoch, row = mix.locate(np.arange(start, start + 50))
    before, after = mix.samples(start), mix.samples(start + 50)
    for k in range(len(values)):
        assert (stream == k).sum() == after[f"s{k}"] - before[f"s{k}"]
        exact = (start + 50) * mix.parts[k] / WHOLE
        assert abs(after[f"s{k}"] - exact) <= mix.bound + 1e-3
    assert (epoch >= 0).all() and ((row >= 0) & (row < 7)).all()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 1000))
def test_any_batch_split_gives_the_same(cuts, start):
    mix = mixture([0.5, 0.3, 0.2])
    whole = np.stack(mix.locate(np.arange(start, start + sum(cuts))))
    pieces, at = [], start
    for cut in cuts:
        pieces.append(np.stack(mix.locate(np.arange(at, at + cut))))
        at += cut
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**64 - 1), st.integers(0, 1000))
def test_permutation(n, key, epoch):
    image = permute(np.arange(n), n, key=key, epochs=np.full(n, epoch))
    np.testing.assert_array_equal(np.sort(image), np.arange(n))


def test_each_epoch_is_another_permutation():
    mix = mixture([1.0], n_rows=50)
    _, epoch, row = mix.locate(np.arange(200))
    orders = [tuple(row[epoch == e]) for e in range(4)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == 4
    assert mix.epochs(200) == {"s0": 4.0}


def test_order_is_shuffled_well_and_depends_on_the_seed():
    n = 4096
    first, second = (mixture([1.0], n_rows=n, seed=seed).locate(np.arange(n))[2] for seed in (0, 1))
    assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < 0.06
    assert (first == second).sum() < 20
    assert len(np.unique(np.diff(first))) > n / 3


def test_golden_order():
    mix = Mixture([Stream("a", 5, 0.75), Stream("b", 100, 0.25)], seed=3)
    stream, epoch, row = mix.locate(np.arange(8))
    assert stream.tolist() == [1, 0, 0, 0, 1, 0, 0, 0]
    assert epoch.tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    assert row.tolist() == [92, 4, 0, 3, 11, 1, 2, 1]


@pytest.mark.parametrize(("values", "expected"), [((0.5, 0.4), "sum to 0.9"), ((1.2, -0.2), "-0.2"), ((1.0, 0.0), "0.0")])
def test_bad_weights_are_refused(values, expected):
    with pytest.raises(UserError, match=expected):
        Mixture([Stream(f"s{k}", 5, value) for k, value in enumerate(values)], seed=0)


def test_weights_near_one_are_normalised():
    mix = Mixture([Stream("a", 5, 0.5002), Stream("b", 5, 0.5002)], seed=0)
    assert mix.parts == [WHOLE // 2, WHOLE // 2]


def test_empty_stream_is_refused():
    with pytest.raises(UserError, match="no rows"):
        Mixture([Stream("a", 0, 1.0)], seed=0)
