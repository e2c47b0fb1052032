"""Stages trained through the Cerebras SDK, on its own CPU device, by the command line of this environment: `make cerebras-check`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crystal import checkpoint, mdl
from crystal.checkpoint import latest
from crystal.runlog import read_json, read_lines
from tests.shared import SDK_PYTHON

pytestmark = pytest.mark.skipif(not SDK_PYTHON.exists(), reason=f"no {SDK_PYTHON}: make cerebras-check")
SDK = ["backend=cerebras", f"backend.python={SDK_PYTHON}", "backend.device=cpu", "backend.dtype=float32"]
CPU = ["backend=cpu", "backend.dtype=float32"]
AT = 220  # the SDK's AdamW adds eps before it corrects the bias, torch's after: the same once 0.95^step is nothing


@pytest.fixture(scope="module")
def crystal_process(tiny_overrides: list[str]) -> Callable[..., list[str]]:
    """The command for stage 1 of the preset `tiny` in a run directory: 330 steps of 2 rows of 64 tokens.

    At half the usual rate: the smaller it is, the slower do two roundings drift apart.
    """
    data = [override for override in tiny_overrides if override.startswith(("data", "eval", "model.vocab_size"))]
    given = [*data, "model=tiny", "scale.seq_len=64", "scale.batch_rows=2", "stage=1", "tokens=170350", "scale.save_every=55"]
    given += ["scale.lr_factor=0.1", "scale.valid_every=1000", "run.keep_checkpoints=9"]
    return lambda folder, *backend: [sys.executable, "-m", "crystal", *given, *backend, f"run.dir={folder}"]


def finish(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def base(crystal_process: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage by backend=cpu, with all of its checkpoints."""
    folder = tmp_path_factory.mktemp("base") / "run"
    finish(crystal_process(folder, *CPU))
    return folder


def from_checkpoint(run: Path, step: int, folder: Path) -> Path:
    """`folder` as a run that was left at `step` of `run`."""
    checkpoints = folder / "stage1" / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copytree(run / "stage1" / "checkpoints" / f"step-{step:08d}", checkpoints / f"step-{step:08d}")
    return folder


def losses(run: Path, after: int) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train" and line["step"] > after}


