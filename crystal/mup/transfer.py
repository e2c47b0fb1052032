"""Did the optimum transfer? Reads the points of a sweep, finds each width's optimum, and says how far it moves.

A point is an ordinary run directory under SWEEP/PARAMETRIZATION/. The surprise: the verdict does not rest on the drift alone. A flat
optimum may wander without harm and a sharp one may not, so what binds is the price: how much loss the narrowest width's optimum costs
at every other width.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystal.config import require
from crystal.runlog import read_json, read_lines

LAST_SHARE = 0.1  # of the steps: a point's loss is the mean over the last tenth, whose rows it has never seen
MAX_PRICE = 0.005  # of each width's own best loss
MAX_DRIFT_NOTCHES = 1.0
FOLLOWS = ("model.d_model", "model.n_heads", "model.d_ffn", "seed")  # what a sweep varies besides its one hyperparameter
MAX_RESAMPLES = 5000
SAME = 0.05  # of a notch: rounding

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One run of a sweep. loss in nats per token; inf where it diverged."""

    parametrization: str
    width: int
    value: float
    seed: int
    loss: float


@dataclass(frozen=True)
class Optimum:
    """Of one width. Values are the swept key's; intervals hold 95 % of the resamples over seeds."""

    width: int
    value: float
    interval: tuple[float, float]
    loss: float
    interior: bool
    drift: float  # notches from the narrowest width's optimum
    drift_interval: tuple[float, float]
    price: float  # relative loss above this width's own best, at the narrowest width's optimum
    measured: bool  # the price: by runs at that very value, otherwise between those of the grid


@dataclass(frozen=True)
class Transfer:
    """One parametrization's outcome. losses: width -> value -> mean over the seeds; a notch is the grid's factor."""

    parametrization: str
    key: str
    notch: float
    losses: dict[int, dict[float, float]]
    n_seeds: int
    optima: list[Optimum]
    better: tuple[int, int]  # pairs of neighbouring widths at an equal value in which the wider has the lower loss, of how many

    @property
    def failures(self) -> list[str]:
        """Why transfer failed; empty where it holds."""
        found = []
        for best in self.optima:
            low, high = best.drift_interval
            if not best.interior:
                found.append(f"width {best.width}: the optimum {best.value:.4g} is at the edge of the grid")
            if max(-low, high) > MAX_DRIFT_NOTCHES:
                found.append(f"width {best.width}: the optimum moves by {best.drift:+.2f} notches ({low:+.2f} to {high:+.2f})")
            if not best.price <= MAX_PRICE:
                found.append(f"width {best.width}: the narrowest width's optimum costs {100 * best.price:.2f} % of loss")
        return found


def read_points(sweep: Path) -> tuple[str, list[Point]]:
    """(the swept key, the points) of a sweep's folder. Raises UserError where there are none or where more than one key was swept."""
    found = [(path.parent, dict(_flat(read_json(path, {})))) for path in sorted(sweep.glob("*/*/numbers.json"))]
    require(bool(found), f"no points in {sweep}", "a sweep's folder", "run python -m crystal -m sweep=lr first, or give run.dir=DIR")
    keys = set()
    for name in {folder.parent for folder, _ in found}:
        numbers = [flat for folder, flat in found if folder.parent == name]
        differing = {key for flat in numbers for key in flat if len({str(other.get(key)) for other in numbers}) > 1}
        keys |= differing - set(FOLLOWS)
    require(
        len(keys) == 1,
        f"{sweep} differs in {', '.join(sorted(keys)) or 'nothing'}",
        "points that differ in one key",
        "keep one sweep a folder",
    )
    (key,) = keys
    points = [
        Point(flat["model.parametrization"], flat["model.d_model"], float(flat[key]), flat["seed"], loss)
        for folder, flat in found
        if (loss := _final_loss(folder)) is not None
    ]
    return key, sorted(points, key=astuple)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _final_loss(folder: Path) -> float | None:
    """The mean training loss over the last tenth of the steps; inf after a divergence; None where the point is not finished."""
    records = [record for record in read_lines(folder / "metrics.jsonl") if record["kind"] == "train"]
    if any(not math.isfinite(record["loss"] + record["grad_norm"]) for record in records):
        return math.inf
    (summary,) = [read_json(path, {}) for path in folder.glob("stage*/summary.json")] or [None]
    if summary is None:
        return None
    return float(np.mean([record["loss"] for record in records if record["step"] > (1 - LAST_SHARE) * summary["steps"]]))


