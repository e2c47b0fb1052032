"""Did the optimum transfer? Finds each width's optimum, and the narrowest width whose optimum does for all wider ones.

The surprise: the verdict does not rest on how far the optimum drifts. A flat optimum may wander without harm and a sharp one may not,
so what binds is the price: how much loss one width's optimum costs at another. The drift is told beside it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from crystal.config import require
from crystal.mup.sweep import Point

MAX_PRICE = 0.005  # of each width's own best loss: a sixth of what doubling the width gained in our own sweep (docs/mup.md)
MAX_DRIFT = 1.0  # notches: a grid of sqrt(2) with three seeds resolves no less
MAX_RESAMPLES = 5000
SAME = 0.05  # of a notch: rounding

Array = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Optimum:
    """Of one width. Values are the swept key's; intervals hold at least 95 % of the resamples over seeds, nan with one seed."""

    width: int
    value: float
    interval: Interval
    loss: float
    interior: bool
    drift: float  # notches from the source's optimum
    drift_interval: Interval
    price: float  # relative loss above this width's own best, at the source's optimum; inf: diverges; nan: not known
    price_interval: Interval
    measured: bool  # the price: by runs at that very value, otherwise between those of the grid


@dataclass(frozen=True)
class Transfer:
    """One parametrization's outcome. losses: width -> value -> mean over the seeds; a notch is the grid's factor.

    source: the width whose optimum is handed on; not_from: why not that of a narrower one.
    """

    parametrization: str
    key: str
    notch: float
    losses: dict[int, dict[float, float]]
    n_seeds: int
    source: int
    optima: dict[int, Optimum]
    prices: dict[int, dict[int, float]]  # source -> width -> what the source's optimum costs the width
    better: tuple[int, int]  # pairs of neighbouring widths at an equal value in which the wider has the lower loss, of how many
    not_from: str = ""

    @property
    def failures(self) -> list[str]:
        """Why the source's optimum does not do for all wider widths; empty where it does."""
        found = ["one seed gives no interval"] if self.n_seeds == 1 else []
        for width, best in self.optima.items():
            if width >= self.source:
                if not best.interior:
                    found.append(f"the optimum {best.value:.4g} of width {width} is at the edge of the grid")
                if math.isnan(best.price):
                    found.append(f"width {width}'s loss at width {self.source}'s optimum is not known")
                elif best.price > MAX_PRICE:
                    found.append(f"width {self.source}'s optimum costs width {width} {100 * best.price:.2f} % of loss")
        return found

    @property
    def drifting(self) -> list[Optimum]:
        """Those that move by more than a notch, or may, by their intervals."""
        wider = [best for width, best in self.optima.items() if width >= self.source]
        return [best for best in wider if max(map(abs, (best.drift, *best.drift_interval))) > MAX_DRIFT]


def analyse(key: str, points: Sequence[Point]) -> Transfer:
    """The outcome of one parametrization's points. A width may have a grid of its own, but all seeds at each of its values.

    The source is the narrowest width that transfers to all wider ones, of which there must be two; where none does, the narrowest.
    Raises UserError where a point is missing, where the values are no logarithmic grid, or with too few widths or values.
    """
    (parametrization,) = {point.parametrization for point in points}
    curves, notch = _curves(f"{parametrization}: ", key, points)
    widths = list(curves)
    means = {width: {value: float(y_S.mean()) for value, y_S in curve.runs.items()} for width, curve in curves.items()}
    pairs = [
        means[b][v] < means[a][v]
        for a, b in itertools.pairwise(widths)
        for v in means[a].keys() & means[b].keys()
        if min(means[a][v], means[b][v]) < math.inf
    ]
    prices = {a: {b: other.price(curve.vertex()[0], notch) for b, other in curves.items()} for a, curve in curves.items()}
    n_seeds = curves[widths[0]].n_seeds
    made = [
        Transfer(
            parametrization, key, math.exp(notch), means, n_seeds, source, _optima(curves, source, notch), prices, (sum(pairs), len(pairs))
        )
        for source in widths[:-2] or widths[:1]
    ]
    chosen = next((transfer for transfer in made if not transfer.failures), made[0])
    return replace(chosen, not_from="; ".join(failure for narrower in made[: made.index(chosen)] for failure in narrower.failures))


