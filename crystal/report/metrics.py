"""metrics.jsonl: every logged step and every evaluation, stage by stage.

The surprise: a run that was killed and went on from a checkpoint has written some steps twice. What was written later
counts, and steps after the point it went back to are dropped, so the curves are those of the weights that were kept.
Only the last line may be torn (the process died while writing it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from crystal.config import UserError
from crystal.report.fields import Fields


@dataclass(frozen=True)
class TrainPoint:
    """One logged step; `tokens` within the stage, `loss` in nats per token."""

    step: int
    tokens: int
    loss: float
    lr: float | None
    tokens_per_s: float | None


@dataclass(frozen=True)
class ValidPoint:
    """One evaluation: source -> nats per token, source -> bits per byte of text."""

    step: int
    tokens: int
    loss: Mapping[str, float]
    bits_per_byte: Mapping[str, float]


Point = TypeVar("Point", TrainPoint, ValidPoint)


def read_metrics(path: Path) -> tuple[dict[str, list[TrainPoint]], dict[str, list[ValidPoint]], bool]:
    """Training and validation points by stage, and whether the last line was torn; nothing where there is no file.

    Raises UserError where another line is not JSON, or lacks what its kind needs.
    """
    train: dict[str, list[TrainPoint]] = {}
    valid: dict[str, list[ValidPoint]] = {}
    lines = path.read_bytes().rstrip().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            if number == len(lines):
                return train, valid, True
            raise UserError(
                f"{path}: line {number} is not JSON; expected one object a line (only the last may be cut off); remove that line"
            ) from None
        entry = Fields(path, value, f"line {number}")
        stage, step = entry.text("stage"), entry.count("step")
        steps, evaluations = train.setdefault(stage, []), valid.setdefault(stage, [])
        if value.get("kind") == "train":
            _rewind(steps, step - 1)
            _rewind(evaluations, step)
            steps.append(_train_point(entry))
        elif value.get("kind") == "valid":
            _rewind(steps, step)
            _rewind(evaluations, step - 1)
            evaluations.append(_valid_point(entry))
    return train, valid, False


def _rewind(points: list[Point], last: int) -> None:
    """Drop what a run that went back to an earlier checkpoint has since overtaken."""
    while points and points[-1].step > last:
        points.pop()


def _train_point(entry: Fields) -> TrainPoint:
    return TrainPoint(
        entry.count("step"),
        entry.count("tokens"),
        entry.number("loss"),
        entry.maybe_number("lr"),
        entry.maybe_number("tokens_per_s"),
    )


def _valid_point(entry: Fields) -> ValidPoint:
    return ValidPoint(entry.count("step"), entry.count("tokens"), entry.numbers("loss"), entry.numbers("bits_per_byte"))
