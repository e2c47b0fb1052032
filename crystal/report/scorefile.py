"""One file of scores as typed dataclasses: `scores/NAME.json` of a stage, or `evaluations/CHECKPOINT/NAME.json`.

The surprise: a file of before pass@k, or of another kind of benchmark, is read all the same; what it does not say is None or empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crystal.config import UserError
from crystal.report.fields import Fields

NAMES = {
    "humaneval": "HumanEval",
    "humaneval_plus": "HumanEval+",
    "humaneval_infill": "HumanEval infilling",
    "mbpp": "MBPP",
    "mbpp_plus": "MBPP+",
    "arc": "ARC",
    "hellaswag": "HellaSwag",
    "mmlu": "MMLU",
    "truthfulqa": "TruthfulQA",
}


@dataclass(frozen=True)
class Problem:
    """One completion and its verdict; `prompt` where the scores keep it."""

    task_id: str
    completion: str
    passed: bool
    result: str
    reason: str | None
    prompt: str | None


@dataclass(frozen=True)
class Score:
    """One benchmark on one checkpoint, by the name of its file. `rate` is `metric`, a fraction, None unless it was scored.

    `passed` counts completions: `samples_per_problem` times `problems_total` were drawn. `pass_at_k` has "1", "10", ... What is
    not of code is lm-eval's, which has metrics that are no fractions, and some without an interval.
    """

    file: str
    benchmark: str
    is_code: bool
    status: str
    reason: str | None
    metric: str
    rate: float | None
    ci95: tuple[float, float] | None
    pass_at_k: Mapping[str, float]
    passed: int | None
    problems_total: int | None
    samples_per_problem: int
    shots: int | None
    source: str | None
    version: str | None
    checkpoint: str | None
    seed: int | None
    versions: Mapping[str, Any]
    protocol: Mapping[str, Any]
    sandbox: str | None
    problems: tuple[Problem, ...]

    @property
    def whole(self) -> bool:
        """Whether all problems of the benchmark were asked."""
        return self.protocol.get("limit") is None


@dataclass(frozen=True)
class Heldout:
    """Bits per byte of held-out Python, and of HumanEval's canonical solutions behind their prompts; None where not measured."""

    file: str
    python: float | None
    solutions: float | None


def benchmark_name(benchmark: str) -> str:
    """The name as its authors write it."""
    return NAMES.get(benchmark, benchmark)


def read_score(fields: Fields) -> Score:
    """The scores in one file. Raises UserError where something in it is wrong."""
    status, is_code = fields.text("status"), fields.maybe_text("kind") is None
    scored = status == "scored"
    return Score(
        file=str(fields.file),
        benchmark=fields.file.stem,
        is_code=is_code,
        status=status,
        reason=fields.maybe_text("reason"),
        metric="pass@1" if is_code else (fields.maybe_text("metric") or "").split(",")[0],  # lm-eval writes a filter behind it
        rate=_rate(fields, "pass@1" if is_code else "score") if scored else None,
        ci95=_interval(fields) if scored and (is_code or fields.value.get("ci95") is not None) else None,
        pass_at_k=fields.numbers("pass@k"),
        passed=fields.maybe_count("passed"),
        problems_total=fields.maybe_count("problems_total"),
        samples_per_problem=fields.maybe_count("samples_per_problem") or 1,
        shots=fields.maybe_count("shots"),
        source=fields.maybe_text("source"),
        version=_version(fields),
        checkpoint=fields.maybe_text("checkpoint"),
        seed=fields.maybe_count("seed"),
        versions=fields.child("versions").value,
        protocol=fields.child("protocol").value,
        sandbox=_sandbox(fields),
        problems=tuple(_problem(problem) for problem in fields.children("problems")),
    )


def _rate(fields: Fields, key: str) -> float:
    rate = fields.number(key)
    if key == "pass@1" and not 0 <= rate <= 1:
        raise UserError(f"{fields.file}: {key} is {rate:g}; expected a fraction in [0, 1]; score it again")
    return rate


def _interval(fields: Fields) -> tuple[float, float]:
    got = fields.value.get("ci95")
    if not (isinstance(got, list) and len(got) == 2 and all(isinstance(end, int | float) for end in got)):
        raise UserError(f"{fields.file}: ci95 is {got!r}; expected [low, high]; score the checkpoint again")
    return float(got[0]), float(got[1])


def _version(fields: Fields) -> str | None:
    """Of the problems; lm-eval's tasks have plain numbers."""
    got = fields.value.get("version")
    return None if got is None else str(got)


def _sandbox(fields: Fields) -> str | None:
    """What isolated the programs, and what was missing for more, in words."""
    if not isinstance(fields.value.get("sandbox"), dict):
        return fields.maybe_text("sandbox")
    sandbox = fields.child("sandbox")
    has, missing = (", ".join(sandbox.words(key)) for key in ("has", "missing"))
    return sandbox.text("layer") + (f" ({has})" if has else "") + (f"; missing: {missing}" if missing else "")


def _problem(fields: Fields) -> Problem:
    return Problem(
        task_id=fields.text("task_id"),
        completion=fields.text("completion"),
        passed=fields.flag("passed"),
        result=fields.text("result"),
        reason=fields.maybe_text("reason"),
        prompt=fields.maybe_text("prompt"),
    )
