"""The average of the Open LLM leaderboard (version 1) over the four benchmarks of eval=open_llm.

The surprise: the leaderboard took MMLU's mean over its 57 subjects, whatever their sizes; lm-eval's own is over all questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

LEADERBOARD = ("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2")


def open_llm_average(results: Iterable[Mapping[str, Any]]) -> float | None:
    """The mean of the four scores, a fraction; None where one of them is missing."""
    scored = {scores["benchmark"]: scores for scores in results if scores["status"] == "scored"}
    if not all(task in scored for task in LEADERBOARD):
        return None
    return fmean(fmean(scored[task]["subtasks"].values() or [scored[task]["score"]]) for task in LEADERBOARD)
