from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crystal.data.pack import FIM_COST, CodePacker, TextPacker, pack

EOS, PAD = 2, 99
documents = st.lists(st.lists(st.integers(3, 90), max_size=60), max_size=12)
DTYPE = np.dtype(np.uint16)


def stream(docs):
    return [token for doc in docs for token in [*doc, EOS]]


def arrays(docs):
    return [np.array(doc, np.int32) for doc in docs]


@given(documents, st.integers(2, 40))
def test_text_is_the_stream_cut_into_rows(docs, width):
    rows = list(pack(TextPacker(width, eos_id=EOS, pad_id=PAD, dtype=DTYPE), arrays(docs)))
    expected = stream(docs)
    flat = [token for row in rows for token in row.tolist()]
    assert flat[: len(expected)] == expected
    assert flat[len(expected) :] == [PAD] * (-len(expected) % width)


@given(documents, st.integers(2, 40))
def test_text_without_the_last_row_drops_less_than_a_row(docs, width):
    rows = list(pack(TextPacker(width, eos_id=EOS, pad_id=PAD, dtype=DTYPE), arrays(docs), keep_last=False))
    expected = stream(docs)
    assert [token for row in rows for token in row.tolist()] == expected[: len(expected) // width * width]


@given(documents, st.integers(5, 40))
def test_code_loses_no_token_and_every_row_has_room(docs, width):
    rows = list(pack(CodePacker(width, eos_id=EOS, pad_id=PAD, dtype=DTYPE), arrays(docs)))
    assert [token for row in rows for token in row.tolist() if token != PAD] == stream(docs)
    for row in rows:
        tokens = row[row != PAD]
        assert (row[len(tokens) :] == PAD).all(), "padding only at the end"
        whole = int((tokens == EOS).sum())
        cut = int(len(tokens) > 0 and tokens[-1] != EOS)
        assert len(tokens) - whole + FIM_COST * (whole + cut) <= width


def test_code_rows_are_filled():
    # 9 cut pieces of 60, and the last 60 tokens with their EOS.
    rows = list(pack(CodePacker(64, eos_id=EOS, pad_id=PAD, dtype=DTYPE), arrays([[7] * 600])))
    assert [int((row != PAD).sum()) for row in rows] == [60] * 9 + [61]


def test_rows_do_not_share_memory():
    packer = TextPacker(4, eos_id=EOS, pad_id=PAD, dtype=DTYPE)
    first = packer.add(np.array([3, 4, 5]))
    packer.add(np.array([6, 7, 8]))
    assert first.tolist() == [[3, 4, 5, EOS]]
