"""The verdict on records made by hand: slopes, what is right, wrong or cannot be told, and the remedy for each."""

from __future__ import annotations

import itertools

import pytest

from crystal.mup.coordcheck import KINDS, Record
from crystal.mup.slopes import SPREADS, TOLERANCE, Slope, Verdict, expected, judge, slopes
from stages.coordcheck import coordcheck_options, expected_and_remedy
from tests.test_conf import composed


def synthetic(exponent: float, *, kind: str = "residual", step: int = 1, seed: int = 1, over: str = "width") -> list[Record]:
    """Sizes 3 x^exponent for x in 2, 4, 16; of an early block too, which has another exponent and must not matter."""
    records = []
    for x in (16, 2, 4):
        shape = (x, 5) if over == "width" else (7, x)
        for module, own in ((f"blocks.{shape[1] - 1}", exponent), ("blocks.0", 9.0)):
            records.append(Record("mup", "eager", *shape, seed, step, kind, module, "change", 3.0 * x**own))
    return records


@pytest.mark.parametrize("over", ["width", "depth"])
@pytest.mark.parametrize("exponent", [-0.5, 0.0, 0.3, 1.0])
def test_a_power_law_has_its_exponent(exponent: float, over: str) -> None:
    records = synthetic(exponent, over=over) + synthetic(exponent + 0.2, seed=2, over=over)
    [slope] = slopes(records, over)
    assert (slope.mean, slope.spread) == (pytest.approx(exponent + 0.1), pytest.approx(0.2 / 2**0.5))
    off = abs(exponent + 0.1) - TOLERANCE
    assert slope.outcome == ("right" if off < 0 else "cannot tell" if off < SPREADS * slope.spread else "wrong")


def test_logits_are_judged_by_themselves() -> None:
    ranges = {(kind, step): expected(kind, step, "width") for kind in KINDS for step in (0, 1)}
    assert {key for key, range_ in ranges.items() if range_ != (0, 0)} == {
        (f"{k} logits", s) for k in ("attention", "readout") for s in (0, 1)
    }
    assert ranges["readout logits", 0] == (-0.5, -0.5) and ranges["readout logits", 1] == (-0.5, 0)
    assert {expected(kind, step, "depth") for kind in KINDS for step in (0, 1)} == {(0, 0)}


@pytest.mark.parametrize("size", [0.0, float("nan"), float("inf")])
def test_what_is_not_a_number_is_wrong(size: float) -> None:
    [slope] = slopes([*synthetic(0.0)[2:], synthetic(0.0)[0]._replace(size=size)], "width")
    assert slope.outcome == "wrong"


@pytest.mark.parametrize(
    ("mean", "spread", "outcome"),
    [
        (0.24, 0.2, "right"),
        (-0.26, 0.1, "cannot tell"),
        (0.44, 0.1, "cannot tell"),
        (0.46, 0.1, "wrong"),
        (-0.46, 0.1, "wrong"),
        (0.0, 0.3, "cannot tell"),
        (1.0, 0.3, "wrong"),
        (0.3, float("nan"), "cannot tell"),
        (float("nan"), float("nan"), "wrong"),
    ],
)
def test_a_slope_is_wrong_only_beyond_its_spread(mean: float, spread: float, outcome: str) -> None:
    assert Slope("mup", "cpu", "residual", 1, mean, spread, 0.0, 0.0).outcome == outcome
    below = Slope("mup", "cpu", "attention logits", 1, -0.5 - abs(mean), spread, -0.5, 0.0)
    assert below.outcome == outcome  # what is off is off on either side of a range


def judged(
    *, change: float = 0.5, gap: float = 1e-7, dtype: str = "float32", growth: tuple[float, float] = (0, 0), init: float = 0
) -> Verdict:
    """The verdict on final hidden states that are 1 and change by `change` at width 2, with an engine whose loss is off by `gap`.

    Over the width the states grow with the exponent `init`, and their change with that of `growth` from each of two seeds.
    """
    records = []
    for width, (i, seed) in itertools.product((2, 4), enumerate((1, 2))):
        about = "mup", "cpu", width, 2, seed
        records.append(Record(*about, 0, "final hidden", "norm_out", "value", (width / 2) ** init))
        records.append(Record(*about, 1, "final hidden", "norm_out", "change", change * (width / 2) ** growth[i]))
        records.append(Record(*about, 0, "loss", dtype, "gap", gap))
    [verdict] = judge(records, "width")
    return verdict


def test_where_nothing_moves_nothing_can_be_told() -> None:
    assert judged().outcome == "passes" and judged(growth=(1, 1)).outcome == "fails"
    still = judged(change=0.01, growth=(1, 1))
    assert str(still) == "mup (cpu) cannot tell: the final hidden states change by 0.02 of their size at most, so nothing was tested"
    assert judged(change=0.01, init=1).outcome == "fails"  # what is wrong at first is wrong at any rate
    assert judged(change=0.09, growth=(1, 1)).outcome == "fails"  # one width has moved


def test_seeds_that_disagree_leave_the_verdict_open() -> None:
    assert judged(growth=(-1, 1)).outcome == "cannot tell" and list(judged(growth=(-1, 1)).reasons) == ["spread"]
    both = judged(growth=(-1, 1), gap=1)
    assert both.outcome == "fails" and list(both.reasons) == ["engine", "spread"]


def test_an_engine_that_computes_something_else_fails() -> None:
    assert "the engine's loss is off by 0.01 at step 0, more than 0.0001 in float32" in str(judged(gap=0.01))
    assert judged(gap=5e-3, dtype="bfloat16").outcome == "passes"
    assert judged(gap=0.02, dtype="bfloat16").outcome == judged(gap=float("nan")).outcome == "fails"


@pytest.mark.parametrize(
    ("about", "overrides", "said"),
    [
        ("exponent", [], "muP's exponents; mend the multipliers, or lower coordcheck.lr.width"),
        ("exponent", ["parametrization=sp"], "muP's exponents; give parametrization=mup"),
        ("exponent", ["coordcheck.over=depth"], "CompleteP's exponents; give model.depth=completep"),
        (
            "exponent",
            ["coordcheck.over=depth", "model.depth=completep"],
            "CompleteP's exponents; mend the multipliers, or lower coordcheck.lr",
        ),
        ("engine", [], "the plain model's; mend the backend's forward pass"),
        ("spread", ["coordcheck.over=depth"], "slopes that are clear; let coordcheck.depths reach further"),
    ],
)
def test_the_remedy_is_for_what_is_wrong(about: str, overrides: list[str], said: str) -> None:
    config = composed("task=coordcheck", *overrides)
    verdict = Verdict("it", "cpu", [], {about: ["why"], "spread": ["too"]})
    assert expected_and_remedy(verdict, config.model, coordcheck_options(config)).startswith(said)
