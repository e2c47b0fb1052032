from __future__ import annotations

import numpy as np
import pytest
import torch

from crystal.config import ModelConfig
from crystal.model.rope import Rope, rotate
from crystal.model.transformer import Transformer
from tests.small import random_model, small_config

CRYSTALCODER = dict(d_model=128, n_layers=1, n_heads=1, d_ffn=8, vocab_size=8, seq_len=2048, rotary_fraction=0.25)


def is_right(rope: Rope, *, rotary_dims: int = 32, seq_len: int = 2048) -> None:
    frequency = 10000.0 ** (-np.arange(0, rotary_dims, 2) / rotary_dims)
    angle = np.arange(seq_len, dtype=np.float64)[:, None] * frequency
    for table, expected in ((rope.cos_TR, np.cos(angle)), (rope.sin_TR, np.sin(angle))):
        assert table.dtype == torch.float32
        np.testing.assert_allclose(table.double().numpy(), expected, atol=1e-6, rtol=0)


@pytest.fixture
def model() -> Transformer:
    return Transformer(ModelConfig("heads of the published size", **CRYSTALCODER))


@pytest.mark.parametrize("change", [lambda m: m, lambda m: m.to(torch.bfloat16), lambda m: m.half().float(), lambda m: m.double()])
def test_tables_at_every_position_survive_casts(model, change):
    is_right(change(model).rope)


def test_tables_after_to_empty_and_fill():
    with torch.device("meta"):
        model = Transformer(ModelConfig("meta", **CRYSTALCODER))
    assert model.rope.cos_TR.is_meta
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    model.rope.fill()
    is_right(model.rope)


def test_tables_are_not_in_checkpoints_and_right_behind_one(model, tmp_path):
    rounded = model.to(torch.bfloat16)
    assert not [name for name in rounded.state_dict() if "rope" in name]
    torch.save(rounded.state_dict(), tmp_path / "weights.pt")
    again = Transformer(ModelConfig("again", **CRYSTALCODER)).to(torch.bfloat16)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    is_right(again.rope)


def test_a_bf16_model_differs_from_float32_by_rounding_only():
    config = small_config(seq_len=300, rotary_fraction=1.0)
    ids_BT = torch.randint(config.vocab_size, (1, 300), generator=torch.Generator().manual_seed(0))
    exact, rounded = random_model(config)(ids_BT), random_model(config).to(torch.bfloat16)(ids_BT).float()
    early, late = ((exact - rounded)[0, part].square().mean().sqrt() for part in (slice(50), slice(250, 300)))
    assert late < 2 * early


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_other_dims_pass_bit_for_bit(dtype):
    rope = Rope(rotary_dims=8, seq_len=50, base=10000.0)
    x_BTHK = torch.randn(2, 50, 3, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    rotated = rotate(x_BTHK, rope.cos_TR[:, None], rope.sin_TR[:, None])
    assert rotated.dtype == dtype
    assert torch.equal(rotated[..., 8:], x_BTHK[..., 8:])
    assert torch.equal(rotated[:, 0], x_BTHK[:, 0]), "position 0 is not turned"
    assert not torch.isclose(rotated[:, 1:, :, :2], x_BTHK[:, 1:, :, :2]).all(-1).any(), "the fastest pair turns at every position"


def test_only_the_distance_between_two_positions_counts():
    rope, generator = Rope(rotary_dims=32, seq_len=2048, base=10000.0), torch.Generator().manual_seed(0)
    q_K, k_K = torch.randn(2, 32, generator=generator)

    def score(m: int, n: int) -> float:
        at = [rotate(x.view(1, 1, 1, 32), rope.cos_TR[[p]][:, None], rope.sin_TR[[p]][:, None]) for x, p in ((q_K, m), (k_K, n))]
        return float((at[0] * at[1]).sum())

    for distance in (0, 1, 30, 700):
        assert [score(distance + shift, shift) for shift in (1, 64, 1347)] == pytest.approx([score(distance, 0)] * 3, abs=2e-5)
    assert abs(score(5, 0) - score(0, 5)) > 0.1, "order counts"
