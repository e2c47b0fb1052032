"""The model for decoding: the next tokens of many texts, each one's arithmetic the same whatever the others are.

A matrix product may round differently for 1 row, for 2 and for 16, and where two tokens are nearly as likely another one is taken. So rows
are padded to numbers whose products were found to give every row the same bits; on an x86 processor that is all but 1. The surprise: an
activation is not as harmless as it looks. torch computes the last elements of a tensor, or of a thread's share of it, those that fill no
vector register, by another exponential: of eight rows at once the last one got other bits.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import islice
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crystal.config import ModelConfig
from crystal.model.kvcache import Block, KVCache, LayerCache
from crystal.model.rope import rotate
from crystal.model.transformer import Attention, SwiGLU, Transformer

# Numbers of rows of a product on a CPU, the first choice whose products agree. A lone row agrees with itself.
SIZES = (2, 4, 8, 16, 32), (16,), (1,)
CPU_STEP = 128  # tokens: what a block of the cache is longer than the one before; a text's keys are computed to the block's end
GPU_STEP, GPU_ROWS = 512, 32


class Decoder(Protocol):
    model: Transformer
    config: ModelConfig

    def cache(self, n: int) -> KVCache:
        """For n texts at once; on a GPU perhaps for fewer."""

    def step(self, cache: KVCache, tokens: Sequence[int]) -> Tensor:
        """(n, V) logits after the newest token of each text, given in the order in which the cache has grown."""


@torch.no_grad()
def decoder(model: Transformer, config: ModelConfig) -> Decoder:
    """By tiles on a CPU, by CUDA graphs on a GPU. On a CPU the weights are packed: that takes a moment, and their memory once more."""
    return GraphDecoder(model, config) if model.embed.weight.is_cuda else TiledDecoder(model, config)


class TiledDecoder:
    """On a CPU: any number of rows, the matrix products by tiles of as many rows as agree."""

    def __init__(self, model: Transformer, config: ModelConfig) -> None:
        self.model, self.config, self.body, self.head = model, config, _tiled(model), TiledLinear(model.embed)
        products = [self.head, *(module for module in self.body.modules() if isinstance(module, TiledLinear))]
        self.sizes = next(sizes for sizes in SIZES if sizes == (1,) or all(product.agrees(sizes) for product in products))
        for product in products:
            product.most = self.sizes[-1]

    def cache(self, n: int) -> KVCache:
        return KVCache(self.config, rows=n, step=CPU_STEP, device=torch.device("cpu"))

    @torch.no_grad()
    def step(self, cache: KVCache, tokens: Sequence[int]) -> Tensor:
        padding = padded(len(tokens), self.sizes) - len(tokens)
        cache.look(padding)
        x_B1D: Tensor = self.body.hidden(torch.tensor([*tokens, *[0] * padding])[:, None], cache)
        return self.head(x_B1D * self.model.output_scale)[: len(tokens), 0]


def padded(n: int, sizes: Sequence[int]) -> int:
    """n or a little more: so many rows that tiles of the largest size leave over none, or as many as another size."""
    rest = n % sizes[-1]
    return n - rest + next(size for size in sizes if size >= rest) if rest else n


class TiledLinear(nn.Module):
    """Linear layers of one input, outputs side by side, by products of `most` rows and the rest. Packed as MKL reads it, if it is here."""

    def __init__(self, *layers: nn.Linear | nn.Embedding) -> None:
        super().__init__()
        self.most = SIZES[0][-1]
        self.weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if isinstance(layer, nn.Linear)]
        self.bias = torch.cat(biases) if biases else None
        self.packed: Tensor | None = None
        if torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear"):
            self.packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, self.most)
            self.weight = self.weight.new_empty(1).expand_as(self.weight)  # only the shape is looked at from now on

    def forward(self, x_B1D: Tensor) -> Tensor:
        tiles = [self._product(x_R1D) for x_R1D in x_B1D.split(self.most)]
        return tiles[0] if len(tiles) == 1 else torch.cat(tiles)

    def agrees(self, sizes: Sequence[int]) -> bool:
        """Whether a row's product has the same bits in tiles of all these sizes and wherever in them it is; tried out on random rows."""
        generator = torch.Generator().manual_seed(0)
        x_R1D = torch.randn(2 * sizes[-1], 1, self.weight.shape[1], generator=generator)
        expected = torch.cat([self._product(tile) for tile in x_R1D.split(sizes[-1])])
        for size in sizes:
            backwards = torch.cat([self._product(tile) for tile in x_R1D.flip(0).split(size)])
            if not torch.equal(backwards.flip(0), expected):
                return False
        return True

    def _product(self, x_R1D: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x_R1D, self.weight, self.bias)
        product: Tensor = torch.ops.mkl._mkl_linear(x_R1D, self.packed, self.weight, self.bias, len(x_R1D))
        return product


