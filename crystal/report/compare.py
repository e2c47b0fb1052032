"""Two checkpoints on the same problems: what was gained, what was lost, and whether that is more than noise.

A comparison is paired: problems that both solve, or neither, say nothing about the difference, and most are of these. So it sees
what overlapping intervals hide. The surprise: it is refused where the two were not asked the same things in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crystal.report.scorefile import Score

LEVEL = 0.05  # a difference is shown where p is below it, or where the 95 % interval leaves 0 out
RESAMPLES = 10_000
SEED = 20231211  # of the bootstrap; any would do, and a fixed one gives the same page twice
OF_THE_DRAW = ("key", "seed")  # entries of a protocol that may differ: another draw under the same protocol


@dataclass(frozen=True)
class Comparison:
    """`difference` is pass@1 of the later minus that of the earlier, `gained` and `lost` are task ids passed more and less often.

    One sample a problem has `p`, several have `ci95`, the interval of the difference.
    """

    difference: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    p: float | None
    ci95: tuple[float, float] | None

    @property
    def is_shown(self) -> bool:
        """Whether the difference is more than the noise of the problems and the draws."""
        return self.p < LEVEL if self.p is not None else self.ci95 is not None and not self.ci95[0] <= 0 <= self.ci95[1]


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test (1947): how often a fair coin divides the problems that changed so unevenly or more so.

    In [0, 1]; 1 where nothing changed.
    """
    n, tail, ways = gained + lost, 0, 1
    for i in range(min(gained, lost) + 1):
        tail += ways
        ways = ways * (n - i) // (i + 1)  # from n over i to n over i + 1
    return min(1.0, 2 * tail / 2**n)


def bootstrap(differences: Sequence[float]) -> tuple[float, float]:
    """95 % percentile interval (Efron 1979) of the mean of `differences`, one of each problem, over problems drawn anew.

    How often each distinct value is drawn is multinomial, so that the problems themselves need not be drawn.
    """
    values, counts = np.unique(np.asarray(differences, dtype=np.float64), return_counts=True)
    drawn = np.random.default_rng(SEED).multinomial(len(differences), counts / len(differences), size=RESAMPLES)
    low, high = np.quantile(drawn @ values / len(differences), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def unlike(before: Score, after: Score) -> str | None:
    """Why two scores of one benchmark cannot be compared; None where they can."""
    if before.version != after.version:
        return f"their problems are of different versions ({before.version} and {after.version})"
    if before.samples_per_problem != after.samples_per_problem:
        return f"one has {before.samples_per_problem} samples a problem, the other {after.samples_per_problem}"
    keys = sorted(key for key in before.protocol.keys() | after.protocol.keys() if before.protocol.get(key) != after.protocol.get(key))
    if keys := [key for key in keys if key not in OF_THE_DRAW]:
        return f"their protocols differ in {', '.join(keys)}"
    if not before.problems or not after.problems:
        return "the verdicts of one of them are not listed"
    if _rates(before).keys() != _rates(after).keys():
        return f"they are not of the same problems ({len(_rates(before))} and {len(_rates(after))})"
    return None


def compare(before: Score, after: Score) -> Comparison:
    """The paired comparison of two scores that are not `unlike`."""
    earlier, later = _rates(before), _rates(after)
    changes = {task: later[task] - earlier[task] for task in earlier}
    gained, lost = (tuple(task for task, change in changes.items() if sign * change > 0) for sign in (1, -1))
    single = before.samples_per_problem == 1
    return Comparison(
        difference=sum(changes.values()) / len(changes),
        gained=gained,
        lost=lost,
        p=mcnemar(len(gained), len(lost)) if single else None,
        ci95=None if single else bootstrap(list(changes.values())),
    )


def _rates(score: Score) -> Mapping[str, float]:
    """task id -> the share of its completions that passed."""
    verdicts: dict[str, list[bool]] = {}
    for problem in score.problems:
        verdicts.setdefault(problem.task_id, []).append(problem.passed)
    return {task: sum(passed) / len(passed) for task, passed in verdicts.items()}


def verdict(comparison: Comparison) -> str:
    if not comparison.is_shown:
        return "no difference is shown"
    return "better" if comparison.difference > 0 else "worse"


def evidence(comparison: Comparison) -> str:
    """What the verdict rests on: p, or the interval of the difference in points."""
    if comparison.ci95 is not None:
        return f"95 %: {points(comparison.ci95[0])} to {points(comparison.ci95[1])}"
    p = comparison.p or 0.0
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def points(difference: float) -> str:
    """A difference of pass@1 in percent of the problems, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def as_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "difference": comparison.difference, "is_shown": comparison.is_shown, "p": comparison.p, "ci95": comparison.ci95,
        "gained": comparison.gained, "lost": comparison.lost,
    }  # fmt: skip
