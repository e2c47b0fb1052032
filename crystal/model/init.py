"""Initial weights: every parameter drawn from its own generator, seeded by (seed, name).

So a parameter's values do not depend on the order of creation, on the device count, or on other parameters being there. The surprise:
normals are cut off by drawing again, here, because torch's `trunc_normal_` gives other values in 2.4 than in 2.13.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


def generator_for(seed: int, name: str) -> torch.Generator:
    """A CPU generator whose stream is a pure function of (seed, name)."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


@torch.no_grad()
def initialise(model: nn.Module, *, stds: Mapping[str, float], cut_stds: float, seed: int) -> None:
    """Fill `model`'s parameters in place: normal(0, std), cut off at cut_stds x std; constant 1 (LayerNorm weights) or 0 where std is 0.

    stds: parameter name -> standard deviation before the cut, one for every parameter. cut_stds: inf: no cut.
    """
    for name, parameter in model.named_parameters():
        std = stds[name]
        if std > 0:
            generator = generator_for(seed, name)
            values = _normal(parameter.shape, std, generator)
            while (outside := values.abs() > cut_stds * std).any():
                values = torch.where(outside, _normal(parameter.shape, std, generator), values)
            parameter.copy_(values)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def _normal(shape: torch.Size, std: float, generator: torch.Generator) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32).normal_(std=std, generator=generator)
