"""The code-benchmark report: which scores belong to a checkpoint, what it is called, and what is refused before anything is written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from crystal.config import UserError
from crystal.report.checkpoints import read_checkpoints, write_checkpoints_report
from crystal.runlog import write_json

from .synthetic import bits, humaneval, make_run
from .test_write import NOTHING, outline, plain

ENDS = {"1": "step-00000150", "2": "step-00000400", "3": "step-00000052"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "tiny-sample")


def end(run: Path, stage: str) -> Path:
    return run / f"stage{stage}/checkpoints/{ENDS[stage]}"


def test_the_ends_of_two_stages_side_by_side(run: Path, tmp_path: Path) -> None:
    page = write_checkpoints_report([end(run, "1"), end(run, "3")], tmp_path / "out", published=NOTHING)
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "report.md", "scores.json", "scores.svg"]
    text, markdown = plain(page.read_text()), (page.parent / "report.md").read_text()
    for said in (
        "tiny-sample", "2 checkpoints, scored on HumanEval.", "stand-ins for SlimPajama", "stage 1 at step 150", "stage 3 at step 52",
        "HumanEval, stage 1 at step 150 to stage 3 at step 52", "gained HumanEval/1, HumanEval/2", "no difference is shown", "p = 0.50",
        f"{bits('starcoder/python', '3', 601):.3f}", "stage1/scores/humaneval.json",
        "MBPP was not scored after stage 1 at step 150 and stage 3 at step 52: no problems file: give eval.mbpp=FILE.",
    ):  # fmt: skip
        assert said in text and said in markdown, said
    assert outline(page.read_text()).open == [] and "RedPajama" not in text
    for table in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        assert len({row.count("|") for row in table.splitlines()}) == 1, table


def test_what_task_evaluate_wrote_comes_first_and_an_end_keeps_its_stage_s_scores(run: Path) -> None:
    folder = run / "stage1/evaluations" / ENDS["1"]
    write_json(folder / "humaneval.json", humaneval(9))
    write_json(run / "stage1/scores/mbpp.json", {**humaneval(5), "benchmark": "mbpp"})
    write_json(folder / "mbpp.json", {"benchmark": "mbpp", "status": "absent", "reason": "no file"})
    (checkpoint,) = read_checkpoints([end(run, "1")])
    assert {name: score.passed for name, score in checkpoint.scores.items()} == {"humaneval": 9, "mbpp": 5}


def test_another_checkpoint_of_the_stage_has_its_own_scores_alone(run: Path, tmp_path: Path) -> None:
    early = run / "stage1/checkpoints/step-00000080"
    with pytest.raises(UserError, match="no checkpoint .*step-00000080; expected"):
        read_checkpoints([early])
    early.mkdir(parents=True)
    with pytest.raises(UserError, match=rf"has no scores; .*; run: python -m crystal task=evaluate checkpoint={re.escape(str(early))}$"):
        write_checkpoints_report([end(run, "2"), early], tmp_path / "out", published=NOTHING)
    assert not (tmp_path / "out").exists()
    write_json(run / "stage1/evaluations/step-00000080/humaneval.json", humaneval(0))
    early.rmdir()  # a run keeps only its newest
    (checkpoint,) = read_checkpoints([early])
    assert checkpoint.name(with_run=False) == "stage 1 at step 80" and checkpoint.scores["humaneval"].passed == 0
    assert checkpoint.bits["starcoder/python"] == bits("starcoder/python", "1", 79)


def test_runs_are_named_where_there_are_several(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    facts = json.loads((other / "run.json").read_text())
    write_json(other / "run.json", {**facts, "name": "other"})
    imported = tmp_path / "imported/crystalcoder"
    write_json(tmp_path / "imported/evaluations/crystalcoder/humaneval.json", humaneval(47))
    write_json(
        tmp_path / "imported/evaluations/crystalcoder/heldout.json", {"python": {"absent": "no data"}, "canonical": {"bits_per_byte": 0.5}}
    )
    page = write_checkpoints_report([end(run, "3"), end(other, "3"), imported], tmp_path / "out", published=NOTHING)
    text = plain(page.read_text())
    assert "HumanEval, tiny-sample stage 3 at step 52 to other stage 3 at step 52" in text
    assert "other stage 3 at step 52 to crystalcoder" in text and "better" in text and "– HumanEval solutions: 0.500" in text
    assert f"MBPP was not scored after crystalcoder: task=evaluate eval=mbpp checkpoint={imported} does that." in text
    assert str(tmp_path / "imported/evaluations/crystalcoder/heldout.json") in text


def test_the_same_name_twice_is_told_apart_by_its_path(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    page = write_checkpoints_report([end(run, "3"), end(other, "3")], tmp_path / "out", published=NOTHING)
    names = [checkpoint["name"] for checkpoint in json.loads((page.parent / "scores.json").read_text())["checkpoints"]]
    assert names == [str(end(run, "3")), str(end(other, "3"))]


def test_a_checkpoint_given_twice_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match="twice; expected each once"):
        read_checkpoints([end(run, "1"), end(run, "1").parent / "../checkpoints" / ENDS["1"]])


def test_all_that_was_gained_is_in_the_json_and_a_few_on_the_page(run: Path, tmp_path: Path) -> None:
    write_json(run / "stage2/scores/humaneval.json", humaneval(40))
    page = write_checkpoints_report([end(run, "1"), end(run, "2")], tmp_path / "out", published=NOTHING)
    (comparison,) = json.loads((page.parent / "scores.json").read_text())["comparisons"]
    assert comparison["gained"] == [f"HumanEval/{i}" for i in range(1, 40)] and comparison["is_shown"]
    assert "and 27 more" in page.read_text() and "HumanEval/39" not in page.read_text()
