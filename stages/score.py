"""task=score: verdicts on somebody's completions, and what they come to.

A problem file of evalplus, whose rows have `plus_input`, is judged by the plus tests. A program has the benchmark's own time limit of
conf/eval/ where that is longer than eval.timeout_s: so eval.timeout_s can lengthen it and not shorten it.

The surprise: problems without samples are named and left out of pass@k; openai/human-eval refuses such a file.
"""

from __future__ import annotations

import time
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from benchmarks.code.evalplus import HumanEvalPlus, MbppPlus
from benchmarks.code.execution import Limits, Pool
from benchmarks.code.problems import Benchmark, BenchmarkAbsent, HumanEval, Mbpp, Problem, mbpp_problem, parsed, read
from benchmarks.code.samples import count_samples, pass_at_k, read_samples, write_verdicts
from benchmarks.code.score import estimator, judged, versions, wilson
from crystal.config import Config, UserError, require
from crystal.runlog import Count, write_json
from stages.out import new_out

KS = (1, 10, 100)
SHOWN = 8  # names in a line


def score(config: Config) -> None:
    """Judge samples=FILE into out=FILE, and write OUT's summary beside it."""
    require(config.benchmark in ("humaneval", "mbpp"), f"benchmark={config.benchmark}", "humaneval or mbpp", "give benchmark=")
    require(config.eval.limit is None, f"eval.limit={config.eval.limit} with task=score", "all samples to be judged", "leave it out")
    require(config.samples is not None, "task=score without samples", "a file of completions", "give samples=FILE")
    samples, out = Path(str(config.samples)), new_out(config, "file")
    summary = out.with_name(out.name.removesuffix(".gz").removesuffix(".jsonl") + ".summary.json")
    require(not summary.exists(), f"{summary} is there already", "a place for the summary of out", "give another out, or delete it")
    estimator()  # asked for first: to miss it when all is judged would be late
    source, problems = _problems(str(config.benchmark), config.problems)
    counts = count_samples(samples, problems)
    limits = Limits(timeout_s=max(config.eval.timeout_s, _own_timeout_s(source["benchmark"])))
    where = f"{source['source']} ({source['benchmark']})"
    print(f"{samples}: {counts.total():,} samples of {len(counts)} of the {len(problems)} problems of {where}")
    if config.dry_run:
        print(f"would judge them, {limits.timeout_s:g} s of CPU time each at most, into {out}")
        return
    began, results, correct = time.perf_counter(), Counter[str](), Counter[str]()
    with Pool(limits, workers=config.eval.workers, sandbox=config.sandbox) as pool, Count("verdicts", counts.total()) as count:
        for task_id, verdict in write_verdicts(read_samples(samples, problems), pool, out, ended=count.add):
            results[verdict.result] += 1
            correct[task_id] += verdict.passed
        how = {**judged(pool), "sandbox": pool.sandbox, "versions": versions(), "seconds": round(time.perf_counter() - began, 3)}
    ks = sorted({1, *(config.eval.ks or KS)})
    rates = pass_at_k(list(counts.values()), [correct[task_id] for task_id in counts], ks)
    found = {
        **source,
        "samples": samples.name,
        "samples_total": counts.total(),
        "problems_total": len(problems),
        "without_samples": [task_id for task_id in problems if task_id not in counts],
        "pass@1": rates["1"],
        "ci95": list(wilson(rates["1"], len(counts))),
        "pass@k": rates,
        "results": dict(results),
    }
    write_json(summary, found | how)
    _tell(found, counts, ks)
    print(f"verdicts: {out}; summary: {summary}")


def _problems(name: str, path: str | None) -> tuple[dict[str, str], dict[str, Problem]]:
    """Which benchmark the problems are of and where they are from, and they by name."""
    try:
        benchmark = _benchmark(name, path)
        if path is not None and benchmark.name == "mbpp":  # all of the file, not only the test split's
            rows = parsed(read(path, name), ("task_id", "code", "test_list"), path, "MBPP")
            problems = [mbpp_problem(row) for row in rows]
        else:
            problems = benchmark.problems()
        source = {"benchmark": benchmark.name, "source": benchmark.source, "version": benchmark.version}
    except (BenchmarkAbsent, UserError) as error:
        raise UserError(str(error).replace(f"eval.benchmarks.{name}.path", "problems")) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, SyntaxError) as error:
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"problems={path} is not {name} ({said}); expected its published format; give such a file") from error
    return source, {problem.task_id: problem for problem in problems}


def _benchmark(name: str, path: str | None) -> Benchmark:
    """HumanEval or MBPP, or evalplus's of that name where the file has its rows. Raises UserError where they are the other's."""
    rows = [] if path is None else parsed(read(path, name), ("task_id",), path, name)
    if not any("plus_input" in row for row in rows):
        return HumanEval(path=path) if name == "humaneval" else Mbpp(path=path)
    for row in rows:  # how answers are compared differs, and arguments of MBPP+ are restored by the task's number
        of = "mbpp" if row["task_id"].startswith("Mbpp/") else "humaneval"
        require(of == name, f"{path} has {row['task_id']} for benchmark={name}", f"evalplus's rows of {name}", f"give benchmark={of}")
    return HumanEvalPlus(path) if name == "humaneval" else MbppPlus(path)


def _own_timeout_s(name: str) -> float:
    """The time limit that conf/eval/ has for a benchmark; 0 where eval.timeout_s is its own."""
    told = yaml.safe_load(files("conf").joinpath("eval", f"{name}.yaml").read_text(encoding="utf-8"))
    return float(told["benchmarks"][name].get("timeout_s", 0))


def _tell(found: dict[str, Any], counts: Counter[str], ks: list[int]) -> None:
    print(", ".join(f"{number:,} {result}" for result, number in sorted(found["results"].items())))
    low, high = found["ci95"]
    for k, rate in found["pass@k"].items():
        print(f"pass@{k} {rate:.2%}" + f" (95 % interval {low:.1%} to {high:.1%})" * (k == "1"))
    for k in ks:
        if min(counts.values()) < k <= max(counts.values()):
            print(f"no pass@{k}: fewer than {k} samples of {_named([task_id for task_id, number in counts.items() if number < k])}")
    if found["without_samples"]:
        print(f"left out for want of samples: {_named(found['without_samples'])}")


def _named(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