def _curves(who: str, key: str, points: Sequence[Point]) -> tuple[dict[int, Curve], float]:
    """(width -> its losses, the logarithm of the grid's factor); refuses what is no grid or has holes."""
    widths, values, seeds = (sorted({getattr(point, name) for point in points}) for name in ("width", "value", "seed"))
    grid = log_grid(values)
    loss = {(point.width, point.value, point.seed): point.loss for point in points}
    ran = {width: [value for value in values if any((width, value, seed) in loss for seed in seeds)] for width in widths}
    fewest = min(len(set(ran[width]) & set(grid)) for width in widths)
    got = f"{who}{len(widths)} widths, {fewest} values of {key}"
    require(len(widths) > 1 and fewest > 2, got, "at least two widths and three values on a logarithmic grid", "sweep more")
    whole = {width: {*ran[width], *(value for value in grid if ran[width][0] < value < ran[width][-1])} for width in widths}
    wanted = [(width, value, seed) for width in widths for value in sorted(whole[width]) for seed in seeds]
    never = sorted({value for _, value, _ in wanted} - set(values))
    got = f"{who}{key} at {', '.join(f'{value:.4g}' for value in values)}"
    require(
        not never,
        got,
        "equal factors from one to the next",
        f"run {never[0] if never else 0:.4g} too, or delete the points that stand apart",
    )
    missing = [f"width {width}, {key}={value:g}, seed {seed}" for width, value, seed in wanted if (width, value, seed) not in loss]
    got = f"{who}no finished point at {'; '.join(missing[:3])}"
    require(not missing, got, f"all {len(wanted)}", "run the same -m command again: it runs what is missing")

    curves = {}
    for width in widths:
        runs = {value: np.array([loss[width, value, seed] for seed in seeds]) for value in ran[width]}
        lost = all(math.isinf(y_S.mean()) for y_S in runs.values())
        require(not lost, f"{who}every value of width {width} diverged", "some that do not", f"sweep lower values of {key}")
        on_grid = [value for value in runs if value in grid]
        curves[width] = Curve(np.log(on_grid), np.array([runs[value] for value in on_grid]), runs)
    return curves, math.log(grid[1] / grid[0])


def _optima(curves: dict[int, Curve], source: int, notch: float) -> dict[int, Optimum]:
    """Every width's optimum beside that of `source`."""
    at = curves[source].vertex()[0]
    drawn = resamples(curves[source].n_seeds)
    drawn_at = np.array([curves[source].vertex(draw)[0] for draw in drawn])
    optima = {}
    for width, curve in curves.items():
        x, y = curve.vertex()
        drawn_x, drawn_prices = np.array([(curve.vertex(draw)[0], curve.price(at, notch, draw)) for draw in drawn]).T
        optima[width] = Optimum(
            width, math.exp(x), interval(np.exp(drawn_x)), y, bool(curve.x_V[0] < x < curve.x_V[-1]),
            (x - at) / notch, interval((drawn_x - drawn_at) / notch),
            curve.price(at, notch), interval(drawn_prices), curve.measured(at, notch) is not None,
        )  # fmt: skip
    return optima


