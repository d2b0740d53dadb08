"""How masks and probabilities of a set's members become one mask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.labels import LabelSet
from medseg.inference.averaging import MeanProbabilities
from medseg.inference.memory import free_bytes
from medseg.package.model_set import SetFile, SetMember
from medseg.workflows.model import Model

_SHARE_OF_FREE = 0.8
# What of a plan decides how a scan is prepared.
_PREPARING = {"channels", "orientation", "axis_order", "crop", "spacing_mm", "resampling"}


def preparing_key(model: Model) -> str:
    """Equal for models that take a scan prepared in the same way."""
    if model.has_stages:
        return model.sha256
    facts = model.plan.model_dump(mode="json", include=_PREPARING)
    flat = model.plan.network.spatial_dims == 2 or min(model.plan.patch_size) == 1
    return json.dumps([facts, flat], sort_keys=True)


def with_less(model: Model, taken_bytes: int, *, planned: bool) -> Model:
    """A model with the memory that is left where something else holds some of it.

    Args:
        model: With its own limits.
        taken_bytes: What something else holds.
        planned: It does not hold it yet, so that it still counts as free.
    """
    allowed = model.limits.max_memory_bytes
    if allowed is None:
        if not planned:
            return model
        allowed = int(_SHARE_OF_FREE * free_bytes())
    limits = replace(model.limits, max_memory_bytes=max(1, allowed - taken_bytes))
    return model.within(limits, skip_air=model.skip_air)


def painting_table(place: SetMember, labels: LabelSet, whole: LabelSet) -> NDArray[Any]:
    """From mask values of a member to classes of the set; 0 for what does not paint.

    Args:
        place: The member in its set.
        labels: Of the member.
        whole: Of the set.
    """
    table = np.zeros(max(labels.values) + 1, np.uint8 if len(whole) <= 255 else np.uint16)
    for name, wanted in place.labels.items():
        table[labels.named(name).value] = whole.names.index(wanted) + 1
    return table


def paint(total: NDArray[Any], mask: NDArray[Any], table: NDArray[Any]) -> None:
    """Paint a member's mask over what is there, in place."""
    found = table[mask]
    np.copyto(total, found, where=found > 0, casting="unsafe")


def label_places(place: SetMember, whole: LabelSet) -> dict[str, int]:
    """For each label of a member that counts, which it is of the set, from 0."""
    return {name: whole.names.index(wanted) for name, wanted in place.labels.items()}


def mean_of(
    file: SetFile, members: Sequence[Model], shape: tuple[int, int, int], folder: Path
) -> MeanProbabilities:
    """An empty mean for all members of a set.

    Args:
        file: The set.
        members: Its models.
        shape: (I, J, K) of the grid on which they are averaged.
        folder: For the file.

    Raises:
        OutputError: The folder has no room for it.
    """
    return MeanProbabilities(
        folder,
        shape,
        len(file.labels),
        models=len(members),
        activation=members[0].plan.activation,
        precision=members[0].limits.ring,
    )
