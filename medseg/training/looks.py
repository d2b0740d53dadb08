"""Looks at the inner cases during a run, by which the best weights are chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medseg.inference.predictor import Predictor
from medseg.training.cache import CachedCase
from medseg.training.checkpoint import TrainState
from medseg.training.validation import mean_class_dice

# As shares of the run. Late ones: weights are best near the end.
LOOKS = (0.25, 0.5, 0.65, 0.8, 0.9, 1.0)


def is_due(looked: float, share: float) -> bool:
    """Whether a look lies between the share of the run at the last one and the present share."""
    return any(looked < look <= share for look in LOOKS)


def choose_best(
    state: TrainState, predictor: Predictor, inner: Sequence[CachedCase]
) -> dict[str, float | None]:
    """Score the averaged weights on the inner cases, and keep them where they did best.

    Args:
        state: Whose ``best`` and ``best_score`` may change.
        predictor: With the averaged weights.
        inner: Kept back; may be empty.

    Returns:
        Mean Dice by label name (None for a label that no inner case has); empty without
        inner cases, where the latest weights are kept.
    """
    dice = mean_class_dice(predictor, inner)
    known = dice[~np.isnan(dice)]
    score = float(known.mean()) if known.size else -1.0
    if score >= state.best_score or not inner:
        weights = state.average.state_dict()
        state.best = {name: value.detach().clone() for name, value in weights.items()}
        state.best_score = score
    names = predictor.plan.labels.names if inner else ()
    return {
        name: None if math.isnan(value) else round(float(value), 4)
        for name, value in zip(names, dice, strict=False)
    }
