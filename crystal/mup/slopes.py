"""The coordinate check's verdict: slopes of log size over log width (or depth), each held against the exponent that theory gives it.

The surprise: logits are not judged like activations. Attention's and the readout's shrink as width^-1/2 at first, where they are sums
of random signs, and training may bring them to width^0, where they are sums of what it has aligned; both are right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from crystal.mup.coordcheck import KINDS, Record

# A wrong multiplier is off by width^1/2 or more (table 8 of Tensor Programs V), so what is within half of that is right. Measured in
# the defaults, mean and standard deviation over seeds: right muP is off by 0.10 +- 0.02 at most, CompleteP by 0.21 +- 0.04.
TOLERANCE = 0.25
# Below this change of the final hidden states, in parts of their size, nothing has been tested. Measured in the defaults: about 1.
MOVED = 0.1
# The engine's loss against the plain model's, in parts. 1/sqrt(d) for 1/d makes 0.01.
GAPS = {"float32": 1e-4, "bfloat16": 2e-2}
SHRINKING = ("attention logits", "readout logits")


class Slope(NamedTuple):
    """Least squares of log size on log width or depth: mean and standard deviation over seeds, and the exponents from `low` to `high`."""

    variant: str
    mode: str
    kind: str
    step: int
    mean: float
    spread: float
    low: float
    high: float

    @property
    def right(self) -> bool:
        """False for what is not finite, too."""
        return self.low - TOLERANCE <= self.mean <= self.high + TOLERANCE

    def __str__(self) -> str:
        return f"{self.mean:z.2f} ± {self.spread:.2f}"


def expected(kind: str, step: int, over: str) -> tuple[float, float]:
    """The exponents that muP (over width) and CompleteP (over depth) give a kind's value at step 0 and its change later."""
    if over == "width" and kind in SHRINKING:
        return -0.5, 0.0 if step else -0.5
    return 0.0, 0.0


def curves(records: Sequence[Record], over: str) -> dict[tuple[str, str, str, int], dict[int, list[tuple[int, float]]]]:
    """(variant, mode, kind, step) -> seed -> (width or depth, size), rising; of the last block, where all has added up."""
    found: dict = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda record: (record.width, record.layers)):
        last = record.module == f"blocks.{record.layers - 1}" or not record.module.startswith("blocks.")
        if last and record.kind in KINDS:
            x = record.width if over == "width" else record.layers
            found[record.variant, record.mode, record.kind, record.step][record.seed].append((x, record.size))
    return found


def slopes(records: Sequence[Record], over: str) -> list[Slope]:
    """One for each variant, mode, kind and step."""
    found = []
    for (variant, mode, kind, step), seeds in curves(records, over).items():
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.array([_slope(np.log(pairs)) for pairs in seeds.values()])
        spread = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        found.append(Slope(variant, mode, kind, step, float(values.mean()), spread, *expected(kind, step, over)))
    return found


def _slope(logs_N2: np.ndarray) -> float:
    x_N, y_N = (logs_N2 - logs_N2.mean(axis=0)).T
    return float(x_N @ y_N / (x_N @ x_N))


@dataclass(frozen=True)
class Verdict:
    """On one variant in one mode: its slopes, and in words what is wrong; nothing: it passes."""

    variant: str
    mode: str
    slopes: list[Slope]
    wrong: list[str]

    def __str__(self) -> str:
        more = f" and {len(self.wrong) - 3} more" if len(self.wrong) > 3 else ""
        return f"{self.variant} ({self.mode}) " + (f"fails: {', '.join(self.wrong[:3])}{more}" if self.wrong else "passes")


def judge(records: Sequence[Record], over: str) -> list[Verdict]:
    """One verdict for each variant and mode, in the order of the records."""
    found, verdicts = slopes(records, over), []
    for variant, mode in dict.fromkeys((record.variant, record.mode) for record in records):
        own = [record for record in records if (record.variant, record.mode) == (variant, mode)]
        its_slopes = [slope for slope in found if (slope.variant, slope.mode) == (variant, mode)]
        verdicts.append(Verdict(variant, mode, its_slopes, [*_wrong_slopes(its_slopes), *_unmoved(own), *_gaps(own)]))
    return verdicts


def _wrong_slopes(found: Sequence[Slope]) -> list[str]:
    return [
        f"{slope.kind} {f'change at {slope.step}' if slope.step else 'at init'} {slope}, not {_range(slope)}"
        for slope in found
        if not slope.right
    ]


def _unmoved(records: Sequence[Record]) -> list[str]:
    last = max(record.step for record in records)
    hidden = {step: [r.size for r in records if r.kind == "final hidden" and r.step == step] for step in (0, last)}
    least = min(change / value for change, value in zip(hidden[last], hidden[0], strict=True))
    return [f"the final hidden states change by {least:.2g} of their size, so nothing was tested"] if least < MOVED else []


def _gaps(records: Sequence[Record]) -> list[str]:
    wrong = [record for record in records if record.kind == "loss" and not record.size <= GAPS[record.module]]
    return [f"the engine's loss is off by {r.size:.1g} at step {r.step}, more than {GAPS[r.module]:g} in {r.module}" for r in wrong[:1]]


def _range(slope: Slope) -> str:
    return f"{slope.low:g}" if slope.low == slope.high else f"{slope.low:g} to {slope.high:g}"


def markdown(verdicts: Sequence[Verdict], over: str, lr: float) -> str:
    """The verdicts and their slopes as a page; what is wrong stands in bold."""
    about = f"Slopes of log size over log {over}, mean ± standard deviation over seeds, at learning rate {lr:g}."
    lines = ["# Coordinate check", "", f"{about} Right is an exponent ± {TOLERANCE:g}.", ""]
    for verdict in verdicts:
        steps = sorted({slope.step for slope in verdict.slopes})
        heads = ["at init" if step == 0 else f"change at {step}" for step in steps]
        lines += [f"## {verdict}", "", f"| | {' | '.join(heads)} | exponents |", "|---|" + "---|" * (len(steps) + 1)]
        for kind in KINDS:
            row = sorted((slope for slope in verdict.slopes if slope.kind == kind), key=lambda slope: slope.step)
            cells = [str(slope) if slope.right else f"**{slope}**" for slope in row]
            lines.append(f"| {kind} | {' | '.join(cells)} | {', then '.join(dict.fromkeys(map(_range, row)))} |")
        lines.append("")
    return "\n".join(lines)
