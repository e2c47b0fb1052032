"""Keys and values of a batch of sequences of different lengths, for generation.

The surprise: prompts are padded on the right, and nothing masks the padding's keys out of the cache. They lie beyond their row's
length, where no query looks, and are overwritten as the row grows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crystal.config import ModelConfig


class LayerCache:
    """One layer's keys and values, (B, H, max_len, K)."""

    def __init__(self, owner: KVCache, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.owner = owner
        self.k_BHTK = torch.zeros(shape, dtype=dtype, device=device)
        self.v_BHTK = torch.zeros(shape, dtype=dtype, device=device)

    def append(self, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values; returns all keys and values up to the longest row."""
        rows, positions = torch.arange(len(k_BHTK), device=k_BHTK.device)[:, None], self.owner.positions_BT
        # Indexing two dims around a slice puts the indexed ones first: (B, T, H, K).
        self.k_BHTK[rows, :, positions] = k_BHTK.transpose(1, 2).to(self.k_BHTK.dtype)
        self.v_BHTK[rows, :, positions] = v_BHTK.transpose(1, 2).to(self.v_BHTK.dtype)
        longest = self.owner.seen_B1TS.shape[-1]
        return self.k_BHTK[:, :, :longest], self.v_BHTK[:, :, :longest]


class KVCache:
    """The cache of a whole model for B rows of at most `max_len` tokens.

    Per forward pass: `begin(T)` gives the new tokens' positions (B, T), the layers append, then the caller says with `advance` how
    many of the T tokens of each row were real.
    """

    def __init__(self, config: ModelConfig, *, batch: int, max_len: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (batch, config.n_heads, max_len, config.head_dim)
        self.layers = [LayerCache(self, shape, dtype, device) for _ in range(config.n_layers)]
        self.lengths_B = torch.zeros(batch, dtype=torch.long, device=device)
        self.longest = 0

    def begin(self, n_tokens: int) -> Tensor:
        """Positions (B, n_tokens) of the next tokens of each row; which keys each of them sees is then in `seen_B1TS`."""
        device = self.lengths_B.device
        self.positions_BT = self.lengths_B[:, None] + torch.arange(n_tokens, device=device)
        self.seen_B1TS = torch.arange(self.longest + n_tokens, device=device) <= self.positions_BT[:, None, :, None]
        return self.positions_BT

    def advance(self, n_tokens_B: Tensor, *, longest: int) -> None:
        """Row b took up n_tokens_B[b] tokens; the longest row now has `longest` (given by the caller, to spare a device sync)."""
        self.lengths_B += n_tokens_B
        self.longest = longest

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices), as sequences finish."""
        self.lengths_B = self.lengths_B[rows]
        for layer in self.layers:
            layer.k_BHTK, layer.v_BHTK = layer.k_BHTK[rows], layer.v_BHTK[rows]
