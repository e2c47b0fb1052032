"""A change of the mixture at a step: may come while a stage runs, moves nothing before it, and is refused where that has been trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from crystal.config import UserError
from crystal.runlog import read_json, read_lines, write_json
from crystal.stageconfig import FimConfig, LrPiece, MixtureChange, MixtureEntry, StageConfig
from stages.record import refuse_other_data, refuse_other_numbers, trained_steps


def changed(from_step: int, parts: str = "RedPajamaBook/even") -> str:
    return f"stages.1.changes=[{{from_step: {from_step}, mixture: {{Prose: {{parts: {parts}, weight: 1.0}}}}}}]"


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train" and line["stage"] == "1"}


@pytest.fixture
def stopped(trained, tmp_path) -> Path:
    """A run that was stopped in its stage 1 of 6 steps, with a checkpoint at step 4."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for name in ("stage2", "stage3", "stage1/checkpoints/step-00000006"):
        shutil.rmtree(run / name)
    (run / "stage1" / "summary.json").unlink()
    assert trained_steps(run / "stage1") == 4
    return run


def test_a_change_may_come_behind_what_is_trained(crystal, tiny_overrides, trained, stopped):
    result = crystal(*tiny_overrides, "stage=1", "scale.log_every=1", f"run.dir={stopped}", changed(5))
    assert result.status == 0, result
    summary = read_json(stopped / "stage1" / "summary.json", {})
    assert [change["first_sample"] for change in summary["changes"]] == [10]
    assert [(own["name"], own["samples"]) for own in summary["changes"][0]["mixture"]] == [("Prose", 2)]
    assert sum(own["samples"] for own in summary["mixture"]) == 10
    result = crystal(*tiny_overrides, "stage=1", f"run.dir={stopped}")
    assert result.status == 2 and "changes" in result.err and "other settings" in result.err


@pytest.mark.parametrize("from_step", [1, 3])
def test_one_that_moves_what_is_trained_is_refused(crystal, tiny_overrides, stopped, from_step):
    before = sorted(path.name for path in (stopped / "stage1").rglob("*"))
    result = crystal(*tiny_overrides, "stage=1", f"run.dir={stopped}", changed(from_step))
    assert result.status == 2 and f"changes.0.from_step={from_step}" in result.err, result
    assert sorted(path.name for path in (stopped / "stage1").rglob("*")) == before


def test_a_checkpoint_of_other_samples_is_refused():
    before = {"prepared": "x", "changes": [{"first_sample": 8, "entries": [{"name": "a"}]}]}
    later = before["changes"] + [{"first_sample": 20, "entries": []}]
    refuse_other_data(before, before | {"changes": later}, n_samples=20, where="here")
    refuse_other_data(before | {"changes": later}, before, n_samples=20, where="here")
    with pytest.raises(UserError, match=r"changes.1.first_sample"):
        refuse_other_data(before, before | {"changes": later}, n_samples=21, where="here")
    with pytest.raises(UserError, match=r"changes.0.entries"):
        refuse_other_data(before, {"prepared": "x", "changes": []}, n_samples=20, where="here")


def test_a_stage_from_before_there_were_changes(tmp_path):
    before = {"name": "1", "fim": {"rate": 0.9, "spm_rate": 0.5}}
    write_json(tmp_path / "numbers.json", before)
    refuse_other_numbers(tmp_path / "numbers.json", {"name": "1", "fim": before["fim"] | {"style": "lossless"}, "changes": []})


def stage(*changes: MixtureChange) -> StageConfig:
    mixture = {name: MixtureEntry(name, 0.5) for name in "ab"}
    return StageConfig("1", 100, [LrPiece(0.0, 0.1, 100)], mixture, changes=list(changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([MixtureChange(0, {"a": MixtureEntry("a", 1.0)})], r"changes.0.from_step=0; expected a step after 0"),
        ([MixtureChange(5, {"a": MixtureEntry("a", 1.0)}), MixtureChange(5, {"a": MixtureEntry("a", 1.0)})], r"changes.1.from_step=5"),
        ([MixtureChange(5, {})], r"changes.0.mixture is empty"),
        ([MixtureChange(5, {"a": MixtureEntry("a", 0.5)})], r"changes.0.mixture weights sum to 0.5"),
        ([MixtureChange(5, {"a": MixtureEntry("other", 1.0)})], r"mixture.a is parts=other .*; expected parts=a .*; give it another name"),
        ([MixtureChange(5, {"a": MixtureEntry("a", 1.0, slice=[0.0, 0.5])})], r"mixture.a is parts=a slice=\[0.0, 0.5\]"),
    ],
)
def test_bad_changes(changes, expected):
    assert stage(MixtureChange(5, {"a": MixtureEntry("a", 0.9), "c": MixtureEntry("c", 0.1)})).changes
    with pytest.raises(UserError, match=expected):
        stage(*changes)


def test_a_style_of_fim_that_there_is_not():
    with pytest.raises(UserError, match=r"stages.1.fim.style=lossy; expected lossless or crystalcoder"):
        StageConfig("1", 100, [LrPiece(0.0, 0.1, 100)], {"a": MixtureEntry("a", 1.0)}, fim=FimConfig(style="lossy"))


def test_a_change_behind_the_end_is_refused(crystal, tiny_overrides, tmp_path):
    result = crystal(*tiny_overrides, "stage=1", f"run.dir={tmp_path / 'run'}", changed(6))
    assert result.status == 2 and "from_step=6; expected a step below 6" in result.err
