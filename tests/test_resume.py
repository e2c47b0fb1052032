"""A run that is disturbed, through the real command line in a process of its own, ends with the same bits as one that is not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from crystal.checkpoint import latest
from crystal.runlog import read_lines

SAVE_EVERY = 7
# 22 + 60 + 8 steps. Losses are logged every three, so most checkpoints carry some that are not yet logged.
OVERRIDES = [
    "model.d_model=64", "model.n_layers=2", "model.d_ffn=170", "tokens=11520", "scale.log_every=3", "scale.valid_every=10",
    f"scale.save_every={SAVE_EVERY}",
]  # fmt: skip
CARRY = "stages.2.optimizer=carry"  # so that a stage begins with another's optimizer state, too


class Runner:
    """Starts `python -m crystal` with the tiny overrides, a run.dir and what is given (by default all stages)."""

    def __init__(self, overrides: list[str]) -> None:
        self.command = [sys.executable, "-m", "crystal", *overrides, *OVERRIDES]
        self.environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(self, run: Path, *arguments: str) -> subprocess.Popen[str]:
        command = [*self.command, f"run.dir={run}", *(arguments or [CARRY])]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, run: Path, *arguments: str) -> str:
        process = self.start(run, *arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out


@pytest.fixture(scope="module")
def runner(tiny_overrides: list[str]) -> Runner:
    return Runner([o for o in tiny_overrides if not o.startswith(("tokens=", "scale.save_every="))])


@pytest.fixture(scope="module")
def undisturbed(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    runner.finish(run)
    return run


def wait_until(process: subprocess.Popen, reached) -> None:
    """Look every millisecond until `reached()`; fails when the process ends before."""
    while not reached():
        assert process.poll() is None, f"ended before it could be disturbed: {process.stderr.read()}"
        time.sleep(0.001)


def in_stage_2_past_a_checkpoint(run: Path) -> bool:
    return any(line["stage"] == "2" and line["step"] > SAVE_EVERY for line in read_lines(run / "metrics.jsonl"))


def untimed(run: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if not key.endswith("_s")} for line in read_lines(run / "metrics.jsonl")]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every stage's last checkpoint, by name."""
    found = {}
    for stage in "123":
        folder = latest(run / f"stage{stage}" / "checkpoints")
        found |= {f"{stage} {name}": tensor for name, tensor in torch.load(folder / "weights.pt", weights_only=True).items()}
        for name, state in torch.load(folder / "optimizer.pt", weights_only=True)["adamw"].items():
            found |= {f"{stage} {name} {key}": tensor for key, tensor in state.items()}
    return found


def assert_as_if_nothing_had_happened(run: Path, undisturbed: Path) -> None:
    assert untimed(run) == untimed(undisturbed)
    ours, theirs = tensors(run), tensors(undisturbed)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different
    leftover = [path for path in run.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
    assert not leftover


def test_the_undisturbed_run(undisturbed):
    lines = untimed(undisturbed)
    last = [max(line["step"] for line in lines if line["stage"] == stage) for stage in "123"]
    assert last == [22, 60, 8]
    assert [line["step"] for line in lines if line["stage"] == "2" and line["kind"] == "train"] == list(range(3, 61, 3))


def test_killed_in_stage_2(runner, undisturbed, tmp_path):
    run = tmp_path / "run"
    process = runner.start(run)
    wait_until(process, lambda: in_stage_2_past_a_checkpoint(run))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (run / "stage2" / "summary.json").exists()
    out = runner.finish(run)
    assert "stage 1: complete, skipped" in out and "going on from step" in out
    assert_as_if_nothing_had_happened(run, undisturbed)


def test_killed_three_times_at_random_moments(runner, undisturbed, tmp_path):
    run, n_lines = tmp_path / "run", len(untimed(undisturbed))
    for share in (0.2, 0.5, 0.8):
        process = runner.start(run)
        wait_until(process, lambda share=share: len(read_lines(run / "metrics.jsonl")) > share * n_lines)
        time.sleep(random.uniform(0, 0.03))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    runner.finish(run)
    assert_as_if_nothing_had_happened(run, undisturbed)


def test_ctrl_c(runner, undisturbed, tmp_path):
    run = tmp_path / "run"
    process = runner.start(run)
    wait_until(process, lambda: in_stage_2_past_a_checkpoint(run))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "stopped, and saved; the same command goes on from here"
    assert "Traceback" not in err
    runner.finish(run)
    assert_as_if_nothing_had_happened(run, undisturbed)


def test_stage_by_stage(runner, undisturbed, tmp_path):
    run = tmp_path / "run"
    for arguments in (["stage=1"], ["stage=2", CARRY], ["stage=3"]):
        runner.finish(run, *arguments)
    assert_as_if_nothing_had_happened(run, undisturbed)


def test_once_more_does_nothing(runner, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.glob("stage*/checkpoints/*/*")}
    metrics = (undisturbed / "metrics.jsonl").read_bytes()
    out = runner.finish(undisturbed)
    assert [f"stage {stage}: complete, skipped" in out for stage in "123"] == [True] * 3
    assert {path: path.stat().st_mtime_ns for path in undisturbed.glob("stage*/checkpoints/*/*")} == before
    assert (undisturbed / "metrics.jsonl").read_bytes() == metrics
