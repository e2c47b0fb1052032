from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crystal.schedule import Piece, Schedule

STAGE_1 = Schedule([Piece(0.0, 0.012, 86), Piece(0.012, 0.00012408, 294337)])


def test_the_published_values():
    assert [STAGE_1.lr(step) for step in (0, 43, 86)] == [0.0, pytest.approx(0.006), 0.012]
    assert STAGE_1.lr(79720) == pytest.approx(0.012 + (0.00012408 - 0.012) * (79720 - 86) / 294337, rel=1e-12)
    assert STAGE_1.lr(86 + 294337) == STAGE_1.lr(10**9) == 0.00012408


def test_equals_torchs_linear_lr():
    """torch's LinearLR cannot begin at 0, so the warm-up here begins at a tenth."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    pieces = [
        torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, end_factor=1.0, total_iters=7),
        torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.05, total_iters=30),
    ]
    torchs = torch.optim.lr_scheduler.SequentialLR(optimizer, pieces, milestones=[7])
    ours = Schedule([Piece(0.001, 0.01, 7), Piece(0.01, 0.0005, 30)])
    for step in range(45):
        assert ours.lr(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        torchs.step()


rates = st.floats(0, 1)
lengths = st.integers(1, 200).map(lambda quarters: quarters / 4)  # steps; exact in floats


@given(st.lists(st.builds(Piece, rates, rates, lengths), min_size=1, max_size=4))
def test_pieces_are_straight_and_stay_between_their_ends(pieces):
    schedule, first = Schedule(pieces), 0.0
    for piece in pieces:
        got = [schedule.lr(step) for step in range(math.ceil(first), math.ceil(first + piece.n_steps))]
        low, high = sorted((piece.start, piece.end))
        assert all(low - 1e-12 <= rate <= high + 1e-12 for rate in got)
        slope = (piece.end - piece.start) / piece.n_steps
        assert [b - a for a, b in pairwise(got)] == pytest.approx([slope] * (len(got) - 1), abs=1e-12)
        first += piece.n_steps
    assert schedule.lr(math.ceil(first)) == schedule.lr(math.ceil(first) + 1000) == pieces[-1].end


@given(rates, st.integers(1, 50), rates)
def test_a_piece_begins_at_its_start(start, n_steps, end):
    schedule = Schedule([Piece(0.5, 0.5, n_steps), Piece(start, end, 10)])
    assert schedule.lr(n_steps) == start


def test_a_warm_up_shorter_than_a_step():
    assert Schedule([Piece(0.0, 1.0, 0.25), Piece(1.0, 0.0, 10)]).lr(1) == pytest.approx(1 - 0.75 / 10)
