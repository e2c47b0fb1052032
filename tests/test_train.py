"""The flat loop, with an engine that only counts: what is logged, validated and saved when, and how it stops."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from crystal.engine import LocalEngine
from crystal.engine import Metrics as StepMetrics
from crystal.runlog import Metrics, read_lines
from crystal.train import Cadence, Diverged, Stopped, train

ROWS, SEQ_LEN = 4, 8


class OnDevice:
    """A number whose reading waits for the device; `read` notes at which step."""

    def __init__(self, value: float, read: Callable[[], None]) -> None:
        self.value, self.read = value, read

    def __float__(self) -> float:
        self.read()
        return self.value


class Engine(LocalEngine):
    """Loss 1/step. `at[step]` runs inside that step, `losses` and `norms` replace what a step returns."""

    def __init__(self, step_count: int = 0, *, at: dict[int, Callable] | None = None, losses=None, norms=None) -> None:
        self.step_count, self.at, self.losses, self.norms = step_count, at or {}, losses or {}, norms or {}
        self.samples: list[int] = []
        self.syncs: set[int] = set()

    def feed(self, batches, n_steps, *, save_every=1):
        for _, batch in zip(range(n_steps), batches, strict=True):
            yield batch

    def step(self, batch: int) -> StepMetrics:
        self.step_count += 1
        self.samples.append(batch)
        self.at.get(self.step_count, lambda: None)()
        loss = self.losses.get(self.step_count, 1 / self.step_count)
        loss, norm = (OnDevice(value, lambda: self.syncs.add(self.step_count)) for value in (loss, self.norms.get(self.step_count, 2.0)))
        return StepMetrics(loss, norm, lr=0.5)


class Bench:
    """A run of the loop over 11 steps: log every 3, validate every 4, save every 5."""

    def __init__(self, folder: Path, n_steps: int = 11) -> None:
        self.path, self.n_steps, self.saved = folder / "metrics.jsonl", n_steps, {}

    def train(self, engine: Engine, *, pending=(), at_save: Callable = lambda: None, at_valid: Callable = lambda: None) -> None:
        def save(pending: list[float]) -> None:
            self.saved[engine.step_count] = pending
            at_save()

        def validate() -> dict:
            at_valid()
            return {"loss": {"c4": engine.step_count / 10}}

        loader = SimpleNamespace(
            batch_rows=ROWS, prepared=SimpleNamespace(seq_len=SEQ_LEN), batches=lambda first, n: iter(range(first, first + n * ROWS, ROWS))
        )
        metrics = Metrics(self.path, stage="1", step=engine.step_count, sinks=[])
        try:
            train(
                engine, loader, stage="1", n_steps=self.n_steps, cadence=Cadence(log_every=3, valid_every=4, save_every=5), metrics=metrics,
                validate=validate, save=save, pending=list(pending),
            )  # fmt: skip
        finally:
            metrics.close()

    def lines(self, kind: str) -> list[dict]:
        return [line for line in read_lines(self.path) if line["kind"] == kind]

    def untimed(self) -> list[dict]:
        return [{key: value for key, value in line.items() if not key.endswith("_s")} for line in read_lines(self.path)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def kill(number: int = signal.SIGINT) -> None:
    signal.raise_signal(number)  # to this very thread: two signals at once may else arrive as one


def test_the_cadence_and_the_last_step(bench):
    engine = Engine()
    bench.train(engine)
    assert engine.samples == [ROWS * step for step in range(11)]
    train_lines = bench.lines("train")
    assert [line["step"] for line in train_lines] == [3, 6, 9, 11]
    assert [line["loss"] for line in train_lines] == pytest.approx([11 / 18, 37 / 180, 191 / 1512, 21 / 220])
    assert [line["tokens"] for line in train_lines] == [step * ROWS * SEQ_LEN for step in (3, 6, 9, 11)]
    assert {(line["lr"], line["grad_norm"]) for line in train_lines} == {(0.5, 2.0)}
    assert [(line["step"], line["loss"]["c4"]) for line in bench.lines("valid")] == [(4, 0.4), (8, 0.8), (11, 1.1)]
    assert bench.saved == {5: [1 / 4, 1 / 5], 10: [1 / 10], 11: []}


def test_nothing_waits_for_the_device_between_log_lines_and_saves(bench):
    engine = Engine()
    bench.train(engine)
    assert engine.syncs == {3, 5, 6, 9, 10, 11}


@pytest.mark.parametrize("stop_at", range(1, 12))
def test_stopped_anywhere_and_gone_on_reads_as_if_nothing_had_happened(bench, tmp_path, stop_at):
    (tmp_path / "undisturbed").mkdir()
    undisturbed = Bench(tmp_path / "undisturbed")
    undisturbed.train(Engine())
    with pytest.raises(Stopped):
        bench.train(Engine(at={stop_at: kill}))
    assert max(bench.saved) == stop_at
    engine = Engine(stop_at)
    bench.train(engine, pending=bench.saved[stop_at])
    assert engine.samples == [ROWS * step for step in range(stop_at, 11)]
    assert bench.untimed() == undisturbed.untimed()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_handlers_come_back(bench, number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        bench.train(Engine(at={2: lambda: kill(number)}))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    bench.train(Engine())
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_signal_gets_through(bench):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs have not
    try:
        with pytest.raises(KeyboardInterrupt):
            bench.train(Engine(at={2: lambda: (kill(), kill())}))
    finally:
        signal.signal(signal.SIGINT, before)
    assert bench.saved == {}


def test_a_signal_while_saving_is_heard_and_saved_after(bench):
    with pytest.raises(Stopped):
        bench.train(Engine(), at_save=lambda: kill() if max(bench.saved) == 5 else None)
    assert sorted(bench.saved) == [5, 6]


@pytest.mark.parametrize("moment", ["at_valid", "at_save"])
def test_a_signal_in_the_last_step_is_not_lost(bench, moment):
    engine = Engine()
    with pytest.raises(Stopped):
        bench.train(engine, **{moment: lambda: kill() if engine.step_count == 11 else None})
    assert bench.saved[11] == []


def test_nothing_left_to_do(bench):
    engine = Engine(11)
    bench.train(engine)
    assert engine.samples == [] and bench.saved == {} and read_lines(bench.path) == []


def test_an_update_that_loss_scaling_skipped_is_no_divergence(bench):
    engine = Engine(norms={step: math.inf for step in (3, 5)})
    step, skips = engine.step, {3, 5}
    engine.step = lambda batch: replace(step(batch), skipped=engine.step_count in skips)  # type: ignore[method-assign]
    bench.train(engine)
    told = {line["step"]: (line.get("skipped"), line.get("grad_norm")) for line in bench.lines("train")}
    assert told == {3: (True, None), 6: (None, 2.0), 9: (None, 2.0), 11: (None, 2.0)}
    assert sorted(bench.saved) == [5, 10, 11]


@pytest.mark.parametrize("what", ["losses", "norms"])
@pytest.mark.parametrize(("step", "told_at"), [(2, 3), (4, 5), (6, 6), (11, 11)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_is_told_and_never_saved(bench, what, step, told_at, value):
    """A norm is only looked at where it is logged or saved: from the step it breaks, the losses after it are broken too."""
    broken = {s: value for s in range(step, 12)}
    with pytest.raises(Diverged, match=f"stage 1 diverged.*step {told_at} .*expected finite.*lower scale.lr_factor") as refusal:
        bench.train(Engine(**{what: broken}))
    last = bench.lines("train")[-1]
    assert (refusal.value.step, last["step"]) == (told_at, told_at) and not math.isfinite(last["loss"] + last["grad_norm"])
    assert sorted(bench.saved) == [s for s in (5, 10) if s < step]
