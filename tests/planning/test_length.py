"""What follows from the number of steps, by hand-worked values."""

from __future__ import annotations

from dataclasses import replace

from medseg.core.plan import Plan
from medseg.planning.length import fitted_to_length
from medseg.planning.planner import make_plan, means_for
from tests.planning_facts import LABELS, fingerprint

MEANS = means_for("cpu", two_dimensional=False, training_s=None)


def planned(**changes: object) -> Plan:
    return make_plan(fingerprint(), LABELS, MEANS, changes=changes or None)


def test_what_was_learned_first_fades_as_much_in_a_short_run_as_in_a_long_one() -> None:
    # 0.7 / (0.002 x 1400) = 0.25; five times the steps take a fifth of it.
    short = fitted_to_length(planned(), 1400, changes=())
    long = fitted_to_length(planned(), 7000, changes=())
    assert short.training.learning_rate == long.training.learning_rate == 0.002
    assert (short.training.weight_decay, long.training.weight_decay) == (0.25, 0.05)
    assert short.reasons["weight_decay"] == "what 1400 steps need for the first of them to fade"
    # 1 - 30 / 1400 and 1 - 30 / 7000.
    assert (short.training.ema_decay, long.training.ema_decay) == (0.9786, 0.9957)


def test_few_steps_and_very_many_have_limits() -> None:
    few, many = (fitted_to_length(planned(), steps, changes=()) for steps in (0, 10**9))
    assert (few.training.weight_decay, few.training.ema_decay) == (0.5, 0.9)
    assert (many.training.weight_decay, many.training.ema_decay) == (3e-5, 0.999)


def test_what_was_asked_for_stays() -> None:
    asked = planned(**{"training.weight_decay": 0.01, "training.ema_decay": 0.5})
    changes = {"training.weight_decay", "training.ema_decay"}
    assert fitted_to_length(asked, 1400, changes=changes) == asked


def test_adamw_keeps_its_decay() -> None:
    plan = planned(**{"training.optimiser": "adamw"})
    fitted = fitted_to_length(plan, 1400, changes=())
    assert fitted.training.weight_decay == plan.training.weight_decay == 3e-5
    assert "weight_decay" not in fitted.reasons


def test_epochs_that_are_known_count_as_steps() -> None:
    plan = make_plan(
        fingerprint(), LABELS, replace(MEANS, epochs=40), changes={"training.steps_per_epoch": 35}
    )
    assert plan.training.weight_decay == 0.25
