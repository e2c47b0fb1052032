"""Documents put together again from prepared rows, and benchmark problems that packing has cut found in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from crystal.data import contamination, index
from crystal.data.contamination import Check, Stretch, documents_of, stretches
from crystal.data.decontaminate import Decontaminator, Problem
from crystal.data.loader import Entry
from crystal.data.readers import SlimPajama, StarCoder
from crystal.data.shards import Prepared
from crystal.data.tokenizer import load_tokenizer
from tests.data.conftest import prepare_corpus, write_parquet
from tests.data.test_hdf5 import adopted, as_samples, write_h5

PROMPT = "def weave(ribbons, colours):\n"
SOLUTION = "    banner = [ribbons.pop(colours[shortest]) for shortest in sorted(colours)]\n    return banner + ribbons\n"
N_WORDS = 16  # so that hardly any half of it is a hit
PROBLEM = Problem("Seamstress/1", PROMPT, SOLUTION)
WHOLE = [Entry("all", "*", 1.0)]


def small_pieces_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that stretches, batches and fences all have ends among the test's few rows."""
    monkeypatch.setattr(index, "FENCE_PIECES", 16)
    monkeypatch.setattr(contamination, "STRETCH_TOKENS", 640)
    monkeypatch.setattr(contamination, "BATCH_TOKENS", 150)


def documents(prepared: Prepared, work: list[Stretch]) -> dict[tuple[str, int], np.ndarray]:
    found: dict[tuple[str, int], np.ndarray] = {}
    for stretch in work:
        for document in (document for batch in documents_of(prepared, stretch) for document in batch):
            assert (document.file, document.place) not in found
            found[document.file, document.place] = document.ids
    return found


@pytest.mark.parametrize("packing", ["split", "best_fit"])
@pytest.mark.parametrize("seq_len", [16, 64])
def test_documents_are_put_together_again(corpus, tmp_path, monkeypatch, packing, seq_len):
    small_pieces_of_work(monkeypatch)
    made = prepare_corpus(corpus, tmp_path / "out", packing=packing, seq_len=seq_len)
    tokenizer, work = load_tokenizer(made.tokenizer_path), stretches(made, WHOLE)
    assert len(work) > 3 * len(made.train)
    found = documents(made, work)
    texts = {
        (document.file, document.index): document.text
        for reader in (SlimPajama(str(corpus / "slimpajama")), StarCoder(str(corpus / "starcoder")))
        for file in reader.files()
        for document in reader.read(file)
    }
    n_cut = 0
    for key, ids in found.items():
        whole = np.append(tokenizer.encode(texts[key]), made.eos_id)
        n_cut += len(ids) < len(whole)
        np.testing.assert_array_equal(ids, whole[: len(ids)])
    assert n_cut <= len(made.train), "the last of a part, whose end was dropped"
    stored = sum(entry["tokens"] for entry in made.train.values())
    assert sum(map(len, found.values())) == stored


def test_only_rows_that_are_trained_on_and_each_once(prepared, monkeypatch):
    small_pieces_of_work(monkeypatch)
    slices = [("RedPajamaC4/*", (0.1, 0.4)), ("*C4/even", (0.3, 0.6)), ("*C4/even", (0.8, 1.0))]
    entries = [Entry(str(number), parts, 1.0, slice=part_slice) for number, (parts, part_slice) in enumerate(slices)]
    work = stretches(prepared, entries)
    n_rows = {part: prepared.train[part]["rows"] for part in ("RedPajamaC4/even", "RedPajamaC4/odd")}
    expected = {"RedPajamaC4/even": [(0.1, 0.6), (0.8, 1.0)], "RedPajamaC4/odd": [(0.1, 0.4)]}
    for part, ranges in expected.items():
        rows = [row for stretch in work if stretch.part == part for row in range(stretch.first, stretch.end)]
        assert rows == [row for low, high in ranges for row in range(round(low * n_rows[part]), round(high * n_rows[part]))]
    assert {stretch.part for stretch in work} == set(expected)
    for part in expected:
        view = prepared.rows(part)
        mine = [stretch for stretch in work if stretch.part == part]
        trained = np.concatenate([view[np.arange(stretch.first, stretch.end)].ravel() for stretch in mine])
        pieces = [d.ids for stretch in mine for batch in documents_of(prepared, stretch) for d in batch]
        np.testing.assert_array_equal(np.concatenate(pieces), trained)


@pytest.fixture(scope="module")
def seamstress() -> Decontaminator:
    pytest.importorskip("numba")
    return Decontaminator([PROBLEM], n=N_WORDS)


