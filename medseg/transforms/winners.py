"""From logits to class indices, also between voxels.

Where the neighbours of a place agree on the winner nothing is interpolated: a convex
combination keeps the order of its terms, so the winner is theirs.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from medseg.transforms.lines import Picks, spread

Activation = Literal["softmax", "regions"]

# With fewer classes, or with more voxels to interpolate, all at once is faster than some.
_DENSE_CLASSES = 4
_DENSE_SHARE = 0.15
# Values that are gathered at a time.
_FILL_VALUES = 1_000_000


def winners(logits: Tensor, activation: Activation) -> Tensor:
    """Class indices of logits.

    Args:
        logits: (classes, ...) float.
        activation: ``"softmax"``: the largest, the first of equals; ``"regions"``: n + 1 of the
            last channel n that is above 0, else 0.

    Returns:
        (...) int64.
    """
    if activation == "softmax":
        return logits.max(dim=0).indices
    order = torch.arange(1, logits.shape[0] + 1, device=logits.device)
    return ((logits > 0) * order.view(-1, *[1] * (logits.ndim - 1))).amax(dim=0)


def class_dtype(classes: int) -> np.dtype[Any]:
    """The type of class indices: uint8, or uint16 above 256 classes."""
    return np.dtype(np.uint8 if classes <= 256 else np.uint16)


def labels_between(
    logits: Tensor, rows: Picks, columns: Picks, *, activation: Activation
) -> Tensor:
    """Class indices of logits interpolated within planes.

    Args:
        logits: (classes, P, R, K) float32.
        rows: From R to the rows that are wanted.
        columns: The same for K.
        activation: See :func:`winners`.

    Returns:
        (P, rows, columns) integers.
    """
    classes = int(logits.shape[0])
    if rows.whole and columns.whole:
        return winners(spread(spread(logits, rows, dim=2), columns, dim=3), activation)
    if classes > _DENSE_CLASSES:
        found = winners(logits, activation).to(torch.int32)
        found.masked_fill_(~_agreeing(found, rows, columns), -1)
        result = found.index_select(1, rows.below).index_select(2, columns.below)
        open_ = (result.view(-1) < 0).nonzero()[:, 0]
        if len(open_) < _DENSE_SHARE * result.numel():
            _fill(result, open_, logits, (rows, columns), activation)
            return result
    return winners(spread(spread(logits, rows, dim=2), columns, dim=3), activation)


def _agreeing(found: Tensor, rows: Picks, columns: Picks) -> Tensor:
    """Where a voxel (P, R, K) and its next ones, as far as they are interpolated, are equal."""
    agree = torch.ones_like(found, dtype=torch.bool)
    if not rows.whole:
        agree[:, :-1] = found[:, :-1] == found[:, 1:]
    if not columns.whole:
        same = found[:, :, :-1] == found[:, :, 1:]
        agree[:, :, :-1] &= same
        if not rows.whole:
            agree[:, :-1, :-1] &= same[:, 1:]
    return agree


def _fill(
    result: Tensor,
    places: Tensor,
    logits: Tensor,
    lines: tuple[Picks, Picks],
    activation: Activation,
) -> None:
    """Interpolate at flat ``places`` of ``result`` alone."""
    rows, columns = lines
    classes, _, height, width = logits.shape
    # One voxel's classes side by side: each of its neighbours is then one run of memory.
    table = logits.permute(1, 2, 3, 0).reshape(-1, classes)
    for some in places.split(max(1, _FILL_VALUES // classes)):
        k = some % len(columns)
        j = some.div(len(columns), rounding_mode="floor")
        base = j.div(len(rows), rounding_mode="floor") * height
        j = j % len(rows)
        weight = columns.weight[k][:, None]
        halves = []
        for pick in (rows.below, rows.above):
            start = (base + pick[j]) * width
            left = table.index_select(0, start + columns.below[k])
            halves.append(left.lerp_(table.index_select(0, start + columns.above[k]), weight))
        mean = halves[0].lerp_(halves[1], rows.weight[j][:, None])
        found = mean.argmax(dim=1) if activation == "softmax" else winners(mean.T, activation)
        result.view(-1)[some] = found.to(result.dtype)
