from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from crystal.config import UserError
from crystal.data import prepare as module
from crystal.data.decontaminate import Decontaminator, Problem
from crystal.data.encode import is_held_out
from crystal.data.executors import Here
from crystal.data.fim import split_pieces
from crystal.data.prepare import Settings, prepare
from crystal.data.readers import Document, Reader, SlimPajama, StarCoder, TokenArray
from crystal.data.shards import Prepared
from crystal.data.tokenizer import load_tokenizer
from tests.data.conftest import VOCAB, prepare_corpus, write_corpus, write_parquet


def held(text: str) -> bool:
    return is_held_out(Document(text, "", "", 0), 0.1)


def documents_of(prepared: Prepared, rows: np.ndarray) -> list[str]:
    """The texts stored in rows, the last one perhaps cut."""
    tokenizer = load_tokenizer(prepared.tokenizer_path)
    stream = np.concatenate([piece for row in rows for piece in split_pieces(row, prepared.fim_ids)])
    ends = np.flatnonzero(stream == prepared.eos_id)
    return [tokenizer.decode(piece) for piece in np.split(stream, ends + 1) if len(piece)]


def readers_of(root: Path) -> list[Reader]:
    return [SlimPajama(str(root / "slimpajama")), StarCoder(str(root / "starcoder"))]


def corpus_texts(root: Path) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for reader in readers_of(root):
        for file in reader.files():
            for document in reader.read(file):
                texts.setdefault(document.source, []).append(document.text)
    return texts


def test_every_text_is_on_one_side_in_its_part(prepared, corpus):
    texts = corpus_texts(corpus)
    view = prepared.rows("starcoder/python")
    train = documents_of(prepared, view[np.arange(len(view))])
    held_out = [text for text in texts["starcoder/python"] if held(text)]
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
        held_out = [text for text in texts[source] if held(text)]
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
    monkeypatch.setattr(module._Work, "write", lambda *args: pytest.fail("prepared again"))
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


def test_a_failure_leaves_no_data_and_what_was_done_is_taken_up(corpus, tmp_path, prepared):
    root, settings = tmp_path / "bad", {"tokenizer": prepared.tokenizer_path}
    shutil.copytree(corpus, root)
    write_parquet(root / "starcoder" / "python" / "z.parquet", ["a", None])
    lines: list[str] = []
    with pytest.raises(UserError, match="content is null"):
        prepare_corpus(root, tmp_path / "out", progress=lines.append, **settings)
    (work,) = (path for path in tmp_path.iterdir() if path != root)
    assert work.name.startswith(".out.") and str(work) in lines[-1]
    before = {path.name: path.stat().st_mtime_ns for path in (work / "encoded").glob("*.bin")}
    assert len(before) == 6
    with pytest.raises(UserError, match="content is null"):
        prepare_corpus(root, tmp_path / "out", **settings)
    assert {path.name: path.stat().st_mtime_ns for path in (work / "encoded").glob("*.bin")} == before
    (root / "starcoder" / "python" / "z.parquet").unlink()
    assert prepare_corpus(root, tmp_path / "out", **settings).fingerprint() == prepared.fingerprint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "out"]


def test_what_is_broken_may_be_skipped(corpus, tmp_path, prepared):
    root = tmp_path / "bad"
    shutil.copytree(corpus, root)
    write_parquet(root / "starcoder" / "python" / "z.parquet", [None, None])
    made = prepare_corpus(root, tmp_path / "out", tokenizer=prepared.tokenizer_path, on_broken="skip")
    assert made.fingerprint() == prepared.fingerprint() and made.manifest["left_out"]["broken"] == 2
    broken = [json.loads(line) for line in (made.folder / "broken.jsonl").read_text().splitlines()]
    assert [(line["file"], line["where"]) for line in broken] == [("python/z.parquet", f"row group 0, row {k}") for k in range(2)]


