"""Masks of cases that were not trained on, beside what they should be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from medseg.core.plan import Plan, PostprocessStep
from medseg.datasets.dataset import Case, Dataset
from medseg.datasets.reading import read_case_mask
from medseg.io.formats import read_mask
from medseg.training.learned_steps import HeldOutPair, learn_steps


def held_out_pair(case: Case, plan: Plan, folder: Path) -> HeldOutPair:
    """The prediction and the truth of a validation case, as values of the plan's labels.

    Voxels that nobody labelled are background in both; a later region lies over an earlier one.

    Args:
        case: Of the dataset.
        plan: With its label scheme.
        folder: Where the predicted masks lie.

    Raises:
        FileError: A mask is missing or damaged.
    """
    prediction, grid = read_mask(folder / f"{case.id}.nii.gz")
    scheme = plan.scheme
    indices = scheme.to_indices(read_case_mask(case)[0])
    if scheme.ignored is not None:
        prediction = np.where(indices == scheme.ignored, 0, prediction).astype(prediction.dtype)
    truth = plan.labels.to_values(scheme.painted(indices))
    return HeldOutPair(prediction, truth, grid.geometry)


def learn_from_folds(
    dataset: Dataset, plan: Plan, folders: Sequence[Path]
) -> tuple[PostprocessStep, ...]:
    """Choose post-processing by the masks of all folds: of every case one that never saw it.

    Args:
        dataset: With the cases of all folds.
        plan: Its label scheme counts.
        folders: Of the folds; ``validation/`` in each holds masks as the network made them.

    Returns:
        The steps that raise the Dice beyond its noise, each with its evidence.
    """

    def pairs() -> Iterator[HeldOutPair]:
        for folder in folders:
            masks = folder / "validation"
            table = json.loads((masks / "metrics.json").read_text(encoding="utf-8"))
            for case in dataset.select(tuple(table["cases"])):
                known = plan.scheme.known(case.annotated)
                # What nobody looked for in a case cannot be told from what is not there.
                if known is None or all(known):
                    yield held_out_pair(case, plan, masks)

    return learn_steps(pairs, plan.labels)
