"""A sweep of seconds through the command line: its points, what a second call does, its transfer, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from crystal.mup.sweep import from_csv
from tests.test_resume import wait_until

WIDTHS, FACTORS, SEEDS = (32, 64), (0.1, 0.2, 0.4), (1, 2)


@pytest.fixture(scope="module")
def sweep(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """(the command line, the folder of its points), run once, in two processes."""
    from crystal.__main__ import main
    from tests.conftest import VOCAB_SIZE

    folder = tmp_path_factory.mktemp("sweep")
    command = [
        "-m", "sweep=lr", "data=crystalcoder", f"data.root={corpus}", f"data.out={folder / 'rows'}", "data.holdout=0.1",
        "data.decontaminate.action=ignore",
        f"data.vocab_size={VOCAB_SIZE}", "data.valid_rows=2", "scale.seq_len=32", "scale.batch_rows=2", "scale.log_every=1",
        "tokens=3000", "model.d_model=" + ",".join(map(str, WIDTHS)), "scale.lr_factor=" + ",".join(map(str, FACTORS)),
        "run.seed=" + ",".join(map(str, SEEDS)), f"run.dir={folder / 'points'}", "backend=cpu", "backend.dtype=float32",
        f"hydra.sweep.dir={folder / 'hydra'}", "hydra.launcher.n_jobs=2",
    ]  # fmt: skip
    assert main(command) == 0
    return command, folder / "points"


def changed(command: list[str], *arguments: str) -> list[str]:
    """The command with other values, without the options of joblib's launcher."""
    keys = {argument.partition("=")[0] for argument in arguments} | {"hydra.launcher.n_jobs"}
    return [argument for argument in command if argument.partition("=")[0] not in keys] + list(arguments)


