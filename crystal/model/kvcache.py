"""Keys and values for generation: those of a prompt, and those of the texts that go on from prompts, a token at a time.

A text lies in a block of texts that need room for as many keys. Attention is one call a block, always at the block's whole length, and a
mask hides what lies beyond a text's own end: so the shape depends on the text alone. The surprise: the number of texts in the call is no
part of the shape, because torch gives each text's each head to one thread, whole. A lone head in a lone text is not shared out but cut up,
and rounds differently; it is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

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
    """What the model's `hidden` takes to keep the keys and values of one prompt, given whole."""

    def __init__(self, config: ModelConfig, n_tokens: int) -> None:
        self.n_tokens, self.positions = n_tokens, slice(n_tokens)
        self.layers = [PromptLayer() for _ in range(config.n_layers)]

    def keys_and_values(self) -> list[tuple[Tensor, Tensor]]:
        """Of each layer, (T, H, K)."""
        return [(layer.k_1HTK[0].transpose(0, 1), layer.v_1HTK[0].transpose(0, 1)) for layer in self.layers]


class BlockLayer:
    """One layer's keys and values, (B, S, H, K)."""

    def __init__(self, block: Block, shape: tuple[int, int, int, int], device: torch.device) -> None:
        self.block = block
        self.k_BSHK, self.v_BSHK = torch.empty(shape, device=device), torch.empty(shape, device=device)

    def attend(self, q_BH1K: Tensor, k_BH1K: Tensor, v_BH1K: Tensor, scale: float) -> Tensor:
        """Store each text's new key and value at its position, and attend to all up to there."""
        n, n_heads = q_BH1K.shape[:2]
        self.k_BSHK[self.block.at], self.v_BSHK[self.block.at] = k_BH1K[:, :, 0], v_BH1K[:, :, 0]
        k_BHSK, v_BHSK = self.k_BSHK[:n].transpose(1, 2), self.v_BSHK[:n].transpose(1, 2)
        if n * n_heads == 1:
            q_BH1K, k_BHSK, v_BHSK = (one.expand(2, -1, -1, -1) for one in (q_BH1K, k_BHSK, v_BHSK))
        return F.scaled_dot_product_attention(q_BH1K, k_BHSK, v_BHSK, attn_mask=self.block.mask_B11S, scale=scale)[:n]


class Block:
    """Room for `rows` texts of at most `length` tokens; the texts are in the first rows. For the model's `hidden`, after `look`."""

    def __init__(self, config: ModelConfig, *, rows: int, length: int, device: torch.device) -> None:
        self.texts: list[int] = []  # by row
        self.lengths: list[int] = []
        self.rows_B, self.places_S = torch.arange(rows, device=device), torch.arange(length, device=device)
        shape = rows, length, config.n_heads, config.head_dim
        self.layers = [BlockLayer(self, shape, device) for _ in range(config.n_layers)]

    def look(self, positions_B: Tensor) -> None:
        """The next tokens of the first rows are at these positions, counted from 0. Looks at no value: nothing waits for a GPU."""
        self.positions, self.at = positions_B[:, None], (self.rows_B[: len(positions_B)], positions_B)
        hidden_BS = self.places_S > self.positions
        self.mask_B11S = torch.zeros(hidden_BS.shape, device=hidden_BS.device).masked_fill(hidden_BS, -torch.inf)[:, None, None]

    def put(self, text: int, n_tokens: int, given: Iterable[tuple[Tensor, Tensor]]) -> None:
        """A text in the next row, with keys and values (T, H, K) for each layer."""
        row = len(self.texts)
        self._copy(given, row, n_tokens)
        for part in chain.from_iterable(self.keys_and_values(row)):
            part[n_tokens:] = 0.0  # what a mask hides must be finite
        self.texts.append(text)
        self.lengths.append(n_tokens)

    def drop(self, row: int) -> None:
        """The last text takes the row."""
        last, n_tokens = self.texts.pop(), self.lengths.pop()
        if row < len(self.texts):
            self._copy(self.keys_and_values(len(self.texts)), row, n_tokens)
            self.texts[row], self.lengths[row] = last, n_tokens

    def keys_and_values(self, row: int) -> list[tuple[Tensor, Tensor]]:
        return [(layer.k_BSHK[row], layer.v_BSHK[row]) for layer in self.layers]

    def _copy(self, given: Iterable[tuple[Tensor, Tensor]], row: int, n_tokens: int) -> None:
        for layer, (k_THK, v_THK) in zip(self.layers, given, strict=True):
            layer.k_BSHK[row, :n_tokens], layer.v_BSHK[row, :n_tokens] = k_THK[:n_tokens], v_THK[:n_tokens]


class CacheLayer:
    def __init__(self, cache: KVCache, number: int) -> None:
        self.cache, self.number = cache, number

    def attend(self, q_BH1K: Tensor, k_BH1K: Tensor, v_BH1K: Tensor, scale: float) -> Tensor:
        """Block by block; zeros for the padding."""
        layers = [block.layers[self.number] for block in self.cache.blocks.values()]
        *q, padding = q_BH1K.split(self.cache.sizes)
        k, v = k_BH1K.split(self.cache.sizes), v_BH1K.split(self.cache.sizes)
        return torch.cat([*(layer.attend(q[i], k[i], v[i], scale) for i, layer in enumerate(layers)), torch.zeros_like(padding)])


class KVCache:
    """Room for `rows` texts, in blocks of `step`, 2 x `step`, ... tokens. The texts are known by numbers of the caller's."""

    def __init__(self, config: ModelConfig, *, rows: int, step: int, device: torch.device) -> None:
        self.config, self.rows, self.step, self.device = config, rows, step, device
        self.blocks: dict[int, Block] = {}
        self.layers = [CacheLayer(self, number) for number in range(config.n_layers)]

    def __len__(self) -> int:
        return sum(len(block.texts) for block in self.blocks.values())

    def add(self, text: int, prompt: Prompt) -> None:
        self._put(text, prompt.n_tokens, prompt.keys_and_values())

    def drop(self, text: int) -> None:
        block = next(block for block in self.blocks.values() if text in block.texts)
        block.drop(block.texts.index(text))

    def grow(self) -> list[int]:
        """Make room for one more token of each text. Returns the texts in the order in which their tokens are now to be given."""
        for length, block in list(self.blocks.items()):
            for row in reversed(range(len(block.texts))):
                if block.lengths[row] == length:
                    self._put(block.texts[row], length, block.keys_and_values(row))
                    block.drop(row)
            if not block.texts:
                del self.blocks[length]
        for block in self.blocks.values():
            block.lengths = [n + 1 for n in block.lengths]
        return [text for block in self.blocks.values() for text in block.texts]

    def look(self, padding: int) -> None:
        """Make ready for the model's `hidden`, which is to get the new token of each text and then some padding."""
        for block in self.blocks.values():
            block.look(torch.tensor(block.lengths) - 1)
        self.sizes = [*(len(block.texts) for block in self.blocks.values()), padding]
        self.positions = torch.cat([*(block.positions for block in self.blocks.values()), torch.zeros(padding, 1, dtype=torch.long)])

    def _put(self, text: int, n_tokens: int, given: Iterable[tuple[Tensor, Tensor]]) -> None:
        length = (n_tokens // self.step + 1) * self.step
        if length not in self.blocks:
            self.blocks[length] = Block(self.config, rows=self.rows, length=length, device=self.device)
        self.blocks[length].put(text, n_tokens, given)


Cache = Prompt | Block | KVCache
LayerCache = PromptLayer | BlockLayer | CacheLayer
