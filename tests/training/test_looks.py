"""Which weights of a run are used: late ones, unless earlier ones were better beyond chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from medseg.inference.predictor import Predictor
from medseg.training import looks
from medseg.training.checkpoint import TrainState, restore_snapshot, take_snapshot
from medseg.training.looks import choose_weights, surely_better
from medseg.training.step import new_state
from tests.models import small_plan
from tests.training.test_loader import cached

CPU = torch.device("cpu")


def test_beyond_chance_is_more_than_two_standard_errors() -> None:
    later = np.array([0.8, 0.8, 0.8, 0.8])
    # Lost: mean 0.02, standard deviation 0.01633, error of the mean 0.00816.
    lost = np.array([0.02, 0.04, 0.0, 0.02])
    assert stats.sem(lost) == pytest.approx(0.00816, abs=1e-5)
    assert surely_better(later + lost, later)
    # The first one 0.02 less: mean 0.015, its error 0.0096.
    assert not surely_better(later + lost - [0.02, 0, 0, 0], later)
    assert not surely_better(later - lost, later)


def test_unknown_cases_do_not_count_and_one_case_decides_alone() -> None:
    nothing = np.array([])
    assert not surely_better(nothing, np.array([0.5]))
    assert not surely_better(nothing, nothing)
    assert surely_better(np.array([np.nan, 0.61]), np.array([0.9, 0.6]))
    assert not surely_better(np.array([np.nan, 0.6]), np.array([0.9, 0.6]))
    assert not surely_better(np.array([np.nan]), np.array([np.nan]))


@pytest.fixture
def state() -> TrainState:
    return new_state(small_plan(), seed=0, device=CPU)


def look(state: TrainState, table: list[list[float]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A look at which the cases (rows) had these Dice; the weights are marked with its number."""
    monkeypatch.setattr(looks, "class_dice", lambda predictor, cases: np.array(table))
    with torch.no_grad():
        first = next(state.average.parameters())
        first.fill_(float(first.flatten()[0].round()) + 1)
    plan = small_plan()
    return choose_weights(state, Predictor([state.average], plan, CPU), [cached(0)] * len(table))


def taken(state: TrainState) -> int:
    """The number of the look whose weights are kept."""
    assert state.best is not None
    return int(next(iter(state.best.values())).flatten()[0])


def test_later_weights_are_taken_where_the_difference_is_chance(
    state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        next(state.average.parameters()).zero_()
    told = look(state, [[0.80, 0.70], [0.90, 0.80], [0.85, np.nan]], monkeypatch)
    assert told == {"low": 0.85, "high": 0.75}
    assert (taken(state), state.best_score) == (1, pytest.approx(0.8))
    # A little lower on the whole, higher in one case: chance.
    look(state, [[0.79, 0.69], [0.91, 0.81], [0.84, np.nan]], monkeypatch)
    assert (taken(state), state.best_score) == (2, pytest.approx((0.8466667 + 0.75) / 2))
    # Not surely lower than the last one, but than the first, which was the highest.
    look(state, [[0.785, 0.695], [0.89, 0.79], [0.84, np.nan]], monkeypatch)
    assert taken(state) == 2
    assert state.highest_look == pytest.approx([0.75, 0.85, 0.85])


def test_what_was_seen_survives_a_stop(state: TrainState, monkeypatch: pytest.MonkeyPatch) -> None:
    look(state, [[0.8, 0.7], [0.9, 0.8]], monkeypatch)
    other = new_state(small_plan(), seed=1, device=CPU)
    restore_snapshot(other, take_snapshot(state), CPU)
    assert other.highest_look == state.highest_look == pytest.approx([0.75, 0.85])
    assert other.best_score == state.best_score
    before = taken(other)
    look(other, [[0.7, 0.6], [0.8, 0.7]], monkeypatch)
    assert taken(other) == before


def test_without_inner_cases_the_latest_are_taken(
    state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor([state.average], small_plan(), CPU)
    for value in (1.0, 2.0):
        with torch.no_grad():
            next(state.average.parameters()).fill_(value)
        assert choose_weights(state, predictor, []) == {}
        assert taken(state) == value
