from __future__ import annotations

import shutil
import threading
import time

import numpy as np
import pytest

from crystal.config import UserError
from crystal.data.fim import unpermute_row
from crystal.data.loader import GROUP_ROWS, Batch, Change, Entry, Loader, resolve_entries, to_batch
from tests.data.conftest import prepare_corpus, write_parquet

ENTRIES = [Entry("c4", "RedPajamaC4/even", 0.4), Entry("code", "starcoder/*", 0.6, fim=True)]


def loader(prepared, **changes) -> Loader:
    settings = {"seed": 0, "batch_rows": 8, "fim_rate": 0.9, "spm_rate": 0.5} | changes
    return Loader(prepared, settings.pop("entries", ENTRIES), **settings)


def equal(one: Batch, other: Batch) -> None:
    for name in ("inputs_BT", "labels_BT", "mask_BT"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_batch_layout(prepared):
    load = loader(prepared, fim_rate=0.5)
    batch, rows = load.batch(0, 40), load.rows(0, 40)
    assert batch.inputs_BT.shape == batch.labels_BT.shape == batch.mask_BT.shape == (40, prepared.seq_len)
    assert (batch.inputs_BT.dtype, batch.labels_BT.dtype, batch.mask_BT.dtype) == (np.int64, np.int64, np.float32)
    np.testing.assert_array_equal(batch.inputs_BT, rows[:, :-1])
    np.testing.assert_array_equal(batch.labels_BT, rows[:, 1:])
    np.testing.assert_array_equal(batch.mask_BT, batch.labels_BT != prepared.fim_ids.pad)
    assert 0 < batch.mask_BT.mean() < 1 and batch.documents_BT is None
    full = to_batch(rows[rows[:, -1] != prepared.fim_ids.pad], prepared.fim_ids.pad)
    assert full.mask_BT.dtype == np.float32 and full.mask_BT.shape == full.labels_BT.shape and (full.mask_BT == 1).all()


def test_documents_of_a_row_are_counted_by_the_ends_before(prepared):
    batch = loader(prepared, documents=True).batch(0, 100)
    assert batch.documents_BT is not None and batch.documents_BT.dtype == np.int32
    for inputs, documents in zip(batch.inputs_BT.tolist(), batch.documents_BT.tolist(), strict=True):
        assert documents == [inputs[:at].count(prepared.eos_id) for at in range(len(inputs))]
    assert batch.documents_BT.max() > 1


def test_a_batch_is_its_samples_from_anywhere(prepared):
    load = loader(prepared)
    whole = load.rows(0, 40)
    np.testing.assert_array_equal(np.concatenate([load.rows(k, 1) for k in range(40)]), whole)
    resumed = list(loader(prepared).batches(16, 3))
    for k, batch in enumerate(resumed):
        np.testing.assert_array_equal(batch.labels_BT, whole[16 + 8 * k : 24 + 8 * k, 1:])


@pytest.mark.parametrize("n_ranks", [2, 3, 8])
def test_ranks_cut_the_global_batch(prepared, n_ranks):
    alone = list(loader(prepared).batches(8, 3))
    cuts = [list(loader(prepared, rank=rank, n_ranks=n_ranks).batches(8, 3)) for rank in range(n_ranks)]
    for step, batch in enumerate(alone):
        joined = Batch(*(np.concatenate([getattr(cut[step], name) for cut in cuts]) for name in ("inputs_BT", "labels_BT", "mask_BT")))
        equal(joined, batch)


def test_fim_permutes_the_mixtures_rows_anew_each_epoch(prepared):
    entries = [Entry("code", "starcoder/python", 1.0, fim=True)]
    load = loader(prepared, entries=entries, fim_rate=1.0)
    view, ids = prepared.rows("starcoder/python"), prepared.fim_ids
    n = len(view)
    _, epoch, row = load.mixture.locate(np.arange(2 * n))
    pieces, counts = prepared.pieces("starcoder/python")[row]
    lengths = np.split(pieces["length"], np.cumsum(counts)[:-1])
    rows = load.rows(0, 2 * n)
    for i in range(2 * n):
        assert (rows[i] == ids.prefix).sum() == counts[i]
        np.testing.assert_array_equal(unpermute_row(rows[i], lengths[i].tolist(), ids), view[row[i : i + 1]][0])
    first, second = rows[:n][np.argsort(row[:n])], rows[n:][np.argsort(row[n:])]
    assert (first != second).any(axis=1).mean() > 0.9


def test_a_document_is_permuted_alike_wherever_it_comes(corpus, tmp_path):
    """By seed, epoch and document alone: not by the entry, its slice, the stage's other sources, or the row that packing put it in."""
    by_name = [Entry("python", "starcoder/python", 1.0, fim=True)]
    among_others = [ENTRIES[0], Entry("code", "starcoder/p*", 0.6, fim=True, slice=(0.0, 0.5))]
    short, long = (prepare_corpus(corpus, tmp_path / str(seq_len), seq_len=seq_len) for seq_len in (200, 300))
    found = [permuted_documents(made, entries) for made, entries in ((short, by_name), (short, among_others), (long, by_name))]
    for one, other in zip(found, found[1:], strict=False):
        shared = one.keys() & other.keys()
        assert len(shared) > 10 and all(one[key] == other[key] for key in shared)


def permuted_documents(prepared, entries) -> dict[tuple[int, int], list[int]]:
    """(file, place) -> the ids, with FIM, of each Python document that lies whole in a row of its first epoch."""
    load, found = loader(prepared, entries=entries, fim_rate=1.0), {}
    stream, epoch, row = load.mixture.locate(np.arange(300))
    here = (stream == len(entries) - 1) & (epoch == 0)
    rows = load.rows(0, 300)[here]
    pieces, counts = prepared.pieces(entries[-1].parts, entries[-1].slice)[row[here]]
    for ids, own in zip(rows, np.split(pieces, np.cumsum(counts)[:-1]), strict=True):
        ends = np.flatnonzero(ids == prepared.eos_id) + 1
        for piece, document in zip(own, np.split(ids, ends), strict=False):
            if piece["start"] == 0 and (document == prepared.fim_ids.eos).any() and piece["length"] == len(document) - 3:
                found[int(piece["file"]), int(piece["place"])] = document.tolist()
    return found


def test_no_fim_where_the_entry_or_the_rate_says_none(prepared):
    plain = [ENTRIES[0], Entry("code", "starcoder/*", 0.6)]
    for load in (loader(prepared, entries=plain), loader(prepared, fim_rate=0.0)):
        assert not (load.rows(0, 60) == prepared.fim_ids.prefix).any()
    assert (loader(prepared).rows(0, 60) == prepared.fim_ids.prefix).any()


def test_fingerprint_tells_what_changes_the_numbers(prepared):
    base = loader(prepared).fingerprint()
    assert loader(prepared, batch_rows=16, n_ranks=2).fingerprint() == base
    others = [
        loader(prepared, seed=1),
        loader(prepared, fim_rate=0.3),
        loader(prepared, entries=[Entry("c4", "RedPajamaC4/even", 0.5), Entry("code", "starcoder/*", 0.5, fim=True)]),
        loader(prepared, entries=[ENTRIES[0], Entry("code", "starcoder/*", 0.6, fim=True, slice=(0.0, 0.5))]),
        loader(prepared, changes=[Change(80, (ENTRIES[1], Entry("c4", "RedPajamaC4/even", 0.4)))]),
        loader(prepared, changes=[Change(88, (ENTRIES[1], Entry("c4", "RedPajamaC4/even", 0.4)))]),
    ]
    assert len({base, *(other.fingerprint() for other in others)}) == 7


def test_a_change_of_the_mixture_moves_nothing_before_it(prepared):
    book = Entry("book", "RedPajamaBook/*", 0.3)
    changed = loader(prepared, changes=[Change(24, (Entry("code", "starcoder/*", 0.7, fim=True), book))])
    before, after = loader(prepared).rows(0, 40), changed.rows(0, 40)
    np.testing.assert_array_equal(after[:24], before[:24])
    assert changed.mixture.samples(40)["c4"] == loader(prepared).mixture.samples(24)["c4"]
    streams, epochs, rows = changed.mixture.locate(np.arange(24, 40))
    books = prepared.rows(book.parts)[rows[streams == 2]]
    assert len(books) in (4, 5, 6) and (epochs[streams == 2] == 0).all()
    np.testing.assert_array_equal(after[24:][streams == 2], books)


def threads() -> int:
    return sum(thread.name == "crystal-prefetch" for thread in threading.enumerate())


def test_no_thread_is_left_when_the_consumer_stops_early(prepared):
    batches = iter(loader(prepared).batches(0, 10_000))
    next(batches)
    assert threads() == 1
    started = time.monotonic()
    batches.close()
    assert threads() == 0 and time.monotonic() - started < 2


def test_an_error_in_the_thread_reaches_the_consumer(prepared, monkeypatch):
    load = loader(prepared)
    good, groups = load.read, []
    monkeypatch.setattr(load, "read", lambda *located: groups.append(0) or good(*located) if len(groups) < 2 else 1 / 0)
    batches = iter(load.batches(0, 100))
    with pytest.raises(ZeroDivisionError):
        for n_batches, _ in enumerate(batches, start=1):  # noqa: B007
            pass
    assert n_batches == 2 * GROUP_ROWS // load.batch_rows
    assert threads() == 0


def test_an_empty_source_is_refused_or_its_weight_given_to_the_others(prepared):
    entries = [*ENTRIES[:1], Entry("rust", "starcoder/rust", 0.2), Entry("code", "starcoder/*", 0.4)]
    with pytest.raises(UserError, match=r"entry rust \(parts starcoder/rust.*expected some of: .*RedPajamaC4/even"):
        resolve_entries(entries, prepared)
    resolved, redistributed = resolve_entries(entries, prepared, empty_source="redistribute")
    assert redistributed == ["rust"]
    assert [(entry.name, pytest.approx(entry.weight)) for entry in resolved] == [("c4", 0.5), ("code", 0.5)]
    with pytest.raises(UserError, match="entry rust"):
        resolve_entries([Entry("rust", "starcoder/rust", 1.0)], prepared, empty_source="redistribute")


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([Entry("c4", "RedPajamaC4/even", 0.5)], "sum to 0.5"),
        ([Entry("c4", "RedPajamaC4/even", 0.5)] * 2, "expected each once"),
        ([Entry("c4", "RedPajamaC4/*", 1.0, fim=True)], "RedPajamaC4/even is packed without room for it; .*data.fim_room=true"),
        ([Entry("c4", "RedPajamaC4/*", 1.0, slice=(0.5, 0.2))], "slice of c4"),
    ],
)
def test_bad_entries(prepared, entries, expected):
    with pytest.raises(UserError, match=expected):
        resolve_entries(entries, prepared)


