"""Faults for the labels of a cascade's first stage: what it gets wrong on scans it never saw.

While the second stage learns, some patches get labels that have grown, shrunk, been opened or
closed, or that lack a part, so that it does not trust them blindly. Isensee et al., Nature
Methods 18, 2021, supplement; simplified: a box in place of a ball moves the borders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# How often the labels of a patch are moved, and lack parts; the share of the patch above which
# a part is never taken away; by how many voxels borders move (nnU-Net's figures).
_MOVED, _LACKING, _LARGEST_PART, _FARTHEST = 0.4, 0.2, 0.15, 8
_KINDS = ("grown", "shrunk", "opened", "closed")
Labels = NDArray[Any]


@dataclass(frozen=True)
class EarlierFaults:
    """What chance decided for the labels of one patch.

    Attributes:
        moves: Label, kind and voxels of each border that moves, in order.
        lost: Label, and which of its parts goes, from 0 to 1.
    """

    moves: tuple[tuple[int, str, int], ...] = ()
    lost: tuple[tuple[int, float], ...] = ()


def draw_faults(rng: np.random.Generator, count: int) -> EarlierFaults:
    """Draw the faults of a patch.

    Args:
        rng: Where chance comes from.
        count: How many labels there are.
    """
    moves: list[tuple[int, str, int]] = []
    lost: list[tuple[int, float]] = []
    order = 1 + rng.permutation(count)
    if rng.random() < _MOVED:
        for label in order.tolist():
            kind = _KINDS[int(rng.integers(len(_KINDS)))]
            moves.append((label, kind, int(rng.integers(1, _FARTHEST, endpoint=True))))
    if rng.random() < _LACKING:
        lost = [(label, float(rng.random())) for label in order.tolist()]
    return EarlierFaults(tuple(moves), tuple(lost))


def with_faults(labels: Labels, faults: EarlierFaults) -> Labels:
    """A copy of the labels with these faults; a label that grows paints over others.

    Args:
        labels: (I, J, K) whole numbers, 0 for background.
        faults: From :func:`draw_faults`.
    """
    if not faults.moves and not faults.lost:
        return labels
    labels = labels.copy()
    for label, kind, voxels in faults.moves:
        _move(labels, label, kind, voxels)
    for label, which in faults.lost:
        _lose(labels, label, which)
    return labels


def _box_of(labels: Labels, label: int, margin: int) -> tuple[slice, ...] | None:
    """Where a label lies, with a margin within the volume."""
    from scipy import ndimage  # late: every training loads this file, and only cascades use it

    (found,) = ndimage.find_objects((labels == label).astype(np.uint8)) or (None,)
    if found is None:
        return None
    return tuple(
        slice(max(0, part.start - margin), min(side, part.stop + margin))
        for part, side in zip(found, labels.shape, strict=True)
    )


def _move(labels: Labels, label: int, kind: str, voxels: int) -> None:
    from scipy import ndimage

    # What is closed grows first, and must not reach the box that is looked at.
    box = _box_of(labels, label, 2 * voxels)
    if box is None:
        return
    part = labels[box]
    before = part == label
    # Along an axis of single slices nothing moves.
    sizes = [2 * voxels + 1 if side > 1 else 1 for side in labels.shape]
    grow, shrink = ndimage.maximum_filter, ndimage.minimum_filter
    steps = {
        "grown": (grow,), "shrunk": (shrink,), "opened": (shrink, grow), "closed": (grow, shrink),
    }[kind]  # fmt: skip
    after = before.astype(np.uint8)
    for step in steps:
        # Beyond the patch the label goes on as it ends, so that borders of the patch are none.
        after = step(after, size=sizes, mode="nearest")
    part[before & (after == 0)] = 0
    part[after > 0] = label


def _lose(labels: Labels, label: int, which: float) -> None:
    from scipy import ndimage

    box = _box_of(labels, label, 0)
    if box is None:
        return
    part = labels[box]
    found, count = ndimage.label(part == label)
    sizes = np.bincount(found.ravel(), minlength=count + 1)[1:]
    small = 1 + np.flatnonzero(sizes <= _LARGEST_PART * labels.size)
    if small.size:
        part[found == small[int(which * small.size)]] = 0