@dataclass(frozen=True)
class Curve:
    """One width's losses for each seed: over the logarithm of the values on the grid, and by value of all runs."""

    x_V: Array
    y_VS: Array
    runs: dict[float, Array]

    @property
    def n_seeds(self) -> int:
        return self.y_VS.shape[1]

    def mean_V(self, draw: Sequence[int] | None = None) -> Array:
        """Over all seeds, or those of the indices `draw`."""
        return self.y_VS.mean(1) if draw is None else self.y_VS[:, draw].mean(1)

    def vertex(self, draw: Sequence[int] | None = None) -> tuple[float, float]:
        """(x, y) of the lowest point of the parabola through the lowest value and its neighbours; at an edge, that value itself.

        Three points and not more: above the optimum loss rises like a cliff, which no parabola follows.
        """
        x_V, y_V = self.x_V, self.mean_V(draw)
        i = int(np.argmin(y_V))
        if not 0 < i < len(y_V) - 1 or not np.isfinite(y_V[i - 1 : i + 2]).all():
            return float(x_V[i]), float(y_V[i])
        a, b, c = np.polyfit(x_V[i - 1 : i + 2] - x_V[i], y_V[i - 1 : i + 2], 2)
        at = -b / (2 * a) if a > 0 else 0.0
        return float(x_V[i] + at), float(c + b * at / 2)

    def price(self, x: float, notch: float, draw: Sequence[int] | None = None) -> float:
        """Relative loss at x above the lowest: measured where x was run, else read off a parabola; nan where neither can be."""
        lowest, measured = self.vertex(draw)[1], self.measured(x, notch)
        seeds = list(range(self.n_seeds)) if draw is None else list(draw)
        y = self.between(x, draw) if measured is None else float(measured[seeds].mean())
        return y / min(lowest, y) - 1 if math.isfinite(y) else y

    def measured(self, x: float, notch: float) -> Array | None:
        """The losses of runs at x, if there are any."""
        return next((y_S for value, y_S in self.runs.items() if abs(math.log(value) - x) < SAME * notch), None)

    def between(self, x: float, draw: Sequence[int] | None = None) -> float:
        """The loss at x off the parabola of the vertex, or beyond its three points off the higher of the two through both sides of x.

        The higher, because a parabola that takes in the cliff above the optimum dips below the points in front of it; a diverged point
        is on none. nan off the grid, and beside a diverged point.
        """
        x_V, y_V = self.x_V, self.mean_V(draw)
        if not x_V[0] <= x <= x_V[-1]:
            return math.nan
        right = int(np.clip(np.searchsorted(x_V, x), 1, len(x_V) - 1))
        lowest = int(np.clip(np.argmin(y_V), 1, len(x_V) - 2))
        threes = {min(max(first, 0), len(x_V) - 3) for first in (right - 2, right - 1)}
        if x_V[lowest - 1] <= x <= x_V[lowest + 1] and np.isfinite(y_V[lowest - 1 : lowest + 2]).all():
            threes = {lowest - 1}
        finite = [slice(first, first + 3) for first in threes if np.isfinite(y_V[first : first + 3]).all()]
        return max((float(np.polyval(np.polyfit(x_V[three] - x, y_V[three], 2), 0.0)) for three in finite), default=math.nan)


def resamples(n: int) -> list[tuple[int, ...]]:
    """Every draw of n out of n seeds with replacement where they are few, else as many random ones; the same seeds for all widths."""
    if n**n <= MAX_RESAMPLES:
        return list(itertools.product(range(n), repeat=n))
    return [tuple(row) for row in np.random.default_rng(0).integers(n, size=(MAX_RESAMPLES, n))]


def log_grid(values: Sequence[float]) -> list[float]:
    """The logarithmic grid that most of the rising values lie on from the first on, with its holes; the others are checks off it."""

    def on(factor: float) -> dict[int, float]:
        notches = {value: math.log(value / values[0]) / math.log(factor) for value in values}
        return {round(n): value for value, n in notches.items() if abs(n - round(n)) < SAME}

    grids = [on(b / a) for a, b in itertools.pairwise(values)] or [{0: values[0]}]
    best = max(grids, key=lambda grid: (next(n for n in itertools.count() if n not in grid), len(grid)))
    last = max(best)
    return [best.get(n, values[0] * (best[last] / values[0]) ** (n / max(last, 1))) for n in range(last + 1)]


def interval(drawn_R: Array) -> Interval:
    """(low, high) that hold at least 95 % of the draws; nan with one."""
    if len(drawn_R) == 1:
        return math.nan, math.nan
    # Not between two draws: an infinite one would spoil both, and few seeds make the interval too narrow as it is.
    low, high = np.quantile(drawn_R, 0.025, method="lower"), np.quantile(drawn_R, 0.975, method="higher")
    return float(low), float(high)
