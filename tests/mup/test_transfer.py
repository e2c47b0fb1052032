"""Transfer on made-up losses, whose optima are known, and on the points of a real sweep of seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crystal.config import UserError
from crystal.mup.transfer import Curve, Point, Transfer, analyse, as_csv, from_csv, resamples, split_grid
from crystal.mup.transfer_report import VALUES, configuration, markdown, verdict, write

VALUES_OF_LR = [0.1 * 2 ** (i / 2) for i in range(7)]
NOTCH = math.log(2) / 2


def points(optimum: Callable[[int], float], *, name: str = "mup", noise: float = 0.0, curvature: float = 0.2) -> list[Point]:
    """Losses that are parabolas in the logarithm, lowest at optimum(width), better with width."""
    rng = np.random.default_rng(1)
    return [
        Point(name, width, lr, seed, 4 + 10 / width + curvature * math.log(lr / optimum(width)) ** 2 + noise * rng.normal())
        for width in (64, 128, 256, 512)
        for lr in VALUES_OF_LR
        for seed in (1, 2, 3)
    ]


def outcome(optimum: Callable[[int], float], **options: float) -> Transfer:
    return analyse("scale.lr_factor", points(optimum, **options))  # type: ignore[arg-type]


def test_an_optimum_that_stays_is_found_and_transfers() -> None:
    made = outcome(lambda width: 0.31)
    assert [best.value for best in made.optima] == pytest.approx([0.31] * 4, rel=1e-9)
    assert [best.loss for best in made.optima] == pytest.approx([4 + 10 / width for width in (64, 128, 256, 512)])
    assert all(abs(best.drift) < 1e-9 and best.price < 1e-9 and best.interior for best in made.optima)
    assert made.failures == []
    assert made.better == (21, 21)
    assert made.notch == pytest.approx(2**0.5)


def test_an_optimum_that_moves_with_every_width_does_not_transfer() -> None:
    made = outcome(lambda width: 0.5 * (64 / width) ** 0.6)
    assert [best.drift for best in made.optima] == pytest.approx([0, -1.2, -2.4, -3.6])
    priced = [0.2 * (1.2 * k * NOTCH) ** 2 / (4 + 10 / width) for k, width in enumerate((64, 128, 256, 512))]
    assert [best.price for best in made.optima] == pytest.approx(priced, rel=1e-6)
    assert [failure.partition(":")[0] for failure in made.failures] == [f"width {width}" for width in (128, 128, 256, 256, 512, 512)]
    assert "does not transfer" in verdict(made)


def test_a_price_alone_is_enough_to_fail() -> None:
    """A sharp optimum that moves by less than a notch."""
    made = outcome(lambda width: 0.3 if width < 512 else 0.3 * 2**0.4, curvature=2.0)
    assert [best.drift for best in made.optima] == pytest.approx([0, 0, 0, 0.8])
    (failure,) = made.failures
    assert failure.startswith("width 512: the narrowest width's optimum costs")


def test_an_optimum_at_the_edge_fails() -> None:
    made = outcome(lambda width: 0.05)
    assert [best.interior for best in made.optima] == [False] * 4
    assert len([failure for failure in made.failures if "at the edge" in failure]) == 4


def test_a_noisy_optimum_has_a_wide_interval() -> None:
    quiet, noisy = outcome(lambda width: 0.3, noise=1e-4), outcome(lambda width: 0.3, noise=0.05)
    for one, other in zip(quiet.optima, noisy.optima, strict=True):
        assert one.interval[0] <= one.value <= one.interval[1]
        assert other.interval[1] / other.interval[0] > one.interval[1] / one.interval[0]
    assert noisy.failures != []


def test_a_diverged_point_is_no_optimum() -> None:
    lost = [Point(p.parametrization, p.width, p.value, p.seed, math.inf if p.value > 0.5 else p.loss) for p in points(lambda width: 0.3)]
    made = analyse("scale.lr_factor", lost)
    assert [best.value for best in made.optima] == pytest.approx([0.3] * 4)
    assert made.losses[64][VALUES_OF_LR[-1]] == math.inf


def test_what_is_missing_is_named() -> None:
    with pytest.raises(
        UserError, match="no point at width 512, scale.lr_factor=0.8, seed 3; expected all 84; run the same -m command again"
    ):
        analyse("scale.lr_factor", points(lambda width: 0.3)[:-1])
    with pytest.raises(UserError, match="1 widths, 7 values"):
        analyse("scale.lr_factor", points(lambda width: 0.3)[:21])
    with pytest.raises(UserError, match="4 widths, 2 values"):
        analyse("scale.lr_factor", points(lambda width: 0.3)[:-15])


def test_a_width_may_have_a_grid_of_its_own() -> None:
    made = points(lambda width: 0.5 * (64 / width) ** 0.6)
    own = [p for p in made if not (p.width == 64 and p.value < 0.19 or p.width == 512 and p.value > 0.41)]
    whole, less = analyse("scale.lr_factor", made), analyse("scale.lr_factor", own)
    assert [best.value for best in less.optima] == pytest.approx([best.value for best in whole.optima])
    assert less.optima[-1].price == math.inf, "where width 512 was never run"
    assert [best.price for best in less.optima[:-1]] == pytest.approx([best.price for best in whole.optima[:-1]])
    assert (whole.better[1], less.better[1]) == (21, 21 - 2 - 2)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_few_seeds_are_resampled_in_full(n: int) -> None:
    assert len(resamples(n)) == len(set(resamples(n))) == n**n


def test_many_seeds_are_resampled_at_random() -> None:
    rows = np.array(resamples(8))
    assert rows.shape == (5000, 8) and rows.min() == 0 and rows.max() == 7


def curve(x_V: np.ndarray, y_V: np.ndarray) -> Curve:
    return Curve(x_V, y_V[:, None])


def test_the_parabola() -> None:
    x = np.linspace(-3, 3, 7)
    parabola = curve(x, (x - 0.3) ** 2 + 5)
    assert parabola.vertex() == pytest.approx((0.3, 5.0))
    assert curve(x, x + 5).vertex() == (-3.0, 2.0)
    for at in (-2.9, 0.0, 1.7, 2.2, 3.0):
        assert parabola.between(at) == pytest.approx((at - 0.3) ** 2 + 5)
    assert curve(x, np.where(x > 2, np.inf, x)).between(2.4) == parabola.between(3.1) == math.inf


def test_a_cliff_does_not_hide_the_price() -> None:
    """Losses seen at width 128: one notch above the optimum is still good, the next is far up."""
    x, y = np.arange(4.0), np.array([4.229, 4.171, 4.239, 4.71])
    through_the_cliff = np.polyval(np.polyfit(x[1:], y[1:], 2), 1.6)
    assert through_the_cliff < y[1] < 1.005 * curve(x, y).vertex()[1] < curve(x, y).between(1.6)


def test_values_off_the_grid_are_checks() -> None:
    grid = [0.1, 0.1414, 0.2, 0.2828, 0.4]
    assert split_grid(grid) == (grid, [])
    assert split_grid(sorted([*grid, 0.3114])) == (grid, [0.3114])
    made = points(lambda width: 0.31)
    checked = [Point(p.parametrization, p.width, 0.31, p.seed, p.loss + 0.01) for p in made if p.value == 0.1]
    found = analyse("scale.lr_factor", [*made, *checked]).optima
    assert [best.value for best in found] == pytest.approx([0.31] * 4)
    assert all(best.measured and best.price > 0.05 for best in found)


def test_records_come_back() -> None:
    made = points(lambda width: 0.3)
    assert from_csv(as_csv("scale.lr_factor", made)) == ("scale.lr_factor", made)


def test_the_report_says_what_failed_and_hands_nothing_on(tmp_path: Path) -> None:
    good, bad = outcome(lambda width: 0.31), outcome(lambda width: 0.5 * (64 / width) ** 0.5)
    write(tmp_path, [good], "84 runs.")
    assert (tmp_path / VALUES).read_text() == configuration(good, "84 runs.")
    assert "lr_factor: 0.31 " in (tmp_path / VALUES).read_text()
    write(tmp_path, [bad], "84 runs.")
    assert not (tmp_path / VALUES).exists()
    assert "does not transfer" in markdown([bad], "84 runs.") and "does not transfer" not in markdown([good], "84 runs.")
    assert (tmp_path / "transfer.svg").read_text().count("<svg") == 1
