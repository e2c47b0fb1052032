"""The muP plan against CrystalCoder's released numbers, and against `mup` asked in its own way."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings

import numpy as np
import pytest
import torch

from crystal.config import AdamWConfig, ModelConfig, UserError
from crystal.model.transformer import Transformer
from crystal.mup.plan import ParamPlan, derive, meta_model
from crystal.optim import param_groups
from tests.model.test_parity import PARITY, needs_golden, renamed
from tests.small import small_config

CRYSTALCODER = ModelConfig("7b", 4096, 32, 32, 10922, 32032, 2048)
MATRIX = dict(kind="matrix", width_mult=16.0, lr_mult=0.0625, decay=True)
# What the released parameters say of each kind of parameter at width 4096.
RELEASED = {
    r"embed\.weight": ParamPlan("embedding", 16.0, 1.0, 0.073, True),
    r"blocks\.\d+\.(attn\.[qkv]|ffn\.(gate|up))\.weight": ParamPlan(**MATRIX, init_std=0.01825),
    r"blocks\.\d+\.(attn\.out|ffn\.down)\.weight": ParamPlan(**MATRIX, init_std=0.00228125),
    r"(.*\.)?(norm_(attn|ffn|out)\.(weight|bias)|(q|k|v|out|gate|up|down)\.bias)": ParamPlan("vector", 16.0, 1.0, 0.0, False),
}


def test_every_parameter_at_the_published_width():
    plan = derive(CRYSTALCODER)
    assert len(plan) == 1 + 32 * 18 + 2
    for name, got in plan.items():
        (expected,) = [kind for pattern, kind in RELEASED.items() if re.fullmatch(pattern, name)]
        assert dataclasses.replace(got, width_mult=16.0) == expected, name
        assert got.width_mult == 16.0 or got.kind == "vector" or name == "embed.weight", name
    assert CRYSTALCODER.output_scale == 0.13875
    assert CRYSTALCODER.attention_scale == 1 / 128


@pytest.mark.parametrize("widths", [(512, 1364), (128, 341), (1024, 2728)])
def test_equals_mup_asked_its_own_way(widths):
    """`make_base_shapes` from a base and a delta model, where every base width is a whole number (here ffn 682 at 256)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mup

    def config(d_model: int, d_ffn: int) -> ModelConfig:
        return ModelConfig("m", d_model, 3, d_model // 64, d_ffn, 1000, 128)

    target = meta_model(config(*widths))
    mup.set_base_shapes(target, mup.make_base_shapes(meta_model(config(256, 682)), meta_model(config(512, 1364))), rescale_params=False)
    theirs = {id(p): group for group in mup.MuAdamW(target.parameters(), lr=1.0).param_groups for p in group["params"]}
    plan = derive(config(*widths))
    for name, p in target.named_parameters():
        assert plan[name].lr_mult == theirs[id(p)]["lr"], name
        assert plan[name].width_mult == p.infshape.width_mult(), name
        assert (plan[name].kind == "matrix") == (p.infshape.ninf() == 2), name


@pytest.mark.parametrize("d_model", [64, 512])
def test_initial_values_have_the_spread_that_mup_gives(d_model):
    """`mup.normal_` knows the base width; what CrystalCoder adds to it is 1/sqrt(2 layers) on what writes to the residual stream."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mup

    def config(width: int) -> ModelConfig:
        return ModelConfig("m", width, 3, width // 32, 8 * width // 3, 500, 128)

    model = Transformer(config(d_model))
    mup.set_base_shapes(model, mup.make_base_shapes(meta_model(config(256)), meta_model(config(512))), rescale_params=False)
    torch.manual_seed(0)
    for name, plan in derive(config(d_model)).items():
        p = model.get_parameter(name)
        if plan.kind == "vector":
            assert plan.init_std == 0
            continue
        std = config(d_model).init_std * (1 if not name.endswith(("attn.out.weight", "ffn.down.weight")) else 6**-0.5)
        mup.normal_(p, std=std)
        assert p.std().item() == pytest.approx(plan.init_std, rel=5 / p.numel() ** 0.5), name


def test_the_standard_parametrization_is_gpt2s():
    config = dataclasses.replace(CRYSTALCODER, parametrization="sp", embedding_scale=1.0, output_alpha=1.0, init_std=0.02)
    plan = derive(config)
    assert {p.lr_mult for p in plan.values()} == {p.eps_mult for p in plan.values()} == {p.width_mult for p in plan.values()} == {1.0}
    assert {name: p.decay for name, p in plan.items()} == {name: p.decay for name, p in derive(CRYSTALCODER).items()}
    for name, p in plan.items():
        outputs = name.endswith(("attn.out.weight", "ffn.down.weight"))
        assert p.init_std == (0 if p.kind == "vector" else pytest.approx(0.02 / 8) if outputs else 0.02), name
    assert (config.output_scale, config.attention_scale, config.init_cut_stds) == (1.0, 128**-0.5, float("inf"))


def test_depth_is_scaled_as_completep_says():
    """At base_layers nothing changes; four times as deep, branches count a quarter and AdamW's eps follows their gradients."""
    base, deep = (small_config(n_layers=n, depth="completep", base_layers=2) for n in (2, 8))
    assert derive(base) == derive(small_config(n_layers=2))
    assert (base.residual_scale, deep.residual_scale) == (1.0, 0.25)
    shallow, plan = derive(base), derive(deep)
    for name, p in plan.items():
        same = shallow[re.sub(r"blocks\.\d+", "blocks.0", name)]
        assert p == dataclasses.replace(same, eps_mult=0.25 if name.startswith("blocks.") else 1.0), name
    model = Transformer(deep)
    eps = {name: group["eps"] for group in param_groups(model.named_parameters(), plan, AdamWConfig()) for name in group["names"]}
    assert eps == {name: AdamWConfig().eps * p.eps_mult for name, p in plan.items()}


@pytest.mark.parametrize("changes", [dict(parametrization="ntk"), dict(depth="half"), dict(base_layers=0)], ids=str)
def test_an_unknown_parametrization_is_refused(changes):
    (key,) = changes
    with pytest.raises(UserError, match=f"model.{key}="):
        small_config(**changes)


@needs_golden
def test_the_published_optimizer_groups():
    hf = json.loads((PARITY / "hf" / "config.json").read_text())
    config = ModelConfig("parity", hf["n_embd"], hf["n_layer"], hf["n_head"], hf["n_inner"], hf["vocab_size"], 64, base_width=16)
    model = Transformer(config)
    published = json.loads(str(np.load(PARITY / "golden.npz")["mup_groups"]))
    ours = {}
    for group in param_groups(model.named_parameters(), derive(config), AdamWConfig()):
        ours |= dict.fromkeys(group["names"], (group["lr_mult"], group["weight_decay"]))
    for i in (0, 1):  # each number as a matrix of itself, which the renaming can transpose and split
        expected = renamed({name: torch.full((3, 3), pair[i], dtype=torch.float64) for name, pair in published.items()})
        assert {name: pair[i] for name, pair in ours.items()} == {name: tensor.unique().item() for name, tensor in expected.items()}


def test_narrower_than_the_base():
    config = small_config(d_model=16, n_heads=2, d_ffn=42, base_width=64)
    plan = derive(config)
    assert config.width_mult == 0.25
    assert plan["blocks.0.attn.q.weight"].lr_mult == 4.0
    assert plan["blocks.0.attn.q.weight"].init_std == pytest.approx(2 * config.init_std)
    assert plan["blocks.0.ffn.down.weight"].lr_mult == 4.0
    assert plan["embed.weight"].lr_mult == plan["norm_out.bias"].lr_mult == 1.0
    assert config.output_scale == 4 * config.output_alpha


@pytest.mark.parametrize("d_model", [448, 7552, 4096, 192])
def test_one_width_has_one_learning_rate(d_model):
    plan = derive(ModelConfig("m", d_model, 1, d_model // 64, 8 * d_model // 3, 100, 16))
    assert {p.lr_mult for p in plan.values() if p.kind == "matrix"} == {256 / d_model}
    assert {p.width_mult for p in plan.values() if p.kind == "matrix"} == {d_model / 256}


def test_at_the_base_width_nothing_is_scaled():
    plan = derive(small_config(base_width=32))
    assert {p.lr_mult for p in plan.values()} == {1.0}


def test_the_plan_leaves_nothing_on_the_model():
    model = Transformer(small_config())
    derive(small_config())
    assert not any(hasattr(p, "infshape") for p in model.parameters())
