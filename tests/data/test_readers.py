from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from crystal.config import UserError
from crystal.data.readers import Broken, Document, JsonLines, Reader, SlimPajama, StarCoder, TextFolder
from crystal.data.readers import text as text_module
from tests.data.conftest import write_parquet
from tests.shared import SHARED_DATA, needs_sample

GOOD = json.dumps({"text": "a\nb", "meta": {"redpajama_set_name": "RedPajamaC4"}})


def slimpajama(root: Path, data: bytes, name: str = "example_train_3.jsonl.zst") -> SlimPajama:
    (root / "chunk1").mkdir(exist_ok=True)
    (root / "chunk1" / name).write_bytes(data)
    return SlimPajama(str(root))


def jsonl(root: Path, data: bytes, name: str = "a.jsonl", **options: Any) -> JsonLines:
    (root / name).write_bytes(data)
    return JsonLines(str(root), **options)


def compress(text: str) -> bytes:
    return zstandard.ZstdCompressor().compress(text.encode())


def read_all(reader: Reader) -> list[Document]:
    found = read_any(reader)
    assert not any(isinstance(document, Broken) for document in found), found
    return found


def read_any(reader: Reader) -> list[Any]:
    return [document for file in reader.files() for document in reader.read(file)]


def broken_of(reader: Reader) -> list[Broken]:
    found = [document for document in read_any(reader) if isinstance(document, Broken)]
    for one in found:
        assert "\n" not in one.line and one.line.count("; ") >= 2, f"got; expected; what to do: {one.line}"
    return found


def test_slimpajama_documents_parts_and_order(tmp_path):
    for number in (10, 9, 2):
        slimpajama(tmp_path, compress(GOOD + "\n"), f"example_train_{number}.jsonl.zst")
    reader = SlimPajama(str(tmp_path))
    documents = read_all(reader)
    assert [document.file for document in documents] == [f"chunk1/example_train_{n}.jsonl.zst" for n in (2, 9, 10)]
    assert documents[0] == Document("a\nb", "RedPajamaC4", "chunk1/example_train_2.jsonl.zst", 0)
    assert [reader.part(d) for d in documents] == ["RedPajamaC4/even", "RedPajamaC4/odd", "RedPajamaC4/even"]
    assert not reader.code


def test_identity_names_every_option_and_the_files_in_reading_order(tmp_path):
    for name in ("b10.jsonl", "b9.jsonl", "b09.jsonl"):
        jsonl(tmp_path, b'{"text": "a"}\n', name)
    reader = JsonLines(str(tmp_path), clean="nfc")
    assert reader.identity() == {
        "class": "JsonLines", "path": str(tmp_path), "source": "text", "pattern": "**/*.jsonl*", "text": "text", "code": False,
        "clean": "nfc", "files": {"b09.jsonl": 14, "b9.jsonl": 14, "b10.jsonl": 14},
    }  # fmt: skip
    assert list(reader.identity()["files"]) == reader.files() == ["b09.jsonl", "b9.jsonl", "b10.jsonl"]
    assert pickle.loads(pickle.dumps(reader)) == reader, "executors send readers to other processes"


def test_several_frames_and_no_last_newline(tmp_path):
    skippable = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"  # pzstd begins with one
    reader = slimpajama(tmp_path, skippable + compress(f"{GOOD}\n{GOOD}") + compress(f"\n{GOOD}"))
    assert [document.index for document in read_all(reader)] == [0, 1, 2]


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    reader = slimpajama(tmp_path, compress(GOOD.replace(r"a\nb", r"a\ud83d b \ud83d\ude00 \uDE00")))
    assert read_all(reader)[0].text == "a\ufffd b \U0001f600 \ufffd"


@given(st.lists(st.text(), max_size=20), st.booleans(), st.sampled_from(["", ".gz", ".zst"]), st.integers(1, 50))
def test_json_gives_back_every_text(tmp_path_factory, texts, ascii_only, ending, read_bytes):
    root = tmp_path_factory.mktemp("lines")
    data = "".join(json.dumps({"text": text}, ensure_ascii=ascii_only) + "\r\n\n" for text in texts).encode()
    data = {"": data, ".gz": gzip.compress(data), ".zst": compress(data.decode())}[ending]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "READ_BYTES", read_bytes)
        found = read_all(jsonl(root, data, f"a.jsonl{ending}"))
    assert [(document.text, document.index) for document in found] == [(text, 2 * k) for k, text in enumerate(texts)]


