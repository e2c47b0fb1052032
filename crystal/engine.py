"""The contract between the training loop and the hardware.

An Engine is a model that can take a training step. The surprise: a Cerebras system runs a step's Python once, to trace it. So `feed` is
told the number of steps and the saves beforehand, and what reads a step's values goes into closures, in the SDK's words; on other
hardware these are the functions themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
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
    lr: Tensor | float
    skipped: bool = False  # loss scaling found the gradient not finite, and no update was made


def model_inputs(batch: Batch) -> tuple[Tensor, ...]:
    """A batch as the model's forward takes it: ids, labels, mask, and with attention=document which document each token is of."""
    arrays = batch.inputs_BT, batch.labels_BT, batch.mask_BT, batch.documents_BT
    return tuple(torch.from_numpy(array) for array in arrays if array is not None)


Closure = Callable[[Metrics], None]


class Engine(Protocol):
    """A model with its optimizer on some hardware. Where a batch has `documents_BT`, attention is confined to documents."""

    step_count: int  # updates done in this stage

    def feed(self, batches: Iterable[Batch], n_steps: int, *, save_every: int = 1) -> Iterator[Any]:
        """Device batches, `n_steps` of them. Checkpoints are due where `step_count` is a multiple of `save_every`, and after the last."""

    def step(self, batch: Any) -> Metrics:
        """Forward, backward, clip, update. No host sync inside."""

    def trace(self, step: Callable[[Any], None]) -> Callable[[Any], None]:
        """What is to be called for every batch: `step`, which calls `self.step` and closures and must not look at values itself."""
        return step

    def step_closure(self, closure: Closure) -> Closure:
        """`closure` as to be called in a traced step: it then gets each step's values."""
        return closure

    def checkpoint_closure(self, closure: Closure) -> Closure:
        """The same, called only after steps where `save` works: at least those that `feed` was told."""
        return closure

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state into an existing folder."""

    def load(self, folder: Path, *, optimizer: bool) -> None:
        """Read weights, and the optimizer state where `optimizer`; both keep their bits."""

    def facts(self) -> dict[str, Any]:
        """What decides the bits and belongs into the run's record: device, dtype, threads, ranks."""


@runtime_checkable
class LocalEngine(Engine, Protocol):
    """One in this very process, whose weights can be had at any time."""

    def evaluate(self, batches: Iterable[Batch]) -> tuple[float, float]:
        """(summed loss in nats, number of labels that count)."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """All weights, whole, float32, on the CPU, in Crystal's names."""


@dataclass(frozen=True)
class Environment:
    """Where a backend's packages are: a Python interpreter and the variables of its processes."""

    python: Path
    variables: Mapping[str, str]


class Backend(Protocol):
    """What `conf/backend/*.yaml` names by `_target_`."""

    name: str

    def build(self, spec: TrainSpec, *, before: Mapping[str, Any]) -> Engine:
        """A fresh engine with initial weights, at step 0. Raises UserError where this machine lacks what it needs.

        before: the facts this run was started with, or nothing; what is not configured is taken from there, to keep the bits.
        """

    def environment(self) -> Environment | None:
        """The environment whose processes can build an engine; None: this process."""
        return None

    def flops_per_s(self) -> float | None:
        """About the FLOP/s that training reaches on this machine, from a short measurement: for estimates only. None: not known."""
        return None


class LocalBackend(Backend, Protocol):
    """One of this process; its name is also torch's name of its device."""

    def build(self, spec: TrainSpec, *, before: Mapping[str, Any]) -> LocalEngine:
        """An engine as of any backend."""

    def flops_per_s(self) -> float:
        """Measured."""
