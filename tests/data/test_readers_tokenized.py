from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystal.config import UserError
from crystal.data.readers import Broken, Megatron, Reader, TokenArray
from crystal.data.readers import tokenized as module

DOCUMENTS = [[5, 6, 7, 2], [], [8], [9, 10, 2]]


def read_any(reader: Reader) -> list[Any]:
    return [document for file in reader.files() for document in reader.read(file)]


def ids_of(found: list[Any]) -> list[list[int]]:
    assert [document.index for document in found] == list(range(len(found)))
    assert all(document.text is None for document in found)
    return [document.ids.tolist() for document in found]


def index(lengths: list[int], ends: list[int], *, itemsize: int = 2, code: int = 8, version: int = 1, modes: bool = False) -> bytes:
    """An .idx as IndexedDatasetBuilder.finalize writes it (Megatron-LM, megatron/core/datasets/indexed_dataset.py)."""
    pointers = (np.cumsum([0, *lengths[:-1]]) * itemsize if lengths else np.empty(0)).astype(np.int64)
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", version, code, len(lengths), len(ends))
    tables = np.array(lengths, np.int32).tobytes() + pointers.tobytes() + np.array(ends, np.int64).tobytes()
    return header + tables + np.zeros(len(lengths) * modes, np.int8).tobytes()


def megatron(root: Path, documents: list[list[int]], idx: bytes | None = None, dtype: str = "<u2") -> Megatron:
    """One sequence a document, as preprocess_data.py has it without --split-sentences."""
    (root / "a_text_document.bin").write_bytes(np.array(sum(documents, []), dtype).tobytes())
    lengths = [len(document) for document in documents]
    (root / "a_text_document.idx").write_bytes(index(lengths, list(range(len(lengths) + 1))) if idx is None else idx)
    return Megatron(str(root), "m")


def test_megatron_documents(tmp_path):
    reader = megatron(tmp_path, DOCUMENTS)
    found = read_any(reader)
    assert ids_of(found) == DOCUMENTS and found[0].ids.dtype == np.uint16
    assert (found[0].file, found[0].source, reader.part(found[0])) == ("a_text_document.bin", "m", "m")
    both = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert reader.identity() == {
        "class": "Megatron", "path": str(tmp_path), "source": "m", "code": False, "files": {"a_text_document.bin": both},
    }  # fmt: skip


@given(st.lists(st.lists(st.lists(st.integers(0, 255), max_size=4), max_size=3), max_size=9), st.integers(1, 4), st.booleans())
@pytest.mark.parametrize(("code", "dtype"), [(1, "<u1"), (4, "<i4"), (5, "<i8"), (8, "<u2")])
def test_megatron_of_several_sequences(tmp_path_factory, code, dtype, documents, at_once, modes):
    """Documents of sentences; the index is read in pieces of any size; types and modes."""
    root = tmp_path_factory.mktemp("megatron")
    sequences = sum(documents, [])
    ends = np.cumsum([0, *map(len, documents)]).tolist()
    idx = index([len(one) for one in sequences], ends, itemsize=np.dtype(dtype).itemsize, code=code, modes=modes)
    reader = megatron(root, sequences, idx, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "INDEXED_DOCUMENTS", at_once)
        assert ids_of(read_any(reader)) == [sum(document, []) for document in documents]


def test_megatron_ids_that_end_too_early(tmp_path):
    reader = megatron(tmp_path, DOCUMENTS)
    file = tmp_path / "a_text_document.bin"
    for kept, n_documents in ((len(file.read_bytes()) - 1, 3), (9, 2), (0, 0)):
        file.write_bytes(file.read_bytes()[:kept])
        *documents, end = read_any(reader)
        assert ids_of(documents) == DOCUMENTS[:n_documents]
        assert (
            end == Broken(file.name, f"document {n_documents}", end.line) and f"{file} ends in document {n_documents}, before" in end.line
        )


def damaged(offset: int, value: bytes) -> bytes:
    idx = index([4, 0, 1, 3], [0, 1, 2, 3, 4])
    return idx[:offset] + value + idx[offset + len(value) :]


@pytest.mark.parametrize(
    ("idx", "message"),
    [
        (b"", "is no index of Megatron-LM"),
        (b"TNTIDX\x00\x00\x01" + bytes(40), "is no index of Megatron-LM; expected b'MMIDIDX"),
        (index([4], [0, 1], version=2), "has version 2; expected 1"),
        (index([4], [0, 1], code=6), "has ids of the type 6; expected one of 1, 2, 3, 4, 5, 8"),
        (index([4], [0, 1])[:-1], "has 61 bytes; expected the 62 that"),
        (index([4, 0, 1, 3], [0, 1, 2, 3, 4])[:-8], "bytes; expected the 122 that its header speaks of"),
        (index([], []), "expected the 34 "),
        (index([4, 0, 1], [0, 1, 2, 3]), "lists 10 bytes of ids; expected the 16 of its .bin"),
        (index([], [0]), "lists 0 bytes of ids; expected the 16 of its .bin"),
        (damaged(34, b"\x05"), "contradicts itself; expected sequences one behind the other"),
        (damaged(34 + 16 + 16, b"\x01"), "contradicts itself"),
        (damaged(34 + 48, b"\x01"), "has documents that overlap or go too far"),
        (damaged(34 + 48 + 8, b"\x04"), "has documents that overlap or go too far"),
        (damaged(34 + 48 + 32, b"\x05"), "has documents that overlap or go too far"),
        (damaged(34 + 48 + 32 + 7, b"\x80"), "has documents that overlap or go too far"),
    ],
)
def test_megatron_bad_index(tmp_path, idx, message):
    reader = megatron(tmp_path, DOCUMENTS, idx)
    with pytest.raises(UserError) as caught:
        read_any(reader)
    assert "a_text_document.idx" in str(caught.value) and message in str(caught.value) and str(caught.value).count("; ") >= 2


