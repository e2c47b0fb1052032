"""A model with one construct that no Cerebras system runs, lowered: python -m tests.cerebras.broken NAME STEP FOUND."""

from __future__ import annotations

import sys
from pathlib import Path

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


if __name__ == "__main__":
    Transformer.logits = broken  # type: ignore[method-assign]
    lowering.main(Path(sys.argv[2]), Path(sys.argv[3]))
