"""The coordinate check's verdict: slopes of log size over log width (or depth), each held against the exponent that theory gives it.

The surprise: logits are not judged like activations. Attention's and the readout's shrink as width^-1/2 at first, where they are sums
of random signs, and training may bring them to width^0, where they are sums of what it has aligned; both are right.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from crystal.mup.coordcheck import KINDS, Record

# A wrong multiplier is off by width^1/2 or more (table 8 of Tensor Programs V), so what is within half of that is right.
TOLERANCE = 0.25
# How many spreads further off a slope must be to be called wrong. With one, two small models from two seeds fail for no reason.
SPREADS = 2
RULE = (
    f"An exponent within {TOLERANCE:g} of its range is right; further off by more than {SPREADS} spreads it is wrong; between these, or "
    f"where the spread is above {TOLERANCE:g}, the check cannot tell."
)
# Below this change of the final hidden states, in parts of their size, nothing has been tested. Measured in the defaults: about 1.
MOVED = 0.1
# The engine's loss against the plain model's, in parts. Seen: right engines 2e-7 and 4e-3 at most (the latter with weights in bfloat16),
# 1/sqrt(d) for 1/d from 0.006 at first to 0.02 and more after a step.
GAPS = {"float32": 1e-4, "bfloat16": 1e-2}
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
    def outcome(self) -> str:
        """RULE: "right", "wrong" (what is not finite, too) or "cannot tell"."""
        off = max(self.low - self.mean, self.mean - self.high) - TOLERANCE
        if not math.isfinite(self.mean) or off > SPREADS * self.spread:
            return "wrong"
        return "right" if off <= 0 and self.spread <= TOLERANCE else "cannot tell"

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
    """On one variant in one mode. reasons: why it is no pass, by what they are about, the weightiest first.

    "engine" (its loss is another) and "exponent" are failures; "rate" (nothing moves) and "spread" mean that the check cannot tell.
    """

    variant: str
    mode: str
    slopes: list[Slope]
    reasons: dict[str, list[str]]

    @property
    def outcome(self) -> str:
        if self.reasons.keys() & {"engine", "exponent"}:
            return "fails"
        return "cannot tell" if self.reasons else "passes"

    def __str__(self) -> str:
        said = [line for lines in self.reasons.values() for line in lines]
        more = f" and {len(said) - 3} more" if len(said) > 3 else ""
        return f"{self.variant} ({self.mode}) {self.outcome}" + (f": {', '.join(said[:3])}{more}" if said else "")


def judge(records: Sequence[Record], over: str) -> list[Verdict]:
    """One verdict for each variant and mode, in the order of the records."""
    found, verdicts = slopes(records, over), []
    for variant, mode in dict.fromkeys((record.variant, record.mode) for record in records):
        own = [record for record in records if (record.variant, record.mode) == (variant, mode)]
        its_slopes = [slope for slope in found if (slope.variant, slope.mode) == (variant, mode)]
        verdicts.append(Verdict(variant, mode, its_slopes, _reasons(own, its_slopes)))
    return verdicts


def _reasons(records: Sequence[Record], found: Sequence[Slope]) -> dict[str, list[str]]:
    unmoved = _unmoved(records)
    judged = [slope for slope in found if not (unmoved and slope.step)]  # the change of what does not move is rounding
    reasons = {
        "engine": _gaps(records),
        "exponent": [_off(slope) for slope in judged if slope.outcome == "wrong"],
        "rate": unmoved,
        "spread": [_off(slope) for slope in judged if slope.outcome == "cannot tell"],
    }
    return {about: lines for about, lines in reasons.items() if lines}


def _off(slope: Slope) -> str:
    return f"{slope.kind} {f'change at {slope.step}' if slope.step else 'at init'} {slope}, not {_range(slope)}"


def _unmoved(records: Sequence[Record]) -> list[str]:
    last = max(record.step for record in records)
    hidden = {step: [r.size for r in records if r.kind == "final hidden" and r.step == step] for step in (0, last)}
    most = np.max(np.divide(hidden[last], hidden[0]))
    return [f"the final hidden states change by {most:.2g} of their size at most, so nothing was tested"] if most < MOVED else []


def _gaps(records: Sequence[Record]) -> list[str]:
    wrong = [record for record in records if record.kind == "loss" and not record.size <= GAPS[record.module]]
    return [f"the engine's loss is off by {r.size:.1g} at step {r.step}, more than {GAPS[r.module]:g} in {r.module}" for r in wrong[:1]]


def _range(slope: Slope) -> str:
    return f"{slope.low:g}" if slope.low == slope.high else f"{slope.low:g} to {slope.high:g}"


def markdown(verdicts: Sequence[Verdict], over: str, lr: float, provenance: str) -> str:
    """The verdicts and their slopes as a page, with where they are from."""
    about = f"Slopes of log size over log {over}, mean ± standard deviation (the spread) over seeds, at learning rate {lr:g}."
    lines = ["# Coordinate check", "", provenance, "", f"{about} {RULE} Bold is wrong, (?) cannot be told.", ""]
    marked = {"right": "{}", "wrong": "**{}**", "cannot tell": "{} (?)"}
    for verdict in verdicts:
        steps = sorted({slope.step for slope in verdict.slopes})
        heads = ["at init" if step == 0 else f"change at {step}" for step in steps]
        lines += [f"## {verdict}", "", f"| | {' | '.join(heads)} | exponents |", "|---|" + "---|" * (len(steps) + 1)]
        for kind in KINDS:
            row = sorted((slope for slope in verdict.slopes if slope.kind == kind), key=lambda slope: slope.step)
            cells = [marked[slope.outcome].format(slope) for slope in row]
            lines.append(f"| {kind} | {' | '.join(cells)} | {', then '.join(dict.fromkeys(map(_range, row)))} |")
        lines.append("")
    return "\n".join(lines)
