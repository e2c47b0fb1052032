from __future__ import annotations

import numpy as np
import pytest

from crystal.data.ngram import ngram_losses

V, PAD = 6, 5


def losses(train, valid, limit=10**6):
    return ngram_losses([np.array(train)], [np.array(valid)], vocab_size=V, pad_id=PAD, max_train_tokens=limit)


def test_unigram_by_hand():
    result = losses([[0, 1, 1, 2]], [[0, 1, 3]])
    # Labels 1, 1, 2 of six ids: add-one gives 3/9 to 1 and 1/9 to 3.
    assert result["unigram"]["loss"] == pytest.approx(-(np.log(3 / 9) + np.log(1 / 9)) / 2)
    assert (result["train_tokens"], result["valid_tokens"]) == (3, 2)


@pytest.mark.parametrize("previous", range(V))
def test_probabilities_sum_to_one_behind_every_token(previous):
    train = np.random.default_rng(0).integers(0, V - 2, (3, 20))  # ids 4 and 5 are never seen
    for kind in ("unigram", "bigram"):
        total = 0.0
        for label in range(V):
            result = ngram_losses([train], [np.array([[previous, label]])], vocab_size=V, pad_id=-1, max_train_tokens=999)
            total += np.exp(-result[kind]["loss"])
        assert total == pytest.approx(1)


def test_padding_is_neither_counted_nor_scored():
    padded = losses([[0, 1, 2, PAD, PAD]], [[1, 2, PAD]])
    assert padded == losses([[0, 1, 2]], [[1, 2]])


def test_bigram_beats_unigram_where_there_is_order_and_not_by_much_where_there_is_none():
    rng = np.random.default_rng(0)
    ordered = np.tile(np.arange(5), 200).reshape(10, 100)
    result = losses(ordered[:8], ordered[8:])
    assert result["bigram"]["loss"] < 0.1 < result["unigram"]["loss"]
    noise = rng.integers(0, 5, (20, 500))
    result = losses(noise[:15], noise[15:])
    assert result["bigram"]["loss"] == pytest.approx(np.log(5), rel=0.01)


def test_limit_and_nothing_to_score():
    rows = np.zeros((3000, 5), int)
    assert losses(rows, rows[:1], limit=7)["train_tokens"] == 7
    assert losses(rows, np.empty((0, 5), int))["bigram"]["loss"] is None
