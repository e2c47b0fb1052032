from __future__ import annotations

import pytest
import torch
from torch import nn

from crystal.config import AdamWConfig
from crystal.model.transformer import Transformer
from crystal.mup.plan import derive
from crystal.optim import named_state, param_groups, set_lr
from tests.small import random_model, small_config

CONFIG = small_config()  # width multiplier 2


def groups_of(model: nn.Module, **changes) -> list[dict]:
    return param_groups(model.named_parameters(), derive(CONFIG), AdamWConfig(**changes))


def test_every_parameter_is_in_one_group():
    model = Transformer(CONFIG)
    groups = groups_of(model)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(dict(model.named_parameters()))
    parameters = dict(model.named_parameters())
    assert all(parameters[name] is p for group in groups for name, p in zip(group["names"], group["params"], strict=True))
    assert sorted((group["lr_mult"], group["weight_decay"]) for group in groups) == [(0.5, 0.1), (1.0, 0.0), (1.0, 0.1)]


def test_decay_on_matrices_only():
    for group in groups_of(Transformer(CONFIG)):
        assert all((p.ndim == 2) == (group["weight_decay"] > 0) for p in group["params"])
    assert {group["weight_decay"] for group in groups_of(Transformer(CONFIG), weight_decay=0.0)} == {0.0}


@pytest.mark.parametrize("missing", ["norm_out.bias", "blocks.1.ffn.up.weight"])
def test_a_parameter_or_a_plan_too_few_is_our_bug(missing):
    model, plan = Transformer(CONFIG), derive(CONFIG)
    parameters = [(name, p) for name, p in model.named_parameters() if name != missing]
    with pytest.raises(AssertionError, match=missing):
        param_groups(parameters, plan, AdamWConfig())
    with pytest.raises(KeyError, match=missing):
        param_groups(model.named_parameters(), {name: p for name, p in plan.items() if name != missing}, AdamWConfig())


@pytest.mark.parametrize("fused", [True, False])
def test_updates_equal_adamw_by_the_book(fused):
    """Loshchilov and Hutter's algorithm 2 in float64, with muP's multiple on the rate and so on the decay."""
    model, constants, lr = random_model(CONFIG), AdamWConfig(eps=1e-6), 0.02
    optimizer = torch.optim.AdamW(groups_of(model, eps=1e-6), lr=0.0, betas=(0.9, 0.95), eps=1e-6, fused=fused)
    plan, generator = derive(CONFIG), torch.Generator().manual_seed(3)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    first, second = ({name: torch.zeros_like(p) for name, p in expected.items()} for _ in range(2))
    for t in (1, 2, 3):
        set_lr(optimizer.param_groups, lr)
        for name, p in model.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator)
            g = p.grad.double()
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            step = first[name] / (1 - 0.9**t) / ((second[name] / (1 - 0.95**t)).sqrt() + constants.eps)
            decay = 0.1 if p.ndim == 2 else 0.0
            expected[name] = expected[name] - lr * plan[name].lr_mult * (step + decay * expected[name])
        optimizer.step()
        optimizer.zero_grad()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=0, atol=1e-6, msg=name)
    assert {name: state["step"].item() for name, state in named_state(optimizer).items()} == dict.fromkeys(expected, 3.0)
    for name, state in named_state(optimizer).items():
        torch.testing.assert_close(state["exp_avg"].double(), first[name], rtol=1e-5, atol=1e-6, msg=name)


def test_before_the_first_update_there_is_no_state():
    assert named_state(torch.optim.AdamW(groups_of(Transformer(CONFIG)))) == {}