@pytest.mark.parametrize("kept", [1, 20, -1])
@pytest.mark.parametrize("ending", [".zst", ".gz"])
def test_truncated_streams(tmp_path, kept, ending):
    data = "\n".join([json.dumps({"text": f"{k} {os.urandom(20).hex()}"}) for k in range(50)])
    whole = compress(data) if ending == ".zst" else gzip.compress(data.encode())
    *documents, end = read_any(jsonl(tmp_path, whole[:kept], f"a.jsonl{ending}"))
    assert [document.index for document in documents] == list(range(len(documents)))
    assert end.where == f"line {len(documents) + 1}"
    assert f"a.jsonl{ending} is truncated or corrupt after line {len(documents)} (" in end.line


@pytest.mark.parametrize(("ending", "whole"), [(".zst", compress(GOOD)), (".gz", gzip.compress(GOOD.encode()))], ids=["zst", "gz"])
def test_what_comes_before_damage_is_read(tmp_path, ending, whole):
    newline = compress("\n") if ending == ".zst" else gzip.compress(b"\n")
    for damage in (b"no frame", whole[:9] + bytes(9)):
        first, end = read_any(jsonl(tmp_path, whole + newline + damage, f"a.jsonl{ending}"))
        assert first.text == "a\nb" and isinstance(end, Broken) and end.where == "line 2"
    assert broken_of(jsonl(tmp_path, b"", f"a.jsonl{ending}"))[0].where == "line 1", "an empty file is no whole stream"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("1" * 5000, "line 2 is not JSON"),
        ('{"text": "a"}', "line 2 has no meta.redpajama_set_name"),
        ('{"text": "a", "meta": {}}', "line 2 has no meta.redpajama_set_name"),
        ('{"meta": {"redpajama_set_name": "x"}}', "line 2 has no text"),
        ('{"text": null, "meta": {"redpajama_set_name": "x"}}', "line 2 has no text"),
        ("[1]", "line 2 has no text"),
        ('{"text": "a", "meta": {"redpajama_set_name": "../../elsewhere"}}', "line 2 has the set name '../../elsewhere'"),
    ],
)
def test_bad_lines_are_named_and_the_next_is_read(tmp_path, line, expected):
    reader = slimpajama(tmp_path, compress(f"{GOOD}\n{line}\n{GOOD}\n"))
    first, bad, last = read_any(reader)
    assert (first.index, last.index) == (0, 2)
    assert bad == Broken("chunk1/example_train_3.jsonl.zst", "line 2", bad.line) and expected in bad.line
    assert broken_of(reader) == [bad]


def test_a_line_that_is_not_utf8(tmp_path):
    bad, good = read_any(jsonl(tmp_path, b'{"text": "\xff"}\n\xef\xbb\xbf{"text": "behind a byte order mark"}'))
    assert "line 1 is not JSON ('utf-8' codec" in bad.line and good.text == "behind a byte order mark"


def test_a_file_without_lines_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "READ_BYTES", 10)
    monkeypatch.setattr(text_module, "LINE_BYTES", 1000)
    reader = jsonl(tmp_path, json.dumps([{"text": "a" * 100}] * 11).encode())
    with pytest.raises(UserError, match=r"a.jsonl has a line of over .* MiB; expected one JSON object a line"):
        read_any(reader)
    assert read_all(jsonl(tmp_path, json.dumps({"text": "a" * 900}).encode()))[0].text == "a" * 900


def test_json_lines_of_another_key_and_ending(tmp_path):
    reader = jsonl(tmp_path, b'{"body": "a"}\n{"text": "b"}\n', "c4.00001.json", text="body", pattern="*.json", source="c4/en", code=True)
    good, bad = read_any(reader)
    assert good == Document("a", "c4/en", "c4.00001.json", 0) and "line 2 has no body" in bad.line
    assert reader.code and reader.part(good) == "c4/en"


def test_text_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_bytes(b"caf\xe9\r\n")
    (tmp_path / "a.txt").write_text("")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("not of the corpus")
    reader = TextFolder(str(tmp_path), "notes")
    assert read_all(reader) == [Document("", "notes", "a.txt", 0), Document("caf\ufffd\r\n", "notes", "sub/b.md", 0)]
    assert TextFolder(str(tmp_path), "notes", "*.txt|**/*.md").files() == ["a.txt", "sub/b.md"]
    assert TextFolder(str(tmp_path), "notes", "*.txt").files() == ["a.txt"]


