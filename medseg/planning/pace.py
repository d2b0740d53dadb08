"""How many steps of a network that was asked for fit into the time, and what would get more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from medseg.core.plan import Plan
from medseg.networks.cost import network_cost
from medseg.planning.presets import PRESETS

StepCost = Callable[[Plan], float]
# The plan of a network (or preset) by its name and width.
PlanOf = Callable[[str, int], Plan]
# Of the time for training, what measuring a step may take; it runs as many as this.
_MEASURED_SHARE, _MEASURED_STEPS = 0.05, 4


@dataclass(frozen=True)
class Clock:
    """The time that there is.

    Attributes:
        training_s: For all steps.
        enough_steps: How many are wanted.
        step_cost: Seconds of a step of a plan, measured.
    """

    training_s: float
    enough_steps: int
    step_cost: StepCost

    def steps_of(self, plan: Plan) -> int:
        """How many steps of a plan fit, by a measured one."""
        return int(self.training_s / self.step_cost(plan))


def pace_of_preset(
    name: str, plan: Plan, clock: Clock, *, widths: tuple[int, ...], plan_of: PlanOf
) -> tuple[int, str]:
    """How many steps of a preset fit, and what to take where they are too few.

    What other networks take is reckoned from their arithmetic.

    Args:
        name: Of ``PRESETS``.
        plan: Of the preset.
        clock: The time that there is.
        widths: Of a U-Net, to choose from by time, narrowest first.
        plan_of: Plans on the same grid, as they are usual for the device.

    Returns:
        Steps, and advice; "" where as many fit as are wanted.
    """
    small = plan_of("unet", widths[0])
    small_s, step_s = _steps_measured(plan, clock, small=small)
    steps = int(clock.training_s / step_s)
    if steps >= clock.enough_steps:
        return steps, ""
    for other in _smaller(name):
        share = _work(plan_of(other, PRESETS[other].width)) / _work(plan)
        if (fit := int(clock.training_s / (step_s * share))) >= clock.enough_steps:
            return steps, f"--network {other} gets about {fit}"
    for width in reversed(widths):
        share = _work(plan_of("unet", width)) / _work(small)
        if (fit := int(clock.training_s / (small_s * share))) >= clock.enough_steps:
            away = "leave --preset and --network away"
            return steps, f"{away}: a U-Net of {width} channels gets about {fit}"
    return steps, "no network gets as many: give a longer --budget"


def steps_that_fit(plan: Plan, clock: Clock, *, small: Plan) -> int:
    """How many steps of a plan fit, found without taking much of the time.

    Args:
        plan: Of any size.
        clock: The time that there is.
        small: A plan whose step is quick.
    """
    return int(clock.training_s / _steps_measured(plan, clock, small=small)[1])


def _steps_measured(plan: Plan, clock: Clock, *, small: Plan) -> tuple[float, float]:
    """Seconds of a step of the small plan, and of the plan.

    The second is measured where that takes a small part of the time; else it is reckoned from
    the arithmetic of both.
    """
    small_s = clock.step_cost(small)
    step_s = small_s * _work(plan) / _work(small)
    if _MEASURED_STEPS * step_s <= _MEASURED_SHARE * clock.training_s:
        step_s = clock.step_cost(plan)
    return small_s, step_s


def _smaller(name: str) -> list[str]:
    """Presets of the same network with less of everything, largest first."""
    alike = [other for other, preset in PRESETS.items() if preset.network == PRESETS[name].network]
    return alike[: alike.index(name)][::-1]


def _work(plan: Plan) -> float:
    """Arithmetic of a batch, in GFLOPs forward."""
    return plan.training.batch_size * network_cost(plan.network, plan.patch_size).gflops