@pytest.fixture(scope="module")
def planted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[int]]:
    """The corpus with a language more, in which every seventh document holds the problem; and the places of these."""
    root = tmp_path_factory.mktemp("planted")
    for folder in corpus.iterdir():
        (root / folder.name).mkdir()
        for path in folder.iterdir():
            (root / folder.name / path.name).symlink_to(path)
    line = "x = {}  # nothing to see in this one, but many a word\n"
    texts = [line.format(n) * (n % 5 + 1) + (PROMPT + SOLUTION) * (n % 7 == 3) + line.format(n) * 3 for n in range(100)]
    write_parquet(root / "starcoder" / "java" / "train-00000-of-00001.parquet", texts)
    return root, {n for n in range(100) if n % 7 == 3}


def checked(prepared: Prepared, decontaminator: Decontaminator, folder: Path, n_tasks: int = 1) -> list[dict]:
    check = Check(prepared.folder, stretches(prepared, WHOLE), decontaminator, folder)
    for rank in range(n_tasks):
        check(rank, n_tasks)
    return [json.loads(check.path(number).read_text()) for number in range(len(check.stretches))]


@pytest.mark.parametrize("packing", ["split", "best_fit"])
@pytest.mark.parametrize("fim_room", [True, False])
def test_a_problem_is_found_where_packing_has_cut_it(planted, seamstress, tmp_path, monkeypatch, packing, fim_room):
    small_pieces_of_work(monkeypatch)
    root, places = planted
    made = prepare_corpus(root, tmp_path / "out", packing=packing, fim_room=fim_room, holdout=0.0, valid_rows=0)
    results = checked(made, seamstress, tmp_path / "check", n_tasks=3)
    hits = [hit for result in results for hit in result["hits"]]
    assert {(hit["part"], hit["file"], hit["problem"], hit["kind"]) for hit in hits} == {
        ("starcoder/java", "java/train-00000-of-00001.parquet", PROBLEM.name, "body")
    }
    assert sorted(hit["place"] for hit in hits) == sorted(places)
    view, tokenizer = made.rows("starcoder/java"), load_tokenizer(made.tokenizer_path)
    alone = seamstress.hits([tokenizer.decode(row) for row in view[np.arange(len(view))]])
    assert sum(map(len, alone)) < len(places) / 2, "most are cut, or the test shows nothing"
    java = [r["documents"] for r, s in zip(results, stretches(made, WHOLE), strict=True) if s.part == "starcoder/java"]
    assert sum(java) == 100


def test_a_clean_corpus_has_none_and_what_is_done_is_not_done_again(prepared, seamstress, tmp_path, monkeypatch):
    results = checked(prepared, seamstress, tmp_path)
    assert [result["hits"] for result in results] == [[]] * len(prepared.train)
    monkeypatch.setattr(Check, "_looked_through", lambda *arguments: pytest.fail("looked through again"))
    assert checked(prepared, seamstress, tmp_path, n_tasks=2) == results


@pytest.mark.parametrize("layout", ["samples", "corpus", "permuted"])
def test_rows_of_hdf5_files(planted, seamstress, tmp_path, monkeypatch, layout):
    """A problem that two rows share is found in the corpus layout alone, since of samples nobody knows which row is the next."""
    small_pieces_of_work(monkeypatch)
    root, places = planted
    made = prepare_corpus(root, tmp_path / "made", seq_len=512, holdout=0.0, valid_rows=0)
    view = made.rows("starcoder/java")
    rows = view[np.arange(len(view))]
    if layout == "permuted":
        from tests.data.test_loader import loader

        rows = loader(made, entries=[Entry("java", "starcoder/java", 1.0, fim=True)], fim_rate=1.0).rows(0, len(view))
    data = rows[rows != made.fim_ids.pad].astype(np.int32) if layout == "corpus" else as_samples(rows, made.fim_ids.pad)
    write_h5(tmp_path / "files" / "java" / "data.h5", data, **({"compression": None} if layout == "corpus" else {}))
    done = adopted(tmp_path / "files", tmp_path / "out", made.tokenizer_path, seq_len=512 if layout != "corpus" else 64, valid_rows=0)
    hits = [hit for result in checked(done, seamstress, tmp_path / "check") for hit in result["hits"]]
    assert {(hit["file"], hit["problem"]) for hit in hits} == {("java/data.h5", PROBLEM.name)}
    assert len({hit["place"] for hit in hits}) >= (len(places) if layout == "corpus" else 5)
