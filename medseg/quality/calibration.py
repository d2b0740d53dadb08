"""From what is seen of a mask to the Dice that it will have, learned on masks with known truth.

A small additive model: the logit of the Dice is a sum of piecewise linear functions of the
inputs, fitted by robust least squares of the Dice itself. What it errs by on cases that it was
not fitted to gives the interval (cross-conformal prediction: V. Vovk, 2015), in ranges of the
prediction, since bad masks are predicted less well than good ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medseg.core.profile import DiceModel
from medseg.quality.deviations import chance, logit
from medseg.quality.features import Figures

Floats = NDArray[np.float64]

FEWEST_MASKS, FEWEST_CASES = 30, 4
Made = Literal["stage", "model", "planted"]
_COVERAGE = 0.9
_KNOTS = (0.2, 0.5, 0.8)
_FOLDS = 8
_ROUNDS = 30
_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)
# Residuals of the Dice above this count less: a label may be absent by the annotator's choice.
_HUBER = 0.1
# Masks for each range of the interval, and how many ranges at most.
_MASKS_A_RANGE, _MOST_RANGES = 40, 6


@dataclass(frozen=True)
class Sample:
    """One mask of one label with its truth.

    Attributes:
        label: Its name.
        inputs: From ``deviations.inputs_of``.
        dice: With the truth.
        case: A number of the case, alike for all its masks.
        made: By an early stage of the network, by the finished model, or with a fault planted.
    """

    label: str
    inputs: Figures
    dice: float
    case: int
    made: Made = "model"


def fit_dice_model(samples: Sequence[Sample]) -> DiceModel | None:
    """Learn to predict Dice; None of too few masks or cases.

    Args:
        samples: Masks of all qualities, of cases that the network was not trained on.
    """
    samples = [sample for sample in samples if sample.inputs]
    cases = np.array([sample.case for sample in samples])
    if len(samples) < FEWEST_MASKS or np.unique(cases).size < FEWEST_CASES:
        return None
    design = _Design.of(samples)
    truth = np.array([sample.dice for sample in samples])
    folds = np.searchsorted(np.unique(cases), cases) % _FOLDS
    apart = {penalty: _apart(design, samples, truth, folds, penalty) for penalty in _PENALTIES}
    best = min(_PENALTIES, key=lambda penalty: float(np.abs(apart[penalty] - truth).mean()))
    edges, below, above = _intervals(apart[best], truth)
    weights = _fitted(design.matrix(samples), truth, best)
    return design.model(weights, edges=edges, below=below, above=above, masks=len(samples))


def predict_dice(model: DiceModel, label: str, inputs: Figures) -> tuple[float, float, float]:
    """Predicted Dice of a mask, and the ends of its interval."""
    odds = model.intercept + model.offsets.get(label, 0.0)
    for name, usual, knots, weights in zip(
        model.inputs, model.usual, model.knots, model.weights, strict=True
    ):
        value = inputs.get(name, usual)
        odds += weights[0] * value
        odds += sum(w * max(0.0, value - knot) for w, knot in zip(weights[1:], knots, strict=True))
    dice = chance(odds)
    place = int(np.searchsorted(model.edges, dice))
    return dice, max(0.0, dice - model.below[place]), min(1.0, dice + model.above[place])


@dataclass(frozen=True)
class _Design:
    """How inputs become columns."""

    inputs: tuple[str, ...]
    usual: tuple[float, ...]
    knots: tuple[tuple[float, ...], ...]
    labels: tuple[str, ...]
    middle: Floats
    scale: Floats

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> _Design:
        names = tuple(sorted({name for sample in samples for name in sample.inputs}))
        usual, knots = [], []
        for name in names:
            values = [sample.inputs[name] for sample in samples if name in sample.inputs]
            usual.append(float(np.median(values)))
            knots.append(tuple(sorted({float(k) for k in np.quantile(values, _KNOTS)})))
        labels = tuple(sorted({sample.label for sample in samples}))
        bare = cls(names, tuple(usual), tuple(knots), labels, np.zeros(1), np.ones(1))
        columns = bare.columns(samples)
        scale = columns.std(axis=0)
        scale[scale < 1e-9] = 1.0
        return cls(names, tuple(usual), tuple(knots), labels, columns.mean(axis=0), scale)

    def columns(self, samples: Sequence[Sample]) -> Floats:
        found = []
        for name, usual, knots in zip(self.inputs, self.usual, self.knots, strict=True):
            values = np.array([sample.inputs.get(name, usual) for sample in samples])
            found += [values, *(np.maximum(0.0, values - knot) for knot in knots)]
        found += [
            np.array([float(sample.label == label) for sample in samples]) for label in self.labels
        ]
        return np.stack(found, axis=1)

    def matrix(self, samples: Sequence[Sample]) -> Floats:
        """(samples, 1 + columns), the first is 1."""
        columns = (self.columns(samples) - self.middle) / self.scale
        return np.concatenate([np.ones((len(samples), 1)), columns], axis=1)

    def model(
        self, weights: Floats, *, edges: Floats, below: Floats, above: Floats, masks: int
    ) -> DiceModel:
        plain = weights[1:] / self.scale
        counts = [1 + len(knots) for knots in self.knots]
        parts = np.split(plain, np.cumsum(counts))
        return DiceModel(
            inputs=self.inputs,
            usual=self.usual,
            knots=self.knots,
            weights=tuple(tuple(float(w) for w in part) for part in parts[:-1]),
            intercept=float(weights[0] - plain @ self.middle),
            offsets=dict(zip(self.labels, (float(w) for w in parts[-1]), strict=True)),
            edges=tuple(float(e) for e in edges),
            below=tuple(float(b) for b in below),
            above=tuple(float(a) for a in above),
            coverage=_COVERAGE,
            masks=masks,
        )


def _fitted(matrix: Floats, truth: Floats, penalty: float) -> Floats:
    """Weights that bring sigmoid(matrix @ weights) near to the truth: Gauss-Newton, damped."""
    weights = np.zeros(matrix.shape[1])
    weights[0] = logit(float(np.median(truth)))
    ridge = np.full(matrix.shape[1], penalty)
    ridge[0] = 0.0
    cost, damping = _cost(matrix, truth, weights, ridge), 1e-3
    for _ in range(_ROUNDS):
        predicted = _sigmoid(matrix @ weights)
        slope = predicted * (1 - predicted) + 0.02
        error = truth - predicted
        trust = np.minimum(1.0, _HUBER / np.maximum(np.abs(error), 1e-12))
        lean = matrix * (slope * trust)[:, None]
        normal = lean.T @ (matrix * slope[:, None])
        pull = lean.T @ error - ridge * weights / len(truth)
        normal[np.diag_indices_from(normal)] += ridge / len(truth)
        step = np.linalg.solve(normal + damping * np.eye(len(normal)), pull)
        trial = weights + step
        reached = _cost(matrix, truth, trial, ridge)
        if reached < cost:
            weights, cost, damping = trial, reached, max(damping / 5, 1e-9)
        else:
            damping *= 8
    return weights


def _cost(matrix: Floats, truth: Floats, weights: Floats, ridge: Floats) -> float:
    error = np.abs(truth - _sigmoid(matrix @ weights))
    huber = np.where(error < _HUBER, error**2 / 2, _HUBER * (error - _HUBER / 2))
    return float(huber.sum() + (ridge * weights**2).sum() / (2 * len(truth)))


def _sigmoid(odds: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(odds, -30, 30))))


def _apart(
    design: _Design,
    samples: Sequence[Sample],
    truth: Floats,
    folds: NDArray[np.intp],
    penalty: float,
) -> Floats:
    """What is predicted of each mask by a fit without its case."""
    matrix, predicted = design.matrix(samples), np.empty(len(samples))
    for fold in np.unique(folds):
        own = folds == fold
        predicted[own] = _sigmoid(matrix[own] @ _fitted(matrix[~own], truth[~own], penalty))
    return predicted


def _intervals(predicted: Floats, truth: Floats) -> tuple[Floats, Floats, Floats]:
    """Edges of the ranges, and how far the truth lies below and above in each."""
    ranges = int(np.clip(len(truth) // _MASKS_A_RANGE, 1, _MOST_RANGES))
    edges = np.unique(np.quantile(predicted, np.arange(1, ranges) / ranges))
    place = np.searchsorted(edges, predicted)
    tail = (1 - _COVERAGE) / 2
    below, above = [], []
    for number in range(len(edges) + 1):
        errors = (truth - predicted)[place == number]
        # One more than there are: the mask to come counts, too.
        share = min(1.0, (1 - tail) * (len(errors) + 1) / max(1, len(errors)))
        below.append(max(0.0, float(np.quantile(-errors, share))))
        above.append(max(0.0, float(np.quantile(errors, share))))
    return edges, np.array(below), np.array(above)
