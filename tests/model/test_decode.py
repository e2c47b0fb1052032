from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crystal.model import decode
from crystal.model.decode import SIZES, GraphDecoder, TiledDecoder, TiledLinear, TiledSwiGLU, decoder, gpu_rows, padded
from crystal.model.kvcache import Prompt
from tests.small import random_model, small_config

SHAPES = [
    dict(), dict(d_ffn=171, n_heads=1), dict(d_model=48, n_heads=3, rotary_fraction=0.125, n_layers=1, d_ffn=7), dict(parametrization="sp"),
    dict(n_layers=3, depth="completep", base_layers=2), dict(d_model=256, n_heads=2, d_ffn=682, rotary_fraction=0.25, vocab_size=1000),
]  # fmt: skip


@pytest.fixture
def short_blocks(monkeypatch):
    """Texts of this length lie in three different blocks, and go from one to the next."""
    monkeypatch.setattr(decode, "CPU_STEP", 8)
    monkeypatch.setattr(decode, "GPU_STEP", 16)


@torch.no_grad()
def stepped(steps, model, config, texts: torch.Tensor, lengths: list[int], n: int) -> torch.Tensor:
    """The logits of n steps, each text going on from so many of its tokens."""
    cache = steps.cache(len(lengths))
    for text, length in enumerate(lengths):
        prompt = Prompt(config, length)
        model.hidden(texts[text : text + 1, :length], prompt)
        cache.add(text, prompt)
    logits = []
    for k in range(n):
        own = cache.grow()
        assert sorted(own) == list(range(len(lengths)))
        step = steps.step(cache, [int(texts[text, lengths[text] + k]) for text in own])
        logits.append(torch.stack([step[own.index(text)] for text in range(len(lengths))]))
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_steps_give_the_models_logits(changes, short_blocks):
    config = small_config(**changes)
    model, lengths = random_model(config), [1 + i % 13 for i in range(11)]
    texts = torch.randint(config.vocab_size, (len(lengths), config.seq_len), generator=torch.Generator().manual_seed(2))
    expected = torch.stack([model(text[None])[0, n : n + 9] for text, n in zip(texts, lengths, strict=True)])
    for steps in (TiledDecoder(model, config), GraphDecoder(model, config, graphed=False)):
        torch.testing.assert_close(stepped(steps, model, config, texts, lengths, 9), expected, rtol=0, atol=2e-5)


def test_a_gpu_holds_as_many_rows_as_fit():
    large = small_config(d_model=4096, n_layers=32, n_heads=32, seq_len=2048)
    assert [gpu_rows(large, gib << 30) for gib in (400, 139, 80, 16, 1)] == [32, 8, 8, 1, 1]


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_a_text_has_the_same_bits_in_any_place_and_company(changes, short_blocks, threads):
    config = small_config(**changes)
    model = random_model(config)
    steps, generator = decoder(model, config), torch.Generator().manual_seed(4)
    text = torch.randint(config.vocab_size, (1, config.seq_len), generator=generator)
    alone = stepped(steps, model, config, text, [5], 6)[0]
    for n in (2, 3, 8, 13, 37):
        for place in {0, n // 2, n - 1}:
            texts = torch.randint(config.vocab_size, (n, config.seq_len), generator=generator)
            lengths = torch.randint(1, 18, (n,), generator=generator).tolist()
            texts[place], lengths[place] = text[0], 5
            assert torch.equal(stepped(steps, model, config, texts, lengths, 6)[place], alone)


def test_an_activation_that_threads_share_has_the_same_bits(threads):
    """More elements than torch gives to one thread, cut within rows."""
    config = small_config(d_ffn=1365)
    ffn = TiledSwiGLU(random_model(config).blocks[0].ffn)
    ffn.gate_up.most = ffn.down.most = 2  # so that the products are the same, and only the activation differs
    x_R1D = 5 * torch.randn(32, 1, config.d_model, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(ffn(x_R1D), torch.cat([ffn(tile) for tile in x_R1D.split(2)]))


@given(st.integers(1, 200), st.sampled_from(SIZES))
def test_rows_are_padded_to_whole_tiles(n, sizes):
    rows = padded(n, sizes)
    assert n <= rows < 2 * n + sizes[0]
    assert {len(tile) for tile in torch.zeros(rows).split(sizes[-1])} <= set(sizes)


@pytest.mark.parametrize(("differing", "expected"), [("numbers", SIZES[1]), ("places", SIZES[2])])
def test_products_that_round_differently_are_found_out(monkeypatch, differing, expected):
    """As those of a kernel for few rows, and of one that treats the last rows of a tile differently."""
    product = TiledLinear._product

    def uneven(self, x_R1D):
        y_R1D = product(self, x_R1D)
        if self.weight.shape[0] == 97:  # one of the model's matrices is enough
            if differing == "numbers" and len(x_R1D) < 8:
                y_R1D *= 1 + 1e-6
            if differing == "places":
                y_R1D[14:] *= 1 + 1e-6
        return y_R1D

    monkeypatch.setattr(TiledLinear, "_product", uneven)
    config = small_config()
    model = random_model(config)
    steps, text = decoder(model, config), torch.arange(24)[None]
    assert steps.sizes == expected
    torch.testing.assert_close(stepped(steps, model, config, text, [5], 6)[0], model(text)[0, 5:11], rtol=0, atol=1e-4)


def test_without_mkl(monkeypatch):
    config = small_config()
    model, text = random_model(config), torch.arange(24)[None]
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    steps = decoder(model, config)
    assert steps.head.packed is None
    torch.testing.assert_close(stepped(steps, model, config, text, [5], 6)[0], model(text)[0, 5:11], rtol=0, atol=1e-5)
