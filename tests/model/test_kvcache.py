from __future__ import annotations

import pytest
import torch

from crystal.model.kvcache import KVCache
from tests.small import random_model, small_config

CONFIG = small_config()


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def rows(model):
    """Four rows of ids, and the logits of every position without a cache."""
    ids_BT = torch.randint(CONFIG.vocab_size, (4, CONFIG.seq_len), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return ids_BT, model(ids_BT)


class Feeder:
    """Feeds rows of known ids into a cache, so many tokens a row at a time, and compares with the uncached logits."""

    def __init__(self, model, rows, max_len: int = CONFIG.seq_len) -> None:
        self.model, (self.ids_BT, self.expected) = model, rows
        self.cache = KVCache(CONFIG, batch=4, max_len=max_len, dtype=torch.float32, device=torch.device("cpu"))
        self.alive, self.lengths = [0, 1, 2, 3], [0, 0, 0, 0]

    @torch.no_grad()
    def feed(self, *counts: int) -> None:
        widest = max(counts)
        ids = torch.full((len(counts), widest), CONFIG.vocab_size - 1)  # padding is some token, not 0
        for b, (row, n) in enumerate(zip(self.alive, counts, strict=True)):
            ids[b, :n] = self.ids_BT[row, self.lengths[b] : self.lengths[b] + n]
        logits = self.model.logits(self.model.hidden(ids, self.cache))
        for b, (row, n) in enumerate(zip(self.alive, counts, strict=True)):
            new = slice(self.lengths[b], self.lengths[b] + n)
            torch.testing.assert_close(logits[b, :n], self.expected[row, new], rtol=0, atol=1e-5)
            self.lengths[b] += n
        self.cache.advance(torch.tensor(counts), longest=max(self.cache.longest, *self.lengths))

    def keep(self, *places: int) -> None:
        self.cache.keep(torch.tensor(places))
        self.alive, self.lengths = [self.alive[p] for p in places], [self.lengths[p] for p in places]


def test_ragged_prefill_then_token_by_token(model, rows):
    feeder = Feeder(model, rows)
    feeder.feed(3, 9, 1, 6)
    for _ in range(8):
        feeder.feed(1, 1, 1, 1)


def test_several_tokens_at_once_ragged(model, rows):
    feeder = Feeder(model, rows)
    for counts in ((5, 2, 8, 1), (1, 4, 2, 3), (7, 1, 1, 6)):
        feeder.feed(*counts)
    assert feeder.cache.lengths_B.tolist() == [13, 7, 11, 10]


def test_rows_dropped_on_the_way(model, rows):
    feeder = Feeder(model, rows)
    feeder.feed(3, 9, 1, 6)
    feeder.feed(1, 1, 1, 1)
    feeder.keep(0, 2, 3)  # the longest goes
    feeder.feed(1, 1, 1)
    feeder.keep(2, 0)  # order too
    for _ in range(10):
        feeder.feed(1, 1)
    feeder.keep(1)
    feeder.feed(1)


def test_up_to_the_last_position(model, rows):
    feeder = Feeder(model, rows)
    feeder.feed(4, 20, 4, 4)
    for _ in range(4):
        feeder.feed(1, 1, 1, 1)
