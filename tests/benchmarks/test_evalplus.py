"""HumanEval+ and MBPP+ on rows written here: evalplus's rules of comparison, and the reference in the judge."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.code.evalplus import HumanEvalPlus, MbppPlus, plus_problem
from benchmarks.code.execution import Limits, Pool, Verdict
from benchmarks.code.oracle import agrees, close, restored
from benchmarks.code.problems import Kind
from crystal.config import UserError

PLUS = {
    "task_id": "HumanEval/55",
    "prompt": 'def fib(n: int):\n    """ The n-th number. """\n',
    "entry_point": "fib",
    "canonical_solution": "    return n if n < 2 else fib(n - 1) + fib(n - 2)\n",
    "base_input": [[10]],
    "plus_input": [[1], [0]],
    "atol": 0,
}
TUPLES = {
    "task_id": "Mbpp/2",
    "prompt": '"""\nShare.\nassert shared((1,), (1,)) == (1,)\n"""\n',
    "entry_point": "shared",
    "canonical_solution": "\ndef shared(a, b):\n    assert type(a) is type(b) is tuple\n    return tuple(sorted(set(a) & set(b)))\n",
    "base_input": [[[1, 2], [2]]],
    "plus_input": {},  # as some published rows have it
    "atol": 0,
}
numbers = st.floats(allow_nan=True) | st.integers(-(10**6), 10**6)


def judged(row: dict[str, Any], kind: Kind, *answers: str) -> list[Verdict]:
    problem = plus_problem(row, kind)
    with Pool(Limits(5.0), workers=2) as pool:
        return pool.run([problem.job(answer) for answer in answers])


def test_a_reference_that_calls_itself_does_not_call_the_program() -> None:
    wrong = "    return 55 if n == 10 else fib.__globals__ and 1\n"
    right, other = judged(PLUS, "humaneval", str(PLUS["canonical_solution"]), wrong)
    assert right.passed
    assert (other.result, other.reason) == ("failed", "AssertionError: fib(0) is 1")


def test_mbpp_plus_gives_tuples_where_the_task_has_them() -> None:
    unsorted = "def shared(a, b):\n    return list(set(a) & set(b))\n"
    right, other = judged(TUPLES, "mbpp", str(TUPLES["canonical_solution"]), unsorted)
    assert (right.passed, other.result) == (True, "failed")


def test_the_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "plus.jsonl"
    path.write_text(json.dumps(PLUS) + "\n")
    benchmark = HumanEvalPlus(str(path))
    (problem,) = benchmark.problems()
    assert (problem.prompt, problem.preamble, problem.names, benchmark.source) == (PLUS["prompt"], PLUS["prompt"], ("fib",), "plus.jsonl")
    path.write_text(json.dumps(TUPLES) + "\n")
    (problem,) = MbppPlus(str(path)).problems()
    assert (problem.prompt, problem.preamble, problem.statement) == (TUPLES["prompt"], "", "Share.\nassert shared((1,), (1,)) == (1,)")
    path.write_text(json.dumps({"task_id": "x"}))
    with pytest.raises(UserError, match="problem 1 without prompt; expected MbppPlus with task_id"):
        MbppPlus(str(path)).problems()


@pytest.mark.parametrize(
    ("got", "expected", "atol", "same"),
    [
        (1, 1.0, 0, True),  # equal
        (0.1 + 0.2, 0.3, 0, True),  # floats have a tolerance of 1e-6
        (0.3001, 0.3, 0, False),
        ([0.1 + 0.2, 1.0], [0.3, 1.0], 0, True),
        ([0.3], (0.3000000001,), 0, False),  # of another type
        ([0.3], [0.3000000001, 1.0], 0, False),
        ([1, 2], [1, 3], 0, False),
        (3, 3.0000000001, 0, False),
        (10.0001, 10.0, 1e-3, True),
        ("a", "b", 1e-3, False),
        ({"a": 1.0}, {"a": 1.0 + 1e-9}, 1e-3, False),  # numpy has no tolerance for these
        (None, 1.0, 0, False),
        (math.inf, math.inf, 0, True),
        (math.inf, -math.inf, 0, False),
        (math.nan, math.nan, 0, False),
    ],
)
def test_the_rule_of_comparison(got: object, expected: object, atol: float, same: bool) -> None:
    assert agrees("humaneval", "f", [], got, expected, atol) is same


@pytest.mark.parametrize(
    ("dataset", "name", "arguments", "got", "expected", "same"),
    [
        ("humaneval", "find_zero", [[-6, 11, -6, 1]], 3.00001, 1.0, True),  # another root
        ("humaneval", "find_zero", [[-6, 11, -6, 1]], 2.5, 1.0, False),
        ("mbpp", "similar_elements", [], [2, 1, 1], (1, 2), True),
        ("mbpp", "check_str", ["x"], True, object(), True),
        ("mbpp", "check_str", ["x"], None, object(), False),
        ("mbpp", "are_equivalent", [1, 2], "?", True, True),
        ("mbpp", "sum_div", [8], 0, 7, True),
        ("mbpp", "surface_Area", [3, 4], 36, 33, False),
        ("mbpp", "surface_Area", [6, 4], 96, 84, True),  # 36 + 12 * 5
        ("mbpp", "digit_distance_nums", [1, 23], 4, 22, True),  # 01 and 23
        ("mbpp", "digit_distance_nums", [1, 23], 5, 22, False),
    ],
)
def test_the_special_cases(dataset: str, name: str, arguments: list[Any], got: object, expected: object, same: bool) -> None:
    assert agrees(dataset, name, arguments, got, expected, 1e-4) is same


@given(st.lists(numbers, max_size=4), st.lists(numbers, max_size=4), st.sampled_from([1e-6, 1e-4]))
def test_close_is_numpys(got: list[float], expected: list[float], atol: float) -> None:
    numpy = pytest.importorskip("numpy")
    theirs = len(got) == len(expected) and bool(numpy.allclose(got, expected, rtol=1e-7, atol=atol))
    assert close(got, expected, atol) is theirs


@pytest.mark.parametrize(
    ("task", "arguments", "expected"),
    [
        (1, [[1], [2]], [[1], [2]]),
        (2, [[1], [2]], [(1,), (2,)]),
        (63, [[[1], [2]]], [[(1,), (2,)]]),
        (75, [[[1]], [2]], [[(1,)], [2]]),
        (106, [[1], [2]], [[1], (2,)]),
        (115, [[[1, 1], [], {}]], [[{1}, {}, {}]]),
        (124, ["1", "2j"], [1.0, 2j]),
        (252, ["1+2j"], [1 + 2j]),
        (259, [[[1], [2]]], [((1,), (2,))]),
        (278, [[1, [2]]], [(1, (2,))]),
        (307, [[1], 2, 3], [(1,), 2, 3]),
        (580, [[1, [2, [3]]]], [(1, (2, (3,)))]),
        (722, [{"a": [1]}, 2], [{"a": (1,)}, 2]),
    ],
)
def test_arguments_that_json_cannot_hold(task: int, arguments: list[Any], expected: list[Any]) -> None:
    assert restored(task, arguments) == expected


def test_without_file_and_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "evalplus", None)
    with pytest.raises(UserError, match="evalplus cannot be imported .*; pip install evalplus, or give path=FILE"):
        HumanEvalPlus().problems()
