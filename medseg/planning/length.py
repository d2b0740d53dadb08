"""What depends on how long a run is: averaging, weight decay, and how often patches are varied."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import numpy as np

from medseg.core.plan import Fingerprint, Plan, edited

# The averaged weights are about those of the last thirtieth of a run.
_AVERAGED_PART = 30
# Learning rate x weight decay x steps. What a kernel learned first has so faded at the end, in
# a short run as in a long one (the time scale of X. Wang and L. Aitchison, "How to set AdamW's
# weight decay as you scale model and dataset size", 2024, arXiv:2405.13698). Of 0.2 to 1.4 it
# was the best on hippocampus, also where the same 40 cases were seen 70 times.
_FADED = 0.7
_LEAST_DECAY, _MOST_DECAY = 3e-5, 0.5
# Intensities are varied half as often where each case is seen no more often than the first, and
# as usual from the second on: what is seen a few times is not learned by heart, and noise on it
# only hides it. On hippocampus, seen 19 times, this gave 0.0016 of Dice (benchmarks/RESULTS.md).
_FEW_VIEWS, _MANY_VIEWS = 20.0, 40.0


def fitted_to_length(
    plan: Plan,
    steps: int,
    fingerprint: Fingerprint,
    *,
    changes: Collection[str],
    processes: int = 1,
) -> Plan:
    """The plan with what follows from the number of steps.

    Args:
        plan: With network and optimiser.
        steps: That it will be trained for.
        fingerprint: Of the training cases.
        changes: Dotted keys that were asked for; they stay as they are.
        processes: That train together, each with a batch of its own.
    """
    training, steps = plan.training, max(steps, 1)
    average = float(np.clip(1 - _AVERAGED_PART / steps, 0.9, 0.999))
    fitted: dict[str, object] = {"training.ema_decay": round(average, 4)}
    reasons = {}
    if training.optimiser == "muon" and "training.weight_decay" not in changes:
        decay = float(np.clip(_FADED / (training.learning_rate * steps), _LEAST_DECAY, _MOST_DECAY))
        fitted["training.weight_decay"] = float(f"{decay:.2g}")
        reasons["weight_decay"] = f"what {steps} steps need for the first of them to fade"
    samples = steps * training.batch_size * training.accumulate * processes
    views = samples * _share_of_case(plan, fingerprint) / max(fingerprint.cases, 1)
    share = float(np.interp(views, (_FEW_VIEWS, _MANY_VIEWS), (0.5, 1.0)))
    if share < 1 and not any(key.startswith("training.augmentation") for key in changes):
        usual = training.augmentation.intensity_probability
        fitted["training.augmentation.intensity_probability"] = round(share * usual, 3)
        told = f"intensities {share:.2g} times as often as usual: a case is seen {views:.2g} times"
        reasons["augmentation"] = "; ".join(filter(None, (plan.reasons.get("augmentation"), told)))
    fitted = {key: value for key, value in fitted.items() if key not in changes}
    made = edited(plan, fitted) if fitted else plan
    return made.model_copy(update={"reasons": {**made.reasons, **reasons}})


def typical_sides(plan: Plan, fingerprint: Fingerprint) -> list[float]:
    """Voxels along each axis of a typical case on the plan's grid."""
    grid = zip(
        fingerprint.median_shape, fingerprint.median_spacing_mm, plan.spacing_mm, strict=True
    )
    return [side * old / (new or old) for side, old, new in grid]


def _share_of_case(plan: Plan, fingerprint: Fingerprint) -> float:
    """How much of a typical case a patch shows, at most all of it."""
    return min(1.0, prod(plan.patch_size) / prod(typical_sides(plan, fingerprint)))