def losses(folder: Path) -> dict[str, list[float]]:
    """point -> its training losses, step by step."""
    found = {}
    for path in sorted(folder.glob("mup/*/metrics.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [record["loss"] for record in records if record["kind"] == "train"]
    return found


def test_every_point_leaves_its_curve_and_no_weights(sweep) -> None:
    _, folder = sweep
    points = losses(folder)
    assert set(points) == {f"model.d_model={w},scale.lr_factor={f},run.seed={s}" for w in WIDTHS for f in FACTORS for s in SEEDS}
    assert {len(curve) for curve in points.values()} == {12}
    assert len({tuple(curve) for curve in points.values()}) == len(points)
    assert list(folder.rglob("weights.pt")) == [] and list(folder.rglob("report")) == []
    assert list(folder.parent.glob(".*")) == [], "the lock of the prepared rows"


def test_the_same_command_runs_only_what_is_missing(sweep, crystal, tmp_path: Path) -> None:
    command, folder = sweep
    before, first = losses(folder), sorted(folder.glob("mup/*"))[0]
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}
    shutil.move(first, tmp_path / "away")
    finished = crystal(*command)
    assert finished.status == 0, finished.err
    assert losses(folder) == before
    assert {path for path in times if path.stat().st_mtime_ns != times[path]} == {first / "metrics.jsonl"}


def test_a_divergence_is_a_result(sweep, crystal, tmp_path: Path) -> None:
    command = changed(
        sweep[0], "model.d_model=32", "scale.lr_factor=0.2,1000000000000", "run.seed=1", "scale.save_every=1", f"run.dir={tmp_path}",
        "hydra/launcher=basic",
    )  # fmt: skip
    finished = crystal(*command)
    point = tmp_path / "mup" / "model.d_model=32,scale.lr_factor=1000000000000,run.seed=1"
    summary = json.loads((point / "stage1" / "summary.json").read_text())
    step = summary.pop("step")
    assert (finished.status, summary) == (0, {"stage": "1", "status": "diverged", "steps": 12}) and 0 < step < 12
    assert finished.out.count(f"{point}: diverged at step {step} of 12") == 1
    last = json.loads((point / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["step"]) == ("train", step) and not math.isfinite(last["loss"] + last["grad_norm"])
    assert not (point / "stage1" / "checkpoints").exists()
    again, other = crystal(*command), point.with_name(point.name.replace("1000000000000", "0.2"))
    assert (again.status, again.out) == (0, f"{other}: complete, skipped\n{point}: diverged, skipped\n")


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_failed_point_in_another_process_is_told(launcher: str, sweep, crystal, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="pip install 'crystal-trainer[sweep]'") if launcher == "submitit_local" else None
    finished = crystal(*changed(
        sweep[0], "model.d_model=32", "scale.lr_factor=0.1", "run.seed=1", "optim.beta1=1,0.9", f"run.dir={tmp_path / 'points'}",
        f"hydra.sweep.dir={tmp_path / 'hydra'}", f"hydra/launcher={launcher}",
    ))  # fmt: skip
    point = f"{tmp_path}/points/mup/model.d_model=32,scale.lr_factor=0.1,run.seed=1,optim.beta1="
    assert (finished.status, finished.err.count("error: ")) == (2, 1)
    assert f"error: {point}1: optim.beta1=1.0; expected a value from 0 to below 1; " in finished.err
    assert [str(path) for path in tmp_path.glob("points/mup/*/stage1/summary.json")] == [f"{point}0.9/stage1/summary.json"]


def test_a_dry_run_says_what_a_point_leaves(sweep, crystal, tmp_path: Path) -> None:
    command = changed(sweep[0], "model.d_model=32", "scale.lr_factor=0.1", "run.seed=1", "hydra/launcher=basic", "dry_run=true")
    point = "mup/model.d_model=32,scale.lr_factor=0.1,run.seed=1"
    assert crystal(*command).out == f"{sweep[1]}/{point}: complete, would be skipped\n"
    fresh = crystal(*changed(command, f"run.dir={tmp_path / 'new'}"))
    assert fresh.out.startswith(f"{tmp_path}/new/{point}: would take 12 steps, 768 tokens, about ") and fresh.out.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_its_transfer(sweep, crystal, tmp_path: Path) -> None:
    _, folder = sweep
    finished = crystal("task=transfer", f"run.dir={folder}", f"out={tmp_path / 'transfer'}")
    assert finished.status == 0, finished.err
    found = from_csv(tmp_path / "transfer" / "records.csv")
    curves = losses(folder)
    assert (found.key, len(found.points)) == ("scale.lr_factor", len(curves))
    for point in found.points:
        curve = curves[f"model.d_model={point.width},scale.lr_factor={point.value},run.seed={point.seed}"]
        assert point.loss == pytest.approx(sum(curve[-2:]) / 2)  # the last tenth of 12 steps: those after step 10.8
    assert "mup: scale.lr_factor " in finished.out and "12 steps of 64 tokens" in (tmp_path / "transfer" / "report.md").read_text()
    again = crystal("task=transfer", f"source={tmp_path / 'transfer' / 'records.csv'}", f"out={tmp_path / 'again'}")
    assert (again.status, (tmp_path / "again" / "records.csv").read_bytes()) == (0, (tmp_path / "transfer" / "records.csv").read_bytes())


def test_a_point_that_is_missing_is_named(sweep, crystal, tmp_path: Path) -> None:
    _, folder = sweep
    shutil.copytree(folder, tmp_path / "points")
    shutil.rmtree(tmp_path / "points" / "mup" / "model.d_model=64,scale.lr_factor=0.2,run.seed=2")
    finished = crystal("task=transfer", f"run.dir={tmp_path / 'points'}", f"out={tmp_path / 'out'}")
    assert (finished.status, finished.out) == (2, "")
    assert finished.err.startswith("error: mup: no finished point at width 64, scale.lr_factor=0.2, seed 2; expected all 12; ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sweep=lr"], "sweep=lr without -m; expected python -m crystal -m sweep=lr"),
        (["task=coordcheck", "sweep=lr"], "sweep=lr with task=coordcheck; expected python -m crystal -m sweep=lr, or task=transfer; "),
        (["-m", "sweep=lr,init"], "-m sweep= and sweep=lr,init; expected one value; "),
        (["-m", "sweep=lr", "stage=1,2"], "-m sweep= and stage=1,2; expected one value; "),
        (["-m", "sweep=lr", "stage=2"], "-m sweep=lr with stage=2; expected one stage from fresh weights"),
        (["-m", "sweep=lr", "stage=all"], "-m sweep=lr with stage=all; expected one stage from fresh weights"),
        (["-m", "sweep=lr", "init_from=DIR"], "-m sweep=lr with init_from=DIR; expected one stage from fresh weights"),
        (["-m", "sweep=lr", "task=plan"], "-m sweep=lr with task=plan; expected task=train; "),
        (["-m", "sweep=lr", "eval=humaneval"], "-m sweep=lr with eval=humaneval; expected eval=none"),
        (["-m", "sweep=lr", "run.dir="], "run.dir is empty; expected a folder; "),
        (["-m", "sweep=lr", "hydra/launcher=other"], "hydra/launcher=other is not installed; expected its package; pip install"),
        (["-m", "sweep=lr", "--cfg", "job"], "--cfg with -m; expected one configuration to show; leave -m out"),
        (["task=transfer", "run.dir=nowhere"], "no points in nowhere; expected a sweep's folder"),
        (["task=transfer", "source=nowhere.csv"], "task=transfer with source= and without out; expected a folder to write; give out=PATH"),
        (["task=transfer", "source=nowhere.csv", "out=there"], "source=nowhere.csv "),
    ],
)
def test_what_is_refused(arguments: list[str], line: str, crystal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished = crystal(*arguments)
    assert (finished.status, finished.out) == (2, "")
    assert finished.err.startswith(f"error: {line}") and finished.err.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_slurm_where_there_is_none(crystal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="pip install 'crystal-trainer[sweep]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    finished = crystal("-m", "sweep=lr", "hydra/launcher=submitit_slurm")
    assert (finished.status, list(tmp_path.iterdir())) == (2, [])
    assert finished.err.startswith("error: hydra/launcher=submitit_slurm without srun and sbatch; expected Slurm; ")


def in_session(leader: int) -> list[Path]:
    """The processes that still run in a session (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            found += [stat] if stat.read_text().rpartition(")")[2].split()[3] == str(leader) else []
    return found


def test_sigterm_stops_the_points_too(sweep, tmp_path: Path) -> None:
    longer = [f"run.dir={tmp_path / 'points'}", "tokens=3000000", f"hydra.sweep.dir={tmp_path / 'hydra'}", "hydra.launcher.n_jobs=2"]
    command = [sys.executable, "-m", "crystal", *changed(sweep[0], *longer)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(process, lambda: any(path.stat().st_size for path in tmp_path.glob("points/mup/*/metrics.jsonl")))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (130, "stopped; the same command goes on from what is done")
    for _ in range(300):
        if in_session(process.pid) == []:
            break
        time.sleep(0.1)
    assert in_session(process.pid) == []