def test_fim_as_crystalcoder_had_it_wants_rows_without_room(corpus, prepared, tmp_path):
    entries = [Entry("code", "starcoder/python", 1.0, fim=True)]
    with pytest.raises(UserError, match="starcoder/python is packed with room; .*data.fim_room=false"):
        resolve_entries(entries, prepared, fim_style="crystalcoder")
    full = prepare_corpus(corpus, tmp_path / "out", fim_room=False)
    with pytest.raises(UserError, match="starcoder/python is packed without room"):
        resolve_entries(entries, full)
    assert resolve_entries(entries, full, fim_style="crystalcoder") == (entries, [])
    settings = {"entries": entries, "fim_style": "crystalcoder", "fim_rate": 1.0}
    rows = loader(full, **settings).rows(0, 30)
    assert rows.shape == (30, full.seq_len + 1) and (rows == full.fim_ids.prefix).any(axis=1).all()
    np.testing.assert_array_equal(np.concatenate([loader(full, **settings).rows(k, 1) for k in range(30)]), rows)
    assert (loader(full, **settings, seed=1).rows(0, 30) != rows).any()
    assert loader(full, **settings).rows(0, 0).shape == (0, full.seq_len + 1)
    assert loader(full, **settings).fingerprint() != loader(full, **settings | {"fim_style": "lossless"}).fingerprint()


def test_bad_settings(prepared):
    with pytest.raises(UserError, match="8 rows on 9 ranks"):
        loader(prepared, n_ranks=9)
    with pytest.raises(UserError, match="FIM rates 1.5"):
        loader(prepared, fim_rate=1.5)


def test_another_file_beside_it_changes_no_documents_draws(corpus, prepared, tmp_path):
    """An empty file in front gives every file another number."""
    root = tmp_path / "corpus"
    shutil.copytree(corpus, root)
    write_parquet(root / "starcoder" / "ada" / "a.parquet", [""])
    other = prepare_corpus(root, tmp_path / "out", tokenizer=prepared.tokenizer_path)
    assert other.files != prepared.files and other.fingerprint() != prepared.fingerprint()
    entries = [Entry("code", "starcoder/*", 1.0, fim=True)]
    loaders = [Loader(data, entries, seed=1, batch_rows=1, fim_rate=0.9) for data in (prepared, other)]
    assert np.array_equal(*(loader.rows(0, 40) for loader in loaders))
