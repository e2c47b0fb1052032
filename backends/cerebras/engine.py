"""The Engine that trains through the SDK: on its own CPU backend, or on CS systems.

Runs in the SDK's environment, one engine a process: the SDK has one backend a process. The surprise: on a system a step's Python runs
once, to be traced, and its values and weights can be had only where the SDK hands them over. So steps are counted in a step closure,
and saving happens in a checkpoint closure, at steps that the executor was told beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backends.cerebras.data import Source, WorkerBatches
from backends.cerebras.options import Options
from backends.cerebras.step import TrainStep, place
from crystal import checkpoint, mdl
from crystal.data.loader import Batch, Batches
from crystal.engine import Closure, Engine, Metrics, TrainSpec


class CerebrasEngine(Engine):
    """See crystal/engine.py: Engine."""

    def __init__(self, spec: TrainSpec, options: Options, *, mode: str = "train", with_values: bool = True) -> None:
        import cerebras.pytorch as cstorch

        self.spec, self.options = spec, options
        self.sdk = options.start(mode=mode, batch_rows=spec.batch_rows)
        self.dtype = options.compute_dtype()
        self.train_step = TrainStep(spec, self.sdk, dtype=self.dtype, with_values=with_values)
        self.model, self.optimizer = self.train_step.model.transformer, self.train_step.optimizer
        self.dataloader: Any = None
        self._step_count = self._updates_before = self._updates = 0  # AdamW's updates: of the stages before, in this one

        @cstorch.step_closure
        def count(updates: Tensor) -> None:
            self._step_count += 1
            self._updates = int(updates)  # fewer than steps where loss scaling has skipped some

        self._count = count

    @property
    def step_count(self) -> int:
        return self._step_count

    @step_count.setter
    def step_count(self, value: int) -> None:
        """A stage that carries the optimizer on begins its schedule anew."""
        assert value == 0
        self._updates_before += self._updates
        self._step_count = self._updates = 0
        self._place(0)

    def _place(self, updates: int) -> None:
        place(self.train_step.scheduler, updates)
        if self.sdk.is_cpu:  # a system computes the rate before each update
            self.train_step.scheduler.update_last_value()

    def feed(self, batches: Iterable[Batch], n_steps: int, *, save_every: int = 1) -> Iterator[tuple[Tensor, ...]]:
        import cerebras.pytorch as cstorch
        from cerebras.pytorch.utils.data.utils import Schedule

        assert isinstance(batches, Batches), "input workers open the loader themselves"
        if not n_steps:  # which the executor would refuse
            return
        self.dataloader = cstorch.utils.data.DataLoader(WorkerBatches, Source.of(batches.loader))
        self.dataloader.load_state_dict({"samples_seen": batches.first_sample, "fingerprint": batches.loader.fingerprint()})
        saves = _saves(Schedule, self.step_count, n_steps, save_every)
        first = self.step_count
        with self.options.cluster.refusals(lambda: self.step_count == first):
            yield from cstorch.utils.data.DataExecutor(self.dataloader, num_steps=n_steps, checkpoint_steps=saves)

    def step(self, batch: tuple[Tensor, ...]) -> Metrics:
        metrics = Metrics(*self.train_step(*batch))
        self._count(self.train_step.scheduler.last_epoch)
        return metrics

    def trace(self, step: Callable[[Any], None]) -> Callable[[Any], None]:
        import cerebras.pytorch as cstorch

        return cstorch.trace(step)

    def step_closure(self, closure: Closure) -> Closure:
        import cerebras.pytorch as cstorch

        return self._by_values(cstorch.step_closure, closure)

    def checkpoint_closure(self, closure: Closure) -> Closure:
        import cerebras.pytorch as cstorch

        return self._by_values(cstorch.checkpoint_closure, closure)

    def _by_values(self, wrap: Callable, closure: Closure) -> Closure:
        """The SDK's closure of plain tensors, which it fetches, around one that takes Metrics."""

        def unpacked(loss: Tensor, grad_norm: Tensor, lr: Tensor) -> None:
            skipped = self.train_step.scaler is not None and not math.isfinite(float(grad_norm))
            closure(Metrics(loss, grad_norm, lr, skipped))

        wrapped = wrap(unpacked)
        return lambda result: wrapped(result.loss, result.grad_norm, result.lr)

    def save(self, folder: Path) -> None:
        """Weights, optimizer, schedule, loss scale and the data's position as the SDK keeps them; in a checkpoint closure only."""
        import cerebras.pytorch as cstorch

        scaler = self.train_step.scaler
        state = {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedulers": [self.train_step.scheduler.state_dict()], "dataloader": self.dataloader.state_dict(),
            "global_step": self.step_count, "adam_step": self._updates_before + self._updates,
        } | ({} if scaler is None else {"grad_scaler": scaler.state_dict()})  # fmt: skip
        cstorch.save(state, str(folder / checkpoint.MDL))

    def load(self, folder: Path, *, optimizer: bool) -> None:
        """Either kind of checkpoint. The SDK's own is read lazily, as a system wants its tensors one at a time."""
        import cerebras.pytorch as cstorch

        path = folder / checkpoint.MDL
        if not path.exists():
            self.model.load_state_dict(checkpoint.read_weights(folder))
            if optimizer:
                self._take_over(checkpoint.read_optimizer(folder))
            return
        saved = cstorch.load(str(path))
        self.model.load_state_dict(saved["model"])
        if optimizer:
            theirs = saved["optimizer"]
            names = [(i, name) for group in theirs["param_groups"] for i, name in zip(group["params"], group["names"], strict=True)]
            updates = [int(cstorch.to_numpy(each["last_epoch"])) for each in saved.get("schedulers", [])]  # a converted one has none
            (updates_here,) = updates or [saved["global_step"]]
            self._restore({name: theirs["state"][i] for i, name in names}, saved["global_step"], updates_here, saved["adam_step"])
            if self.train_step.scaler is not None and "grad_scaler" in saved:
                self.train_step.scaler.load_state_dict(saved["grad_scaler"])

    def _take_over(self, saved: dict[str, Any]) -> None:
        """The optimizer of another backend's checkpoint."""
        state = {}
        for name, theirs in saved["adamw"].items():
            powers = mdl.powers((self.spec.adamw.beta1, self.spec.adamw.beta2), int(theirs["step"]))
            state[name] = {key: theirs[key] for key in mdl.MOMENTS} | powers
        updates = max((int(theirs["step"]) for theirs in saved["adamw"].values()), default=0)
        self._restore(state, saved["step_count"], min(updates, saved["step_count"]), updates)

    def _restore(self, state: Mapping[str, dict[str, Any]], step_count: int, updates_here: int, updates: int) -> None:
        """state: AdamW's by parameter name; a parameter without any keeps its zeros. updates: in this stage, and of AdamW in all.

        Only the schedule's place is taken over, not the schedule: the next stage has another one.
        """
        ours = self.optimizer.state_dict()
        names = [(i, name) for group in ours["param_groups"] for i, name in zip(group["params"], group["names"], strict=True)]
        self.optimizer.load_state_dict(ours | {"state": {i: state.get(name, ours["state"][i]) for i, name in names}})
        self._step_count, self._updates, self._updates_before = step_count, updates_here, updates - updates_here
        self._place(updates_here)

    def facts(self) -> dict[str, Any]:
        device = "the SDK's CPU" if self.sdk.is_cpu else f"{self.options.cluster.systems(self.spec.batch_rows)} CS systems"
        return {"backend": "cerebras", "device": device, "dtype": self.dtype, "threads": torch.get_num_threads(), "ranks": 1}


def _saves(schedule: Any, first: int, n_steps: int, save_every: int) -> Any:
    """The SDK's schedule of the steps, counted from 0 in this executor, after which checkpoints are due."""
    start = min(save_every - first % save_every, n_steps) - 1
    return schedule([schedule.Range(start=start, end=n_steps, step=save_every, include_last=True)])
