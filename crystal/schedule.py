"""The learning rate as a pure function of the update's number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """A straight piece: update s of it (from 0) has rate start + (end - start) s / n_steps, so the end is never reached in it."""

    start: float
    end: float
    n_steps: float


@dataclass(frozen=True)
class Schedule:
    """Straight pieces one after the other; the last one is held at its end."""

    pieces: Sequence[Piece]

    def lr(self, step: int) -> float:
        """The rate of update `step`, counted from 0 (Cerebras' SequentialLR of LinearLR)."""
        done: float = step
        for piece in self.pieces:
            if done < piece.n_steps:
                return piece.start + (piece.end - piece.start) * done / piece.n_steps
            done -= piece.n_steps
        return self.pieces[-1].end
