"""CrystalCoder's transformer: pre-LayerNorm, partial rotary, SwiGLU with biases, tied embeddings, muP multipliers.

Shapes: B batch, T time, D model, H heads, K head dim, F ffn, V vocabulary. `x_BTD` reads "x, of shape (B, T, D)".

The surprise: tying is a second use of `embed.weight`, not a second module. An assigned alias comes apart after `to_empty`; one
parameter with one key cannot. The loss is taken inside `forward`, where a sharded `embed.weight` is whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crystal.config import ModelConfig
from crystal.model.documents import seen_within
from crystal.model.kvcache import Cache, LayerCache
from crystal.model.loss import summed_cross_entropy
from crystal.model.rope import Rope, rotate


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.n_heads, self.scale = config.n_heads, config.attention_scale
        self.q, self.k, self.v, self.out = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, seen_B1TS: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """seen_B1TS: true where query t sees key s; None: every key up to its own. A cache keeps the keys, and knows which are seen."""
        q_BTHK, k_BTHK, v_BTHK = (f(x_BTD).unflatten(-1, (self.n_heads, -1)) for f in (self.q, self.k, self.v))
        q_BHTK = rotate(q_BTHK, cos, sin).transpose(1, 2)
        k_BHTK = rotate(k_BTHK, cos, sin).transpose(1, 2)
        v_BHTK = v_BTHK.transpose(1, 2)
        if cache is None:
            causal = seen_B1TS is None
            y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=seen_B1TS, is_causal=causal, scale=self.scale)
        else:
            y_BHTK = cache.attend(q_BHTK, k_BHTK, v_BHTK, self.scale)
        return self.out(y_BHTK.transpose(1, 2).flatten(-2))


class SwiGLU(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_ffn)
        self.up = nn.Linear(config.d_model, config.d_ffn)
        self.down = nn.Linear(config.d_ffn, config.d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_attn = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm_ffn = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.ffn = SwiGLU(config)
        self.residual_scale = config.residual_scale

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, seen_B1TS: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        x_BTD = torch.add(x_BTD, self.attn(self.norm_attn(x_BTD), cos, sin, seen_B1TS, cache), alpha=self.residual_scale)
        return torch.add(x_BTD, self.ffn(self.norm_ffn(x_BTD)), alpha=self.residual_scale)


class Transformer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.rope = Rope(rotary_dims=config.rotary_dims, seq_len=config.seq_len, base=config.rotary_base)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm_out = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.embedding_scale, self.output_scale = config.embedding_scale, config.output_scale

    def hidden(self, ids_BT: Tensor, cache: Cache | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """The final normalised hidden states (B, T, D); with a cache, of the new tokens only, which the cache takes up.

        documents_BT: as `forward` takes it; not with a cache, whose rows are one document each.
        """
        x_BTD = self.embed(ids_BT) * self.embedding_scale
        positions = slice(ids_BT.shape[1]) if cache is None else cache.positions
        seen_B1TS = seen_within(documents_BT)
        cos, sin = self.rope.cos_TR[positions].unsqueeze(-2), self.rope.sin_TR[positions].unsqueeze(-2)
        for i, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, cos, sin, seen_B1TS, None if cache is None else cache.layers[i])
        return self.norm_out(x_BTD)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """(..., D) hidden states to (..., V) logits, by the transposed embedding table."""
        return F.linear(x_BTD, self.embed.weight) * self.output_scale

    def forward(
        self, ids_BT: Tensor, labels_BT: Tensor | None = None, mask_BT: Tensor | None = None, documents_BT: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V); with labels and mask, sum(cross-entropy x mask) in nats, a float32 scalar.

        documents_BT: which of its row's documents each token is of; attention then does not leave it. None: the whole row is seen.
        """
        x_BTD = self.hidden(ids_BT, documents_BT=documents_BT)
        if labels_BT is None or mask_BT is None:
            return self.logits(x_BTD)
        return summed_cross_entropy(x_BTD, self.embed.weight, labels_BT, mask_BT, scale=self.output_scale)