def test_clean(tmp_path):
    data = json.dumps({"text": "cafe\u0301 â€” &lt; \u201cso\u201d"}).encode()
    assert read_all(jsonl(tmp_path, data))[0].text == "cafe\u0301 â€” &lt; \u201cso\u201d"
    assert read_all(jsonl(tmp_path, data, clean="nfc"))[0].text == "caf\u00e9 â€” &lt; \u201cso\u201d"
    assert read_all(jsonl(tmp_path, data, clean="ftfy"))[0].text == 'caf\u00e9 — < "so"'


def test_options_are_checked_where_they_are_given(tmp_path):
    with pytest.raises(UserError, match="clean=NFKC; expected null, nfc or ftfy"):
        SlimPajama(str(tmp_path), clean="NFKC")
    with pytest.raises(UserError, match="a reader of code has clean=nfc"):
        JsonLines(str(tmp_path), code=True, clean="nfc")
    for source in ("", "..", "/etc", "a//b", "a/../b", "a b"):
        with pytest.raises(UserError, match="source=.*; expected letters"):
            TextFolder(str(tmp_path), source)


def test_file_without_a_number(tmp_path):
    reader = slimpajama(tmp_path, compress(GOOD), "train.jsonl.zst")
    with pytest.raises(UserError, match="no number in its name"):
        reader.part(read_all(reader)[0])


def test_starcoder_documents(tmp_path):
    write_parquet(tmp_path / "python" / "b.parquet", [f"x = {n}" for n in range(120)])
    reader = StarCoder(str(tmp_path))
    documents = read_all(reader)
    assert [document.index for document in documents] == list(range(120))
    assert documents[70] == Document("x = 70", "starcoder/python", "python/b.parquet", 70)
    assert reader.code and reader.part(documents[0]) == "starcoder/python"


def test_starcoder_rows_that_are_no_text(tmp_path):
    path = tmp_path / "python" / "a.parquet"
    path.parent.mkdir()
    contents = pa.array([b"a", b"caf\xe9", None, b"d"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"content": contents}), path, row_group_size=2)
    found = read_any(StarCoder(str(tmp_path)))
    assert [document.text for document in (found[0], found[3])] == ["a", "d"] and found[3].index == 3
    assert [one.where for one in broken_of(StarCoder(str(tmp_path)))] == ["row group 0, row 1", "row group 1, row 2"]
    assert "a.parquet row group 0, row 1: content is not UTF-8" in found[1].line
    assert "a.parquet row group 1, row 2: content is null" in found[2].line


def test_starcoder_corrupt_row_group(tmp_path):
    path = tmp_path / "python" / "a.parquet"
    write_parquet(path, [os.urandom(40).hex() for _ in range(150)])
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 200] = bytes(200)
    path.write_bytes(data)
    found = read_any(StarCoder(str(tmp_path)))
    assert [document.index for document in found if isinstance(document, Document)] == [*range(50), *range(100, 150)]
    assert [one.where for one in broken_of(StarCoder(str(tmp_path)))] == ["row group 1"]
    assert "a.parquet row group 1: is corrupt from row 50 on" in found[50].line


def test_starcoder_errors(tmp_path):
    path = tmp_path / "python" / "a.parquet"
    write_parquet(path, ["a"], column="text")
    with pytest.raises(UserError, match="columns text; expected content"):
        read_any(StarCoder(str(tmp_path)))
    path.write_text("no parquet")
    with pytest.raises(UserError, match="not a whole Parquet file"):
        read_any(StarCoder(str(tmp_path)))


@pytest.mark.parametrize("content", [[1, 2], [b"a", b"b"], [["a"], ["b"]]])
def test_content_that_is_no_text(tmp_path, content):
    (tmp_path / "python").mkdir()
    pq.write_table(pa.table({"content": content}), tmp_path / "python" / "train-00000-of-00001.parquet")
    with pytest.raises(UserError, match="has content of type .*; expected string"):
        read_any(StarCoder(str(tmp_path)))


@needs_sample
def test_the_sample_data_reads():
    text = SlimPajama(str(SHARED_DATA / "slimpajama" / "train"))
    assert len(list(text.read(text.files()[0]))) == 673
    code = StarCoder(str(SHARED_DATA / "starcoderdata"))
    assert len(list(code.read("c/train-00000-of-00001.parquet"))) == 236
