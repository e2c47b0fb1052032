"""Hugging Face's `code_eval` judged in our sandbox: same questions, same answers, no hub and no HF_ALLOW_CODE_EVAL.

Three ways in: `CodeEval()`; `evaluate.load("benchmarks/code/metric.py")`, by the path of this file; and
`with offline_code_eval():`, within which `evaluate.load("code_eval")` gives ours to whoever asks, as the HumanEval and MBPP
tasks of lm-eval do when they are loaded.

What it cannot know: a program comes whole, and nothing says which part of it is the benchmark's. So the checks take every name that
they do not define themselves from the program, the helpers of a HumanEval prompt too: a program can put its own `poly` in the place of
the one that its check relies on. eval= and task=score take the helpers from the benchmark. As everywhere here, programs see the
standard library only: one that imports numpy fails.

The surprise: lm-eval asks for one verdict at a time, so the workers stay warm until the process ends.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

from benchmarks.code.execution import Job, Limits, Pool, Verdict
from benchmarks.code.samples import pass_at_k
from crystal.errors import UserError
from crystal.machine import usable_cores

try:
    import torchvision  # noqa: F401  mup brings it, perhaps built for another torch; evaluate asks transformers, which would fall over it
except (ImportError, RuntimeError):
    sys.modules["torchvision"] = None  # type: ignore[assignment]  # as if it were not installed
try:
    import datasets
    import evaluate
except ImportError as error:
    raise UserError(f"no package {error.name}; the metric needs evaluate and datasets; pip install 'crystal-trainer[lm-eval]'") from error

INPUTS = """
Args:
    predictions: for each problem, the programs to be judged.
    references: for each problem, the tests: code that raises unless the program is right.
    k: pass@k is estimated for these, and left out where a problem has fewer than k programs.
    num_workers: as many programs at once, but no more than there are cores; verdicts do not depend on it.
    timeout: CPU seconds for a program with its tests.
Returns:
    pass_at_k: {"pass@1": rate, ...}.
    results: for each problem's place, its (place of the program, {"task_id", "completion_id", "passed", "result"}).
"""


class CodeEval(evaluate.Metric):
    """pass@k of programs by their tests."""

    sandbox = "auto"  # what isolates, as in crystal's configuration

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="The functional correctness of programs: pass@k by the unbiased estimator of Chen et al. 2021.",
            citation="arXiv:2107.03374",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("string")), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self,
        predictions: list[list[str]],
        references: list[str],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int = 4,
        timeout: float = 3.0,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        places = [(task, number) for task, programs in enumerate(predictions) for number in range(len(programs))]
        jobs = [Job(program=predictions[task][number], check=references[task]) for task, number in places]
        results: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for (task, number), verdict in zip(places, _pool(timeout, num_workers, self.sandbox).run(jobs), strict=True):
            row = {"task_id": task, "passed": verdict.passed, "result": _said(verdict), "completion_id": number}
            results.setdefault(task, []).append((number, row))
        passed = [[row["passed"] for _, row in rows] for rows in results.values()]
        rates = pass_at_k([len(of) for of in passed], [sum(of) for of in passed], k)
        return {f"pass@{n}": rate for n, rate in rates.items()}, results


def _said(verdict: Verdict) -> str:
    """In the words of the original."""
    return {"passed": "passed", "timeout": "timed out"}.get(verdict.result, f"failed: {verdict.reason}")


@cache
def _pool(timeout_s: float, workers: int, sandbox: str) -> Pool:
    pool = Pool(Limits(timeout_s=timeout_s), workers=min(workers, usable_cores()), sandbox=sandbox)
    atexit.register(pool.__enter__().__exit__, None, None, None)
    return pool


@contextmanager
def offline_code_eval(sandbox: str = "auto") -> Iterator[None]:
    """Within it `evaluate.load("code_eval")` asks no hub and gives a CodeEval; every other name is loaded as ever."""
    load, ours = evaluate.load, CodeEval()
    ours.sandbox = sandbox
    with patch.object(evaluate, "load", lambda path, *args, **options: ours if path == "code_eval" else load(path, *args, **options)):
        yield
