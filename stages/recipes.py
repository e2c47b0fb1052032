"""A stage's recipe at a scale: its steps and its learning-rate schedule in steps.

The surprise: scaling a stage down scales every piece of its schedule by the same factor, so that shares, shapes and warm-up fractions
stay CrystalCoder's; a warm-up may then be a fraction of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

from crystal.config import ScaleConfig, require
from crystal.data.loader import Change, Entry
from crystal.schedule import Piece, Schedule
from crystal.stageconfig import MixtureEntry, StageConfig
from stages.published import CURRICULUM_TOKENS


@dataclass(frozen=True)
class Recipe:
    """A stage made concrete: whole steps of batch_rows x seq_len tokens."""

    stage: StageConfig
    n_steps: int
    tokens: int
    schedule: Schedule
    entries: list[Entry]
    changes: list[Change]


def recipe(stage: StageConfig, scale: ScaleConfig) -> Recipe:
    """Scale `stage` so that the three published stages together would take `scale.tokens` (null: as published)."""
    factor = 1.0 if scale.tokens is None else scale.tokens / CURRICULUM_TOKENS
    batch_tokens = scale.batch_rows * scale.seq_len
    n_steps = round(stage.tokens * factor / batch_tokens)
    require(
        n_steps > 0,
        f"stage {stage.name} has {stage.tokens * factor:,.0f} tokens at scale.tokens={scale.tokens}",
        f"at least one step of {batch_tokens:,}",
        "raise tokens, or lower scale.batch_rows or scale.seq_len",
    )
    pieces = [Piece(piece.start * scale.lr_factor, piece.end * scale.lr_factor, piece.tokens * factor / batch_tokens) for piece in stage.lr]
    for number, change in enumerate(stage.changes):
        got = f"stages.{stage.name}.changes.{number}.from_step={change.from_step}"
        require(change.from_step < n_steps, got, f"a step below {n_steps:,}, where the stage ends", "leave that change out, or mend it")
    changes = [Change(change.from_step * scale.batch_rows, tuple(_entries(change.mixture))) for change in stage.changes]
    return Recipe(stage, n_steps, n_steps * batch_tokens, Schedule(pieces), _entries(stage.mixture), changes)


def _entries(mixture: dict[str, MixtureEntry]) -> list[Entry]:
    return [Entry(name, entry.parts, entry.weight, entry.fim, (entry.slice[0], entry.slice[1])) for name, entry in mixture.items()]
