"""How far a run is, and its learning rate."""

from __future__ import annotations

import pytest

from medseg.training.schedule import Schedule, learning_rate
from medseg.training.set_aside import affordable_looks, closing_seconds
from tests.models import small_plan

PLAN = small_plan(**{"training.warmup_share": 0.1, "training.learning_rate": 1.0}).training


def test_by_steps_and_by_the_clock() -> None:
    assert Schedule(200).progress(50, elapsed_s=1e9) == 0.25
    assert Schedule(200).progress(400, elapsed_s=0) == 1
    assert Schedule(0, seconds=80).progress(10**6, elapsed_s=20) == 0.25
    assert Schedule(0, seconds=80).progress(0, elapsed_s=81) == 1


def test_rate_by_hand() -> None:
    assert learning_rate(PLAN, 0) == pytest.approx(0.1)
    assert learning_rate(PLAN, 0.05) == pytest.approx(0.55)
    assert learning_rate(PLAN, 0.1) == pytest.approx(1)
    assert learning_rate(PLAN, 0.55) == pytest.approx(0.5**0.9)
    assert learning_rate(PLAN, 1) == 0


def test_what_is_set_aside() -> None:
    nothing = closing_seconds(2.0, judged_s=5.0, inner=0, validation=0)
    assert closing_seconds(2.0, judged_s=5.0, inner=3, validation=0) >= nothing + 3 * 2 * 2.0
    assert closing_seconds(2.0, judged_s=5.0, inner=0, validation=9) >= nothing + 9 * 5.0
    assert affordable_looks(1.0, inner=40, looks=5, training_s=500) == 5
    assert affordable_looks(100.0, inner=40, looks=5, training_s=10) == 1
    assert affordable_looks(100.0, inner=7, looks=5, training_s=None) == 7