@pytest.mark.parametrize("when", ["encode", "plan", "fill"])
def test_killed_and_started_again(corpus, tmp_path, prepared, when):
    """Each pass does its first task and dies; another number of tasks takes it up."""

    class Dies:
        def run(self, step, n_items, folder):
            last = folder.name.endswith(when)
            for rank in [0] if last else range(3):
                step(rank, 3)
            if last:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_corpus(corpus, tmp_path / "out", executor=Dies())
    (work,) = tmp_path.iterdir()
    done = {path: path.stat().st_mtime_ns for path in work.rglob("*.json")}
    assert done
    (work / "out" / "train").mkdir(exist_ok=True)
    (work / "out" / "train" / "00000.npy.77.tmp").write_bytes(b"of a task that was killed")
    kept: list[bool] = []

    class Looks(Here):
        def run(self, step, n_items, folder):
            super().run(step, n_items, folder)
            kept.append(all(path.stat().st_mtime_ns == t for path, t in done.items() if path.parent.name != "out"))

    assert prepare_corpus(corpus, tmp_path / "out", executor=Looks(2)).fingerprint() == prepared.fingerprint()
    assert kept == [True] * 3 and [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_best_fit_drops_nothing(corpus, tmp_path, prepared):
    made = prepare_corpus(corpus, tmp_path / "out", packing="best_fit", tokenizer=prepared.tokenizer_path)
    for part, entry in made.train.items():
        before = prepared.train[part]
        assert entry["dropped_tokens"] == 0 and entry["tokens"] == before["tokens"] + before["dropped_tokens"]
    texts = set(corpus_texts(corpus)["starcoder/css"])
    view, pieces = made.rows("starcoder/css"), made.pieces("starcoder/css")
    whole = [text for text in documents_of(made, view[np.arange(len(view))]) if text in texts]
    found, _ = pieces[np.arange(len(view))]
    assert len(whole) == sum(entry == 1 for entry in np.unique(found["place"], return_counts=True)[1]) > 10


def test_the_index_says_what_rows_hold(prepared, corpus):
    tokenizer = load_tokenizer(prepared.tokenizer_path)
    texts = {(d.file, d.index): d.text for reader in readers_of(corpus) for file in reader.files() for d in reader.read(file)}
    for part in prepared.train:
        view, pieces = prepared.rows(part), prepared.pieces(part)
        rows = view[np.arange(len(view))]
        found, counts = pieces[np.arange(len(view))]
        for row, end, count in zip(rows, np.cumsum(counts).tolist(), counts.tolist(), strict=True):
            position = 0
            for piece in found[end - count : end]:
                text = texts[prepared.files[piece["file"]], int(piece["place"])]
                ids = np.append(tokenizer.encode(text), prepared.eos_id)
                stop = position + piece["length"]
                assert np.array_equal(row[position:stop], ids[piece["start"] :][: piece["length"]])
                position = stop
            assert (row[position:] == prepared.fim_ids.pad).all()
        for file, place in np.unique(found[["file", "place"]]).tolist():
            holds = np.repeat(np.arange(len(rows)), counts)[(found["file"] == file) & (found["place"] == place)]
            assert np.array_equal(pieces.rows_of(file, place), np.unique(holds))
    assert len(prepared.pieces("*").rows_of(0, 10**9)) == 0


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
        [reader], tmp_path / "out", Settings(32, 350, holdout=0.0, valid_rows=0), tokenizer=None, label="x", progress=lambda line: None
    )
    assert prepared.valid == {} and json.loads((prepared.folder / "manifest.json").read_text())["valid"] == {}


@pytest.mark.parametrize("change", [{"seq_len": 4}, {"holdout": 1.0}, {"valid_rows": -1}])
def test_bad_settings(corpus, tmp_path, change):
    with pytest.raises(UserError, match=next(iter(change))):
        prepare_corpus(corpus, tmp_path / "out", **change)