def analyse(key: str, points: Sequence[Point]) -> Transfer:
    """The outcome of one parametrization's points. A width may have a grid of its own, but all seeds at each of its values.

    Raises UserError where a point is missing, or where there are too few widths or values.
    """
    (parametrization,) = {point.parametrization for point in points}
    widths, all_values, seeds = (sorted({getattr(point, name) for point in points}) for name in ("width", "value", "seed"))
    loss = {(point.width, point.value, point.seed): point.loss for point in points}
    wanted = [(width, value, seed) for width, value in sorted({at[:2] for at in loss}) for seed in seeds]
    missing = [f"width {width}, {key}={value:g}, seed {seed}" for width, value, seed in wanted if (width, value, seed) not in loss]
    got = f"{parametrization}: no point at {'; '.join(missing[:3])}"
    require(not missing, got, f"all {len(wanted)}", "run the same -m command again: it runs what is missing")

    values, checks = split_grid(all_values)
    losses = {w: {v: [loss[w, v, s] for s in seeds] for v in all_values if (w, v, seeds[0]) in loss} for w in widths}
    curves = [Curve.of({v: row for v, row in losses[w].items() if v in values}) for w in widths]
    fewest = min(len(curve.x_V) for curve in curves)
    got = f"{parametrization}: {len(widths)} widths, {fewest} values of {key}"
    require(len(widths) > 1 and fewest > 2, got, "at least two widths and three values", "sweep more")

    log_notch = math.log(values[-1] / values[0]) / (len(values) - 1)
    drawn = resamples(len(seeds))
    resampled_WR = np.array([[curve.vertex(seeds)[0] for seeds in drawn] for curve in curves])
    source, _ = curves[0].vertex()
    check = next((v for v in checks if abs(math.log(v) - source) < SAME * log_notch), None)
    optima = []
    for width, curve, resampled_R in zip(widths, curves, resampled_WR, strict=True):
        at, lowest = curve.vertex()
        check_S = losses[width].get(check) if check is not None else None
        transferred = lowest if curve is curves[0] else curve.between(source)
        transferred = transferred if check_S is None else float(np.mean(check_S))
        optima.append(Optimum(
            width, math.exp(at), _interval(np.exp(resampled_R)), lowest, bool(curve.x_V[0] < at < curve.x_V[-1]),
            (at - source) / log_notch, _interval((resampled_R - resampled_WR[0]) / log_notch),
            transferred / min(lowest, curve.mean_V.min(), transferred) - 1, check_S is not None,
        ))  # fmt: skip
    means = {width: {value: float(np.mean(row)) for value, row in rows.items()} for width, rows in losses.items()}
    pairs = [means[b][v] < means[a][v] for a, b in itertools.pairwise(widths) for v in means[a].keys() & means[b].keys()]
    return Transfer(parametrization, key, math.exp(log_notch), means, len(seeds), optima, (sum(pairs), len(pairs)))


@dataclass(frozen=True)
class Curve:
    """One width's losses over the logarithm of the value, for each seed."""

    x_V: Array
    y_VS: Array

    @classmethod
    def of(cls, losses: Mapping[float, Sequence[float]]) -> Curve:
        return cls(np.log(sorted(losses)), np.array([losses[value] for value in sorted(losses)]))

    @property
    def mean_V(self) -> Array:
        return self.y_VS.mean(1)

    def vertex(self, seeds: Sequence[int] | None = None) -> tuple[float, float]:
        """(x, y) of the lowest point of the parabola through the lowest value and its neighbours; at an edge, that value itself.

        Three points and not more: above the optimum loss rises like a cliff, which no parabola follows. seeds: indices to average over.
        """
        x_V, y_V = self.x_V, self.mean_V if seeds is None else self.y_VS[:, seeds].mean(1)
        i = int(np.argmin(y_V))
        if not 0 < i < len(y_V) - 1 or not np.isfinite(y_V[i - 1 : i + 2]).all():
            return float(x_V[i]), float(y_V[i])
        a, b, c = np.polyfit(x_V[i - 1 : i + 2] - x_V[i], y_V[i - 1 : i + 2], 2)
        at = -b / (2 * a) if a > 0 else 0.0
        return float(x_V[i] + at), float(c + b * at / 2)

    def between(self, x: float) -> float:
        """The value at x, of two parabolas the higher: through the points on both sides of x and one more, to the left or to the right.

        The higher, because a parabola that takes in the cliff above the optimum dips below the points in front of it. inf off the grid.
        """
        if not self.x_V[0] <= x <= self.x_V[-1]:
            return math.inf
        i = int(np.clip(np.searchsorted(self.x_V, x), 1, len(self.x_V) - 1))
        found = []
        for first in {max(i - 2, 0), min(i - 1, len(self.x_V) - 3)}:
            x_3, y_3 = self.x_V[first : first + 3], self.mean_V[first : first + 3]
            found.append(float(np.polyval(np.polyfit(x_3 - x, y_3, 2), 0.0)) if np.isfinite(y_3).all() else math.inf)
        return max(found)


def resamples(n: int) -> list[tuple[int, ...]]:
    """Every draw of n out of n seeds with replacement where they are few, else as many random ones; the same seeds for all widths."""
    if n**n <= MAX_RESAMPLES:
        return list(itertools.product(range(n), repeat=n))
    return [tuple(row) for row in np.random.default_rng(0).integers(n, size=(MAX_RESAMPLES, n))]


def split_grid(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """(the values of a logarithmic grid, those in between, at which a transferred optimum was checked), both rising."""
    notch = max(math.log(b / a) for a, b in itertools.pairwise(values))
    grid = [values[0]]
    for value in values[1:]:
        if math.log(value / grid[-1]) > (1 - SAME) * notch:
            grid.append(value)
    return grid, [value for value in values if value not in grid]


def _interval(values_R: Array) -> tuple[float, float]:
    low, high = np.quantile(values_R, (0.025, 0.975))
    return float(low), float(high)


def as_csv(key: str, points: Sequence[Point]) -> str:
    """One line a point, the swept key as a column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([key if field.name == "value" else field.name for field in fields(Point)])
    writer.writerows(astuple(point) for point in points)
    return out.getvalue()


def from_csv(text: str) -> tuple[str, list[Point]]:
    """What `as_csv` wrote."""
    (_, _, key, _, _), *rows = csv.reader(io.StringIO(text))
    return key, [Point(name, int(width), float(value), int(seed), float(loss)) for name, width, value, seed, loss in rows]
