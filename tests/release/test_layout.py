from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from crystal.config import ModelConfig, UserError
from crystal.release.layout import crystal_shapes, joined, model_config, published, published_config, published_shapes, split, table
from tests.small import random_model, small_config
from tests.test_conf import PRESETS, composed

# The keys of LLM360/CrystalCoder's config.json that decide the mathematics.
CRYSTALCODER = {
    "model_type": "crystalcoder", "activation_function": "swiglu", "layer_norm_epsilon": 1e-05, "mup_embeddings_scale": 14.6,
    "mup_output_alpha": 2.22, "mup_scale_qk_dot_by_d": True, "mup_width_scale": 0.0625, "n_embd": 4096, "n_head": 32, "n_inner": 10922,
    "n_layer": 32, "n_positions": 2048, "position_embedding_type": "rotary", "rotary_dim": 32, "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True, "vocab_size": 32032,
}  # fmt: skip


def test_the_published_model_is_the_7b_preset() -> None:
    assert asdict(model_config(CRYSTALCODER, name="7b")) == asdict(composed("model=7b").model)
    assert published(composed("model=7b").model).items() >= CRYSTALCODER.items()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("changes", [[], ["parametrization=sp"], ["model.depth=completep"], ["model.rotary_base=500"]], ids=str)
def test_every_preset_comes_back(preset: str, changes: list[str]) -> None:
    config = composed(f"model={preset}", "scale=published", *changes).model
    assert model_config(published_config(config, dtype="float32"), name="other") == config


def test_other_parametrizations_without_our_own_key() -> None:
    config = small_config(parametrization="sp", rotary_fraction=0.25, base_width=256)
    assert model_config(published(config), name="small") == config


# Key, value, words of the error. None leaves the key out.
REFUSED: list[tuple[str, Any, str]] = [
    ("model_type", "gpt2", "model_type=gpt2; expected model_type=crystalcoder"),
    ("model_type", "stablelm", "model_type=stablelm; expected model_type=crystalcoder"),
    ("model_type", None, "model_type=None; expected model_type=crystalcoder"),
    ("activation_function", "gelu", "activation_function=gelu, not swiglu"),
    ("position_embedding_type", "alibi", "position_embedding_type=alibi, not rotary"),
    ("scale_attn_weights", False, "scale_attn_weights=False, not True"),
    ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx=True"),
    ("add_cross_attention", True, "add_cross_attention=True"),
    ("tie_word_embeddings", False, "tie_word_embeddings=False, not True"),
    ("mup_scale_qk_dot_by_d", False, "mup_width_scale=0.0625, not 1.0"),
    ("mup_width_scale", 0.06, "= 245.76; expected a whole number"),
    ("mup_width_scale", None, "no mup_width_scale"),
    ("residual_scale", 0.5, "residual_scale=0.5, not 1.0"),
    ("rotary_base", 500.0, "rotary_base=500.0, not 10000.0"),
    ("rotary_dim", 31, "model.rotary_fraction"),
    ("rotary_dim", None, "no rotary_dim"),
    ("n_head", 33, "model.n_heads=33"),
    ("n_embd", "4096", "n_embd=4096; expected a whole number above 0"),
    ("n_layer", 0, "n_layer=0; expected a whole number above 0"),
    ("n_layer", 1.5, "n_layer=1.5; expected a whole number above 0"),
    ("n_layer", -2, "n_layer=-2; expected a whole number above 0"),
    ("n_layer", True, "n_layer=True; expected a whole number above 0"),
    ("layer_norm_epsilon", "small", "layer_norm_epsilon=small; expected a number above 0"),
    ("mup_width_scale", float("inf"), "mup_width_scale=inf; expected a number above 0"),
    ("mup_scale_qk_dot_by_d", "yes", "mup_scale_qk_dot_by_d=yes, not True"),
    ("rotary_base", "big", "rotary_base=big, not 10000.0"),
    ("activation_function", ["swiglu"], "activation_function=['swiglu'], not swiglu"),
    ("crystal", {"name": "x"}, "the key crystal keeps a model with no d_model, no n_layers"),
    ("crystal", {**asdict(small_config()), "n_layers": 1.5, "wide": 3}, "a model with n_layers=1.5, wide=3; expected name, d_model"),
    ("crystal", 3, "a model with model=3, no name"),
    ("crystal", {**asdict(small_config())}, "vocab_size=32032, not 97, n_positions=2048, not 24"),
]


@pytest.mark.parametrize(("key", "value", "words"), REFUSED, ids=lambda value: str(value)[:24])
def test_what_is_not_computed_so_is_refused_by_name(key: str, value: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        model_config({name: given for name, given in (CRYSTALCODER | {key: value}).items() if given is not None}, name="x")
    assert words in str(error.value) and str(error.value).count("; ") == 2, error.value


def test_the_table_names_every_tensor_once_and_joining_is_undone_by_splitting() -> None:
    config = small_config(n_layers=3)
    weights, rows = random_model(config).state_dict(), table(3)
    assert sorted(name for names in rows.values() for name in names) == sorted(weights) == sorted(crystal_shapes(config))
    for name, parts in rows.items():
        whole = joined(name, [weights[part] for part in parts])
        assert whole.shape == published_shapes(config)[name]
        for part, back in zip(parts, split(name, whole, len(parts)), strict=True):
            assert torch.equal(weights[part], back)


def test_a_model_config_has_no_field_that_the_layout_forgets() -> None:
    """Every field but the name and those of training alone changes what `published` says."""
    plain = composed("model=7b").model
    changed: dict[str, Any] = {"d_model": 2048, "n_layers": 4, "n_heads": 16, "d_ffn": 64, "vocab_size": 64, "seq_len": 64}
    changed |= {"rotary_fraction": 0.5, "rotary_base": 5.0, "norm_eps": 1e-3, "base_width": 128, "embedding_scale": 2.0}
    changed |= {"output_alpha": 3.0, "parametrization": "sp", "depth": "completep"}
    for key, value in changed.items():
        assert published(ModelConfig(**(asdict(plain) | {key: value}))) != published(plain), key
    assert asdict(plain).keys() - changed.keys() == {"name", "init_std", "base_layers"}
