"""Paired comparison: p and intervals against values worked out by hand, and the words for what is no more than noise."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystal.report.compare import Comparison, bootstrap, compare, evidence, mcnemar, unlike, verdict
from crystal.report.fields import Fields
from crystal.report.scorefile import Score, read_score

COUNTS = st.integers(0, 200)


def score_of(verdicts: list[list[bool]], **changes: Any) -> Score:
    """Scores with these verdicts, problem by problem and sample by sample."""
    rows = [
        {"task_id": f"T/{i}", "completion": "", "passed": passed, "result": ""} for i, samples in enumerate(verdicts) for passed in samples
    ]
    passed = sum(row["passed"] for row in rows)
    known = {"status": "scored", "pass@1": passed / len(rows), "ci95": [0, 1], "samples_per_problem": len(verdicts[0]), "problems": rows}
    return replace(read_score(Fields(Path("t.json"), known)), **changes)


# Twice the tail of Binomial(n, 1/2), written out: (1 + 6) / 64, (1 + 12 + 66) / 4096, 1 / 64, (1 + 14 + 91 + 364) / 16384.
@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (3, 2, 1.0), (5, 1, 0.21875), (10, 2, 0.03857421875), (6, 0, 0.03125), (11, 3, 0.057373046875)],
)
def test_mcnemar_by_hand(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == p


@given(COUNTS, COUNTS)
def test_mcnemar_is_a_probability_that_knows_no_direction(gained: int, lost: int) -> None:
    assert 0 < mcnemar(gained, lost) == mcnemar(lost, gained) <= 1


@given(COUNTS, COUNTS)
def test_one_more_gained_is_never_weaker_evidence_for_the_better(gained: int, lost: int) -> None:
    gained, lost = max(gained, lost), min(gained, lost)
    assert mcnemar(gained + 1, lost) <= mcnemar(gained, lost)


def test_mcnemar_of_thousands_of_problems() -> None:
    assert mcnemar(4000, 3000) < 1e-30 and mcnemar(3500, 3500) == 1


def test_the_bootstrap_of_zeros_and_ones_is_binomial() -> None:
    # 30 ones of 100: the quantiles of Binomial(100, 0.3) are 21 and 39.
    assert bootstrap([1.0] * 30 + [0.0] * 70) == pytest.approx((0.21, 0.39), abs=0.0101)


def test_the_bootstrap_of_many_is_normal() -> None:
    draws = random.Random(0)
    values = [draws.choice([-0.4, -0.2, 0.0, 0.2, 0.6]) for _ in range(500)]
    mean = sum(values) / 500
    half = 1.96 * (sum((value - mean) ** 2 for value in values) / 500 / 500) ** 0.5
    assert bootstrap(values) == pytest.approx((mean - half, mean + half), abs=0.05 * half)


@given(st.lists(st.sampled_from([-1.0, -0.6, -0.2, 0.0, 0.4, 1.0]), min_size=1, max_size=60), st.randoms())
def test_the_bootstrap_stays_inside_and_knows_no_order(values: list[float], rng: random.Random) -> None:
    low, high = bootstrap(values)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12
    rng.shuffle(values)
    assert bootstrap(values) == (low, high)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_looked_at_from_the_other_side(pairs: list[tuple[bool, bool]]) -> None:
    one, other = (score_of([[pair[side]] for pair in pairs]) for side in (0, 1))
    there, back = compare(one, other), compare(other, one)
    assert (there.gained, there.lost, there.p) == (back.lost, back.gained, back.p)
    assert there.difference == -back.difference == (len(there.gained) - len(there.lost)) / len(pairs)
    assert there.p == mcnemar(len(there.gained), len(there.lost))
    assert compare(one, one).difference == 0 and not compare(one, one).is_shown


def test_several_samples_are_compared_by_the_share_that_passed() -> None:
    before = score_of([[True, False], [False, False], [True, True]] * 30)
    after = score_of([[True, True], [True, False], [False, False]] * 30)
    found = compare(before, after)
    assert (found.p, len(found.gained), len(found.lost)) == (None, 60, 30) and found.gained[:2] == ("T/0", "T/1")
    assert found.difference == pytest.approx(0) and found.ci95 is not None and found.ci95[0] < 0 < found.ci95[1]
    better = compare(before, score_of([[True, True], [True, False], [True, True]] * 30))
    assert better.is_shown and verdict(better) == "better"


def test_what_is_within_the_noise_is_called_so() -> None:
    nothing = compare(score_of([[True]] * 2 + [[False]] * 162), score_of([[False]] * 2 + [[True]] * 3 + [[False]] * 159))
    assert (len(nothing.gained), len(nothing.lost)) == (3, 2)
    assert (verdict(nothing), evidence(nothing)) == ("no difference is shown", "p = 1.00")
    worse = compare(score_of([[True]] * 20), score_of([[False]] * 20))
    assert (verdict(worse), evidence(worse)) == ("worse", "p < 0.001")
    assert evidence(Comparison(0.1, (), (), 0.0386, None)) == "p = 0.039"
    assert evidence(Comparison(0.02, (), (), None, (-0.011, 0.05))) == "95 %: \N{MINUS SIGN}1.1 to +5.0"


def test_what_was_not_asked_alike_is_not_compared() -> None:
    score = score_of([[True], [False]], version="1", protocol={"temperature": 0.2, "seed": 1, "key": "a"})
    assert unlike(score, score) is None
    assert unlike(score, replace(score, protocol={"temperature": 0.2, "seed": 2, "key": "b"})) is None
    for changes, said in (
        ({"version": "2"}, "different versions (1 and 2)"),
        ({"protocol": {"temperature": 0.1, "top_p": 1}}, "their protocols differ in temperature, top_p"),
        ({"samples_per_problem": 5}, "one has 1 samples a problem, the other 5"),
        ({"problems": ()}, "verdicts of one of them are not listed"),
        ({"problems": score.problems[:1]}, "not of the same problems (2 and 1)"),
    ):
        assert said in (unlike(score, replace(score, **changes)) or "")  # type: ignore[arg-type]
