from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystal.config import UserError
from crystal.data.mixture import Mixture, Stream
from crystal.data.permute import permute, position_of

weights = st.lists(st.floats(1e-4, 1), min_size=1, max_size=6)


def streams(values, n_rows=7, first=0):
    total = sum(values)
    return [Stream(f"s{k}", n_rows + k, value / total) for k, value in enumerate(values, start=first)]


def mixture(values, n_rows=7, seed=0):
    return Mixture(streams(values, n_rows), seed=seed)


def indices(mix, stream, epoch, row):
    """`index_of` of what `locate` gave."""
    found = np.full_like(row, -2)
    for k in range(len(mix.streams)):
        found[stream == k] = mix.index_of(k, epoch[stream == k], row[stream == k])
    return found


@given(weights, st.integers(0, 2**40))
def test_index_of_is_the_inverse(values, start):
    mix, index = mixture(values), np.arange(start, start + 50)
    located = mix.locate(index)
    np.testing.assert_array_equal(indices(mix, *located), index)
    assert (located[1] >= 0).all()


@given(weights, st.integers(0, 10**9), st.integers(0, 6), st.integers(0, 5))
def test_locate_is_the_inverse_of_index_of(values, epoch, row, k):
    mix, k = mixture(values), k % len(values)
    index = mix.index_of(k, np.array([epoch]), np.array([row]))
    assert [values.tolist() for values in mix.locate(index)] == [[k], [epoch], [row]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 1000))
def test_any_batch_split_gives_the_same(cuts, start):
    mix = mixture([0.5, 0.3, 0.2])
    whole = np.stack(mix.locate(np.arange(start, start + sum(cuts))))
    pieces, at = [], start
    for cut in cuts:
        pieces.append(np.stack(mix.locate(np.arange(at, at + cut))))
        at += cut
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


@given(weights, st.lists(st.tuples(st.integers(1, 300), st.integers(0, 6), weights), max_size=3))
def test_a_change_moves_nothing_before_it_and_streams_go_on(values, later):
    first, changes = 0, []
    for gap, number, some in later:
        first += gap
        changes.append((first, streams(some, first=number)))
    mix, n = Mixture(streams(values), seed=3, changes=changes), first + 300
    stream, epoch, row = mix.locate(np.arange(n))
    for k in range(len(changes)):  # what the mixture was without this change and those behind it
        end = changes[k][0]
        without = Mixture(streams(values), seed=3, changes=changes[:k])
        np.testing.assert_array_equal(np.stack(without.locate(np.arange(end))), np.stack((stream, epoch, row))[:, :end])
    for k, own in enumerate(mix.streams):  # every stream reads the rows of its epochs in the order it has when it is alone
        here = stream == k
        _, epochs, rows = Mixture([Stream(own.name, own.n_rows, 1.0)], seed=3).locate(np.arange(here.sum()))
        np.testing.assert_array_equal(epoch[here], epochs)
        np.testing.assert_array_equal(row[here], rows)
    np.testing.assert_array_equal(indices(mix, stream, epoch, row), np.arange(n))
    assert list(mix.samples(n).values()) == np.bincount(stream, minlength=len(mix.streams)).tolist()
    for begin, some in [(0, streams(values)), *changes]:  # from each change on, the shares are met anew
        end = min([first for first, _ in changes if first > begin], default=n)
        for own in some:
            number = [stream.name for stream in mix.streams].index(own.name)
            off = np.cumsum(stream[begin:end] == number) - np.arange(1, end - begin + 1) * own.weight
            assert np.abs(off).max() <= mix.bound + 1e-5


def test_a_stream_that_a_change_leaves_out_is_never_reached_again():
    mix = Mixture([Stream("a", 10, 0.5), Stream("b", 10, 0.5)], seed=0, changes=[(100, [Stream("b", 10, 1.0)])])
    assert mix.samples(1000) == {"a": 50, "b": 950} and mix.epochs(1000) == {"a": 5.0, "b": 95.0}
    assert mix.index_of(0, np.array([4]), np.array([3]))[0] < 100
    assert mix.index_of(0, np.array([5]), np.array([3])).tolist() == [-1]


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**64 - 1), st.integers(0, 1000))
def test_permutation(n, key, epoch):
    own = {"keys": np.full(n, key, np.uint64), "epochs": np.full(n, epoch)}
    image = permute(np.arange(n), np.full(n, n), **own)
    np.testing.assert_array_equal(np.sort(image), np.arange(n))
    np.testing.assert_array_equal(position_of(image, np.full(n, n), **own), np.arange(n))


@given(st.lists(st.tuples(st.integers(1, 2**50), st.integers(0, 2**64 - 1), st.integers(0, 2**40)), min_size=1, max_size=20))
def test_permutations_of_many_sizes_at_once(cases):
    n, keys, epochs = (
        np.array(column, dtype) for column, dtype in zip(zip(*cases, strict=True), (np.int64, np.uint64, np.int64), strict=True)
    )
    positions = (keys % n.astype(np.uint64)).astype(np.int64)
    image = permute(positions, n, keys=keys, epochs=epochs)
    assert ((image >= 0) & (image < n)).all()
    np.testing.assert_array_equal(position_of(image, n, keys=keys, epochs=epochs), positions)


def test_every_order_of_four_comes_up_equally_often():
    n, keys = 4, np.arange(24_000, dtype=np.uint64).repeat(4)
    image = permute(np.tile(np.arange(n), 24_000), np.full(len(keys), n), keys=keys, epochs=np.zeros(len(keys), np.int64))
    orders, counts = np.unique(image.reshape(-1, n), axis=0, return_counts=True)
    assert len(orders) == 24 and abs(counts - 1000).max() < 250


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
    assert stream.tolist() == [0, 0, 1, 0, 0, 0, 1, 0]
    assert epoch.tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    assert row.tolist() == [1, 2, 47, 0, 3, 4, 5, 1]


@pytest.mark.parametrize(("values", "expected"), [((0.5, 0.4), "sum to 0.9"), ((1.2, -0.2), "-0.2"), ((1.0, 0.0), "0.0")])
def test_bad_weights_are_refused(values, expected):
    with pytest.raises(UserError, match=expected):
        Mixture([Stream(f"s{k}", 5, value) for k, value in enumerate(values)], seed=0)


def test_weights_near_one_are_normalised():
    mix = Mixture([Stream("a", 5, 0.5002), Stream("b", 5, 0.5002)], seed=0)
    assert mix.samples(1000) == {"a": 500, "b": 500}


def test_empty_stream_is_refused():
    with pytest.raises(UserError, match="no rows"):
        Mixture([Stream("a", 0, 1.0)], seed=0)
