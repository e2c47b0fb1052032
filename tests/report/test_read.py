"""What is read from a run: all of it, what there is of it, or an error that names file and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crystal.config import UserError
from crystal.report.read import natural, read_run

from .synthetic import BATCH, ROW, STAGES, make_run

STEP = {"kind": "train", "stage": "1", "loss": 5.0, "lr": 0.01, "tokens_per_s": 1.0}


def bare_run(folder: Path, metrics: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text('{"name": "bare"}')
    (folder / "metrics.jsonl").write_text(metrics)
    return folder


def lines(*steps: int, loss: float = 5.0) -> str:
    return "".join(json.dumps({**STEP, "step": s, "tokens": 100 * (s + 1), "loss": loss}) + "\n" for s in steps)


def test_stages_lie_end_to_end_on_the_token_axis(whole_run: Path) -> None:
    run = read_run(whole_run)
    sizes = [steps * BATCH * ROW for _, steps, _ in STAGES]
    assert [stage.tokens for stage in run.stages] == sizes
    assert [stage.start for stage in run.stages] == [0, sizes[0], sizes[0] + sizes[1]]
    assert run.tokens == sum(sizes)
    assert run.train_data is not None and run.train_data.documents == 1100


@pytest.mark.parametrize("tail", ['{"kind": "train", "sta', '{"kind": "train", "loss": "caf\udcc3', "\0\0\0\0"])
def test_torn_last_line_is_left_out(tmp_path: Path, tail: str) -> None:
    run = bare_run(tmp_path, lines(0, 1))
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(tail.encode(errors="surrogateescape"))
    read = read_run(run)
    assert read.torn and [point.step for point in read.stages[0].train] == [0, 1]


def test_torn_line_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 2 is not JSON.*remove that line"):
        read_run(bare_run(tmp_path, lines(0) + '{"kind": "tr\n' + lines(1)))


def test_steps_overtaken_after_a_restart_are_dropped(tmp_path: Path) -> None:
    valid = {"kind": "valid", "stage": "1", "tokens": 0, "loss": {"a": 1.0}, "bits_per_byte": {"a": 1.0}}
    kept, overtaken = (json.dumps({**valid, "step": step}) + "\n" for step in (2, 4))
    metrics = lines(0, 1, 2) + kept + lines(3) + overtaken + lines(2, loss=4.0)
    stage = read_run(bare_run(tmp_path, metrics)).stages[0]
    assert [(point.step, point.loss) for point in stage.train] == [(0, 5.0), (1, 5.0), (2, 4.0)]
    assert [point.step for point in stage.valid] == [2]


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, there: bool) -> None:
    folder = tmp_path if there else tmp_path / "absent"
    with pytest.raises(UserError, match="has no run.json|is not a folder"):
        read_run(folder)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("run.json", "{", "run.json: not JSON"),
        ("run.json", "[]", "the whole file is .*an object"),
        ("stage1/summary.json", '{"status": "complete", "tokens": 3}', "steps is missing; expected a whole number"),
        ("stage1/scores/humaneval.json", '{"status": "scored"}', "pass@1 is missing"),
        ("stage1/scores/humaneval.json", '{"status": "scored", "pass@1": 0.5}', "ci95 is None"),
        ("stage1/scores/humaneval.json", '{"status": "scored", "pass@1": 0.5, "ci95": [0, "a"]}', r"ci95 is \[0, 'a'\]"),
        ("stage1/scores/mbpp.json", '{"status": "absent", "sandbox": {"has": []}}', "sandbox.layer is missing"),
        (
            "stage1/scores/humaneval.json",
            '{"benchmark": "humaneval", "status": "scored", "pass@1": 28.4, "ci95": [1, 2]}',
            r"28.4; expected a fraction",
        ),
        ("stage1/scores/baselines.json", '{"source": "a", "unigram": {"loss": "x"}}', "unigram.loss is 'x'"),
        ("data.json", '{"label": 3}', "label is 3; expected text"),
        ("metrics.jsonl", '{"kind": "train", "stage": "1"}', "line 1.step is missing"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: str, said: str) -> None:
    run = bare_run(tmp_path)
    (run / file).parent.mkdir(parents=True, exist_ok=True)
    (run / file).write_text(content)
    with pytest.raises(UserError, match=said) as error:
        read_run(run)
    assert file in str(error.value) and "\n" not in str(error.value)


def test_a_summary_that_is_not_complete_is_none(tmp_path: Path) -> None:
    run = make_run(tmp_path, stages=["1"])
    path = run / "stage1/summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "running"}))
    assert read_run(run).stages[0].summary is None


def test_numbers_sort_by_value() -> None:
    assert sorted(["HumanEval/10", "HumanEval/9", "a"], key=natural) == ["HumanEval/9", "HumanEval/10", "a"]
