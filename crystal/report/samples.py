"""Completions to read: the same few problems after every stage.

The surprise: a passed task says most about a small model, so the samples shown are those that passed; the page says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from crystal.report.read import Run, Stage, natural
from crystal.report.scorefile import Problem, Score


@dataclass(frozen=True)
class Attempt:
    """One completion of a task, after one stage."""

    stage: str
    problem: Problem


def scored(run: Run) -> list[tuple[Stage, Score]]:
    """Every score with completions: benchmark by benchmark, stage by stage."""
    pairs = [(stage, score) for stage in run.stages for score in stage.scores.values() if score.problems]
    return sorted(pairs, key=lambda pair: pair[1].benchmark)


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
