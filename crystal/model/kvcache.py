"""Keys and values for generation: those of a prompt, and those of the sequences that go on from prompts, a token at a time.

The surprise: on a CPU attention goes row by row. A call for several rows is faster, but what it rounds depends on how many there are: a
lone row's products are cut among the threads, in company the rows are. On a GPU one call takes all rows at the cache's whole length, always
the same shape, and a mask hides what lies beyond each row's own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crystal.config import ModelConfig


class PromptLayer:
    """One layer's keys and values, (1, H, T, K), once attention has seen them."""

    def attend(self, q_1HTK: Tensor, k_1HTK: Tensor, v_1HTK: Tensor, scale: float) -> Tensor:
        self.k_1HTK, self.v_1HTK = k_1HTK, v_1HTK
        return F.scaled_dot_product_attention(q_1HTK, k_1HTK, v_1HTK, is_causal=True, scale=scale)


class Prompt:
    """What the model's `hidden` takes to keep the keys and values of one prompt of `n_tokens`, all given at once."""

    def __init__(self, config: ModelConfig, n_tokens: int) -> None:
        self.positions = slice(n_tokens)
        self.layers = [PromptLayer() for _ in range(config.n_layers)]


class RowsLayer:
    """One layer's keys and values, (B, S, H, K)."""

    def __init__(self, owner: KVCache, shape: tuple[int, int, int, int], device: torch.device) -> None:
        self.owner = owner
        empty = torch.empty if device.type == "cpu" else torch.zeros  # what a mask hides must be finite
        self.k_BSHK, self.v_BSHK = (empty(shape, device=device) for _ in "kv")

    def attend(self, q_BH1K: Tensor, k_BH1K: Tensor, v_BH1K: Tensor, scale: float) -> Tensor:
        """Store each row's new key and value at its position, and attend to all up to there."""
        at = self.owner.rows_B[: len(q_BH1K)], self.owner.positions[:, 0]
        self.k_BSHK[at], self.v_BSHK[at] = k_BH1K[:, :, 0], v_BH1K[:, :, 0]
        k_BHSK, v_BHSK = self.k_BSHK.transpose(1, 2), self.v_BSHK.transpose(1, 2)
        if self.owner.seen_B11S is not None:
            return F.scaled_dot_product_attention(q_BH1K, k_BHSK, v_BHSK, attn_mask=self.owner.seen_B11S, scale=scale)
        rows = [
            F.scaled_dot_product_attention(q_BH1K[b : b + 1], k_BHSK[b : b + 1, :, :n], v_BHSK[b : b + 1, :, :n], scale=scale)
            for b, n in enumerate(self.owner.seen)
        ]
        return torch.cat(rows)


class KVCache:
    """Room for `rows` sequences of at most `length` tokens. `begin`, then the model's `hidden` with the next token of each row.

    On a CPU what is not used takes no memory.
    """

    def __init__(self, config: ModelConfig, *, rows: int, length: int, device: torch.device) -> None:
        self.n_rows, self.rows_B = rows, torch.arange(rows, device=device)
        self.places_S = torch.arange(length, device=device)
        self.positions = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.seen_B11S: Tensor | None = None
        self.layers = [RowsLayer(self, (rows, length, config.n_heads, config.head_dim), device) for _ in range(config.n_layers)]

    def begin(self, positions: list[int]) -> None:
        """The next tokens are the first rows' at these positions, counted from 0."""
        self.positions, self.seen = torch.tensor(positions)[:, None], [position + 1 for position in positions]

    def begin_masked(self, positions_B1: Tensor) -> None:
        """The same for all rows, by positions on the device, which are not looked at: nothing waits, shapes do not change."""
        self.positions, self.seen_B11S = positions_B1, (self.places_S <= positions_B1)[:, None, None]

    def fill(self, row: int, prompt: Prompt) -> None:
        """Copy a prompt to the beginning of a row."""
        for own, given in zip(self.layers, prompt.layers, strict=True):
            n = given.k_1HTK.shape[2]
            own.k_BSHK[row, :n], own.v_BSHK[row, :n] = given.k_1HTK[0].transpose(0, 1), given.v_1HTK[0].transpose(0, 1)

    def move(self, row: int, to: int, n_tokens: int) -> None:
        """Copy the first `n_tokens` of one row to another."""
        for own in self.layers:
            own.k_BSHK[to, :n_tokens], own.v_BSHK[to, :n_tokens] = own.k_BSHK[row, :n_tokens], own.v_BSHK[row, :n_tokens]


Cache = Prompt | KVCache
LayerCache = PromptLayer | RowsLayer
