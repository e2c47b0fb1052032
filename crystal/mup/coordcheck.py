"""The coordinate check's records: how large activations are at first, and how far training moves them, in models of many sizes.

The surprise: nothing is measured inside the engine. It trains as it always does, compiled or sharded or not; its weights are then put
into a plain model, and there the batch is looked at. What this cannot see, a multiplier lost in the engine's own forward pass, shows
where the loss of a training step differs from the plain model's: the records of kind "loss".
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from crystal.config import AdamWConfig, ModelConfig
from crystal.data.loader import Batch
from crystal.engine import LocalEngine, TrainSpec
from crystal.model.transformer import Transformer
from crystal.mup.options import CoordCheckConfig
from crystal.mup.plan import Plan
from crystal.schedule import Piece, Schedule

KINDS = (
    "embedding", "attention logits", "attention output", "ffn hidden", "ffn output", "residual", "final hidden", "readout logits",
)  # fmt: skip
MIN_LOSS = 0.1  # nats; below it the gap is told in parts of this, since a batch that is learnt by heart has a loss of 0


class Record(NamedTuple):
    """One size. quantity: "value" (mean |x|, at step 0) or "change" (mean |x - x at step 0|, later).

    Of kind "loss" it is "gap" (between the engine's and the plain model's, in parts of it), and module says what the engine computes in.
    """

    variant: str
    mode: str
    width: int
    layers: int
    seed: int
    step: int
    kind: str
    module: str
    quantity: str
    size: float


@dataclass(frozen=True)
class Trial:
    """One model to be trained: what the records call it, its configuration, its parameters' treatment."""

    variant: str
    config: ModelConfig
    plan: Plan


@dataclass(frozen=True)
class Mode:
    """How models are trained, the share of the batch that is this process's, and in the end what the engines say of themselves."""

    name: str
    build: Callable[[TrainSpec], LocalEngine]
    rank: int = 0
    n_ranks: int = 1
    facts: dict[str, Any] = field(default_factory=dict)


def fixed_batch(options: CoordCheckConfig, *, seed: int) -> Batch:
    """Ids drawn by Zipf's law (id i with a probability in proportion to 1 / (i + 1)).

    So there is something that the first steps of any training learn, how often each id comes, and nothing that only a large model can.
    """
    weights = 1 / np.arange(1, options.vocab_size + 1)
    shape = options.batch_rows, options.seq_len + 1
    ids_BS = np.random.default_rng(seed).choice(options.vocab_size, size=shape, p=weights / weights.sum()).astype(np.int64)
    return Batch(ids_BS[:, :-1], ids_BS[:, 1:], np.ones((shape[0], shape[1] - 1), dtype=np.float32))


class _AttentionLogits(TorchFunctionMode):
    """Keeps what every attention call puts into its softmax, from the call's own queries, keys and scale."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            q_BHTK, k_BHTK, _ = args
            logits_BHTT = q_BHTK @ k_BHTK.transpose(-1, -2) * kwargs["scale"]
            n_tokens = logits_BHTT.shape[-1]
            self.found.append(logits_BHTT[..., torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()])  # what a query looks at
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def activations(config: ModelConfig, weights: Mapping[str, Tensor], batch: Batch) -> tuple[dict[tuple[str, str], Tensor], float]:
    """By (kind, module) what `weights` make of the batch, in the first and the last block; and the loss, nats per position."""
    model, found = Transformer(config), {}
    model.load_state_dict(weights)

    def keep(kind: str, module: str, path: str, *, entering: bool = False) -> None:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor | None = None) -> None:
            found[kind, module] = (args[0] if output is None else output).clone()

        watched = model.get_submodule(path)
        watched.register_forward_pre_hook(hook) if entering else watched.register_forward_hook(hook)

    keep("embedding", "embed", "blocks.0", entering=True)
    ends = {f"blocks.{i}": i for i in (0, config.n_layers - 1)}
    for block in ends:
        keep("attention output", block, f"{block}.attn")
        keep("ffn hidden", block, f"{block}.ffn.down", entering=True)
        keep("ffn output", block, f"{block}.ffn")
        keep("residual", block, block)
    keep("final hidden", "norm_out", "norm_out")
    with _AttentionLogits() as attention:
        logits_BTV = model(torch.from_numpy(batch.inputs_BT))
    found |= {("attention logits", block): attention.found[i] for block, i in ends.items()}
    found["readout logits", "readout"] = logits_BTV
    return found, F.cross_entropy(logits_BTV.flatten(0, 1), torch.from_numpy(batch.labels_BT).flatten()).item()


def run_trial(trial: Trial, mode: Mode, batch: Batch, options: CoordCheckConfig, *, first_seed: int, adamw: AdamWConfig) -> list[Record]:
    """Train on `batch` from every seed and measure on it at step 0 and options.steps. Only rank 0 has records to return.

    Sizes are means of absolute values. Root mean squares would not do: the model first predicts its own input, so that in each
    position one logit in vocab_size is huge whatever the width, and the squares show hardly anything else.
    """
    torch.compiler.reset()  # or else it gives up on compiling after a few shapes, and says so only in a log
    seeds = range(first_seed, first_seed + options.seeds)
    return [record for seed in seeds for record in _run(trial, mode, batch, options, seed, adamw)]


def _run(trial: Trial, mode: Mode, batch: Batch, options: CoordCheckConfig, seed: int, adamw: AdamWConfig) -> Iterator[Record]:
    own = Batch(*(array[mode.rank :: mode.n_ranks] for array in (batch.inputs_BT, batch.labels_BT, batch.mask_BT)))
    schedule = Schedule([Piece(options.rate, options.rate, 1)])
    engine = mode.build(TrainSpec(trial.config, trial.plan, adamw, schedule, len(own.inputs_BT), seed))
    mode.facts.update(engine.facts())
    about = trial.variant, mode.name, trial.config.d_model, trial.config.n_layers, seed
    first: dict[tuple[str, str], Tensor] = {}
    plain_loss = float("nan")
    for before, step in pairwise((0, 0, *options.steps)):
        losses = [float(engine.step(device_batch).loss) for device_batch in engine.feed([own] * (step - before), step - before)]
        weights = engine.state_dict()
        if mode.rank == 0:
            if losses:  # the first is still that of step `before`
                gap = abs(losses[0] - plain_loss) / max(plain_loss, MIN_LOSS)
                yield Record(*about, before, "loss", mode.facts["dtype"], "gap", gap)
            found, plain_loss = activations(trial.config, weights, batch)
            first = first or found
            for key, x in found.items():
                yield Record(*about, step, *key, "change" if step else "value", (x - first[key] if step else x).abs().mean().item())


def to_csv(records: Sequence[Record]) -> str:
    """One line a record, sizes at five digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Record._fields)
    writer.writerows((*record[:-1], f"{record.size:.5g}") for record in records)
    return file.getvalue()


def read_csv(path: Path) -> list[Record]:
    """What `to_csv` wrote."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers: dict[str, type] = {"width": int, "layers": int, "seed": int, "step": int, "size": float}
    return [Record(**{key: numbers.get(key, str)(value) for key, value in row.items()}) for row in rows]
