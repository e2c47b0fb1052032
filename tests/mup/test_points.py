"""A sweep's points, read from folders made up here; tests/stages/test_sweep.py makes real ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from crystal.config import UserError
from crystal.mup.sweep import Point, Sweep, as_csv, from_csv, read_sweep


def write_point(
    folder: Path, *, width: int = 64, lr: float = 0.1, seed: int = 1, status: str | None = "complete", **numbers: object
) -> Path:
    """A run directory of 20 steps whose loss is 5 and in the last tenth 4."""
    point = folder / "mup" / f"{width},{lr},{seed}"
    model = {"name": "proxy", "d_model": width, "n_heads": width // 32, "n_layers": 2, "parametrization": "mup", "init_std": 0.073}
    scale = {"batch_rows": 8, "seq_len": 256, "lr_factor": lr}
    run = {"git": "abc1234", "versions": {"torch": "2.13.0"}, "dtype": "float32", "device": "a CPU"}
    files = {
        "numbers.json": {"model": model, "scale": scale, "data": "sample", "seed": seed} | numbers,
        "run.json": run, "stage1/numbers.json": {"name": "1", "lr": [{"start": 0.0, "end": 0.1}]},
    }  # fmt: skip
    if status is not None:
        files["stage1/summary.json"] = {"status": status, "steps": 20}
    for name, value in files.items():
        (point / name).parent.mkdir(parents=True, exist_ok=True)
        (point / name).write_text(json.dumps(value))
    lines = [{"kind": "train", "step": step, "loss": 4.0 if step > 18 else 5.0} for step in range(1, 21)]
    (point / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return point


def test_points_are_read(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        write_point(tmp_path, lr=lr)
    write_point(tmp_path, lr=0.4, status="diverged")
    write_point(tmp_path, lr=0.8, status=None)
    found = read_sweep(tmp_path)
    assert found.key == "scale.lr_factor"
    assert found.points == [Point("mup", 64, 0.1, 1, 4.0), Point("mup", 64, 0.2, 1, 4.0), Point("mup", 64, 0.4, 1, math.inf)]
    assert found.provenance == (
        "3 runs of 20 steps of 2,048 tokens, model proxy (2 layers, heads of 32), data sample; "
        "commit abc1234, torch 2.13.0, float32 on a CPU. At model.init_std=0.073, model.embedding_scale=None, model.output_alpha=None."
    )


def test_everything_the_points_differ_in_is_in_the_provenance(tmp_path: Path) -> None:
    write_point(tmp_path, lr=0.1)
    other = write_point(tmp_path, lr=0.2) / "run.json"
    other.write_text(other.read_text().replace("abc1234", "def5678"))
    assert "commit abc1234, def5678, torch" in read_sweep(tmp_path).provenance


def test_records_come_back(tmp_path: Path) -> None:
    made = Sweep("scale.lr_factor", [Point("mup", 64, 0.1, 1, 4.25), Point("sp", 64, 0.1, 1, math.inf)], "2 runs, of something.")
    (tmp_path / "records.csv").write_text(as_csv(made))
    assert from_csv(tmp_path / "records.csv") == made
    head, columns, *lines = as_csv(made).splitlines()
    (tmp_path / "records.csv").write_text("\n".join([head, columns, *reversed(lines)]))
    assert from_csv(tmp_path / "records.csv") == made


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no points in .*; expected a sweep's folder; "):
        read_sweep(tmp_path)
    point = write_point(tmp_path, status=None)
    with pytest.raises(UserError, match="with 1 points, none of them finished"):
        read_sweep(tmp_path)
    with pytest.raises(UserError, match="no points in .*mup"):
        read_sweep(tmp_path / "mup")
    write_point(tmp_path)
    with pytest.raises(UserError, match="differs in nothing; expected points that differ in one key"):
        read_sweep(tmp_path)
    write_point(tmp_path, lr=0.2)
    (point / "stage1" / "numbers.json").write_text(json.dumps({"name": "1", "lr": [{"start": 0.0, "end": 0.2}]}))
    with pytest.raises(UserError, match="differs in scale.lr_factor, stages.1.lr.0.end; expected points that differ in one key"):
        read_sweep(tmp_path)
    (point / "stage1" / "numbers.json").unlink()
    write_point(tmp_path)
    (point / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 20, "loss": 4.5}) + "\n")
    with pytest.raises(UserError, match="is the mean of more than the last tenth of its steps; expected scale.log_every of at most 2; "):
        read_sweep(tmp_path)
    (point / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has no losses; expected a finished point's metrics.jsonl, up to step 20"):
        read_sweep(tmp_path)


def test_only_numbers_are_swept(tmp_path: Path) -> None:
    for lr, name in ((0.1, "sample"), (0.2, "other")):
        point = write_point(tmp_path, data=name, lr=lr)
        (point / "numbers.json").write_text((point / "numbers.json").read_text().replace('"lr_factor": 0.2', '"lr_factor": 0.1'))
    with pytest.raises(UserError, match="data has the values other, sample; expected numbers"):
        read_sweep(tmp_path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "not enough values to unpack"),
        ("parametrization,width,lr,seed,loss\nmup,64,0.1,1,4.0\n", "other columns"),
        ("# \nwidth,lr,seed,loss\n", "other columns"),
        ("# \nparametrization,width,lr,seed,loss\n", "without points"),
        ("# \nparametrization,width,lr,seed,loss\nmup,64,0.1,1\n", "line 3: mup,64,0.1,1 .*; expected parametrization,width,lr,seed,loss"),
        ("# \nparametrization,width,lr,seed,loss\nmup,64,low,1,4.0\n", "line 3: mup,64,low,1,4.0 "),
        ("# \nparametrization,width,lr,seed,loss\nmup,64,0,1,4.0\n", "value=0.0.*; expected positive numbers"),
        ("# \nparametrization,width,lr,seed,loss\nmup,64,0.1,1,nan\n", "loss=nan.*; expected positive numbers"),
        ("# \nparametrization,width,lr,seed,loss\nmup,64,0.1,1,4\nmup,64,0.1,1,5\n", "two points of .*'mup', 64, 0.1, 1"),
    ],
)
def test_other_files_are_refused(text: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "records.csv").write_text(text)
    with pytest.raises(UserError, match=line):
        from_csv(tmp_path / "records.csv")
