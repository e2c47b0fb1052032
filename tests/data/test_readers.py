from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from crystal.config import UserError
from crystal.data.readers import Document, SlimPajama, StarCoder
from tests.data.conftest import write_parquet
from tests.shared import SHARED_DATA, needs_sample

GOOD = json.dumps({"text": "a\nb", "meta": {"redpajama_set_name": "RedPajamaC4"}})


def slimpajama(root: Path, data: bytes, name: str = "example_train_3.jsonl.zst") -> SlimPajama:
    (root / "chunk1").mkdir(exist_ok=True)
    (root / "chunk1" / name).write_bytes(data)
    return SlimPajama(str(root))


def compress(text: str) -> bytes:
    return zstandard.ZstdCompressor().compress(text.encode())


def read_all(reader: SlimPajama | StarCoder) -> list[Document]:
    return [document for file in reader.files() for document in reader.read(file)]


def test_slimpajama_documents_parts_and_order(tmp_path):
    for number in (10, 9, 2):
        slimpajama(tmp_path, compress(GOOD + "\n"), f"example_train_{number}.jsonl.zst")
    reader = SlimPajama(str(tmp_path))
    documents = read_all(reader)
    assert [document.file for document in documents] == [f"chunk1/example_train_{n}.jsonl.zst" for n in (2, 9, 10)]
    assert documents[0] == Document("a\nb", "RedPajamaC4", "chunk1/example_train_2.jsonl.zst", 0)
    assert [reader.part(d) for d in documents] == ["RedPajamaC4/even", "RedPajamaC4/odd", "RedPajamaC4/even"]
    assert not reader.code and list(reader.identity()) == ["class", "path", "files"]


def test_several_frames_and_no_last_newline(tmp_path):
    reader = slimpajama(tmp_path, compress(f"{GOOD}\n{GOOD}") + compress(f"\n{GOOD}"))
    assert [document.index for document in read_all(reader)] == [0, 1, 2]


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    reader = slimpajama(tmp_path, compress(GOOD.replace(r"a\nb", r"a\ud83d b \ud83d\ude00")))
    assert read_all(reader)[0].text == "a\ufffd b \U0001f600"


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_truncated_zst(tmp_path, kept):
    reader = slimpajama(tmp_path, compress("\n".join([GOOD] * 50))[:kept])
    with pytest.raises(UserError, match=r"example_train_3.jsonl.zst is truncated or corrupt after line \d+"):
        read_all(reader)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2 is not JSON"),
        ('{"text": "a"}', "line 2 has no meta.redpajama_set_name"),
        ('{"text": "a", "meta": {}}', "line 2 has no meta.redpajama_set_name"),
        ('{"meta": {"redpajama_set_name": "x"}}', "line 2 has no text"),
        ("[1]", "line 2 has no text"),
    ],
)
def test_bad_lines(tmp_path, line, expected):
    with pytest.raises(UserError, match=expected):
        read_all(slimpajama(tmp_path, compress(f"{GOOD}\n{line}\n")))


def test_file_without_a_number(tmp_path):
    reader = slimpajama(tmp_path, compress(GOOD), "train.jsonl.zst")
    with pytest.raises(UserError, match="no number in its name"):
        reader.part(read_all(reader)[0])


def test_no_folder_and_no_files(tmp_path):
    for reader in (SlimPajama, StarCoder):
        with pytest.raises(UserError, match="is not a folder"):
            reader(str(tmp_path / "none")).files()
        with pytest.raises(UserError, match="holds no files"):
            reader(str(tmp_path)).files()


def test_starcoder_documents(tmp_path):
    write_parquet(tmp_path / "python" / "b.parquet", [f"x = {n}" for n in range(120)])
    reader = StarCoder(str(tmp_path))
    documents = read_all(reader)
    assert [document.index for document in documents] == list(range(120))
    assert documents[70] == Document("x = 70", "starcoder/python", "python/b.parquet", 70)
    assert reader.code and reader.part(documents[0]) == "starcoder/python"


def test_starcoder_errors(tmp_path):
    path = tmp_path / "python" / "a.parquet"
    write_parquet(path, ["a"] * 60 + [None])
    with pytest.raises(UserError, match="row group 1, row 60: content is null"):
        read_all(StarCoder(str(tmp_path)))
    write_parquet(path, ["a"], column="text")
    with pytest.raises(UserError, match="columns text; expected content"):
        read_all(StarCoder(str(tmp_path)))
    path.write_text("no parquet")
    with pytest.raises(UserError, match="not a whole Parquet file"):
        read_all(StarCoder(str(tmp_path)))


@needs_sample
def test_the_sample_data_reads():
    text = SlimPajama(str(SHARED_DATA / "slimpajama" / "train"))
    assert sum(1 for _ in text.read(text.files()[0])) == 673
    code = StarCoder(str(SHARED_DATA / "starcoderdata"))
    file = next(file for file in code.files() if file.parent.name == "c")
    assert sum(1 for _ in code.read(file)) == 236


def test_a_set_name_that_is_no_folder_name(tmp_path):
    line = json.dumps({"text": "a", "meta": {"redpajama_set_name": "../../elsewhere"}})
    with pytest.raises(UserError, match="line 1 has the set name"):
        read_all(slimpajama(tmp_path, compress(line)))


def test_an_empty_zst(tmp_path):
    with pytest.raises(UserError, match="example_train_3.jsonl.zst"):
        read_all(slimpajama(tmp_path, b""))


@pytest.mark.parametrize("content", [[1, 2], [b"a", b"b"], [["a"], ["b"]]])
def test_content_that_is_no_text(tmp_path, content):
    (tmp_path / "python").mkdir()
    pq.write_table(pa.table({"content": content}), tmp_path / "python" / "train-00000-of-00001.parquet")
    with pytest.raises(UserError, match="has content of type .*; expected string"):
        read_all(StarCoder(str(tmp_path)))