@pytest.mark.parametrize("action", ["drop", "report"])
def test_what_holds_a_problem_is_listed_and_left_out(corpus, tmp_path, prepared, action):
    problem = Problem("Made/1", "Return the longest of the chains that the forest keeps below its canopy.", "return sorted(chains)[-1]\n")
    root = tmp_path / "corpus"
    shutil.copytree(corpus, root)
    text = f'def longest(chains):\n    """{problem.prompt}"""\n    {problem.solution}'
    write_parquet(root / "starcoder" / "python" / "z.parquet", [text, "x = 1\n"])
    changes = {"tokenizer": prepared.tokenizer_path, "decontaminator": Decontaminator([problem]), "contaminated": action, "holdout": 0.0}
    made = prepare_corpus(root, tmp_path / "out", **changes)
    (hit,) = [json.loads(line) for line in (made.folder / "contamination.jsonl").read_text().splitlines()]
    assert (hit["file"], hit["place"], hit["part"], hit["problem"]) == ("python/z.parquet", 0, "starcoder/python", "Made/1")
    assert made.manifest["left_out"]["contaminated"] == 1
    view = made.rows("starcoder/python")
    assert any(problem.prompt in document for document in documents_of(made, view[np.arange(len(view))])) == (action == "report")
    with pytest.raises(UserError, match="spec.decontaminate"):
        prepare_corpus(root, tmp_path / "out", **(changes | {"decontaminator": None}))


def test_duplicates_are_left_out(corpus, tmp_path, prepared):
    root = tmp_path / "corpus"
    shutil.copytree(corpus, root)
    css = pq.read_table(corpus / "starcoder" / "css" / "train-00000-of-00001.parquet").column(0).to_pylist()
    write_parquet(root / "starcoder" / "css" / "z.parquet", css)
    made = prepare_corpus(root, tmp_path / "out", tokenizer=prepared.tokenizer_path, dedup="exact", executor=Here(2))
    assert [entry["shards"] for entry in made.train.values()] == [entry["shards"] for entry in prepared.train.values()]
    assert made.manifest["left_out"]["duplicates"] == len(css)


def test_what_is_a_duplicate_is_decided_anew_where_another_file_has_changed(corpus, tmp_path, prepared):
    """The file that was mended holds what another, done before, had as the first of its kind."""
    root, settings = tmp_path / "corpus", {"tokenizer": prepared.tokenizer_path, "dedup": "exact"}
    shutil.copytree(corpus, root)
    first, last = (root / "starcoder" / "css" / f"{name}.parquet" for name in ("a", "z"))
    write_parquet(last, ["b {}", "c {}"])
    write_parquet(first, ["b {}", None])
    with pytest.raises(UserError, match="content is null"):
        prepare_corpus(root, tmp_path / "out", **settings)
    write_parquet(first, ["c {}", "d { color: red }"])
    made = prepare_corpus(root, tmp_path / "out", **settings)
    assert made.fingerprint() == prepare_corpus(root, tmp_path / "fresh", **settings).fingerprint()


def test_ids_of_several_texts_are_no_document(prepared, tmp_path):
    (tmp_path / "ids").mkdir()
    np.save(tmp_path / "ids" / "a.npy", np.array([30, prepared.eos_id, 31, 5, 32, 5], np.uint16))
    with pytest.raises(
        UserError, match="a.npy document 0 has an end of document or padding inside; expected ids of one text; give .*eos_id"
    ):
        reader = TokenArray(str(tmp_path / "ids"), "ids", eos_id=5)
        prepare_corpus(tmp_path, tmp_path / "out", readers=[reader], tokenizer=prepared.tokenizer_path)
    reader = TokenArray(str(tmp_path / "ids"), "ids", eos_id=prepared.eos_id)
    made = prepare_corpus(tmp_path, tmp_path / "out", readers=[reader], tokenizer=prepared.tokenizer_path, holdout=0.0, packing="best_fit")
    assert made.train["ids"]["tokens"] == 7 and made.train["ids"]["documents"] == 2


def test_what_a_kill_left_behind_the_move_goes(corpus, tmp_path, prepared):
    shutil.copytree(prepared.folder, tmp_path / "out")
    prepare_corpus(corpus, tmp_path / "out")
    work = tmp_path / f".out.{module._key(prepared.manifest['spec'])}.work"
    (work / "encoded").mkdir(parents=True)
    prepare_corpus(corpus, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
