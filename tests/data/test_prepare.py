from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from crystal.config import UserError
from crystal.data import prepare as module
from crystal.data.fim import split_pieces
from crystal.data.prepare import prepare
from crystal.data.readers import SlimPajama, StarCoder
from crystal.data.shards import Prepared
from crystal.data.tokenizer import load_tokenizer
from tests.data.conftest import VOCAB, prepare_corpus, write_corpus, write_parquet


def documents_of(prepared: Prepared, rows: np.ndarray) -> list[str]:
    """The texts stored in rows, the last one perhaps cut."""
    tokenizer = load_tokenizer(prepared.tokenizer_path)
    stream = np.concatenate([piece for row in rows for piece in split_pieces(row, prepared.fim_ids)])
    ends = np.flatnonzero(stream == prepared.eos_id)
    return [tokenizer.decode(piece) for piece in np.split(stream, ends + 1) if len(piece)]


def corpus_texts(root: Path) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for reader in (SlimPajama(str(root / "slimpajama")), StarCoder(str(root / "starcoder"))):
        for file in reader.files():
            for document in reader.read(file):
                texts.setdefault(document.source, []).append(document.text)
    return texts


def test_every_text_is_on_one_side_in_its_part(prepared, corpus):
    texts = corpus_texts(corpus)
    view = prepared.rows("starcoder/python")
    train = documents_of(prepared, view[np.arange(len(view))])
    held_out = [text for text in texts["starcoder/python"] if module._is_held_out(text, 0.1)]
    assert train == [text for text in texts["starcoder/python"] if text not in held_out]
    text_parts = [f"{source}/{side}" for source in ("RedPajamaBook", "RedPajamaC4") for side in ("even", "odd")]
    assert list(prepared.train) == [*text_parts, "starcoder/css", "starcoder/python"]
    assert 0 < len(held_out) < 30


def test_validation_counts_say_what_is_stored(prepared, corpus):
    texts = corpus_texts(corpus)
    capped = 0
    for source, entry in prepared.valid.items():
        view = prepared.valid_rows(source)
        rows = view[np.arange(len(view))]
        stored = documents_of(prepared, rows)
        held_out = [text for text in texts[source] if module._is_held_out(text, 0.1)]
        assert entry["documents"] == len(stored) and entry["rows"] == len(rows) <= 6
        assert stored[:-1] == held_out[: len(stored) - 1] and held_out[len(stored) - 1].startswith(stored[-1])
        assert entry["text_bytes"] == sum(len(text.encode()) for text in stored)
        assert entry["tokens"] == (rows != prepared.fim_ids.pad).sum()
        capped += len(rows) == 6
    assert capped, "no source reached its cap: the test shows nothing"


def test_train_text_drops_less_than_a_row(prepared):
    for part, entry in prepared.train.items():
        view = prepared.rows(part)
        stored = view[np.arange(len(view))] != prepared.fim_ids.pad
        assert entry["tokens"] == stored.sum()
        assert entry["fim_room"] == part.startswith("starcoder/")
        if entry["fim_room"]:
            assert entry["dropped_tokens"] == 0
        else:
            assert stored.all() and entry["dropped_tokens"] < stored.shape[1]


def test_prepared_twice_is_the_same_bytes(prepared, corpus, tmp_path):
    again = prepare_corpus(corpus, tmp_path / "again")
    assert again.fingerprint() == prepared.fingerprint()
    assert again.manifest == prepared.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["again"], "something was left behind"


def test_reused_without_reading(prepared, corpus, monkeypatch):
    monkeypatch.setattr(module, "_write", lambda *args: pytest.fail("prepared again"))
    lines: list[str] = []
    assert prepare_corpus(corpus, prepared.folder, progress=lines.append).manifest == prepared.manifest
    assert len(lines) == 1


def test_the_same_files_elsewhere_are_the_same_data(prepared, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "moved")
    assert prepare_corpus(tmp_path / "moved", prepared.folder).manifest == prepared.manifest


def test_other_settings_are_refused_by_name(prepared, corpus, tmp_path):
    with pytest.raises(UserError, match="spec.seq_len is 64, expected 128.*; set another data.out"):
        prepare_corpus(corpus, prepared.folder, seq_len=128)
    shutil.copytree(corpus, tmp_path / "grown")
    write_parquet(tmp_path / "grown" / "starcoder" / "css" / "train-00000-of-00001.parquet", ["a"])
    with pytest.raises(UserError, match=r"spec.readers.1.files.css/train-00000-of-00001.parquet is \d+, expected \d+"):
        prepare_corpus(tmp_path / "grown", prepared.folder)


def test_a_failure_leaves_nothing(corpus, tmp_path):
    root = tmp_path / "bad"
    shutil.copytree(corpus, root)
    write_parquet(root / "starcoder" / "python" / "z.parquet", ["a", None])
    with pytest.raises(UserError, match="content is null"):
        prepare_corpus(root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_folder_of_something_else_is_refused(corpus, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no manifest.json"):
        prepare_corpus(corpus, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_too_small_a_vocabulary(prepared, corpus, tmp_path):
    with pytest.raises(UserError, match=f"has {VOCAB} ids; expected at most vocab_size 399"):
        prepare_corpus(corpus, tmp_path / "out", tokenizer=prepared.tokenizer_path, vocab_size=VOCAB - 1)


def test_a_given_tokenizer_is_kept_byte_for_byte(prepared, corpus, tmp_path):
    given = prepare_corpus(corpus, tmp_path / "out", tokenizer=prepared.tokenizer_path, vocab_size=VOCAB + 8)
    assert given.tokenizer_path.read_bytes() == prepared.tokenizer_path.read_bytes()
    assert given.manifest["spec"]["tokenizer"] == given.manifest["tokenizer_sha256"]
    assert given.fingerprint() == prepared.fingerprint()


def test_nothing_held_out(tmp_path):
    write_corpus(tmp_path / "corpus", seed=1)
    reader = StarCoder(str(tmp_path / "corpus" / "starcoder"))
    prepared = prepare(
        [reader], tmp_path / "out", seq_len=32, tokenizer=None, vocab_size=350, holdout=0.0, valid_rows=0,
        label="x", progress=lambda line: None,
    )  # fmt: skip
    assert prepared.valid == {} and json.loads((prepared.folder / "manifest.json").read_text())["valid"] == {}


@pytest.mark.parametrize("change", [{"seq_len": 4}, {"holdout": 1.0}, {"valid_rows": -1}])
def test_bad_settings(corpus, tmp_path, change):
    with pytest.raises(UserError, match=next(iter(change))):
        prepare_corpus(corpus, tmp_path / "out", **change)
