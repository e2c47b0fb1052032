from __future__ import annotations

import pytest
import torch

from crystal.model.kvcache import KVCache, Prompt
from tests.small import random_model, small_config

CONFIG = small_config()
CPU = torch.device("cpu")


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
    """Feeds rows of known ids into a cache, and compares with the uncached logits."""

    def __init__(self, model, rows, *, masked: bool = False) -> None:
        self.model, self.masked, (self.ids_BT, self.expected) = model, masked, rows
        self.cache = KVCache(CONFIG, rows=4, length=CONFIG.seq_len, device=CPU)
        for layer in self.cache.layers:  # as what a mask hides is on a GPU; where rows are cut, nobody may look at it
            layer.k_BSHK.fill_(7.0 if masked else torch.nan)
            layer.v_BSHK.fill_(7.0 if masked else torch.nan)
        self.texts, self.lengths = [0, 1, 2, 3], [0, 0, 0, 0]  # by row of the cache

    @torch.no_grad()
    def fill(self, row: int, text: int, n: int) -> None:
        prompt = Prompt(CONFIG, n)
        assert torch.equal(
            self.model.logits(self.model.hidden(self.ids_BT[text : text + 1, :n], prompt)), self.model(self.ids_BT[text : text + 1, :n])
        )
        self.cache.fill(row, prompt)
        self.texts[row], self.lengths[row] = text, n

    def move(self, row: int, to: int) -> None:
        self.cache.move(row, to, self.lengths[row])
        self.texts[to], self.lengths[to] = self.texts[row], self.lengths[row]

    @torch.no_grad()
    def step(self, n: int = 4) -> None:
        """A token for each of the first n rows."""
        texts, at = self.texts[:n], self.lengths[:n]
        if self.masked:
            self.cache.begin_masked(torch.tensor(at)[:, None])
        else:
            self.cache.begin(at)
        logits = self.model.logits(self.model.hidden(self.ids_BT[texts, at][:, None], self.cache))[:, 0]
        torch.testing.assert_close(logits, self.expected[texts, at], rtol=0, atol=1e-5)
        self.lengths[:n] = [length + 1 for length in at]


@pytest.mark.parametrize("masked", [False, True], ids=["by rows", "masked"])
def test_prompts_of_different_lengths_then_token_by_token(model, rows, masked):
    feeder = Feeder(model, rows, masked=masked)
    for row, n in enumerate((3, 9, 1, 6)):
        feeder.fill(row, row, n)
    for _ in range(8):
        feeder.step()


def test_from_the_first_token_to_the_last_position(model, rows):
    feeder = Feeder(model, rows)
    for _ in range(CONFIG.seq_len):
        feeder.step()


def test_a_row_that_ended_is_taken_by_the_last_or_by_a_new_prompt(model, rows):
    feeder = Feeder(model, rows)
    for row, n in enumerate((3, 9, 1, 6)):
        feeder.fill(row, row, n)
    feeder.step()
    feeder.move(3, 1)
    for _ in range(3):
        feeder.step(3)
    feeder.fill(0, 1, 2)  # shorter than what lay there
    feeder.fill(3, 0, 12)
    for _ in range(6):
        feeder.step()
