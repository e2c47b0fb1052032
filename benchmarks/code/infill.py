"""Single-line infilling of HumanEval (arXiv 2204.05999, 2207.14255), made from the canonical solutions: no further data is needed.

The surprise: a suffix begins with the end of the masked line, so what is filled in has no line end of its own.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.code.problems import HumanEval, Problem, humaneval_problem


def infilling(problem: Problem) -> list[Problem]:
    """The problems that come of one: every line of its canonical solution that is not blank is masked once."""
    lines, made = problem.canonical.split("\n"), []
    for at in (at for at, line in enumerate(lines) if line.strip()):
        before = "".join(f"{line}\n" for line in lines[:at])
        prefix, suffix = problem.preamble + before, "".join(f"\n{line}" for line in lines[at + 1 :])
        name = f"SingleLineInfilling/{problem.task_id}/L{at}"
        made.append(replace(problem, task_id=name, prompt=prefix, preamble=prefix, suffix=suffix, canonical=lines[at]))
    return made


class HumanEvalInfill(HumanEval):
    """Single-line infilling of HumanEval: 1,033 problems, as many as openai/human-eval-infilling has."""

    name = "humaneval_infill"
    kind = "infill"

    def problems(self) -> list[Problem]:
        return [masked for task in self.tasks() for masked in infilling(humaneval_problem(task))][: self.limit]
