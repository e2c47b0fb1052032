from __future__ import annotations

import pytest
import torch

from crystal.model.decode import TILE, GraphDecoder, TiledDecoder, TiledLinear, decoder
from crystal.model.kvcache import Prompt
from tests.small import random_model, small_config

SHAPES = [
    dict(), dict(d_ffn=171, n_heads=1), dict(d_model=48, n_heads=3, rotary_fraction=0.125, n_layers=1, d_ffn=7), dict(parametrization="sp"),
    dict(n_layers=3, depth="completep", base_layers=2), dict(d_model=256, n_heads=2, d_ffn=682, rotary_fraction=0.25, vocab_size=1000),
]  # fmt: skip


@torch.no_grad()
def stepped(steps, model, config, texts: torch.Tensor, lengths: list[int], n: int) -> torch.Tensor:
    """The logits of n steps, each row going on from so many tokens of its text."""
    cache = steps.cache(len(lengths), config.seq_len)
    for row, length in enumerate(lengths):
        prompt = Prompt(config, length)
        model.hidden(texts[row : row + 1, :length], prompt)
        cache.fill(row, prompt)
    logits = []
    for k in range(n):
        at = [length + k for length in lengths]
        logits.append(steps.step(cache, texts[range(len(at)), at].tolist(), at).clone())
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("changes", SHAPES, ids=str)
@pytest.mark.parametrize("tile", [1, TILE])
def test_steps_give_the_models_logits(changes, tile):
    config = small_config(**changes)
    model, lengths = random_model(config), [1 + i % 13 for i in range(TILE + 3)]
    texts = torch.randint(config.vocab_size, (len(lengths), config.seq_len), generator=torch.Generator().manual_seed(2))
    expected = torch.stack([model(text[None])[0, n : n + 9] for text, n in zip(texts, lengths, strict=True)])
    for steps in (TiledDecoder(model, config, tile), GraphDecoder(model, config, graphed=False)):
        torch.testing.assert_close(stepped(steps, model, config, texts, lengths, 9), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_a_row_has_the_same_bits_in_any_place_and_company(changes):
    config = small_config(**changes)
    model = random_model(config)
    steps, generator = decoder(model, config), torch.Generator().manual_seed(4)
    assert steps.tile == TILE, "this processor's kernels treat rows differently: one at a time, then"
    text = torch.randint(config.vocab_size, (1, config.seq_len), generator=generator)
    alone = stepped(steps, model, config, text, [5], 6)[0]
    for n in (2, TILE, 2 * TILE + 5):
        for place in range(n):
            texts = torch.randint(config.vocab_size, (n, config.seq_len), generator=generator)
            lengths = torch.randint(1, 18, (n,), generator=generator).tolist()
            texts[place], lengths[place] = text[0], 5
            assert torch.equal(stepped(steps, model, config, texts, lengths, 6)[place], alone)


def test_rows_that_are_not_alike_are_found_out(monkeypatch):
    """As would be a kernel that rounds the last rows of a tile differently."""
    product = TiledLinear._product

    def uneven(self, x_R1D):
        y_R1D = product(self, x_R1D)
        y_R1D[6:] *= 1 + 1e-6
        return y_R1D

    monkeypatch.setattr(TiledLinear, "_product", uneven)
    config = small_config()
    assert decoder(random_model(config), config).tile == 1


def test_without_mkl(monkeypatch):
    config = small_config()
    model = random_model(config)
    packed, text = decoder(model, config), torch.arange(24)[None]
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    plain = decoder(model, config)
    assert plain.head.packed is None
    ours, theirs = (stepped(steps, model, config, text, [5], 6) for steps in (plain, packed))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
