"""Counted costs against the model itself.

What is counted: two FLOPs for each multiply-add of every matrix product, the two of attention over all T keys. Not counted: softmax,
norms, activations, the optimizer. `FlopCounterMode` counts the same, so the numbers must be equal, not close.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from crystal.config import ModelConfig
from crystal.model.cost import forward_flops_per_token, memory_bytes, parameters, train_flops_per_token
from crystal.mup.plan import meta_model
from tests.small import random_model, small_config

CRYSTALCODER = ModelConfig("7b", 4096, 32, 32, 10922, 32032, 2048)


def test_flops_of_a_full_row():
    config = small_config(n_layers=3, d_ffn=70)
    model, ids_BT = random_model(config), torch.zeros(2, config.seq_len, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        model(ids_BT)
    assert forward.get_total_flops() == ids_BT.numel() * forward_flops_per_token(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as train:
        model(ids_BT, ids_BT, torch.ones(ids_BT.shape)).backward()
    assert train.get_total_flops() == ids_BT.numel() * train_flops_per_token(config)


@pytest.mark.parametrize("config", [small_config(), CRYSTALCODER], ids=lambda config: config.name)
def test_parameters_part_by_part(config):
    parts = {"embed": "embedding", "attn": "attention", "ffn": "ffn"}
    counted = dict.fromkeys(parameters(config), 0)
    for name, parameter in meta_model(config).named_parameters():
        counted[next((parts[word] for word in name.split(".") if word in parts), "norms")] += parameter.numel()
    assert parameters(config) == counted


def test_the_published_size():
    assert sum(parameters(CRYSTALCODER).values()) == 6_575_278_720
    # 6 FLOPs a parameter and token, and attention's share on top.
    assert train_flops_per_token(CRYSTALCODER) / (6 * 6.575e9) == pytest.approx(1.08, abs=0.01)


def test_memory():
    config = small_config()
    n = sum(p.numel() for p in meta_model(config).parameters())
    one, two = (memory_bytes(config, rows=rows) for rows in (1, 2))
    assert (one["weights"], one["gradients"], one["optimizer"]) == (4 * n, 4 * n, 8 * n)
    assert two["activations"] == 2 * one["activations"] and two["weights"] == one["weights"]
