"""Packing: every token once and in order, no row too long, room for FIM, and no document cut that fits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystal.data.pack import FIM_COST, GROUP_DOCUMENTS, PACKINGS
from tests.data.packed import packed

WIDTH, EOS, PAD = 12, 2, 3
LENGTHS = st.lists(st.integers(0, 40), max_size=30)


def documents_of(lengths: list[int]) -> list[np.ndarray]:
    return [100 * (k + 1) + np.arange(n) for k, n in enumerate(lengths)]


def content(row: np.ndarray) -> np.ndarray:
    return row[row != PAD]


@given(LENGTHS, st.sampled_from(PACKINGS), st.booleans(), st.integers(1, 9))
def test_every_token_is_there_once_and_each_document_in_order(lengths: list[int], packing: str, fim_room: bool, at_once: int) -> None:
    documents = documents_of(lengths)
    rows, plan = packed(documents, WIDTH, eos_id=EOS, pad_id=PAD, packing=packing, fim_room=fim_room, at_once=at_once)
    assert int(plan.counts.sum()) == len(plan.pieces) and sum(map(len, documents)) + len(documents) == plan.pieces["length"].sum()
    for k, ids in enumerate(documents):
        mine = np.sort(plan.pieces[plan.pieces["place"] == k], order="start")
        assert (mine["start"] == np.cumsum(mine["length"]) - mine["length"]).all()
        assert np.array_equal(np.sort(rows[(rows >= 100 * (k + 1)) & (rows < 100 * (k + 2))]), ids)
    assert all((row[len(content(row)) :] == PAD).all() for row in rows)  # padding at the end


@given(LENGTHS, st.sampled_from(PACKINGS))
def test_there_is_room_for_the_sentinels_of_every_piece(lengths: list[int], packing: str) -> None:
    rows, plan = packed(documents_of(lengths), WIDTH, eos_id=EOS, pad_id=PAD, packing=packing, fim_room=True)
    ends = np.cumsum(plan.counts)
    for row, end, count in zip(rows, ends, plan.counts, strict=True):
        pieces = plan.pieces[end - count : end]
        whole = [content(row)[stop - 1] == EOS for stop in np.cumsum(pieces["length"])]
        assert all(whole[:-1])  # only a row's last piece may have been cut
        assert sum(int(n) - ended + FIM_COST for n, ended in zip(pieces["length"], whole, strict=True)) <= WIDTH


@given(LENGTHS)
def test_split_without_room_is_the_stream_cut_into_rows(lengths: list[int]) -> None:
    rows, _ = packed(documents_of(lengths), WIDTH, eos_id=EOS, pad_id=PAD, fim_room=False)
    stream = [token for ids in documents_of(lengths) for token in [*ids.tolist(), EOS]]
    assert rows.ravel().tolist() == stream + [PAD] * (-len(stream) % WIDTH)


@given(LENGTHS, st.booleans())
def test_best_fit_cuts_no_document_that_fits(lengths: list[int], fim_room: bool) -> None:
    _, plan = packed(documents_of(lengths), WIDTH, eos_id=EOS, pad_id=PAD, packing="best_fit", fim_room=fim_room)
    cost = FIM_COST if fim_room else 1
    for k, n in enumerate(lengths):
        assert (plan.pieces["place"] == k).sum() == 1 or n + cost > WIDTH


def test_best_fit_fills_rows_and_does_not_depend_on_how_documents_come() -> None:
    lengths = np.random.default_rng(0).integers(1, 80, 5000).tolist()
    rows, plan = packed(documents_of(lengths), 65, eos_id=EOS, pad_id=PAD, packing="best_fit", fim_room=False, at_once=5000)
    other, _ = packed(documents_of(lengths), 65, eos_id=EOS, pad_id=PAD, packing="best_fit", fim_room=False, at_once=13)
    assert np.array_equal(rows, other)
    assert (rows == PAD).mean() < 0.005
    split, _ = packed(documents_of(lengths), 65, eos_id=EOS, pad_id=PAD, fim_room=False)
    assert len(rows) < 1.006 * len(split)


def test_best_fit_ends_a_group_by_itself() -> None:
    documents = [np.array([7, 8])] * (GROUP_DOCUMENTS + 1)
    rows, plan = packed(documents, 6, eos_id=EOS, pad_id=PAD, packing="best_fit", fim_room=False, at_once=GROUP_DOCUMENTS + 1)
    assert len(rows) == GROUP_DOCUMENTS // 2 + 1 and plan.counts[-1] == 1


def test_a_row_must_hold_a_token_with_its_sentinels() -> None:
    with pytest.raises(AssertionError):
        packed([], FIM_COST, eos_id=EOS, pad_id=PAD)
