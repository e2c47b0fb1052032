from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from crystal.sampling import draw, uniforms

LOGITS = arrays.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from(np.float32([-200, -9, -3, -1, 0, 0.5, 1, 2, 7])))
SHARES = st.floats(0, 1, exclude_max=True).map(lambda u: math.floor(u * 2**52) * 2.0**-52)


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.15, 0.5, 0.05, 0.3]), (0.5, 1.0, [0.0616, 0.6849, 0.0068, 0.2466]), (1.0, 0.79, [0, 0.625, 0, 0.375]),
        (1.0, 0.81, [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]), (1.0, 1e-6, [0, 1, 0, 0]), (0.0, 0.5, [0, 1, 0, 0]),
    ],
)  # fmt: skip
def test_shares_of_the_unit_interval_are_the_probabilities(temperature, top_p, expected):
    n, logits = 4000, np.log(np.float32([0.15, 0.5, 0.05, 0.3]))
    tokens = [draw(logits, (i + 0.5) / n, temperature=temperature, top_p=top_p) for i in range(n)]
    assert [tokens.count(token) / n for token in range(4)] == pytest.approx(expected, abs=2 / n + 1e-4)


@given(LOGITS, SHARES, st.sampled_from([0.05, 0.2, 1.0, 3.0]), st.floats(1e-6, 1))
def test_the_token_is_of_the_nucleus_that_a_full_sort_finds(logits, u, temperature, top_p):
    p = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    before = p[order].cumsum() - p[order]
    nucleus = order[before < top_p + 1e-6]  # as far as float32 can tell
    token = draw(logits, u, temperature=temperature, top_p=top_p)
    assert token in nucleus and (p[token] > 1e-30 or top_p == 1)


@given(LOGITS)
def test_greedy_takes_the_first_of_the_likeliest_and_a_small_nucleus_too(logits):
    assert draw(logits, 0.9, temperature=0.0, top_p=0.95) == int(logits.argmax()) == draw(logits, 0.9, temperature=1.0, top_p=1e-9)


def test_equals_enter_the_nucleus_in_their_order():
    assert {draw(np.zeros(8, np.float32), i / 64, temperature=1.0, top_p=0.5) for i in range(64)} == {0, 1, 2, 3}


@pytest.mark.parametrize("top_p", [0.95, 1.0])
def test_the_ends_of_the_unit_interval_and_a_large_vocabulary(top_p):
    logits = np.random.default_rng(1).normal(size=32032).astype(np.float32) * 4
    likeliest = int(logits.argmax())
    first = draw(logits, 0.0, temperature=0.7, top_p=top_p)
    assert first == (likeliest if top_p < 1 else 0)
    assert 0 <= draw(logits, 1 - 2.0**-52, temperature=0.7, top_p=top_p) < 32032
    assert draw(np.float32([0, np.nan, 1]), 0.5, temperature=0.7, top_p=top_p) == 1, "a broken model's, but no crash"


def test_numbers_are_uniform_and_of_their_seed_and_place_alone():
    seeds, places = np.meshgrid(np.arange(200), np.arange(200))
    us = uniforms(seeds.ravel().tolist(), places.ravel().tolist())
    assert len(set(us)) == len(us) and us.min() >= 0 and us.max() < 1
    counts = np.histogram(us, 20, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 43.8  # chi-squared with 19 degrees of freedom, 99.9 %
    neighbours = us.reshape(200, 200)
    for a, b in ((neighbours[1:], neighbours[:-1]), (neighbours[:, 1:], neighbours[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02
    assert uniforms([7, -1], [3, 0]).tolist() == [uniforms([7], [3])[0], uniforms([2**64 - 1], [0])[0]]
