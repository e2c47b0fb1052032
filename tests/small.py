"""Small models and what surrounds them, for the tests: a shape, a model whose every parameter is random, a spec, batches.

The surprise: nothing here is Crystal's initialisation, which leaves biases at 0 and norms at 1, where a forgotten one would not show.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from crystal.config import AdamWConfig, ModelConfig
from crystal.data.loader import Batch
from crystal.engine import TrainSpec
from crystal.model.transformer import Transformer
from crystal.mup.plan import derive
from crystal.schedule import Piece, Schedule

VOCAB_SIZE = 97


def small_config(**changes: Any) -> ModelConfig:
    shape = dict(d_model=32, n_layers=2, n_heads=4, d_ffn=85, vocab_size=VOCAB_SIZE, seq_len=24, rotary_fraction=0.5, base_width=16)
    return ModelConfig("small", **(shape | changes))


@torch.no_grad()
def random_model(config: ModelConfig, *, seed: int = 0) -> Transformer:
    """Biases and LayerNorms are random too; activations are of order 1."""
    model, generator = Transformer(config), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            parameter.copy_(values * (0.07 if name == "embed.weight" else parameter.shape[1] ** -0.5))
        else:
            parameter.copy_(0.2 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model


def small_spec(*, lr: float = 0.01, n_steps: int = 20, batch_rows: int = 4, **changes: Any) -> TrainSpec:
    config = small_config(**changes)
    schedule = Schedule([Piece(0.0, lr, 2), Piece(lr, 0.1 * lr, n_steps - 2)])
    return TrainSpec(config, derive(config), AdamWConfig(), schedule, batch_rows, seed=1)


def small_batches(config: ModelConfig, n: int, *, rows: int = 4, seed: int = 0) -> list[Batch]:
    """Rows that count upwards with a random stride: something to learn. A tenth of the labels is masked out."""
    rng, batches = np.random.default_rng(seed), []
    for _ in range(n):
        start, stride = rng.integers(config.vocab_size, size=(rows, 1)), rng.integers(1, 4, size=(rows, 1))
        ids_BS = (start + stride * np.arange(config.seq_len + 1)) % config.vocab_size
        mask_BT = (rng.random((rows, config.seq_len)) > 0.1).astype(np.float32)
        batches.append(Batch(ids_BS[:, :-1], ids_BS[:, 1:], mask_BT))
    return batches


def in_documents(batches: list[Batch]) -> list[Batch]:
    """The same, for attention=document: a new document behind every multiple of 7."""
    ends = [batch.inputs_BT % 7 == 0 for batch in batches]
    return [replace(batch, documents_BT=end.cumsum(1, dtype=np.int32) - end) for batch, end in zip(batches, ends, strict=True)]
