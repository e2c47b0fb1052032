"""A sweep of seconds through the command line: its points, what a second call does, its transfer, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from crystal.mup.transfer import from_csv

WIDTHS, FACTORS, SEEDS = (32, 64), (0.1, 0.2, 0.4), (1, 2)


@pytest.fixture(scope="module")
def sweep(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """(the command line, the folder of its points), run once, in two processes."""
    from crystal.__main__ import main
    from tests.conftest import VOCAB_SIZE

    folder = tmp_path_factory.mktemp("sweep")
    command = [
        "-m", "sweep=lr", "data=crystalcoder", f"data.root={corpus}", f"data.out={folder / 'rows'}", "data.holdout=0.1",
        f"data.vocab_size={VOCAB_SIZE}", "data.valid_rows=2", "scale.seq_len=32", "scale.batch_rows=2", "scale.log_every=1",
        "tokens=3000", "model.d_model=" + ",".join(map(str, WIDTHS)), "scale.lr_factor=" + ",".join(map(str, FACTORS)),
        "run.seed=" + ",".join(map(str, SEEDS)), f"run.dir={folder / 'points' / 'mup'}", "backend=cpu", "backend.dtype=float32",
        f"hydra.sweep.dir={folder / 'hydra'}", "hydra.launcher.n_jobs=2",
    ]  # fmt: skip
    assert main(command) == 0
    return command, folder / "points"


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


def test_the_same_command_runs_only_what_is_missing(sweep, crystal, tmp_path: Path) -> None:
    command, folder = sweep
    before, first = losses(folder), sorted(folder.glob("mup/*"))[0]
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}
    shutil.move(first, tmp_path / "away")
    finished = crystal(*command)
    assert finished.status == 0, finished.err
    assert losses(folder) == before
    assert {path for path in times if path.stat().st_mtime_ns != times[path]} == {first / "metrics.jsonl"}


def test_its_transfer(sweep, crystal, tmp_path: Path) -> None:
    _, folder = sweep
    finished = crystal("task=transfer", f"run.dir={folder}", f"out={tmp_path / 'transfer'}")
    assert finished.status == 0, finished.err
    key, points = from_csv((tmp_path / "transfer" / "records.csv").read_text())
    curves = losses(folder)
    assert (key, len(points)) == ("scale.lr_factor", len(curves))
    for point in points:
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
    assert finished.err.startswith("error: mup: no point at width 64, scale.lr_factor=0.2, seed 2; expected all 12; ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sweep=lr"], "sweep=lr without -m; expected python -m crystal -m sweep=lr"),
        (["-m", "sweep=lr", "hydra/launcher=other"], "hydra/launcher=other is not installed; expected its package; pip install"),
        (["task=transfer", "run.dir=nowhere"], "no points in nowhere; expected a sweep's folder"),
        (["task=transfer", "source=nowhere.csv"], "source=nowhere.csv "),
    ],
)
def test_what_is_refused(arguments: list[str], line: str, crystal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished = crystal(*arguments)
    assert (finished.status, finished.out) == (2, "")
    assert finished.err.startswith(f"error: {line}") and finished.err.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
