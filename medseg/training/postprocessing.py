"""Choose the steps after the network on cases that were kept back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.plan import Plan, PostprocessStep
from medseg.inference.predictor import Predictor
from medseg.training.cache import CachedCase
from medseg.training.learned_steps import LEAST_CASES, HeldOutPair, learn_steps
from medseg.training.validation import predicted_classes


def learn_postprocessing(
    predictor: Predictor, cases: Sequence[CachedCase]
) -> tuple[PostprocessStep, ...]:
    """Choose the steps that raise the Dice of cases which were kept back from training.

    Predictions are compared on the network's own grid; see
    :func:`medseg.training.learned_steps.learn_steps`, which takes predictions of any source.

    Args:
        predictor: With the final weights.
        cases: The inner cases; none of them was trained on. Those with labels that nobody
            annotated are left out; fewer than five teach nothing.

    Returns:
        The steps, each with its evidence.
    """
    # What a case does not know of is no fault of a prediction.
    cases = [case for case in cases if case.known is None]
    if len(cases) < LEAST_CASES:
        return ()
    plan = predictor.plan
    labels = LabelSet.from_names(dict(enumerate(plan.labels.names, start=1)))
    with TemporaryDirectory() as folder:
        # They are looked at twice, and predicting takes longer than reading.
        files = [Path(folder, f"{number}.npy") for number in range(len(cases))]
        for file, (case, prediction) in zip(
            files, predicted_classes(predictor, cases), strict=True
        ):
            both = np.stack([prediction, np.asarray(case.label)])
            np.save(file, both, allow_pickle=False)

        def pairs() -> Iterator[HeldOutPair]:
            for file in files:
                prediction, reference = np.load(file)
                yield HeldOutPair(prediction, reference, _grid(plan, reference.shape))

        return learn_steps(pairs, labels)


def _grid(plan: Plan, shape: tuple[int, ...]) -> Geometry | None:
    """The network's grid, as far as volumes go; None where an axis keeps each scan's spacing."""
    known = [step for step in plan.spacing_mm if step is not None]
    if len(known) < len(plan.spacing_mm) or not prod(known):
        return None
    a, b, c = shape
    return Geometry((a, b, c), np.diag([*known, 1.0]))
