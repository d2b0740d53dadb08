"""From fingerprint to plan, each choice with its reason.

The rules for spacing, patch and depth follow nnU-Net (Isensee et al., Nature Methods 18,
2021); the size of the network follows the time that there is, by a measured step cost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medseg.core.errors import DatasetError
from medseg.core.labels import LabelSet
from medseg.core.plan import Fingerprint, Plan, edited
from medseg.planning.draft import Wish, draft_plan
from medseg.planning.length import fitted_to_length, typical_sides
from medseg.planning.memory import StepBytes, estimated_step_bytes
from medseg.planning.pace import Clock, PlanOf, StepCost, pace_of_preset, steps_that_fit
from medseg.planning.presets import PRESETS
from medseg.planning.topology import patch_and_strides as patch_and_strides

# How much coarser the grid may get when the time is short, and the typical side of a scan
# (geometric mean, voxels) below which its organs would be lost.
COARSENINGS = (1.5, 2.0)
_LEAST_SIDE = 28.0
# So many labels are an atlas, which names what there may be; fewer were drawn for these cases,
# and one that none of them shows has a wrong value. Of absent ones so many are told by name.
_ATLAS, _NAMED = 30, 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Means:
    """What there is to train with.

    Attributes:
        patch_voxels: Most voxels of a patch.
        batch_size: Patches per step.
        widths: Channels of the finest stage to choose from, narrowest first.
        widest: Most channels of any stage.
        training_s: Time for the steps; None when their number is given.
        epochs: That number in epochs, where it is known.
        processes: That train together.
        enough_steps: How many steps a wider network must still get.
        configuration: One of ``settings.CONFIGURATIONS``.
        target_bytes: What a training step may take of the device's memory; the largest patch
            that fits then replaces ``patch_voxels``. None where nobody said.
        step_bytes: What a step of a plan takes, estimated or measured.
    """

    patch_voxels: int
    batch_size: int
    widths: tuple[int, ...]
    widest: int
    training_s: float | None = None
    epochs: int | None = None
    processes: int = 1
    enough_steps: int = 1300
    configuration: str = "auto"
    target_bytes: int | None = None
    step_bytes: StepBytes = estimated_step_bytes


def means_for(device_type: str, *, two_dimensional: bool, training_s: float | None) -> Means:
    """What a CPU or a GPU can be asked for, before anything is measured."""
    if device_type == "cuda":
        patch, batch = (512 * 512, 12) if two_dimensional else (128**3, 2)
        return Means(patch, batch, (16, 24, 32), 320, training_s, enough_steps=2000)
    patch, batch = (192 * 192, 8) if two_dimensional else (56 * 56 * 40, 2)
    return Means(patch, batch, (8, 12, 16, 24, 32), 256, training_s)


def make_plan(
    fingerprint: Fingerprint,
    labels: LabelSet,
    means: Means,
    *,
    network: str = "unet",
    width: int | None = None,
    step_cost: StepCost | None = None,
    changes: dict[str, object] | None = None,
) -> Plan:
    """Decide everything.

    Args:
        fingerprint: Of the training cases.
        labels: What to learn.
        means: What there is to train with.
        network: Which network or preset to size.
        width: Channels of the finest stage; None chooses by time.
        step_cost: Seconds of one training step of a plan, measured; None takes the first
            of ``means.widths``.
        changes: Dotted keys of the plan to replace, for example
            ``{"training.learning_rate": 0.001}``.

    Raises:
        DatasetError: A label is in no training case (of an atlas: none is in any).
        SettingsError: A change does not fit.
    """
    reasons = _absent(fingerprint)
    wanted = changes or {}

    def plan_of(channels: int, coarsening: float = 1.0) -> Plan:
        wish = Wish(
            network, channels, means.widest, means.patch_voxels, means.batch_size, coarsening,
            means.configuration, means.target_bytes, means.step_bytes,
        )  # fmt: skip
        plan = draft_plan(fingerprint, labels, wish)
        plan = plan.model_copy(update={"reasons": {**plan.reasons, **reasons}})
        return edited(plan, wanted) if wanted else plan

    clock = None
    if step_cost is not None and means.training_s is not None:
        clock = Clock(means.training_s, means.enough_steps, step_cost)
    if width is not None:
        plan, why = plan_of(width), f"{width} channels as set"
        steps = steps_that_fit(plan, clock, small=plan_of(means.widths[0])) if clock else None
    elif network in PRESETS:
        # What is compared with it takes no more memory than is usual, and no edits of a network.
        usual = {key: value for key, value in wanted.items() if key.startswith("training.")}
        others = _plans_of(fingerprint, labels, means, changes=usual)
        plan = plan_of(PRESETS[network].width)
        steps, why = _pace_of_preset(network, plan, means, clock, plan_of=others)
    elif clock is None:
        plan, steps, why = plan_of(means.widths[-1]), None, "the widest for this device"
    else:
        plan, steps = _largest_that_fits(plan_of, clock.steps_of, means, fingerprint)
        advice = "" if means.target_bytes is None else "leave --preset and --target-memory away"
        size = f"{plan.network.features[0]} channels"
        why = _pace(plan, steps, means, size=size, advice=advice)

    plan = plan.model_copy(update={"reasons": {**plan.reasons, "features": why}})
    if steps is None and means.epochs is not None:
        steps = means.epochs * plan.training.steps_per_epoch
    if steps is None:
        return plan
    return fitted_to_length(plan, steps, fingerprint, changes=wanted, processes=means.processes)


def _pace_of_preset(
    name: str, plan: Plan, means: Means, clock: Clock | None, *, plan_of: PlanOf
) -> tuple[int | None, str]:
    """How many steps of a preset fit, where that is asked, and why it has its size."""
    size = f"{PRESETS[name].width} channels, as {name} has"
    if clock is None:
        return None, size
    steps, advice = pace_of_preset(name, plan, clock, widths=means.widths, plan_of=plan_of)
    return steps, _pace(plan, steps, means, size=size, advice=advice)


def _plans_of(
    fingerprint: Fingerprint, labels: LabelSet, means: Means, *, changes: dict[str, object]
) -> PlanOf:
    """Plans of networks by name and width, with patches as they are usual for the device."""

    def plan_of(name: str, width: int) -> Plan:
        wish = Wish(
            name, width, means.widest, means.patch_voxels, means.batch_size,
            configuration=means.configuration,
        )  # fmt: skip
        return edited(draft_plan(fingerprint, labels, wish), changes)

    return plan_of


def _absent(fingerprint: Fingerprint) -> dict[str, str]:
    """Why some labels of an atlas are never learned; of a few labels each must be shown."""
    absent = [name for name, cases in fingerprint.label_cases.items() if cases == 0]
    if not absent:
        return {}
    if len(fingerprint.label_cases) < _ATLAS or len(absent) == len(fingerprint.label_cases):
        raise DatasetError(
            "training cases",
            expected="each label in at least one case",
            got=f"none with {', '.join(absent[:_NAMED])}",
            cure="Leave them out with --labels, or use another fold.",
        )
    many = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
    told = f"in no training case, so that they are not learned: {', '.join(absent[:_NAMED])}{many}"
    _log.warning("labels %s; --labels leaves them out", told)
    return {"absent_labels": told}


def _largest_that_fits(
    plan_of: Callable[[int, float], Plan],
    steps_of: Callable[[Plan], int],
    means: Means,
    fingerprint: Fingerprint,
) -> tuple[Plan, int]:
    """The finest grid on which enough steps fit, and there the widest network.

    Starts with what costs least, so that measuring stays a small part of the time.
    """
    coarsening, best = 1.0, plan_of(means.widths[0], 1.0)
    steps = steps_of(best)
    if steps < means.enough_steps:
        # Coarser grids are guessed by their voxels; measuring each would cost what is short.
        affordable = steps * float(np.prod(best.patch_size))
        for factor in COARSENINGS:
            coarser = plan_of(means.widths[0], factor)
            if _typical_side(coarser, fingerprint) < _LEAST_SIDE:
                break
            coarsening, best = factor, coarser
            if affordable / float(np.prod(coarser.patch_size)) >= means.enough_steps:
                break
        steps = steps if coarsening == 1 else steps_of(best)
    for channels in means.widths[1:]:
        if steps < means.enough_steps:
            break
        wider = plan_of(channels, coarsening)
        fit = steps_of(wider)
        if fit < means.enough_steps:
            break
        best, steps = wider, fit
    return best, steps


def _pace(plan: Plan, steps: int, means: Means, *, size: str, advice: str) -> str:
    """Why the network has this size.

    Args:
        plan: Whose steps were counted.
        steps: That fit into the time.
        means: With the time, and how many steps are wanted.
        size: Of the network, in words.
        advice: What to do where they are too few; told where it was asked for otherwise.
    """
    reason = f"{size}: about {steps} steps fit, {means.enough_steps} are wanted"
    if advice and steps < means.enough_steps:
        _log.warning(
            "%s: about %d steps fit into the %.0f s that are left for training, %d are wanted; %s",
            plan.network.name, steps, means.training_s, means.enough_steps, advice,
        )  # fmt: skip
        reason += f"; {advice}"
    return reason


def _typical_side(plan: Plan, fingerprint: Fingerprint) -> float:
    """Geometric mean of the sides of a typical scan on the plan's grid."""
    sides = [side for side in typical_sides(plan, fingerprint) if side > 1]
    return float(np.prod(sides) ** (1 / max(1, len(sides))))