def test_megatron_half_of_a_pair(tmp_path):
    for missing, there in (("idx", "bin"), ("bin", "idx")):
        reader = megatron(tmp_path, DOCUMENTS)
        (tmp_path / f"a_text_document.{missing}").unlink()
        with pytest.raises(UserError, match=f"a_text_document.{there} is alone; expected a_text_document.{missing} beside it"):
            reader.identity()


@given(
    st.lists(st.lists(st.integers(0, 9).filter(lambda number: number != 2), max_size=6), max_size=20),
    st.booleans(),
    st.sampled_from(["<u2", "<u4", ">u2"]),
    st.integers(1, 5),
    st.booleans(),
)
def test_arrays_are_cut_at_eos(tmp_path_factory, documents, ended, dtype, read_ids, raw):
    root = tmp_path_factory.mktemp("array")
    ids = sum(([*document, 2] for document in documents), [])
    if not ended and documents and documents[-1]:
        ids = ids[:-1]
    if raw:
        dtype = dtype.replace(">", "<")
        np.array(ids, dtype).tofile(root / "a.bin")
    else:
        np.save(root / "a.npy", np.array(ids, dtype))
    reader = TokenArray(str(root), "a", dtype=np.dtype(dtype).name if raw else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "READ_BYTES", read_ids * np.dtype(dtype).itemsize)
        found = read_any(reader)
    assert ids_of(found) == documents
    assert all(document.ids.dtype == np.dtype(dtype).newbyteorder("=") for document in found)


@pytest.mark.parametrize(("name", "dtype", "cut"), [("a.npy", None, 3), ("a.bin", "uint16", 1)])
def test_an_array_that_ends_too_early(tmp_path, name, dtype, cut):
    ids = np.array([5, 2, 6, 7, 2, 8, 9], np.uint16)
    np.save(tmp_path / name, ids) if dtype is None else ids.tofile(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-cut])
    *documents, end = read_any(TokenArray(str(tmp_path), "a", dtype=dtype))
    assert ids_of(documents) == [[5], [6, 7]]
    assert end.where == "document 2" and f"{name} ends in document 2, {cut} bytes too early" in end.line


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), "has float64 in the shape (3,); expected uint16 or uint32 in one dimension"),
        (np.zeros((3, 4), np.uint16), "has uint16 in the shape (3, 4)"),
        (np.zeros(3, np.int64), "has int64"),
        (np.array(3, np.uint16), "has uint16 in the shape ()"),
        (np.array([{}]), "has object"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError) as caught:
        read_any(TokenArray(str(tmp_path), "a"))
    assert f"{tmp_path}/a.npy {message}" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"no array", b"\x93NUMPY\x01\x00\x05\x00hello", b"\x93NUMPY\x09\x00" + bytes(99)])
def test_what_is_no_npy(tmp_path, data):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(UserError, match="a.npy is not an .npy file"):
        read_any(TokenArray(str(tmp_path), "a"))


def test_another_eos_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DOCUMENT_IDS", 10)
    monkeypatch.setattr(module, "READ_BYTES", 8)
    np.save(tmp_path / "a.npy", np.array([*range(10, 22), 2], np.uint16))
    with pytest.raises(UserError, match="a.npy has more than 10 ids without eos_id=2 among them; expected it behind each document"):
        read_any(TokenArray(str(tmp_path), "a"))
    assert len(ids_of(read_any(TokenArray(str(tmp_path), "a", eos_id=15)))) == 2


def test_options_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="dtype=float16; expected null for .npy, uint16 or uint32"):
        TokenArray(str(tmp_path), "a", dtype="float16")
    with pytest.raises(UserError, match="eos_id=-1; expected an id of 0 or more"):
        TokenArray(str(tmp_path), "a", eos_id=-1)
    for reader in (TokenArray(str(tmp_path), "a"), TokenArray(str(tmp_path), "a", dtype="uint16"), Megatron(str(tmp_path), "a")):
        with pytest.raises(UserError, match="holds no files"):
            reader.files()
    for make in (Megatron, TokenArray):
        with pytest.raises(UserError, match="source='../a'"):
            make(str(tmp_path), "../a")
