"""A stage of the configuration: mixture, tokens, learning rate, fill-in-the-middle, and where its weights come from.

The surprise: everything is in tokens and at the published scale; `stages/recipes.py` turns it into the steps of a run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
    """Fill-in-the-middle: share of the code documents that are permuted, and the share of those in suffix-first order.

    style: lossless, or crystalcoder for what the published data went through, which loses text.
    """

    rate: float = 0.0
    spm_rate: float = 0.5
    style: str = "lossless"


@dataclass
class MixtureChange:
    """From step `from_step` of the stage on, as the run counts them, the mixture is `mixture`; what bears a known name goes on."""

    from_step: int
    mixture: dict[str, MixtureEntry]


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
    changes: list[MixtureChange] = field(default_factory=list)

    def __post_init__(self) -> None:
        key = f"stages.{self.name}"
        require(self.tokens > 0, f"{key}.tokens={self.tokens}", "a positive number of tokens", f"give {key}.tokens")
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
        for name, rate in (("rate", self.fim.rate), ("spm_rate", self.fim.spm_rate)):
            require(0 <= rate <= 1, f"{key}.fim.{name}={rate}", "a share from 0 to 1", "CrystalCoder has rate 0.9, spm_rate 0.5")
        styles = ("lossless", "crystalcoder")
        require(self.fim.style in styles, f"{key}.fim.style={self.fim.style}", " or ".join(styles), f"mend {key}.fim.style")
        require(self.optimizer in ("fresh", "carry"), f"{key}.optimizer={self.optimizer}", "fresh or carry", f"mend {key}.optimizer")
        _refuse_bad_mixture(f"{key}.mixture", self.mixture)
        self._refuse_bad_changes(key)

    def _refuse_bad_changes(self, key: str) -> None:
        before, known = 0, dict(self.mixture)
        for number, change in enumerate(self.changes):
            where = f"{key}.changes.{number}"
            got, later = f"{where}.from_step={change.from_step}", f"a step after {before}, for changes come in order"
            require(change.from_step > before, got, later, f"mend {where}.from_step")
            before = change.from_step
            _refuse_bad_mixture(f"{where}.mixture", change.mixture)
            for label, entry in change.mixture.items():
                same = replace(known.setdefault(label, entry), weight=entry.weight)
                got = f"{where}.mixture.{label} is {_rows_of(entry)}"
                require(entry == same, got, f"{_rows_of(same)}, as the name stood for before", "give it another name")


def _refuse_bad_mixture(where: str, mixture: dict[str, MixtureEntry]) -> None:
    require(len(mixture) > 0, f"{where} is empty", "at least one source", f"give {where}")
    for label, entry in mixture.items():
        require(entry.weight > 0, f"{where}.{label}.weight={entry.weight}", "a weight above 0", "leave the source out instead")
        low, high = entry.slice if len(entry.slice) == 2 else (1.0, 0.0)
        got = f"{where}.{label}.slice={entry.slice}"
        require(0 <= low < high <= 1, got, "[low, high] with 0 <= low < high <= 1", f"mend {where}.{label}.slice")
    total = sum(entry.weight for entry in mixture.values())
    require(abs(total - 1) < 1e-4, f"{where} weights sum to {total:.6f}", "1", "raise or lower the others when you change one")


def _rows_of(entry: MixtureEntry) -> str:
    return f"parts={entry.parts} slice={entry.slice} fim={str(entry.fim).lower()}"
