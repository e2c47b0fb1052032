"""Benchmarks and completions as the report tells them: tables, intervals, gaps with their reasons, samples to read.

The surprise: a passed task says most about a small model, so the samples shown are those that passed; the page says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crystal.report.facts import BENCHMARKS, shown, stages_named
from crystal.report.read import Problem, Run, Score, Stage, benchmark_name, natural


class Published(NamedTuple):
    """A published model's pass@1 in percent, None where it was not reported."""

    name: str
    humaneval: float | None
    mbpp: float | None


class Entry(NamedTuple):
    """One place in the table of scores."""

    value: str
    note: str


class Row(NamedTuple):
    name: str
    cells: list[Entry]


@dataclass(frozen=True)
class Attempt:
    """One completion of a task, after one stage."""

    stage: str
    problem: Problem


def scored(run: Run) -> list[tuple[Stage, Score]]:
    """Every score there is: benchmark by benchmark, stage by stage."""
    pairs = [(stage, score) for stage in run.stages for score in stage.scores.values() if score.pass_at_1 is not None]
    return sorted(pairs, key=lambda pair: pair[1].benchmark)


def score_gaps(run: Run) -> list[str]:
    """One sentence for each thing that was not scored, with the run's own reason."""
    gaps: dict[tuple[str, str], list[Stage]] = {}
    for stage in run.stages:
        for name in dict.fromkeys((*BENCHMARKS, *stage.scores)):
            score = stage.scores.get(name)
            if score is None:
                missing = "no scores were written" if stage.summary else "the stage is not complete"
                gaps.setdefault((name, missing), []).append(stage)
            elif score.pass_at_1 is None:
                reason = (score.reason or f"its status is {score.status}").rstrip(".")
                gaps.setdefault((name, reason), []).append(stage)
    return [
        f"{benchmark_name(name)} was not scored after {stages_named(stages)}: {reason}."
        for (name, reason), stages in sorted(gaps.items(), key=lambda gap: gap[0][0])
    ]


def overlap_remarks(run: Run) -> list[str]:
    """For neighbouring scores of a benchmark: whether their intervals overlap."""
    remarks, pairs = [], scored(run)
    for (before, first), (after, second) in zip(pairs, pairs[1:], strict=False):
        if first.benchmark == second.benchmark and first.ci95 and second.ci95:
            apart = first.ci95[1] < second.ci95[0] or second.ci95[1] < first.ci95[0]
            said = "do not overlap" if apart else "overlap, so no difference is shown"
            remarks.append(f"{benchmark_name(first.benchmark)}, stages {before.name} and {after.name}: the intervals {said}.")
    return remarks


def sample_problems(run: Run, count: int = 3) -> dict[str, list[Attempt]]:
    """The same `count` tasks across all stages, the most often passed first; a passed completion where there is one."""
    tasks: dict[str, list[Attempt]] = {}
    for stage, score in scored(run):
        best: dict[str, Problem] = {}
        for problem in score.problems:
            if problem.task_id not in best or problem.passed > best[problem.task_id].passed:
                best[problem.task_id] = problem
        for task_id, problem in best.items():
            tasks.setdefault(task_id, []).append(Attempt(stage.name, problem))
    passed = {task: sum(attempt.problem.passed for attempt in attempts) for task, attempts in tasks.items()}
    order = sorted(tasks, key=lambda task: (-passed[task], -len(tasks[task]), natural(task)))
    return {task: tasks[task] for task in order[:count]}


def samples_note(run: Run) -> str:
    """How the samples were chosen, so that nobody takes them for typical."""
    if any(problem.passed for _, score in scored(run) for problem in score.problems):
        chosen = "problems that were solved are shown first, so these are the best cases, not typical ones"
    else:
        chosen = "no problem has been solved yet, so these are simply the first"
    return f"The same problems after every stage that was scored; {chosen}."


def excerpt(code: str, lines: int = 18, columns: int = 200) -> str:
    """The first lines of a completion, saying what was left out; an untrained model fills its whole budget."""
    if not code.strip():
        return "(empty)"
    rows = code.strip("\n").split("\n")
    cut = [row if len(row) <= columns else f"{row[:columns]} … ({len(row) - columns} more characters)" for row in rows]
    return "\n".join(cut[:lines] + ([f"… {len(rows) - lines} more lines"] if len(rows) > lines else []))


def score_columns(run: Run) -> list[str]:
    return list(dict.fromkeys((*BENCHMARKS, *(name for stage in run.stages for name in sorted(stage.scores)))))


def score_table(run: Run, published: Sequence[Published]) -> list[Row]:
    """A row for each stage, then one for each published model, in percent."""
    columns = score_columns(run)
    rows = [Row(f"stage {stage.name}", [_entry(stage.scores.get(name)) for name in columns]) for stage in run.stages]
    for model in published:
        known = {"humaneval": model.humaneval, "mbpp": model.mbpp}
        values = (known.get(name) for name in columns)
        cells = [Entry("–" if value is None else f"{value:.2f}", "") for value in values]
        rows.append(Row(f"{model.name} (published)", cells))
    return rows


def _entry(score: Score | None) -> Entry:
    if score is None or score.pass_at_1 is None or score.ci95 is None:
        return Entry("–", "not scored")
    low, high = score.ci95
    counted = "" if score.passed is None or score.problems_total is None else _counted(score)
    return Entry(f"{100 * score.pass_at_1:.2f}", f"95 %: {100 * low:.2f} to {100 * high:.2f}{counted}")


def _counted(score: Score) -> str:
    if score.samples_per_problem == 1:
        return f"; {score.passed} of {score.problems_total} problems"
    return f"; {score.passed} of {score.samples_per_problem} x {score.problems_total} completions"


def protocols(run: Run) -> list[str]:
    """How each benchmark was run, once for all stages that did it alike."""
    alike: dict[tuple[str, str], list[Stage]] = {}
    for stage, score in scored(run):
        said = shown(score.protocol) if score.protocol else "not recorded"
        sandbox = f". Sandbox: {score.sandbox.rstrip('.')}" if score.sandbox else ""
        alike.setdefault((score.benchmark, said + sandbox), []).append(stage)
    return [f"{benchmark_name(name)} protocol ({stages_named(stages)}): {said}." for (name, said), stages in alike.items()]
