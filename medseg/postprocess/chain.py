"""The steps that a plan names, applied in order to a finished mask."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from numpy.typing import NDArray

from medseg.core.labels import LabelSet
from medseg.core.plan import PostprocessStep
from medseg.postprocess.components import keep_largest


def apply_chain(
    mask: NDArray[Any], steps: tuple[PostprocessStep, ...], labels: LabelSet
) -> NDArray[Any]:
    """Apply post-processing steps to a mask.

    Neighbouring steps of one kind and connectivity touch different labels, so they run as
    one pass over the mask.

    Args:
        mask: (I, J, K) mask values (not class indices). Not changed.
        steps: What to do, in order. Labels are named as in ``labels``.
        labels: What the values mean.

    Returns:
        The new mask; the given one itself when there is no step.

    Raises:
        LabelError: A step names a label that is not in the set.
    """
    for (_, connectivity), group in groupby(steps, key=lambda step: (step.step, step.connectivity)):
        values = [labels.named(step.label).value for step in group]
        mask = keep_largest(mask, values, connectivity=connectivity)
    return mask
