from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from crystal.model.init import initialise
from crystal.model.transformer import Transformer
from crystal.mup.plan import derive
from tests.small import small_config

# Of a normal distribution cut at 2 standard deviations: sqrt(1 - 2 phi(2) 2 / (2 Phi(2) - 1)).
REALISED = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


def initialised(*, seed: int = 1, **changes) -> dict[str, torch.Tensor]:
    config = small_config(**changes)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    initialise(model, stds={name: plan.init_std for name, plan in derive(config).items()}, cut_stds=2.0, seed=seed)
    return dict(model.named_parameters())


def test_realised_std_and_truncation():
    assert pytest.approx(0.8796, abs=1e-4) == REALISED
    config = small_config(d_model=256, d_ffn=682, vocab_size=500)
    plan = derive(config)
    for name, p in initialised(d_model=256, d_ffn=682, vocab_size=500).items():
        if p.ndim == 1:
            assert p.unique().tolist() == [1.0 if "norm" in name and name.endswith("weight") else 0.0], name
        else:
            std = plan[name].init_std
            assert p.std().item() == pytest.approx(REALISED * std, rel=0.01), name
            assert 1.95 * std < p.abs().max() <= 2 * std, name
            assert abs(p.mean().item()) < 5 * std / math.sqrt(p.numel()), name


def test_no_cut_is_a_whole_normal():
    model = nn.Linear(400, 400)
    initialise(model, stds={"weight": 0.5, "bias": 0.0}, cut_stds=math.inf, seed=1)
    assert model.weight.std().item() == pytest.approx(0.5, rel=0.01)
    outside = (model.weight.abs() > 1.0).float().mean().item()  # beyond 2 std
    assert outside == pytest.approx(math.erfc(2 / math.sqrt(2)), rel=0.1)


def test_a_parameter_does_not_depend_on_the_others():
    shallow, deep = initialised(n_layers=2), initialised(n_layers=3, vocab_size=50)
    same = [name for name in shallow if not name.endswith(("attn.out.weight", "ffn.down.weight")) and name != "embed.weight"]
    assert same and all(torch.equal(shallow[name], deep[name]) for name in same)

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(3, 3), nn.Linear(3, 3)

    class Forwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    models = Backwards(), Forwards()
    for model in models:
        initialise(model, stds=dict.fromkeys(dict(model.named_parameters()), 0.5), cut_stds=2.0, seed=3)
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_seeds_and_names_give_different_streams():
    one, again, other = initialised(seed=1), initialised(seed=1), initialised(seed=2)
    matrices = [name for name, p in one.items() if p.ndim == 2]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in matrices)
    assert not torch.equal(one["blocks.0.attn.q.weight"], one["blocks.1.attn.q.weight"])
    assert not torch.equal(one["blocks.0.attn.q.weight"], one["blocks.0.attn.k.weight"])


def test_torchs_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    torch.manual_seed(0)
    initialise(model, stds={"weight": 1.0, "bias": 0.0}, cut_stds=2.0, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_values_are_those_of_every_release_of_torch():
    """torch's own trunc_normal_ draws otherwise in 2.4 than in 2.13; `make cerebras-check` runs this under the former."""
    layer = nn.Linear(5, 3, bias=False)
    initialise(layer, stds={"weight": 0.5}, cut_stds=1.0, seed=1)
    assert layer.weight[0].tolist() == pytest.approx([-0.209673, -0.273112, -0.438925, 0.419523, 0.312259], abs=1e-5)
