"""The training loop of one stage: step, then every so many steps log, validate, save.

The surprise: nothing is remembered between steps but the engine and the losses since the last log line, and both go into a
checkpoint. So stopping anywhere and going on gives the same bits as never stopping.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from crystal.config import UserError
from crystal.data.loader import Loader
from crystal.engine import Engine
from crystal.engine import Metrics as StepMetrics
from crystal.errors import Stopped
from crystal.runlog import Metrics, Progress

Validate = Callable[[], dict[str, Any]]
Save = Callable[[list[float]], Any]


class Diverged(UserError):
    """The loss or its gradient is not finite; in a sweep that is a result. `step` is where it was seen."""

    def __init__(self, stage: str, step: int, total: float) -> None:
        super().__init__(
            f"stage {stage} diverged: loss and gradient norm at step {step} are {total} in sum; expected finite numbers; "
            "lower scale.lr_factor and start in another run.dir"
        )
        self.stage, self.step, self.total = stage, step, total


@dataclass(frozen=True)
class Cadence:
    """In steps; the end of a stage is always logged, validated and saved."""

    log_every: int
    valid_every: int
    save_every: int


def train(
    engine: Engine,
    loader: Loader,
    *,
    stage: str,
    n_steps: int,
    cadence: Cadence,
    metrics: Metrics,
    validate: Validate | None,
    save: Save,
    pending: list[float],
) -> None:
    """Take `engine` from the step it is at to `n_steps`.

    `validate()` returns the values of a validation record (None: there will be none), `save(pending)` writes a checkpoint with the losses
    not yet logged. Raises Stopped after a signal, Diverged where the loss is not finite, and then the last record says so.
    """
    first, tokens_per_step = engine.step_count, loader.batch_rows * loader.prepared.seq_len
    batches = loader.batches(first * loader.batch_rows, n_steps - first)
    losses: list[Tensor | float] = list(pending)
    stopped = False

    def log(result: StepMetrics, step: int) -> float:
        loss, norm = sum(map(float, losses)) / len(losses), float(result.grad_norm)
        losses.clear()
        told = {"tokens": step * tokens_per_step, "loss": loss, "lr": float(result.lr)}
        told |= {"skipped": True} if result.skipped else {"grad_norm": norm}
        metrics.log("train", step, told | {"tokens_per_s": progress.rate(step), "elapsed_s": time.monotonic() - progress.t0})
        if not math.isfinite(total := loss + (0.0 if result.skipped else norm)):
            raise Diverged(stage, step, total)
        return loss

    def after(result: StepMetrics) -> None:
        step, last = engine.step_count, engine.step_count == n_steps
        losses.append(result.loss)
        if last or step % cadence.log_every == 0:
            progress.show(step, log(result, step))
        if validate is not None and (last or step % cadence.valid_every == 0):
            metrics.log("valid", step, {"tokens": step * tokens_per_step} | validate())

    def save_if_due(result: StepMetrics) -> None:
        nonlocal stopped
        step, stopped = engine.step_count, bool(stop)
        if step == n_steps or stopped or step % cadence.save_every == 0:
            unlogged = [float(loss) for loss in losses]
            if not (math.isfinite(sum(unlogged)) and (result.skipped or math.isfinite(float(result.grad_norm)))):  # never saved
                log(result, step)
            metrics.sync()
            save(unlogged)

    with stop_requests() as stop, Progress(stage=stage, n_steps=n_steps, step=first, tokens_per_step=tokens_per_step) as progress:
        after_step, checkpoint = engine.step_closure(after), engine.checkpoint_closure(save_if_due)

        @engine.trace
        def step(batch: Any) -> None:
            result = engine.step(batch)
            after_step(result)
            checkpoint(result)

        for batch in engine.feed(batches, n_steps - first, save_every=cadence.save_every):
            if stopped:
                break
            step(batch)
        if stop:
            raise Stopped


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that is empty until SIGINT or SIGTERM comes; a second signal acts as if nobody had listened."""
    received: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def receive(number: int, frame: object) -> None:
        received.append(number)
        for handled, handler in before.items():
            signal.signal(handled, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
