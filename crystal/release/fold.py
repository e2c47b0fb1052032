"""A Crystal model as a stock StableLM (LayerNorm, partial rotary, SwiGLU; transformers and vLLM have it): the same logits, no own code.

StableLM has no multipliers, rotates halves instead of pairs, and has biases on queries, keys and values only. Scales and centring fold
into the weights. For the other biases the residual stream is widened by one head of zeros, and the surprise is that this is exact:
every reader of the stream is a LayerNorm, so the stream may be centred at its writers; then its mean stays 0, and its variance shrinks
by D/E (E: the width with the new head), which LayerNorm's weight and eps take back. In the new dims
- norm_ffn's bias is 1 in the first: a constant input, whose column of the gate's and up's weights is their bias;
- a new ffn unit is the constant 1, by gate 32 and up 1/32 (silu(32) is 32 in float32 and below): its column of `down` is down's bias;
- the new head attends to all tokens alike and has the constant value 1: its column of the output projection is that one's bias.

Shapes: D model, K head dim, E = D + K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from crystal.config import ModelConfig

GATE = 32.0
FFN_MULTIPLE = 64  # vLLM cuts the ffn among GPUs, and kernels like round sizes


def stock_config(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """config.json of the StableLM, but for the tokens' ids."""
    wide, rotary = _width(config), config.rotary_fraction
    return {
        "architectures": ["StableLmForCausalLM"],
        "model_type": "stablelm",
        "vocab_size": config.vocab_size,
        "hidden_size": wide,
        "intermediate_size": _ffn(config),
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads + 1,
        "num_key_value_heads": config.n_heads + 1,
        "max_position_embeddings": config.seq_len,
        "layer_norm_eps": config.norm_eps * config.d_model / wide,
        "hidden_act": "silu",
        "use_qkv_bias": True,
        "qk_layernorm": False,
        "use_parallel_residual": False,
        "tie_word_embeddings": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "use_cache": True,
        # Said three times: transformers 5 reads the first, transformers 4 the next two, vLLM rope_pct under both.
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base, "partial_rotary_factor": rotary},
        "rope_theta": config.rotary_base,
        "partial_rotary_factor": rotary,
        "rope_pct": rotary,
        "torch_dtype": dtype,
    }


def stock_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the StableLM with its shape, in the order of `stock_tensors`."""
    wide, ffn, table = _width(config), _ffn(config), (config.vocab_size, _width(config))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
    for i in range(config.n_layers):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}input_layernorm.{kind}": (wide,) for kind in ("weight", "bias")}
        for name in ("q_proj", "k_proj", "v_proj"):
            shapes |= {f"{layer}self_attn.{name}.weight": (wide, wide), f"{layer}self_attn.{name}.bias": (wide,)}
        shapes |= {f"{layer}self_attn.o_proj.weight": (wide, wide)}
        shapes |= {f"{layer}post_attention_layernorm.{kind}": (wide,) for kind in ("weight", "bias")}
        shapes |= {f"{layer}mlp.gate_proj.weight": (ffn, wide), f"{layer}mlp.up_proj.weight": (ffn, wide)}
        shapes |= {f"{layer}mlp.down_proj.weight": (wide, ffn)}
    return shapes | {"model.norm.weight": (wide,), "model.norm.bias": (wide,), "lm_head.weight": table}


def stock_tensors(config: ModelConfig, weights: Callable[[str], Tensor]) -> Iterator[Tensor]:
    """The StableLM's tensors, float64, one at a time; `weights(name)` reads one of Crystal's."""
    wide, ffn, scale = _width(config), _ffn(config), config.residual_scale

    def read(name: str) -> Tensor:
        return weights(name).double()

    def norm(name: str, *, constant: bool) -> Iterator[Tensor]:
        yield _padded(read(f"{name}.weight") * (config.d_model / wide) ** 0.5, wide)
        bias = _padded(read(f"{name}.bias"), wide)
        bias[config.d_model] = float(constant)
        yield bias

    def writer(name: str, n_inputs: int) -> Tensor:
        """(E, n_inputs): an output projection, centred and scaled, with its bias as the column of the constant input behind its own."""
        weight, bias = read(f"{name}.weight"), read(f"{name}.bias")
        return _padded(_centred(torch.cat((weight, bias[:, None]), dim=1).mul_(scale), dim=0), wide, n_inputs)

    yield _padded(_centred(read("embed.weight").mul_(config.embedding_scale), dim=1), config.vocab_size, wide)
    for i in range(config.n_layers):
        block = f"blocks.{i}"
        yield from norm(f"{block}.norm_attn", constant=False)
        for name in "qkv":
            weight, bias = (_headwise(read(f"{block}.attn.{name}.{kind}"), config, name) for kind in ("weight", "bias"))
            yield _padded(weight, wide, wide)
            bias = _padded(bias, wide)
            bias[config.d_model] = float(name == "v")
            yield bias
        yield writer(f"{block}.attn.out", wide)
        yield from norm(f"{block}.norm_ffn", constant=True)
        for name, constant in (("gate", GATE), ("up", 1 / GATE)):
            weight, bias = read(f"{block}.ffn.{name}.weight"), read(f"{block}.ffn.{name}.bias")
            weight = _padded(torch.cat((weight, bias[:, None]), dim=1), ffn, wide)
            weight[config.d_ffn, config.d_model] = constant
            yield weight
        yield writer(f"{block}.ffn.down", ffn)
    yield from norm("norm_out", constant=False)
    yield _padded(read("embed.weight").mul_(config.output_scale), config.vocab_size, wide)


def _headwise(tensor: Tensor, config: ModelConfig, name: str) -> Tensor:
    """Rows (D, ...) of queries or keys with each head's rotary pairs (0,1), (2,3), ... as halves, queries with the attention scale."""
    if name == "v":
        return tensor
    heads = tensor.unflatten(0, (config.n_heads, config.head_dim))
    dims, rotary = torch.arange(config.head_dim), config.rotary_dims
    order = torch.cat((dims[:rotary:2], dims[1:rotary:2], dims[rotary:]))
    scale = config.attention_scale * config.head_dim**0.5 if name == "q" else 1.0
    return heads[:, order].flatten(0, 1).mul_(scale)


def _width(config: ModelConfig) -> int:
    return config.d_model + config.head_dim


def _ffn(config: ModelConfig) -> int:
    return -(-(config.d_ffn + 1) // FFN_MULTIPLE) * FFN_MULTIPLE


def _centred(tensor: Tensor, *, dim: int) -> Tensor:
    return tensor.sub_(tensor.mean(dim, keepdim=True))


def _padded(tensor: Tensor, *shape: int) -> Tensor:
    """`tensor` in the first corner of zeros of `shape`."""
    out = tensor.new_zeros(shape)
    out[tuple(slice(size) for size in tensor.shape)] = tensor
    return out
