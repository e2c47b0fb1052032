"""A train step with one construct that no Cerebras system runs, lowered: python -m tests.cerebras.broken NAME STEP FOUND."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import cerebras.pytorch as cstorch
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from backends.cerebras import lowering
from crystal.model.transformer import Transformer

whole = Transformer.logits
BREAKS = {
    "erfinv": lambda x: x + torch.erfinv(x * 0),
    "nonzero": lambda x: x + torch.nonzero(x).sum(),
    "polar": lambda x: x + torch.polar(x, x).real,
    "fft": lambda x: x + torch.fft.fft(x).real,
    "svd": lambda x: x + torch.linalg.svd(x[0])[1].sum(),
    "item": lambda x: x * 2 if x.sum().item() > 0 else x,
    "boolean_index": lambda x: x + x[x > 0].sum(),
    "checkpoint": lambda x: checkpoint(torch.sin, x, use_reentrant=False),
}


def broken(self: Transformer, x_BTD: Tensor) -> Tensor:
    return whole(self, BREAKS[sys.argv[1]](x_BTD))


def muon(groups: list[dict], *, lr: float, betas: tuple[float, float], eps: float) -> cstorch.optim.Muon:
    """Muon of all parameters, of which those with one dimension are not for it."""
    return cstorch.optim.Muon(groups, lr=lr)


PATCHES = {
    "foreach_clip": lambda: setattr(torch.nn.utils, "clip_grad_norm_", partial(torch.nn.utils.clip_grad_norm_, foreach=True)),
    "torch_adamw": lambda: setattr(cstorch.optim, "AdamW", torch.optim.AdamW),
    "muon": lambda: setattr(cstorch.optim, "AdamW", muon),
}


if __name__ == "__main__":
    if sys.argv[1] in PATCHES:
        PATCHES[sys.argv[1]]()
    else:
        Transformer.logits = broken  # type: ignore[method-assign]
    lowering.main(Path(sys.argv[2]), Path(sys.argv[3]))
