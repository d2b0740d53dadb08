"""Which of several models is kept: against differences worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.evaluation.best import Judged, choose_best


def judged(name: str, figures: list[list[float | None]], cost_s: float) -> Judged:
    cases = {
        f"case_{number}": {str(value): figure for value, figure in enumerate(row, start=1)}
        for number, row in enumerate(figures)
    }
    return Judged(name, cases, cost_s)


def test_a_cheaper_model_that_is_as_good_is_kept() -> None:
    best = judged("dear", [[0.9, 0.8], [0.7, 0.6], [0.8, 0.9]], 3.0)
    # Better in one case, worse in two: by -0.01, 0.02 and 0.02 in the mean of both labels.
    near = judged("cheap", [[0.92, 0.8], [0.66, 0.6], [0.78, 0.88]], 1.0)
    # Worse in each case.
    far = judged("quick", [[0.8, 0.7], [0.6, 0.5], [0.7, 0.8]], 0.1)
    name, standings = choose_best([far, best, near])
    assert name == "cheap"
    by_name = {one.name: one for one in standings}
    assert by_name["dear"].dice == pytest.approx((0.9 + 0.7 + 0.8 + 0.8 + 0.6 + 0.9) / 6)
    assert by_name["dear"].behind is None
    behind = by_name["cheap"].behind
    assert behind is not None
    assert behind.mean_difference == pytest.approx((-0.01 + 0.02 + 0.02) / 3)
    assert behind.interval[0] <= 0 <= behind.interval[1]
    assert by_name["cheap"].as_good
    assert not by_name["quick"].as_good
    # The same where the dear one costs least: then nothing speaks against it.
    cheapest = Judged("dear", best.dice, 0.01)
    assert choose_best([far, cheapest, near])[0] == "dear"


def test_of_one_case_the_higher_mean_counts() -> None:
    assert choose_best([judged("a", [[0.5]], 0.1), judged("b", [[0.6]], 9.0)])[0] == "b"


def test_undefined_figures_and_cases_of_one_model_do_not_count() -> None:
    one = judged("one", [[0.5, None], [0.5, 0.9], [0.1, 0.1]], 1.0)
    two = judged("two", [[0.6, 0.2], [0.6, None]], 2.0)
    name, (first, second) = choose_best([one, two])
    assert name == "one"  # case means over both labels: 0.5, 0.7; label means: 0.5, 0.9
    assert first.dice == pytest.approx((0.5 + 0.9) / 2)
    assert second.dice == pytest.approx((0.6 + 0.2) / 2)
    # Over labels that both have: 0.5 and 0.5 against 0.6 and 0.6.
    assert second.behind is not None
    assert second.behind.mean_difference == pytest.approx(-0.1)
    nothing = judged("nothing", [[None, None], [None, None]], 1.0)
    assert choose_best([nothing, two])[0] == "two"
    assert np.isnan(choose_best([nothing, two])[1][0].dice)
