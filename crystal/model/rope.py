"""Partial rotary position embedding with interleaved pairs (GPT-J's layout, CrystalCoder's choice).

The surprise: the tables must survive `model.to(bfloat16)`. In bf16 position 2047 rounds to 2048 and the angles are wrong, so the
tables are computed in float64, kept in float32, and `_apply` moves them between devices but never changes their type.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Rope(nn.Module):
    """cos and sin tables, (seq_len, rotary_dims / 2) float32, for positions 0 .. seq_len - 1."""

    cos_TR: Tensor
    sin_TR: Tensor

    def __init__(self, *, rotary_dims: int, seq_len: int, base: float) -> None:
        super().__init__()
        self.rotary_dims, self.seq_len, self.base = rotary_dims, seq_len, base
        self.register_buffer("cos_TR", torch.empty(seq_len, rotary_dims // 2), persistent=False)
        self.register_buffer("sin_TR", torch.empty(seq_len, rotary_dims // 2), persistent=False)
        if self.cos_TR.device.type != "meta":
            self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """Compute the tables; needed again after `to_empty`, which leaves them undefined."""
        exponent = torch.arange(0, self.rotary_dims, 2, dtype=torch.float64, device="cpu") / self.rotary_dims
        angle_TR = torch.outer(torch.arange(self.seq_len, dtype=torch.float64, device="cpu"), self.base**-exponent)
        self.cos_TR.copy_(angle_TR.cos())
        self.sin_TR.copy_(angle_TR.sin())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rope:
        before = self.cos_TR, self.sin_TR
        super()._apply(fn, recurse)
        if self.cos_TR.dtype != torch.float32:
            self.cos_TR, self.sin_TR = (table.to(self.cos_TR.device) for table in before)
        return self


def rotate(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2R dims of every head in pairs (0,1), (2,3), ...; the others pass through bit for bit.

    x_BTHK: queries or keys. cos, sin: float32, (T, 1, R) or (B, T, 1, R). Computed in float32, returned in x's type.
    Source: Su et al. 2021, equation 34, on the first dims only as in GPT-J.
    """
    rotary_dims = 2 * cos.shape[-1]
    pairs = x_BTHK[..., :rotary_dims].float().unflatten(-1, (-1, 2))
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((rotated.to(x_BTHK.dtype), x_BTHK[..., rotary_dims:]), dim=-1)
