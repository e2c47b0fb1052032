"""The published CrystalCoder layout: its tensor names and configuration keys beside Crystal's.

The surprise: reading the configuration checks by writing it. What a config.json must say is what `published` makes of the model just
read from it, so a key that says something else, or that Crystal computes otherwise, is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from crystal.checkpoint import kept_model
from crystal.config import ModelConfig, require
from crystal.mup.plan import meta_model

MODEL_TYPE = "crystalcoder"
OWN = "crystal"  # the key under which an export keeps the whole ModelConfig
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"  # one table; a published file may hold it twice
# A published module of a block, and Crystal's modules whose outputs lie side by side in it.
BLOCK = {
    "ln_1": ["norm_attn"], "attn.c_attn": ["attn.q", "attn.k", "attn.v"], "attn.c_proj": ["attn.out"],
    "ln_2": ["norm_ffn"], "mlp.c_fc2": ["ffn.gate"], "mlp.c_fc": ["ffn.up"], "mlp.c_proj": ["ffn.down"],
}  # fmt: skip
COUNTS = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "rotary_dim")
NUMBERS = (*COUNTS, "layer_norm_epsilon", "mup_embeddings_scale", "mup_output_alpha", "mup_width_scale")
NEEDED = (*NUMBERS, "mup_scale_qk_dot_by_d", "activation_function", "position_embedding_type")


def table(n_layers: int) -> dict[str, list[str]]:
    """Every published tensor's name, and the names of Crystal's tensors that it is made of."""
    rows = {EMBEDDING: ["embed.weight"]}
    for i in range(n_layers):
        for theirs, ours in BLOCK.items():
            for kind in ("weight", "bias"):
                rows[f"transformer.h.{i}.{theirs}.{kind}"] = [f"blocks.{i}.{name}.{kind}" for name in ours]
    return rows | {f"transformer.ln_f.{kind}": [f"norm_out.{kind}"] for kind in ("weight", "bias")}


def joined(name: str, parts: Sequence[Tensor]) -> Tensor:
    """The published tensor `name`: blocks keep their matrices transposed (GPT-2's Conv1D), queries, keys and values in one."""
    return torch.cat([part.T if _transposed(name, part) else part for part in parts], dim=-1)


def split(name: str, tensor: Tensor, n_parts: int) -> list[Tensor]:
    """`joined` backwards; the parts are views."""
    return [part.T if _transposed(name, part) else part for part in tensor.chunk(n_parts, dim=-1)]


def _transposed(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 2 and name != EMBEDDING


def crystal_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Shapes by Crystal's names."""
    return {name: tensor.shape for name, tensor in meta_model(config).state_dict().items()}


def published_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Shapes by the published names."""
    ours = meta_model(config).state_dict()
    return {name: joined(name, [ours[part] for part in parts]).shape for name, parts in table(config.n_layers).items()}


def published(config: ModelConfig) -> dict[str, Any]:
    """The keys of a published config.json that decide the mathematics.

    The last two are ours, for models that are trained otherwise than CrystalCoder: its own modelling code has them built in.
    """
    mup = config.parametrization == "mup"
    return {
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        "n_positions": config.seq_len,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_ffn,
        "rotary_dim": config.rotary_dims,
        "layer_norm_epsilon": config.norm_eps,
        "mup_embeddings_scale": config.embedding_scale,
        "mup_output_alpha": config.output_alpha,
        "mup_width_scale": config.base_width / config.d_model if mup else 1.0,
        "mup_scale_qk_dot_by_d": mup,
        "activation_function": "swiglu",
        "position_embedding_type": "rotary",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
        "rotary_base": config.rotary_base,
        "residual_scale": config.residual_scale,
    }


def model_config(hf: Mapping[str, Any], *, name: str) -> ModelConfig:
    """The model that a config.json describes; `name` is for one that does not say. Raises UserError for what is not CrystalCoder's."""
    kind = hf.get("model_type")
    expected = f"model_type={MODEL_TYPE}: the published CrystalCoder, or what task=export format=crystalcoder wrote"
    require(kind == MODEL_TYPE, f"model_type={kind}", expected, "give such a folder")
    missing = [key for key in NEEDED if hf.get(key) is None]
    require(not missing, f"no {', '.join(missing)}", "the keys of the published CrystalCoder", "fetch it again")
    for key in NUMBERS:
        value, whole = hf[key], key in COUNTS
        good = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and 0 < value < math.inf
        require(good, f"{key}={value}", f"a {'whole ' * whole}number above 0", "fetch it again")
    config = kept_model(hf[OWN], f"the key {OWN}") if OWN in hf else _from_published(hf, name)
    wrong = [f"{key}={hf[key]}, not {value}" for key, value in published(config).items() if not _same(hf.get(key, value), value)]
    require(not wrong, ", ".join(wrong), "what Crystal computes", "it is another model: leave it")
    return config


def _from_published(hf: Mapping[str, Any], name: str) -> ModelConfig:
    mup, width = bool(hf["mup_scale_qk_dot_by_d"]), hf["n_embd"] * hf["mup_width_scale"]
    whole = not mup or _same(round(width), width)
    require(whole, f"n_embd x mup_width_scale = {width:g}", "a whole number, the base width", "mend mup_width_scale")
    return ModelConfig(
        name, d_model=hf["n_embd"], n_layers=hf["n_layer"], n_heads=hf["n_head"], d_ffn=hf["n_inner"], vocab_size=hf["vocab_size"],
        seq_len=hf["n_positions"], rotary_fraction=hf["rotary_dim"] * hf["n_head"] / hf["n_embd"], norm_eps=hf["layer_norm_epsilon"],
        embedding_scale=hf["mup_embeddings_scale"], output_alpha=hf["mup_output_alpha"],
        **(dict(base_width=round(width)) if mup else dict(parametrization="sp")),
    )  # fmt: skip


def _same(said: Any, computed: Any) -> bool:
    if isinstance(computed, float):
        return isinstance(said, int | float) and math.isclose(said, computed, rel_tol=1e-6)
    return said == computed


def published_config(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """config.json in the published layout for the modelling code in hub/, but for the tokens' ids."""
    return published(config) | {
        "architectures": ["CrystalCoderLMHeadModel"],
        "auto_map": {
            "AutoConfig": "configuration_crystalcoder.CrystalCoderConfig",
            "AutoModelForCausalLM": "modeling_crystalcoder.CrystalCoderLMHeadModel",
        },
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": config.init_std,
        "reorder_and_upcast_attn": False,
        "use_cache": True,
        "torch_dtype": dtype,
        OWN: asdict(config),
    }
