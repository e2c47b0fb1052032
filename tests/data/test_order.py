"""The order can be proven: one hash of 100,000 samples, however they are cut among batches and ranks, and wherever one resumes."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest

from crystal.data.loader import Change, Entry, Loader
from crystal.data.shards import Prepared
from tests.data.conftest import prepare_corpus

N_SAMPLES = 100_000
CODE, C4, BOOK = (Entry("code", "starcoder/*", 0.5, fim=True), Entry("c4", "RedPajamaC4/*", 0.3), Entry("book", "RedPajamaBook/*", 0.2))
CHANGES = [Change(60_000, (Entry("code", "starcoder/*", 0.9, fim=True), Entry("css", "starcoder/css", 0.1)))]


@pytest.fixture(scope="module")
def short_rows(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_corpus(corpus, tmp_path_factory.mktemp("short") / "out", seq_len=16)


def order_hash(prepared: Prepared, *, batch_rows: int = 512, n_ranks: int = 1, first: int = 0) -> str:
    """sha256 over the labels of the samples from `first` on, each batch put together from the ranks' cuts."""
    n_steps = -((first - N_SAMPLES) // batch_rows)
    digest = hashlib.sha256()
    settings = {"seed": 5, "batch_rows": batch_rows, "changes": CHANGES, "fim_rate": 0.9}
    ranks = [Loader(prepared, [CODE, C4, BOOK], rank=rank, n_ranks=n_ranks, **settings) for rank in range(n_ranks)]
    left = N_SAMPLES - first
    for cuts in zip(*(loader.batches(first, n_steps) for loader in ranks), strict=True):
        labels = np.concatenate([cut.labels_BT for cut in cuts])
        assert len(labels) == batch_rows
        digest.update(labels[:left].astype("<u2").tobytes())
        left -= batch_rows
    assert left <= 0
    return digest.hexdigest()


@pytest.fixture(scope="module")
def alone(short_rows: Prepared) -> str:
    return order_hash(short_rows)


@pytest.mark.parametrize("batch_rows", [8, 64, 512])
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4])
def test_the_order_is_that_of_one_process(short_rows, alone, n_ranks, batch_rows):
    assert order_hash(short_rows, n_ranks=n_ranks, batch_rows=batch_rows) == alone


def test_the_order_goes_on_where_it_was_stopped(short_rows):
    loader = Loader(short_rows, [CODE, C4, BOOK], seed=5, batch_rows=64, changes=CHANGES, fim_rate=0.9)
    whole = np.concatenate([batch.labels_BT for batch in loader.batches(0, N_SAMPLES // 64)])
    positions = random.Random(0).choices(range(N_SAMPLES // 64 - 20), k=50)
    for step in positions:
        resumed = np.concatenate([batch.labels_BT for batch in loader.batches(step * 64, 20)])
        np.testing.assert_array_equal(resumed, whole[step * 64 : step * 64 + 20 * 64])
