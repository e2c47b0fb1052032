"""A stage of the configuration: mixture, tokens, learning rate, fill-in-the-middle, and where its weights come from.

The surprise: everything is in tokens and at the published scale; `stages/recipes.py` turns it into the steps of a run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from crystal.errors import require


@dataclass
class LrPiece:
    """A straight piece of the learning-rate schedule: from `start` to `end` over `tokens`."""

    start: float
    end: float
    tokens: int


@dataclass
class MixtureEntry:
    """One source of a stage: a glob over prepared parts, its share of the rows, whether FIM applies, which slice of its rows."""

    parts: str
    weight: float
    fim: bool = False
    slice: list[float] = field(default_factory=lambda: [0.0, 1.0])


@dataclass
class FimConfig:
    """Fill-in-the-middle: share of the code documents that are permuted, and the share of those in suffix-first order."""

    rate: float = 0.0
    spm_rate: float = 0.5


@dataclass
class StageConfig:
    """A stage: what is trained on, for how many tokens, at which learning rate, from which weights."""

    name: str
    tokens: int
    lr: list[LrPiece]
    mixture: dict[str, MixtureEntry]
    fim: FimConfig = field(default_factory=FimConfig)
    starts_from: str | None = None  # the stage whose last checkpoint gives the weights; null: fresh weights
    optimizer: str = "fresh"

    def __post_init__(self) -> None:
        key = f"stages.{self.name}"
        require(self.tokens > 0, f"{key}.tokens={self.tokens}", "a positive number of tokens", f"give {key}.tokens")
        require(len(self.mixture) > 0, f"{key}.mixture is empty", "at least one source", f"give {key}.mixture")
        require(
            sum(piece.tokens for piece in self.lr) >= self.tokens,
            f"{key}.lr covers {sum(piece.tokens for piece in self.lr)} tokens",
            f"at least the stage's {self.tokens}",
            f"lengthen a piece of {key}.lr or shorten {key}.tokens",
        )
        for piece in self.lr:
            require(
                piece.tokens > 0 and piece.start >= 0 and piece.end >= 0,
                f"{key}.lr has a piece {piece}",
                "tokens above 0 and rates of at least 0",
                "mend that piece",
            )
        for label, entry in self.mixture.items():
            where = f"{key}.mixture.{label}"
            require(entry.weight > 0, f"{where}.weight={entry.weight}", "a weight above 0", "leave the source out instead")
            low, high = entry.slice if len(entry.slice) == 2 else (1.0, 0.0)
            require(0 <= low < high <= 1, f"{where}.slice={entry.slice}", "[low, high] with 0 <= low < high <= 1", f"mend {where}.slice")
        for name, rate in (("rate", self.fim.rate), ("spm_rate", self.fim.spm_rate)):
            require(0 <= rate <= 1, f"{key}.fim.{name}={rate}", "a share from 0 to 1", "CrystalCoder has rate 0.9, spm_rate 0.5")
        total = sum(entry.weight for entry in self.mixture.values())
        require(
            abs(total - 1) < 1e-4,
            f"{key}.mixture weights sum to {total:.6f}",
            "1",
            "raise or lower the others when you change one",
        )
        require(self.optimizer in ("fresh", "carry"), f"{key}.optimizer={self.optimizer}", "fresh or carry", f"mend {key}.optimizer")