class TiledAttention(nn.Module):
    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.n_heads, self.scale = attn.n_heads, attn.scale
        self.qkv, self.out = TiledLinear(attn.q, attn.k, attn.v), TiledLinear(attn.out)

    def forward(self, x_B1D: Tensor, cos: Tensor, sin: Tensor, seen: None, cache: LayerCache) -> Tensor:
        qk_B1HK, v_B1HK = self.qkv(x_B1D).unflatten(-1, (3 * self.n_heads, -1)).split([2 * self.n_heads, self.n_heads], dim=2)
        q_BH1K, k_BH1K = rotate(qk_B1HK, cos, sin).transpose(1, 2).chunk(2, dim=1)
        y_BH1K = cache.attend(q_BH1K, k_BH1K, v_B1HK.transpose(1, 2), self.scale)
        y_B1D: Tensor = self.out(y_BH1K.transpose(1, 2).flatten(-2))
        return y_B1D


class TiledSwiGLU(nn.Module):
    def __init__(self, ffn: SwiGLU) -> None:
        super().__init__()
        self.gate_up, self.down = TiledLinear(ffn.gate, ffn.up), TiledLinear(ffn.down)

    def forward(self, x_B1D: Tensor) -> Tensor:
        gate_B1F, up_B1F = self.gate_up(x_B1D).chunk(2, dim=-1)
        for row in gate_B1F:
            F.silu(row, inplace=True)  # one at a time: see the surprise
        y_B1D: Tensor = self.down(gate_B1F * up_B1F)
        return y_B1D


def _tiled(module: nn.Module) -> Any:
    """`module` with attention and feed-forward in tiles; all else is shared with it."""
    if isinstance(module, Attention):
        return TiledAttention(module)
    if isinstance(module, SwiGLU):
        return TiledSwiGLU(module)
    twin = copy.copy(module)
    twin._modules = {name: _tiled(child) for name, child in module.named_children()}
    return twin


def gpu_rows(config: ModelConfig, memory_bytes: int) -> int:
    """So many rows, at most GPU_ROWS, that blocks of every length take no more than half of a GPU's memory."""
    tokens = sum(range(GPU_STEP, config.seq_len + GPU_STEP, GPU_STEP))
    row_bytes = 2 * 4 * tokens * config.n_layers * config.d_model  # keys and values in float32
    return next((rows for rows in (GPU_ROWS, 16, 8, 4, 2) if rows * row_bytes <= memory_bytes / 2), 1)


class GraphDecoder:
    """On a GPU: a pass for each block of the cache, always over all its rows, which one CUDA graph a block holds."""

    def __init__(self, model: Transformer, config: ModelConfig, *, graphed: bool = True) -> None:
        self.model, self.config, self.graphed = model, config, graphed
        self.device = model.embed.weight.device
        self.rows = gpu_rows(config, torch.cuda.mem_get_info(self.device)[1]) if self.device.type == "cuda" else GPU_ROWS
        self.given_2B = torch.zeros(2, self.rows, dtype=torch.long, device=self.device)  # tokens, positions
        self.graphs: WeakKeyDictionary[Block, tuple[torch.cuda.CUDAGraph, Tensor]] = WeakKeyDictionary()  # each with its logits

    def cache(self, n: int) -> KVCache:
        return KVCache(self.config, rows=self.rows, step=GPU_STEP, device=self.device)

    @torch.no_grad()
    def step(self, cache: KVCache, tokens: Sequence[int]) -> Tensor:
        waiting, logits = iter(tokens), []
        for block in cache.blocks.values():
            n = len(block.texts)
            padding = [0] * (self.rows - n)
            given = [[*islice(waiting, n), *padding], [*(length - 1 for length in block.lengths), *padding]]
            self.given_2B.copy_(torch.tensor(given))
            logits.append((self._replayed(block) if self.graphed else self._logits(block))[:n])
        return torch.cat(logits)

    def _logits(self, block: Block) -> Tensor:
        tokens_B, positions_B = self.given_2B
        block.look(positions_B)
        return self.model.logits(self.model.hidden(tokens_B[:, None], block))[:, 0]

    def _replayed(self, block: Block) -> Tensor:
        """A new block's pass is captured as torch's notes on CUDA graphs have it: after one on a stream of its own, to set things up."""
        if block not in self.graphs:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._logits(block)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.graphs[block] = graph, self._logits(block)
        graph, logits_BV = self.graphs[block]
        graph.replay()
        return logits_BV
