"""What task=coordcheck is told, checked before torch is loaded; `conf/config.yaml` holds the values and where they are from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from crystal.config import ModelConfig, require, require_positive


@dataclass
class CoordCheckConfig:
    """Models of `widths` at n_layers, or of `depths` at d_model; each takes max(steps) steps at lr[over] on one batch, from `seeds` seeds.

    All have n_heads heads, so that a head's dims grow with the width: with heads of one size 1/d and 1/sqrt(d) could not be told apart.
    """

    over: str
    widths: list[int]
    depths: list[int]
    d_model: int
    n_layers: int
    n_heads: int
    steps: list[int]
    seeds: int
    lr: dict[str, float]
    batch_rows: int
    seq_len: int
    vocab_size: int

    def __post_init__(self) -> None:
        require(self.over in ("width", "depth"), f"coordcheck.over={self.over}", "width or depth", "mend coordcheck.over")
        counts = ("d_model", "n_layers", "n_heads", "batch_rows", "seq_len", "vocab_size")
        require_positive("coordcheck", {key: getattr(self, key) for key in counts})
        require(self.vocab_size >= 2, f"coordcheck.vocab_size={self.vocab_size}", "at least 2, for a loss", "raise coordcheck.vocab_size")
        require(set(self.lr) == {"width", "depth"}, f"coordcheck.lr={self.lr}", "a rate for width and one for depth", "mend coordcheck.lr")
        require_positive("coordcheck.lr", self.lr)
        for key, least in (("widths", 2), ("depths", 2), ("steps", 1)):
            values = getattr(self, key)
            rising = all(a < b for a, b in zip([0, *values], values, strict=False))
            expected = f"at least {least} whole number{'s'[: least - 1]} above 0, each larger than the one before"
            require(rising and len(values) >= least, f"coordcheck.{key}={values}", expected, f"mend coordcheck.{key}")
        require(self.seeds >= 2, f"coordcheck.seeds={self.seeds}", "at least 2, for the spread", "raise coordcheck.seeds")
        for key, width in [("d_model", self.d_model), *(("widths", width) for width in self.widths)]:
            even = width % self.n_heads == 0
            require(even, f"{width} in coordcheck.{key}", f"a multiple of coordcheck.n_heads={self.n_heads}", f"mend coordcheck.{key}")

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(d_model, n_layers) of every model."""
        if self.over == "width":
            return [(width, self.n_layers) for width in self.widths]
        return [(self.d_model, depth) for depth in self.depths]

    @property
    def rate(self) -> float:
        """The constant learning rate."""
        return self.lr[self.over]


def sized(model: ModelConfig, options: CoordCheckConfig, width: int, layers: int) -> ModelConfig:
    """`model` at another size; its parametrization and the proportion of its ffn stay."""
    return replace(
        model, d_model=width, n_layers=layers, n_heads=options.n_heads, d_ffn=int(width * model.d_ffn / model.d_model),
        vocab_size=options.vocab_size, seq_len=options.seq_len,
    )  # fmt: skip