@pytest.fixture(scope="module")
def on_sdk(base: Path, crystal_process: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last 110 steps by the SDK, from the checkpoint of backend=cpu."""
    folder = from_checkpoint(base, AT, tmp_path_factory.mktemp("sdk") / "run")
    out = finish(crystal_process(folder, *SDK))
    assert f"going on from step {AT}" in out
    return folder


def test_losses_are_those_of_the_cpu_backend(base: Path, on_sdk: Path) -> None:
    theirs, ours = losses(base, AT), losses(on_sdk, AT)
    assert len(ours) == 110
    assert ours == pytest.approx(theirs, abs=1e-5, rel=0)
    assert ours != theirs  # another program, another rounding


def test_the_cpu_backend_goes_on_from_the_sdks_checkpoint(base, on_sdk, crystal_process, tmp_path: Path) -> None:
    folder = from_checkpoint(on_sdk, 275, tmp_path / "run")
    finish(crystal_process(folder, *CPU))
    assert losses(folder, 275) == pytest.approx(losses(base, 275), abs=1e-5, rel=0)


def test_what_the_run_leaves(base: Path, on_sdk: Path) -> None:
    """The same files as any run: validated at the end, though not by the SDK; a checkpoint that anything reads."""
    valid = {run: [line["loss"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "valid"][-1] for run in (base, on_sdk)}
    assert valid[on_sdk] == pytest.approx(valid[base], abs=1e-4)
    assert (on_sdk / "stage1" / "summary.json").exists() and (on_sdk / "report" / "index.html").exists()
    facts = read_json(on_sdk / "run.json", {})
    assert (facts["backend"], facts["device"], facts["dtype"]) == ("cerebras", "the SDK's CPU", "float32")
    last = latest(on_sdk / "stage1" / "checkpoints")
    assert last is not None
    state = checkpoint.read_state(last)
    fingerprint = hashlib.sha256(json.dumps(state["data"], sort_keys=True).encode()).hexdigest()
    assert mdl.read(last / checkpoint.MDL)["dataloader"] == {"samples_seen": state["samples_seen"], "fingerprint": fingerprint}
    assert state["samples_seen"] == 660
    theirs = latest(base / "stage1" / "checkpoints")
    assert theirs is not None and checkpoint.read_state(theirs)["data"] == state["data"]
    weights, expected = checkpoint.read_weights(last), checkpoint.read_weights(theirs)
    assert weights.keys() == expected.keys()
    # The same for all queries, a key's bias changes attention only in its rotary dims: its gradient is next to nothing but rounding.
    off = {name: (weights[name] - expected[name]).abs().max().item() for name in expected if not name.endswith("attn.k.bias")}
    assert max(off.values()) < 1e-5


def test_a_killed_run_ends_with_the_same_bits(base, on_sdk, crystal_process, tmp_path: Path) -> None:
    folder = from_checkpoint(base, AT, tmp_path / "run")
    process = subprocess.Popen(crystal_process(folder, *SDK), env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    while not any(step > 280 for step in losses(folder, AT)):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "stage1" / "summary.json").exists()
    finish(crystal_process(folder, *SDK))
    assert losses(folder, AT) == losses(on_sdk, AT)
    ours, theirs = (latest(run / "stage1" / "checkpoints") for run in (folder, on_sdk))
    assert ours is not None and theirs is not None and ours.name == theirs.name == "step-00000330"
    for read in (checkpoint.read_weights, lambda last: flat(checkpoint.read_optimizer(last))):
        a, b = read(ours), read(theirs)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_stop_takes_effect_at_the_next_checkpoint(base, crystal_process, tmp_path: Path) -> None:
    folder = from_checkpoint(base, AT, tmp_path / "run")
    started = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(crystal_process(folder, *SDK), **started)
    while not any(step > 230 for step in losses(folder, AT)):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err.splitlines()[-1]) == (130, "stopped, and saved; the same command goes on from here")
    last = latest(folder / "stage1" / "checkpoints")
    assert last is not None and last.name == "step-00000275"
    assert max(losses(folder, AT)) == 275


def test_a_stop_before_the_first_step(crystal_process, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would their processes
    process = subprocess.Popen(crystal_process(folder, *SDK), stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    while not (folder / "stage1" / "numbers.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (130, "stopped; the same command goes on from what is done")


@pytest.fixture(scope="module")
def three_stages(tiny_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """All stages, 6 + 16 + 2 steps of a very small model, in a folder of the given name."""
    runs = tmp_path_factory.mktemp("three")
    given = [override for override in tiny_overrides if not override.startswith("backend")]

    def run(name: str, *backend: str) -> Path:
        finish([sys.executable, "-m", "crystal", *given, *backend, f"run.dir={runs / name}"])
        return runs / name

    return run


def test_three_stages_with_the_optimizer_carried(three_stages) -> None:
    carry = "stages.2.optimizer=carry"
    runs = [three_stages("cpu", *CPU, carry), three_stages("sdk", *SDK, carry)]
    theirs, ours = ([line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"] for run in runs)
    assert [(line["stage"], line["step"]) for line in ours] == [(line["stage"], line["step"]) for line in theirs]
    assert [line["lr"] for line in ours] == pytest.approx([line["lr"] for line in theirs], rel=1e-6)
    steps = []
    for run in runs:
        last = latest(run / "stage2" / "checkpoints")
        assert last is not None
        kept = checkpoint.read_optimizer(last)
        steps.append((kept["step_count"], {int(state["step"]) for state in kept["adamw"].values()}))
    assert steps == [(16, {22})] * 2
    assert read_json(runs[1] / "run.json", {})["command"][:2] == ["crystal", "data=crystalcoder"]
    (runs[1] / "stage3" / "summary.json").unlink()  # as after a kill between the last checkpoint and the end
    before = read_lines(runs[1] / "metrics.jsonl")
    three_stages("sdk", *SDK, carry)
    assert (runs[1] / "stage3" / "summary.json").exists() and read_lines(runs[1] / "metrics.jsonl") == before


def test_bfloat16(three_stages) -> None:
    runs = [three_stages("bf16", *SDK[:-1], "stage=1"), three_stages("fp32", *CPU, "stage=1")]  # cbfloat16, the default, off a system
    assert read_json(runs[0] / "run.json", {})["dtype"] == "bfloat16"
    found, exact = (list(losses(run, 0).values()) for run in runs)
    assert found == pytest.approx(exact, rel=0.05) and found != exact


def test_attention_within_documents(three_stages) -> None:
    """In the loss of the first step, which is before any update."""
    runs = [(CPU, "full"), (CPU, "document"), (SDK, "document")]
    given = [(*backend, f"attention={kind}", "stage=1", "scale.log_every=1") for backend, kind in runs]
    full, expected, got = (losses(three_stages(f"attention{i}", *backend), 0)[1] for i, backend in enumerate(given))
    assert got == pytest.approx(expected, rel=1e-6) and abs(full - expected) > 1e-4


def flat(optimizer: dict) -> dict[str, torch.Tensor]:
    return {f"{name} {key}": value for name, state in optimizer["adamw"].items() for key, value in state.items()}


def test_no_environment(crystal_process, tmp_path: Path) -> None:
    command = crystal_process(tmp_path / "run", "backend=cerebras", "backend.python=nowhere/python")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expected = "error: no nowhere/python; expected the Python of an environment with cerebras-pytorch 2.10.0; make .venv-cerebras/.complete"
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(expected)
