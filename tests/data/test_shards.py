from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystal.config import UserError
from crystal.data.npy import NpyWriter, verify_npy
from crystal.data.shards import Prepared, RowView, row_dtype
from tests.data.conftest import SEQ_LEN


@pytest.mark.parametrize("vocab_size", [400, 65536, 65537])
def test_written_rows_come_back_over_several_shards(tmp_path, vocab_size):
    dtype = row_dtype(vocab_size)
    assert dtype.itemsize == (2 if vocab_size <= 65536 else 4)
    rows = np.random.default_rng(0).integers(0, vocab_size, (53, 9)).astype(dtype)
    loaded = []
    for number, shard in enumerate(np.split(rows, [10, 10, 30])):
        path = tmp_path / "train" / f"{number}.npy"
        writer = NpyWriter(path, (9,), dtype)
        for block in np.split(shard, [1, 3, 3]):
            writer.append(block)
        assert not path.exists()  # until it is whole
        entry = writer.close()
        assert entry["rows"] == len(shard) and entry["bytes"] == path.stat().st_size
        verify_npy(path, shard.shape, dtype, entry["crc32"])
        loaded.append(np.load(path, mmap_mode="r"))
    np.testing.assert_array_equal(np.concatenate(loaded), rows)
    order = np.random.default_rng(1).integers(0, 53, 200)
    np.testing.assert_array_equal(RowView(loaded, (9,), dtype)[order], rows[order])


@given(st.lists(st.integers(0, 5), max_size=6))
def test_a_view_is_its_pieces(lengths):
    pieces = [np.arange(10 * k, 10 * k + n)[:, None] for k, n in enumerate(lengths)]
    view = RowView(pieces, (1,), np.dtype(np.int64))
    assert len(view) == sum(lengths)
    whole = np.concatenate([*pieces, np.empty((0, 1), np.int64)])
    np.testing.assert_array_equal(view[np.arange(len(view))], whole)
    with pytest.raises(IndexError):
        view[np.array([len(view)])]


def test_slices_are_of_each_part_and_meet(prepared):
    whole = prepared.rows("starcoder/*")
    halves = [prepared.rows("starcoder/*", share) for share in ((0.0, 0.3), (0.3, 1.0))]
    assert sum(map(len, halves)) == len(whole)
    first = prepared.rows("starcoder/css")[np.arange(1)]
    np.testing.assert_array_equal(halves[0][np.arange(1)], first)
    n_css, n_python = (prepared.train[f"starcoder/{name}"]["rows"] for name in ("css", "python"))
    assert len(halves[0]) == round(0.3 * n_css) + round(0.3 * n_python)


@pytest.fixture
def copy(prepared: Prepared, tmp_path: Path) -> Path:
    shutil.copytree(prepared.folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_open_verifies(prepared):
    assert Prepared.open(prepared.folder, verify=True).fingerprint() == prepared.fingerprint()
    assert prepared.rows("*")[np.arange(2)].shape == (2, SEQ_LEN + 1)


def test_flipped_byte_is_found_by_verify_only(copy):
    path = copy / "train" / "starcoder" / "css" / "00000.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    Prepared.open(copy, verify=False)
    with pytest.raises(UserError, match="starcoder/css/00000.npy is corrupt"):
        Prepared.open(copy, verify=True)


def test_the_index_is_checked_too(copy):
    path = copy / "train" / "starcoder" / "css" / "pieces.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="starcoder/css/pieces.npy is corrupt"):
        Prepared.open(copy, verify=True)
    path.unlink()
    with pytest.raises(UserError, match="starcoder/css/pieces.npy is missing"):
        Prepared.open(copy, verify=False)


def test_missing_and_truncated_shards(copy):
    path = copy / "valid" / "RedPajamaC4" / "00000.npy"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"RedPajamaC4/00000.npy has \d+ bytes; expected \d+; delete the folder"):
        Prepared.open(copy, verify=False)
    path.unlink()
    with pytest.raises(UserError, match="RedPajamaC4/00000.npy is missing"):
        Prepared.open(copy, verify=False)


def test_bad_manifests(tmp_path):
    with pytest.raises(UserError, match="has no manifest.json"):
        Prepared.open(tmp_path, verify=False)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        Prepared.open(tmp_path, verify=False)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="format 99; expected 2"):
        Prepared.open(tmp_path, verify=False)
