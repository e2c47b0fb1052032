from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from crystal.config import UserError
from crystal.data.fim import split_pieces, unpermute_row
from crystal.data.loader import Batch, Entry, Loader, resolve_entries

ENTRIES = [Entry("c4", "RedPajamaC4/even", 0.4), Entry("code", "starcoder/*", 0.6, fim=True)]


def loader(prepared, **changes) -> Loader:
    settings = {"seed": 0, "batch_rows": 8, "fim_rate": 0.9, "spm_rate": 0.5} | changes
    return Loader(prepared, settings.pop("entries", ENTRIES), **settings)


def equal(one: Batch, other: Batch) -> None:
    for name in ("inputs_BT", "labels_BT", "mask_BT"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_batch_layout(prepared):
    load = loader(prepared)
    batch, rows = load.batch(0, 8), load.rows(0, 8)
    assert batch.inputs_BT.shape == batch.labels_BT.shape == batch.mask_BT.shape == (8, prepared.seq_len)
    assert (batch.inputs_BT.dtype, batch.labels_BT.dtype, batch.mask_BT.dtype) == (np.int64, np.int64, np.float32)
    np.testing.assert_array_equal(batch.inputs_BT, rows[:, :-1])
    np.testing.assert_array_equal(batch.labels_BT, rows[:, 1:])
    np.testing.assert_array_equal(batch.mask_BT, batch.labels_BT != prepared.fim_ids.pad)
    assert 0 < batch.mask_BT.mean() < 1


def test_a_batch_is_its_samples_from_anywhere(prepared):
    load = loader(prepared)
    whole = load.rows(0, 40)
    np.testing.assert_array_equal(np.concatenate([load.rows(k, 1) for k in range(40)]), whole)
    resumed = list(loader(prepared).batches(16, 3))
    for k, batch in enumerate(resumed):
        np.testing.assert_array_equal(batch.labels_BT, whole[16 + 8 * k : 24 + 8 * k, 1:])


@pytest.mark.parametrize("n_ranks", [2, 4])
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
    rows = load.rows(0, 2 * n)
    for i in range(2 * n):
        stored = view[row[i : i + 1]][0]
        cut = split_pieces(stored, ids)[-1][-1] != ids.eos
        assert (rows[i] == ids.prefix).sum() == len(split_pieces(stored, ids))
        np.testing.assert_array_equal(unpermute_row(rows[i], cut=cut, ids=ids), stored)
    first, second = rows[:n][np.argsort(row[:n])], rows[n:][np.argsort(row[n:])]
    assert (first != second).any(axis=1).mean() > 0.9


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
    ]
    assert len({base, *(other.fingerprint() for other in others)}) == 5


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "crystal-prefetch"]


def test_no_thread_is_left_when_the_consumer_stops_early(prepared):
    batches = iter(loader(prepared).batches(0, 10_000))
    next(batches)
    assert len(prefetch_threads()) == 1
    started = time.monotonic()
    batches.close()
    assert prefetch_threads() == [] and time.monotonic() - started < 2


def test_an_error_in_the_thread_reaches_the_consumer(prepared, monkeypatch):
    load = loader(prepared)
    good = load.batch
    monkeypatch.setattr(load, "batch", lambda first, rows: good(first, rows) if first < 16 else 1 / 0)
    batches = iter(load.batches(0, 5))
    next(batches), next(batches)
    with pytest.raises(ZeroDivisionError):
        next(batches)
    assert prefetch_threads() == []


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
        ([Entry("c4", "RedPajamaC4/*", 1.0, fim=True)], "RedPajamaC4/even is text"),
        ([Entry("c4", "RedPajamaC4/*", 1.0, slice=(0.5, 0.2))], "slice of c4"),
    ],
)
def test_bad_entries(prepared, entries, expected):
    with pytest.raises(UserError, match=expected):
        resolve_entries(entries, prepared)


def test_bad_settings(prepared):
    with pytest.raises(UserError, match="8 rows on 3 ranks"):
        loader(prepared, n_ranks=3)
    with pytest.raises(UserError, match="FIM rates 1.5"):
        loader(prepared, fim_rate=1.5)
