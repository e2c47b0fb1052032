from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from crystal.runlog import Count, Metrics, Progress, clock, open_sinks, read_json, read_lines, write_json, write_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def log(path: Path, stage: str, steps, *, after: int = 0, sinks=()) -> Metrics:
    metrics = Metrics(path, stage=stage, step=after, sinks=list(sinks))
    for step in steps:
        metrics.log("train", step, {"loss": 1 / step})
    metrics.close()
    return metrics


def positions(path: Path) -> list[tuple[str, int]]:
    return [(line["stage"], line["step"]) for line in read_lines(path)]


def test_a_record(path):
    log(path, "1", [4])
    assert path.read_text() == '{"kind": "train", "stage": "1", "step": 4, "loss": 0.25}\n'


def test_a_stage_that_goes_on_is_cut_back_to_its_checkpoint(path):
    log(path, "1", [1, 2, 3])
    undisturbed = path.read_text()
    log(path, "2", [1, 2, 3, 4, 5])
    log(path, "2", [4, 5, 6], after=3)
    assert positions(path) == [("1", s) for s in (1, 2, 3)] + [("2", s) for s in range(1, 7)]
    assert path.read_text().startswith(undisturbed)
    log(path, "2", [], after=0)
    assert path.read_text() == undisturbed


@pytest.mark.parametrize("torn", ['{"kind": "train", "stage": "2", "st', '{"kind"', "{"])
def test_a_torn_last_line_is_left_out(path, torn):
    log(path, "2", [1, 2])
    whole = path.read_text()
    path.write_text(whole + torn)
    assert positions(path) == [("2", 1), ("2", 2)]
    log(path, "2", [3], after=2)
    assert positions(path) == [("2", 1), ("2", 2), ("2", 3)]


def test_floats_come_back_bit_for_bit(path):
    values = [0.1 + 0.2, 1e-45, 28.123456789012345]
    metrics = Metrics(path, stage="1", step=0, sinks=[])
    metrics.log("train", 1, {"loss": values})
    metrics.close()
    log(path, "1", [2], after=1)
    assert read_lines(path)[0]["loss"] == values


def test_every_record_can_be_read_at_once(path):
    metrics = Metrics(path, stage="1", step=0, sinks=[])
    metrics.log("train", 1, {})
    assert positions(path) == [("1", 1)]
    metrics.close()


def test_a_failing_sink_does_no_harm(path, capsys):
    seen, failed = [], []

    def failing(record):
        failed.append(record)
        raise ConnectionError("no network")

    log(path, "1", [1, 2, 3], sinks=[failing, seen.append])
    assert positions(path) == [(record["stage"], record["step"]) for record in seen] == [("1", 1), ("1", 2), ("1", 3)]
    assert len(failed) == 1 and capsys.readouterr().err.count("no network") == 1


def test_a_sink_that_is_not_there_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    assert open_sinks(["wandb"], tmp_path) == []
    assert "no wandb" in capsys.readouterr().err


def test_tensorboard_really_writes(path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = Metrics(path, stage="2", step=0, sinks=open_sinks(["tensorboard"], path.parent))
    metrics.log("train", 1, {"loss": 3.5})
    metrics.log("valid", 1, {"loss": {"starcoder/python": 2.25}})
    written = EventAccumulator(str(path.parent / "tensorboard")).Reload()  # before the writer is closed: as after a kill
    assert written.Tags()["tensors"] == ["stage2/train/loss", "stage2/valid/loss/starcoder/python"]
    (event,) = written.Tensors("stage2/train/loss")
    assert (event.step, event.tensor_proto.float_val[0]) == (1, 3.5)
    metrics.close()


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "folder" / "a.json"
    write_json(path, {"größe": 1})
    assert read_json(path, None) == {"größe": 1}

    def full(descriptor: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_text(path, "half")
    assert json.loads(path.read_text()) == {"größe": 1}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
    assert read_json(tmp_path / "none", []) == []


class Terminal:
    """A stderr that is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def test_the_live_line(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(stage="2", n_steps=3, step=1, tokens_per_step=100) as progress:
        progress.show(2, 4.5)
        assert terminal.text.startswith("\rstage 2  step 2/3  loss 4.500") and "\n" not in terminal.text
    assert terminal.text.endswith("\n"), "stopped in the middle: what is said next has its own line"
    with Progress(stage="2", n_steps=3, step=2, tokens_per_step=100) as progress:
        progress.show(3, 4.5)
    assert terminal.text.count("\n") == 2


def test_elsewhere_a_line_every_ten_seconds(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(stage="1", n_steps=50, step=10, tokens_per_step=100) as progress:
        for step in range(11, 51):
            now[0] += 1
            progress.show(step, 1.0)
            assert progress.rate(step) == 100
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("step ")[1].split("/")[0] for line in lines] == ["21", "32", "43", "50"]
    assert lines[0].endswith("100 tokens/s  ETA 0:29")


def test_how_much_of_a_work_is_done(capsys, monkeypatch):
    terminal = Terminal()
    with monkeypatch.context() as on:
        on.setattr("sys.stderr", terminal)
        with Count("completions", 2) as two, Count("completions", 1) as one:
            two.add()
            one.add()
    assert terminal.text.count("1/2") == 1 and "1/1" not in terminal.text and terminal.text.count("\n") == 1
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Count("verdicts", 1500) as count:
        for _ in range(1500):
            now[0] += 1 / 128
            count.add()
    assert capsys.readouterr().err == "  verdicts 1,281/1,500  ETA 0:01\n"


def test_clock():
    assert [clock(s) for s in (0, 59.9, 3599, 3600, 90061)] == ["0:00", "0:59", "59:59", "1:00:00", "1d 01:01:01"]
