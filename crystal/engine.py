"""The contract between the training loop and the hardware.

An Engine is a model that can take a training step. The surprise is `feed`: it takes the number of steps up front, because on a
Cerebras system it is the executor that runs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from crystal.config import AdamWConfig, ModelConfig
from crystal.data.loader import Batch
from crystal.mup.plan import Plan
from crystal.schedule import Schedule


@dataclass(frozen=True)
class TrainSpec:
    """All that an engine needs to know to train one stage."""

    model: ModelConfig
    plan: Plan
    adamw: AdamWConfig
    schedule: Schedule
    batch_rows: int
    seed: int


@dataclass(frozen=True)
class Metrics:
    """Of one step, as 0-d tensors where the device makes them: reading one waits for the device."""

    loss: Tensor  # nats per position, the sum over masked-in labels divided by rows x seq_len
    grad_norm: Tensor  # before clipping
    lr: float


class Engine(Protocol):
    """A model with its optimizer on some hardware."""

    step_count: int  # updates done in this stage

    def feed(self, batches: Iterable[Batch], n_steps: int) -> Iterator[Any]:
        """Device batches, `n_steps` of them."""

    def step(self, batch: Any) -> Metrics:
        """Forward, backward, clip, update. No host sync inside."""

    def evaluate(self, batches: Iterable[Batch]) -> tuple[float, float]:
        """(summed loss in nats, number of labels that count)."""

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state into an existing folder."""

    def load(self, folder: Path, *, optimizer: bool) -> None:
        """Read weights, and the optimizer state where `optimizer`; both keep their bits."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """All weights, whole, float32, on the CPU, in Crystal's names."""

    def facts(self) -> dict[str, Any]:
        """What decides the bits and belongs into the run's record: device, dtype, threads, ranks."""


class Backend(Protocol):
    """What `conf/backend/*.yaml` names by `_target_`."""

    name: str  # also torch's name of its device, where checkpoints are scored

    def build(self, spec: TrainSpec, *, before: Mapping[str, Any]) -> Engine:
        """A fresh engine with initial weights, at step 0. Raises UserError where this machine lacks what it needs.

        before: the facts this run was started with, or nothing; what is not configured is taken from there, to keep the bits.
        """

    def flops_per_s(self) -> float:
        """About the FLOP/s that training reaches on this machine, from a short measurement: for estimates only."""
