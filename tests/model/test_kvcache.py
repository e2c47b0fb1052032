from __future__ import annotations

import pytest
import torch

from crystal.model.kvcache import Block, KVCache, Prompt
from tests.small import random_model, small_config

CONFIG = small_config()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def texts(model):
    """Four texts, and the logits of every position without a cache."""
    ids_BT = torch.randint(CONFIG.vocab_size, (4, CONFIG.seq_len), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return ids_BT, model(ids_BT)


class Feeder:
    """Feeds known ids into a cache, and compares with the uncached logits."""

    def __init__(self, monkeypatch, model, texts, *, step: int = 8) -> None:
        self.model, (self.ids_BT, self.expected) = model, texts
        self.cache = KVCache(CONFIG, rows=4, step=step, device=CPU)
        monkeypatch.setattr(torch, "empty", lambda shape, device: torch.full(shape, torch.nan, device=device))  # as memory may be
        self.lengths: dict[int, int] = {}

    @torch.no_grad()
    def add(self, text: int, n: int) -> None:
        prompt, ids_1T = Prompt(CONFIG, n), self.ids_BT[text : text + 1, :n]
        assert torch.equal(self.model.logits(self.model.hidden(ids_1T, prompt)), self.model(ids_1T))
        self.cache.add(text, prompt)
        self.lengths[text] = n

    def drop(self, text: int) -> None:
        self.cache.drop(text)
        del self.lengths[text]

    @torch.no_grad()
    def step(self, *, padding: int = 0) -> None:
        """A token for each text."""
        assert len(self.cache) == len(self.lengths)
        own = self.cache.grow()
        assert set(own) == set(self.lengths)
        at = [self.lengths[text] for text in own]
        self.cache.look(padding)
        ids_B1 = torch.cat([self.ids_BT[own, at], torch.full((padding,), 5)])[:, None]
        logits = self.model.logits(self.model.hidden(ids_B1, self.cache))[: len(own), 0]
        torch.testing.assert_close(logits, self.expected[own, at], rtol=0, atol=1e-5)
        self.lengths = {text: n + 1 for text, n in self.lengths.items()}


@pytest.mark.parametrize("step", [1, 4, 8, 64])
def test_texts_of_different_lengths_token_by_token(monkeypatch, model, texts, step):
    feeder = Feeder(monkeypatch, model, texts, step=step)
    for text, n in enumerate((3, 9, 1, 7)):
        feeder.add(text, n)
    for padding in range(8):
        feeder.step(padding=padding)


def test_to_the_last_position_and_no_block_is_kept_empty(monkeypatch, model, texts):
    feeder = Feeder(monkeypatch, model, texts)
    feeder.add(2, 1)
    for n in range(1, CONFIG.seq_len):
        feeder.step()
        assert list(feeder.cache.blocks) == [(n // 8 + 1) * 8]


def test_texts_come_and_go(monkeypatch, model, texts):
    feeder = Feeder(monkeypatch, model, texts)
    for text, n in enumerate((3, 9, 1, 6)):
        feeder.add(text, n)
    feeder.step()
    feeder.drop(1)
    feeder.drop(0)
    for _ in range(3):
        feeder.step()
    feeder.add(1, 2)
    feeder.add(0, 12)
    for _ in range(6):
        feeder.step()
    for text in (3, 2, 0):
        feeder.drop(text)
        feeder.step()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_attention_of_a_text_has_the_same_bits_in_any_company(threads, n_heads):
    config, before = small_config(n_heads=n_heads), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for length in (64, 512, 640):
            q, k, v = torch.randn(3, 5, n_heads, 1, config.head_dim, generator=torch.Generator().manual_seed(length))
            block = Block(config, rows=5, length=length, device=CPU)
            layer, positions = block.layers[0], torch.tensor([length - 1, 3, 40, 0, 62])
            for part in (layer.k_BSHK, layer.v_BSHK):
                part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(1)))
            block.look(positions)
            together = layer.attend(q, k, v, 0.1)
            block.look(positions[:1])
            assert torch.equal(layer.attend(q[:1], k[:1], v[:1], 0.1), together[:1])
    finally:
        torch.set_num_threads(before)
