"""attention=document: a document in a packed row is to the model what it is alone, in logits, loss and every gradient."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crystal.model.documents import seen_within
from tests.small import random_model, small_config

CONFIG = small_config()
EOS = 2
TOLERANCE = 1e-5
ROWS = st.lists(st.sets(st.integers(0, CONFIG.seq_len - 1), max_size=6), min_size=1, max_size=3)  # where each row's EOS ids are


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


def packed(ends: list[set[int]], seed: int) -> tuple[Tensor, Tensor]:
    """ids_BT with EOS there and nowhere else, and which document each is of."""
    ids_BT = torch.randint(EOS + 1, CONFIG.vocab_size, (len(ends), CONFIG.seq_len), generator=torch.Generator().manual_seed(seed))
    for row, places in zip(ids_BT, ends, strict=True):
        row[list(places)] = EOS
    is_eos = (ids_BT == EOS).int()
    return ids_BT, (is_eos.cumsum(1) - is_eos).int()


def documents(ends: list[set[int]]) -> list[tuple[int, slice]]:
    """Row and place of every document; the last of a row may have no end."""
    cuts = [[0, *(place + 1 for place in sorted(places)), CONFIG.seq_len] for places in ends]
    return [(b, slice(*ab)) for b, row in enumerate(cuts) for ab in pairwise(row) if ab[0] < ab[1]]


@settings(deadline=None, max_examples=40)
@given(ends=ROWS, seed=st.integers(0, 99))
@torch.no_grad()
def test_a_documents_logits_are_those_it_has_alone(model, ends, seed):
    ids_BT, documents_BT = packed(ends, seed)
    logits_BTV = model(ids_BT, documents_BT=documents_BT)
    for b, place in documents(ends):
        torch.testing.assert_close(logits_BTV[b, place], model(ids_BT[b : b + 1, place])[0], rtol=0, atol=TOLERANCE)


def test_loss_and_gradients_are_the_sums_of_the_documents_alone(model):
    ends = [{5, 13}, {0, 22}, set()]
    ids_BT, documents_BT = packed(ends, seed=1)
    labels_BT, mask_BT = ids_BT.roll(-1, 1), (torch.arange(CONFIG.seq_len) % 5 > 0).float().expand(ids_BT.shape)
    parameters = list(model.parameters())
    together = model(ids_BT, labels_BT, mask_BT, documents_BT)
    alone = sum(model(ids_BT[b : b + 1, t], labels_BT[b : b + 1, t], mask_BT[b : b + 1, t]) for b, t in documents(ends))
    assert together.item() == pytest.approx(alone.item(), rel=TOLERANCE)
    for got, expected in zip(torch.autograd.grad(together, parameters), torch.autograd.grad(alone, parameters), strict=True):
        assert (got - expected).abs().max() < TOLERANCE * max(1, expected.abs().max())


@torch.no_grad()
def test_only_full_attention_sees_the_document_before(model):
    (ids_BT, documents_BT), last = packed([{5, 13}], seed=2), slice(14, None)
    changed_BT = ids_BT.clone()
    changed_BT[:, 8] += 1
    for given_BT, leaks in ((None, True), (documents_BT, False), (torch.zeros_like(documents_BT), True)):
        before, after = (model(ids, documents_BT=given_BT)[:, last] for ids in (ids_BT, changed_BT))
        assert (not torch.equal(before, after)) == leaks


@torch.no_grad()
def test_a_row_of_one_document_is_full_attention(model):
    ids_BT, documents_BT = packed([{CONFIG.seq_len - 1}, set()], seed=3)
    torch.testing.assert_close(model(ids_BT, documents_BT=documents_BT), model(ids_BT), rtol=0, atol=TOLERANCE)


@given(ends=ROWS)
def test_what_is_seen(ends):
    assert seen_within(None) is None
    _, documents_BT = packed(ends, seed=0)
    seen_B1TS = seen_within(documents_BT)
    expected = torch.zeros(len(ends), 1, CONFIG.seq_len, CONFIG.seq_len, dtype=torch.bool)
    for b, place in documents(ends):
        n = place.stop - place.start
        expected[b, 0, place, place] = torch.ones(n, n, dtype=torch.bool).tril()
    assert torch.equal(seen_B1TS, expected)
