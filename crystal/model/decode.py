"""The model for decoding: the next tokens of many sequences, each one's arithmetic the same whatever the others are.

A matrix product rounds differently for 1, 8 or 16 rows, and where two tokens are nearly as likely another one is taken. So a product is
always of as many rows, padded where there are fewer. The surprise: an activation is not as harmless as it looks. torch computes the last
elements of a tensor, those that fill no vector register, by another exponential; of eight rows at once the last one got other bits.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crystal.config import ModelConfig
from crystal.model.kvcache import KVCache
from crystal.model.transformer import SwiGLU, Transformer

TILE = 8  # rows of a product on a CPU: MKL takes as long for fewer, and no longer for two tiles than for one of twice the rows
GPU_ROWS = 32


class Decoder(Protocol):
    """What takes steps in caches of its own making."""

    def cache(self, n: int, length: int) -> KVCache:
        """For n sequences at once of at most `length` tokens; it may have more rows, or on a GPU fewer."""

    def step(self, cache: KVCache, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """(n, V) logits after tokens[i] at positions[i] of row i, for the first n rows of the cache."""


@torch.no_grad()
def decoder(model: Transformer, config: ModelConfig) -> Decoder:
    """By tiles on a CPU, by CUDA graphs on a GPU. On a CPU the weights are packed: that takes a moment, and their memory once more."""
    if model.embed.weight.is_cuda:
        return GraphDecoder(model, config)
    tiles = TiledDecoder(model, config, TILE)
    return tiles if tiles.rows_are_alike() else TiledDecoder(model, config, 1)


class TiledDecoder:
    """On a CPU: any number of rows, its matrix products by `tile` rows."""

    def __init__(self, model: Transformer, config: ModelConfig, tile: int) -> None:
        self.config, self.tile, self.scale = config, tile, model.output_scale
        self.body, self.head = tiled(model, tile), TiledLinear(model.embed.weight, None, tile)

    def rows_are_alike(self) -> bool:
        """Whether equal rows get equal logits wherever they are: what kernels do at the edges of a tile is written down nowhere."""
        n = 2 * self.tile
        logits_BV = self.step(self.cache(n, 1), [0] * n, [0] * n)
        return torch.equal(logits_BV, logits_BV[:1].expand_as(logits_BV))

    def cache(self, n: int, length: int) -> KVCache:
        return KVCache(self.config, rows=-(-n // self.tile) * self.tile, length=length, device=torch.device("cpu"))

    @torch.no_grad()
    def step(self, cache: KVCache, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        padding = [0] * (-len(tokens) % self.tile)
        cache.begin([*positions, *padding])
        x_B1D = self.body.hidden(torch.tensor([*tokens, *padding])[:, None], cache)
        return self.head(x_B1D * self.scale)[: len(tokens), 0]


class TiledLinear(nn.Module):
    """A linear layer by products of `tile` rows; where there is MKL its weight is packed once, as MKL reads it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, tile: int) -> None:
        super().__init__()
        self.weight, self.bias, self.tile = weight.detach(), None if bias is None else bias.detach(), tile
        mkl = torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, tile) if mkl else None

    def forward(self, x_B1D: Tensor) -> Tensor:
        tiles = [self._product(x_R1D) for x_R1D in x_B1D.split(self.tile)]
        return tiles[0] if len(tiles) == 1 else torch.cat(tiles)

    def _product(self, x_R1D: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x_R1D, self.weight, self.bias)
        product: Tensor = torch.ops.mkl._mkl_linear(x_R1D, self.packed, self.weight, self.bias, self.tile)
        return product


class TiledSwiGLU(nn.Module):
    def __init__(self, ffn: SwiGLU, tile: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (TiledLinear(f.weight, f.bias, tile) for f in (ffn.gate, ffn.up, ffn.down))

    def forward(self, x_B1D: Tensor) -> Tensor:
        gate_B1F = self.gate(x_B1D)
        for row in gate_B1F:
            F.silu(row, inplace=True)  # one at a time: see the surprise
        down: Tensor = self.down(gate_B1F.mul_(self.up(x_B1D)))
        return down


def tiled(model: Transformer, tile: int) -> Transformer:
    """The model with tiles for its linear layers; all else is shared with it."""
    twin = _tiled(model, tile)
    assert isinstance(twin, Transformer)
    return twin


def _tiled(module: nn.Module, tile: int) -> nn.Module:
    if isinstance(module, nn.Linear):
        return TiledLinear(module.weight, module.bias, tile)
    if isinstance(module, SwiGLU):
        return TiledSwiGLU(module, tile)
    twin = copy.copy(module)
    twin._modules = {name: _tiled(child, tile) for name, child in module.named_children()}
    return twin


class GraphDecoder:
    """On a GPU: always GPU_ROWS rows and a cache's whole length, so that one CUDA graph holds every step in it."""

    def __init__(self, model: Transformer, config: ModelConfig, *, graphed: bool = True) -> None:
        self.model, self.config, self.graphed = model, config, graphed
        self.given_2B1 = torch.zeros(2, GPU_ROWS, 1, dtype=torch.long, device=model.embed.weight.device)  # tokens, positions

    def cache(self, n: int, length: int) -> KVCache:
        self.graph: torch.cuda.CUDAGraph | None = None  # it holds its cache's addresses
        return KVCache(self.config, rows=GPU_ROWS, length=length, device=self.given_2B1.device)

    @torch.no_grad()
    def step(self, cache: KVCache, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        padding = [0] * (GPU_ROWS - len(tokens))
        self.given_2B1.copy_(torch.tensor([[*tokens, *padding], [*positions, *padding]])[..., None])
        if not self.graphed:
            return self._logits(cache)[: len(tokens)]
        if self.graph is None:
            self._capture(cache)
        assert self.graph is not None
        self.graph.replay()
        return self.logits_BV[: len(tokens)]

    def _logits(self, cache: KVCache) -> Tensor:
        tokens_B1, positions_B1 = self.given_2B1
        cache.begin_masked(positions_B1)
        return self.model.logits(self.model.hidden(tokens_B1, cache))[:, 0]

    def _capture(self, cache: KVCache) -> None:
        """As torch's notes on CUDA graphs have it: once on a stream of its own, which sets up the libraries, then for the record."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._logits(cache)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits_BV = self._logits(cache)
