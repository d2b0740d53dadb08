"""What follows from the number of steps, by hand-worked values."""

from __future__ import annotations

from dataclasses import replace

from medseg.core.plan import Plan
from medseg.planning.length import fitted_to_length
from medseg.planning.planner import make_plan, means_for
from tests.planning_facts import LABELS, fingerprint

# Seen whole by a patch; 70 cases are seen 40 times in 1400 steps of two patches.
FACTS = fingerprint(cases=70)
MEANS = means_for("cpu", two_dimensional=False, training_s=None)


def planned(**changes: object) -> Plan:
    return make_plan(fingerprint(), LABELS, MEANS, changes=changes or None)


def test_what_was_learned_first_fades_as_much_in_a_short_run_as_in_a_long_one() -> None:
    # 0.7 / (0.002 x 1400) = 0.25; five times the steps take a fifth of it.
    short = fitted_to_length(planned(), 1400, FACTS, changes=())
    long = fitted_to_length(planned(), 7000, FACTS, changes=())
    assert short.training.learning_rate == long.training.learning_rate == 0.002
    assert (short.training.weight_decay, long.training.weight_decay) == (0.25, 0.05)
    assert short.reasons["weight_decay"] == "what 1400 steps need for the first of them to fade"
    # 1 - 30 / 1400 and 1 - 30 / 7000.
    assert (short.training.ema_decay, long.training.ema_decay) == (0.9786, 0.9957)


def test_few_steps_and_very_many_have_limits() -> None:
    few, many = (fitted_to_length(planned(), steps, FACTS, changes=()) for steps in (0, 10**9))
    assert (few.training.weight_decay, few.training.ema_decay) == (0.5, 0.9)
    assert (many.training.weight_decay, many.training.ema_decay) == (3e-5, 0.999)


def test_what_was_asked_for_stays() -> None:
    asked = planned(**{"training.weight_decay": 0.01, "training.ema_decay": 0.5})
    changes = {"training.weight_decay", "training.ema_decay"}
    assert fitted_to_length(asked, 1400, FACTS, changes=changes) == asked


def test_adamw_keeps_its_decay() -> None:
    plan = planned(**{"training.optimiser": "adamw"})
    fitted = fitted_to_length(plan, 1400, FACTS, changes=())
    assert fitted.training.weight_decay == plan.training.weight_decay == 3e-5
    assert "weight_decay" not in fitted.reasons


def test_epochs_that_are_known_count_as_steps() -> None:
    plan = make_plan(
        fingerprint(), LABELS, replace(MEANS, epochs=40), changes={"training.steps_per_epoch": 35}
    )
    assert plan.training.weight_decay == 0.25


def test_intensities_vary_less_often_where_a_case_is_seen_a_few_times() -> None:
    assert planned().training.augmentation.intensity_probability == 0.5
    # Of 10 cases that a patch shows whole, two a step: 100 steps show each of them 20 times.
    for steps, probability in ((10, 0.25), (100, 0.25), (150, 0.375), (200, 0.5), (9000, 0.5)):
        fitted = fitted_to_length(planned(), steps, fingerprint(), changes=())
        assert fitted.training.augmentation.intensity_probability == probability
    four = fitted_to_length(planned(), 50, fingerprint(), changes=(), processes=4)
    assert four.training.augmentation.intensity_probability == 0.5
    told = fitted_to_length(planned(), 150, fingerprint(), changes=()).reasons["augmentation"]
    assert told.endswith("; intensities 0.75 times as often as usual: a case is seen 30 times")
    untold = fitted_to_length(planned(), 200, fingerprint(), changes=()).reasons["augmentation"]
    assert untold == planned().reasons["augmentation"]


def test_a_patch_that_shows_a_part_of_a_case_counts_as_that_part() -> None:
    plan = planned()
    assert plan.spacing_mm == (1, 1, 1)
    # Eight patches fill it at 0.5 mm; the plan's grid is coarser by two.
    sides = tuple(4 * side for side in plan.patch_size)
    facts = fingerprint(median_shape=sides, median_spacing_mm=(0.5, 0.5, 0.5))
    for steps, probability in ((800, 0.25), (1200, 0.375), (1600, 0.5)):
        fitted = fitted_to_length(plan, steps, facts, changes=())
        assert fitted.training.augmentation.intensity_probability == probability


def test_augmentation_that_was_asked_for_stays() -> None:
    asked = {"training.augmentation.noise.probability": 0.9}
    fitted = fitted_to_length(planned(**asked), 10, fingerprint(), changes=asked)
    assert fitted.training.augmentation == planned(**asked).training.augmentation
