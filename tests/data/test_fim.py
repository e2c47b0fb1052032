from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystal.data.fim import FimIds, permute_row, split_pieces, unpermute_row
from crystal.data.pack import CodePacker, pack

IDS = FimIds(prefix=90, middle=91, suffix=92, pad=93, eos=2)
documents = st.lists(st.lists(st.integers(3, 80), max_size=70), min_size=1, max_size=8)


def rows_of(docs: list[list[int]], width: int) -> list[np.ndarray]:
    packer = CodePacker(width, eos_id=IDS.eos, pad_id=IDS.pad, dtype=np.dtype(np.uint16))
    return list(pack(packer, [np.array(doc, np.int32) for doc in docs]))


@given(documents, st.integers(5, 50), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32))
def test_undone_gives_the_row_back(docs, width, rate, spm_rate, seed):
    for row in rows_of(docs, width):
        result = permute_row(row, rate=rate, spm_rate=spm_rate, rng=np.random.default_rng(seed), ids=IDS)
        pieces = split_pieces(row, IDS)
        cut = bool(pieces) and pieces[-1][-1] != IDS.eos
        assert result.shape == row.shape and result.dtype == row.dtype
        np.testing.assert_array_equal(unpermute_row(result, cut=cut, ids=IDS), row)


@given(documents, st.integers(5, 50), st.integers(0, 2**32))
def test_rate_one_permutes_every_piece_and_rate_zero_none(docs, width, seed):
    for row in rows_of(docs, width):
        every = permute_row(row, rate=1, spm_rate=0.5, rng=np.random.default_rng(seed), ids=IDS)
        n = len(split_pieces(row, IDS))
        for token in (IDS.prefix, IDS.suffix, IDS.middle, IDS.eos):
            assert (every == token).sum() == n
        none = permute_row(row, rate=0, spm_rate=0.5, rng=np.random.default_rng(seed), ids=IDS)
        np.testing.assert_array_equal(none, row)


def test_the_two_orders():
    row = np.array([10, 11, 12, 13, IDS.eos, IDS.pad, IDS.pad, IDS.pad])
    draws = np.array([[0.0, 0.0, 0.25, 0.65]])  # splits at floor(5 u): 1 and 3

    class Fixed:
        def random(self, shape):
            assert shape == (1, 4)
            return draws

    psm = permute_row(row, rate=1, spm_rate=0, rng=Fixed(), ids=IDS)  # type: ignore[arg-type]
    spm = permute_row(row, rate=1, spm_rate=1, rng=Fixed(), ids=IDS)  # type: ignore[arg-type]
    assert psm.tolist() == [IDS.prefix, 10, IDS.suffix, 13, IDS.middle, 11, 12, IDS.eos]
    assert spm.tolist() == [IDS.prefix, IDS.suffix, 13, IDS.middle, 10, 11, 12, IDS.eos]


def test_rates_are_met():
    row = rows_of([[5] * 3] * 50, 400)[0]
    rng = np.random.default_rng(0)
    permuted = spm = 0
    for _ in range(200):
        result = permute_row(row, rate=0.3, spm_rate=0.5, rng=rng, ids=IDS)
        prefixes = np.flatnonzero(result == IDS.prefix)
        permuted += len(prefixes)
        spm += (result[prefixes + 1] == IDS.suffix).sum()
    assert permuted == pytest.approx(0.3 * 50 * 200, rel=0.05)
    # An empty prefix (probability 7/16 of PSM with three tokens) looks like SPM.
    assert spm == pytest.approx(permuted * (0.5 + 0.5 * 7 / 16), rel=0.05)
