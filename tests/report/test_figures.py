"""Lines where the data is, boundaries where the stages begin, nothing where there is nothing."""

from __future__ import annotations

import json
import math
import re
import statistics
import xml.dom.minidom
from dataclasses import replace
from pathlib import Path

import pytest

from crystal.report import figures
from crystal.report.axes import Panel, linear_ticks, log_ticks, si, standalone, thin
from crystal.report.read import read_run
from crystal.report.write import stage_subject

from .synthetic import SOURCES


@pytest.mark.parametrize("width", [figures.WIDE, figures.NARROW])
def test_boundaries_stand_where_stages_begin(whole_run: Path, width: int) -> None:
    run = read_run(whole_run)
    drawing = figures.training(run, width) or ""
    found = [float(x) for x in re.findall(r'<line x1="([\d.]+)"[^>]*class="boundary"', drawing)]
    left, plotted = 44, width - 56
    expected = [left + plotted * stage.start / run.tokens for stage in run.stages[1:]]
    assert found == pytest.approx(expected, abs=0.06)
    for stage in run.stages:
        assert f'class="line {figures.tone(stage.name)}"' in drawing


def test_each_stage_is_drawn_between_its_boundaries(whole_run: Path) -> None:
    run = read_run(whole_run)
    drawing = figures.training(run, figures.WIDE) or ""
    panel = Panel(44, 0, figures.WIDE - 56, 1, (0, run.tokens), (0, 1))
    for stage in run.stages:
        path = re.search(rf'<path d="M([^"]*)" class="raw {figures.tone(stage.name)}"', drawing)
        assert path
        xs = [float(pair.split()[0]) for pair in path[1].split("L")]
        assert panel.px(stage.start) - 0.1 <= min(xs) and max(xs) <= panel.px(stage.end) + 0.1


def test_every_source_has_a_panel_with_its_last_value(whole_run: Path) -> None:
    run = read_run(whole_run)
    drawing = figures.validation(run, figures.NARROW) or ""
    for source in SOURCES:
        assert f">{source}<" in drawing
        assert f">{run.stages[-1].valid[-1].bits_per_byte[source]:.2f}<" in drawing


def test_files_are_well_formed(whole_run: Path) -> None:
    for name in ("training", "validation", "scores"):
        root = xml.dom.minidom.parse(str(whole_run / f"report/{name}.svg")).documentElement
        assert root is not None and root.tagName == "svg" and root.namespaceURI == "http://www.w3.org/2000/svg"


@pytest.mark.parametrize("width", [figures.WIDE, figures.NARROW])
def test_a_long_name_leaves_room_for_its_score(whole_run: Path, width: int) -> None:
    stage = read_run(whole_run).stages[0]
    names = ["stage 1", "a-run-with-a-long-name stage 1 at step 79,721 and more"]
    drawing = figures.scores([replace(stage_subject(stage), name=name) for name in names], width) or ""
    labels = re.findall(r">(HumanEval, [^<]*)<", drawing)
    assert labels[0] == "HumanEval, stage 1" and all(7 * (len(label) + len("0.6 %  [0.0, 3.7]")) <= width for label in labels)
    assert labels[1].endswith("79,721 and more") and ("…" in labels[1]) == (width == figures.NARROW)


def test_labels_are_escaped() -> None:
    drawing = standalone('<svg aria-label="&lt;x&gt;"><text/></svg>', "a > b {}")
    assert drawing.startswith('<svg aria-label="&lt;x&gt;" xmlns=')


def test_a_diverged_run_is_drawn_as_far_as_it_is_finite(tmp_path: Path) -> None:
    losses = [5.0, 4.0, math.nan, math.inf]
    lines = [
        json.dumps({"kind": "train", "stage": "1", "step": i, "tokens": i + 1, "loss": loss, "lr": 0.0}) for i, loss in enumerate(losses)
    ]
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    drawing = figures.training(read_run(tmp_path), figures.WIDE) or ""
    assert "nan" not in drawing and "inf" not in drawing
    assert "throughput, tokens per second: not recorded" in drawing


def test_smooth_is_a_centred_mean_that_keeps_the_start_and_ends_with_a_whole_window() -> None:
    values = [5.0, 1.0, 4.0, 4.0, 9.0]
    assert figures.smooth(values, 3) == [5.0, statistics.mean(values[:3]), 3.0, statistics.mean(values[2:]), statistics.mean(values[2:])]
    assert figures.smooth([], 3) == []


def test_thin_keeps_spikes_and_order() -> None:
    points = [(float(x), math.sin(x)) for x in range(1000)]
    points[437] = (437.0, 99.0)
    kept = thin(points, 100)
    assert (437.0, 99.0) in kept and len(kept) <= 102 and kept == sorted(kept)


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.9e7), (0.0, 0.012), (0.0, 100.0), (0.0, 1e-9), (0.0, 1.38e12)])
def test_linear_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = linear_ticks(low, high, 5)
    assert 3 <= len(ticks) <= 7 and low <= ticks[0] and ticks[-1] <= high * (1 + 1e-9)


@pytest.mark.parametrize(("low", "high"), [(2.5, 30.0), (3.01, 3.4), (1e-3, 1e4), (0.9, 1.1)])
def test_log_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 14 and all(low <= tick <= high * (1 + 1e-9) for tick in ticks)


@pytest.mark.parametrize(
    ("value", "said"),
    [(38_100_000, "38.1 M"), (999, "999"), (1000, "1 k"), (345e9, "345 B"), (1.382e12, "1.38 T"), (0.012, "0.012")],
)
def test_si(value: float, said: str) -> None:
    assert si(value).replace("\N{NO-BREAK SPACE}", " ") == said
