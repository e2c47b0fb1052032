"""What muP says of every parameter, as plain floats by name.

The surprise: `mup` hangs its knowledge on the tensors (`p.infshape`), where `to_empty`, `fully_shard` and `deepcopy` lose it. Here it
is asked once, on meta tensors that cost nothing, and only its answers are kept. Its base widths may be fractions: no integer ffn
width is a sixteenth of 10922.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping

import torch

from crystal.config import ModelConfig
from crystal.model.transformer import Transformer

RESIDUAL_OUTPUTS = ("attn.out.weight", "ffn.down.weight")


@dataclasses.dataclass(frozen=True)
class ParamPlan:
    """One parameter's treatment: initial standard deviation (0: constant), multiples of learning rate and AdamW's eps, decayed or not."""

    kind: str  # "embedding" (one infinite dim, a matrix) | "matrix" (two infinite dims) | "vector" (biases and LayerNorms)
    width_mult: float
    lr_mult: float
    init_std: float
    decay: bool
    eps_mult: float = 1.0


Plan = Mapping[str, ParamPlan]


def meta_model(config: ModelConfig) -> Transformer:
    """The model on the meta device: shapes without memory."""
    with torch.device("meta"):
        return Transformer(config)


def derive(config: ModelConfig) -> dict[str, ParamPlan]:
    """Ask `mup` about every parameter of the model that `config` describes.

    Infinite dims (those that grow with width: d_model, ffn, q/k/v) are found by comparing with a model of twice the width; their base
    is dim / (d_model / base_width). Learning-rate multiples are those of `mup.MuAdamW`; standard deviations follow Tensor Programs V,
    table 8: fan-in scaling for matrices, none for the embedding, and 1/sqrt(2 layers) more for what writes to the residual stream.
    Under "sp" all widths are the base's. Under depth "completep" the initial values are those of base_layers, and AdamW's eps shrinks
    with the gradients of the blocks (Dey et al. 2025, table 1; the learning rates stay).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seaborn and pandas, which mup imports for its plots
        import mup

    target = meta_model(config)
    twice = dataclasses.replace(config, d_model=2 * config.d_model, d_ffn=2 * config.d_ffn, n_heads=2 * config.n_heads)
    delta = dict(meta_model(twice).named_parameters())
    shapes = {}
    for name, parameter in target.named_parameters():
        sizes = zip(parameter.shape, delta[name].shape, strict=True)
        shapes[name] = mup.infshape.InfShape([mup.infshape.InfDim(None if a == b else a / config.width_mult, a) for a, b in sizes])
    mup.set_base_shapes(target, shapes, rescale_params=False, do_assert=False)
    optimizer = mup.MuAdamW(target.parameters(), lr=1.0)
    lr_mults = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: _plan(config, name, p, lr_mult=lr_mults[id(p)]) for name, p in target.named_parameters()}


def _plan(config: ModelConfig, name: str, parameter: torch.nn.Parameter, *, lr_mult: float) -> ParamPlan:
    infshape = parameter.infshape  # type: ignore[attr-defined]
    width_mult, lr_mult = (_exact(value, config.width_mult) for value in (float(infshape.width_mult()), lr_mult))
    if config.parametrization == "sp":
        width_mult = lr_mult = 1.0
    eps_mult = 1.0 / config.depth_mult if name.startswith("blocks.") else 1.0
    if parameter.ndim == 1:
        return ParamPlan("vector", width_mult, lr_mult, init_std=0.0, decay=False, eps_mult=eps_mult)
    if infshape.ninf() == 1:
        return ParamPlan("embedding", width_mult, lr_mult, init_std=config.init_std, decay=True, eps_mult=eps_mult)
    std = config.init_std * width_mult**-0.5
    if name.endswith(RESIDUAL_OUTPUTS):
        std *= (2 * config.n_layers / config.depth_mult) ** -0.5
    return ParamPlan("matrix", width_mult, lr_mult, init_std=std, decay=True, eps_mult=eps_mult)


def _exact(value: float, m: float) -> float:
    """`value` as 1, m or 1/m, which it is but for a last bit: dim / (dim / m) is not always m, and one group must not become two."""
    (exact,) = {exact for exact in (1.0, m, 1 / m) if math.isclose(value, exact, rel_tol=1e-12)}
    return exact
