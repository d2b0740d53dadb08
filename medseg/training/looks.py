"""Looks at the inner cases during a run, by which the weights to use are chosen.

Looks are at few cases, and near the end the weights differ little from one look to the next: the
highest of several Dice is then mostly the luckiest. So later weights are taken as they come, as
long as no earlier look was better beyond chance, which is what cases learned by heart look like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.inference.predictor import Predictor
from medseg.training.cache import CachedCase
from medseg.training.checkpoint import TrainState
from medseg.training.validation import class_dice, known_means

# As shares of the run. Late ones: weights are best near the end.
LOOKS = (0.25, 0.5, 0.65, 0.8, 0.9, 1.0)
# Standard errors by which an earlier look must have been better for its weights to stay.
_BEYOND_CHANCE = 2.0


def is_due(looked: float, share: float) -> bool:
    """Whether a look lies between the share of the run at the last one and the present share."""
    return any(looked < look <= share for look in LOOKS)


def choose_weights(
    state: TrainState, predictor: Predictor, inner: Sequence[CachedCase]
) -> dict[str, float | None]:
    """Score the averaged weights on the inner cases; keep them unless earlier ones were better.

    Args:
        state: Whose ``best``, ``best_score`` and ``highest_look`` may change.
        predictor: With the averaged weights.
        inner: Kept back; may be empty.

    Returns:
        Mean Dice by label name (None for a label that no inner case has); empty without
        inner cases, where the latest weights are kept.
    """
    table = class_dice(predictor, inner)
    dice = known_means(table)
    score = _mean(dice)
    # Of each case the mean of its labels.
    look = known_means(table.T)
    if not surely_better(np.array(state.highest_look), look):
        weights = state.average.state_dict()
        state.best = {name: value.detach().clone() for name, value in weights.items()}
        state.best_score = score
    if not state.highest_look or _mean(look) > _mean(np.array(state.highest_look)):
        state.highest_look = look.tolist()
    names = predictor.plan.labels.names if inner else ()
    return {
        name: None if math.isnan(value) else round(float(value), 4)
        for name, value in zip(names, dice, strict=False)
    }


def surely_better(earlier: NDArray[np.float64], later: NDArray[np.float64]) -> bool:
    """Whether the Dice of an earlier look is higher than a later one's beyond chance.

    Args:
        earlier: Dice of each case; empty where there was no look.
        later: Of the same cases.

    By the paired differences: their mean against its standard error (W. S. Gosset, "The probable
    error of a mean", 1908). Of a single case any difference counts.
    """
    if earlier.shape != later.shape:
        return False
    lost = (earlier - later)[~np.isnan(earlier - later)]
    if lost.size < 2:
        return bool(lost.sum() > 0)
    error = lost.std(ddof=1) / math.sqrt(lost.size)
    return bool(lost.mean() > _BEYOND_CHANCE * error)


def _mean(dice: NDArray[np.float64]) -> float:
    """Of what is known; -1 where nothing is."""
    known = dice[~np.isnan(dice)]
    return float(known.mean()) if known.size else -1.0
