"""Choose the steps after the network on cases that were kept back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medseg.core.plan import PostprocessStep
from medseg.inference.predictor import Predictor
from medseg.postprocess.components import keep_largest
from medseg.training.cache import CachedCase
from medseg.training.validation import class_dice, mean_over_cases, predicted_classes

# A gain below this is rounding, not cleaning.
_LEAST_GAIN = 1e-4


def learn_postprocessing(
    predictor: Predictor, cases: Sequence[CachedCase]
) -> tuple[PostprocessStep, ...]:
    """Keep "largest region" for those labels whose mean Dice it raises.

    Args:
        predictor: With the final weights.
        cases: The inner cases; none of them was trained on. Without any, no step is kept.

    Returns:
        One step per label that gained, each with its evidence.
    """
    plan = predictor.plan
    classes = plan.network.classes
    before, after = [], []
    for case, prediction in predicted_classes(predictor, cases):
        reference = np.asarray(case.label)
        before.append(class_dice(prediction, reference, classes))
        # Labels are cleaned one by one: cleaning one never changes the Dice of another.
        cleaned = keep_largest(prediction, range(1, classes))
        after.append(class_dice(cleaned, reference, classes))
    if not before:
        return ()
    was, becomes = mean_over_cases(np.array(before)), mean_over_cases(np.array(after))
    return tuple(
        PostprocessStep(
            step="largest",
            label=label.name,
            evidence=f"mean Dice {was[index]:.4f} -> {becomes[index]:.4f} on {len(before)} "
            "cases kept back from training",
        )
        for index, label in enumerate(plan.labels.labels)
        if becomes[index] > was[index] + _LEAST_GAIN
    )
