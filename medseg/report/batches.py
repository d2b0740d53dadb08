"""Training batches as the network sees them: three planes of each patch, labels over grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medseg.core.labels import LabelSet
from medseg.report.painting import PLANES
from medseg.report.panels import GAP, Rgb, resized, row_of, sheet_of, tinted

_PANEL_PX = 190


@dataclass(frozen=True)
class Patch:
    """One sample of a batch.

    Attributes:
        image: (I, J, K), the first channel.
        classes: (I, J, K), 0 is background.
        note: How it was varied.
    """

    image: NDArray[np.float32]
    classes: NDArray[Any]
    note: str


def draw_batches(
    batches: Sequence[Sequence[Patch]],
    labels: LabelSet,
    *,
    spacing_mm: tuple[float, float, float],
    title: str,
) -> Image.Image:
    """One sheet: a row for each batch, and below what was done to each sample.

    Args:
        batches: Samples of each.
        labels: Names and colours of the classes.
        spacing_mm: Of the patches; panels keep its proportions.
        title: Above.
    """
    colours = np.array([(0, 0, 0), *(label.colour for label in labels.labels)], dtype=np.uint8)
    rows, notes = [], []
    for number, batch in enumerate(batches, start=1):
        rows.append(row_of([_panels(patch, colours, spacing_mm) for patch in batch], 2 * GAP))
        notes += [
            f"batch {number}, sample {place}: {patch.note or 'as it is'}"
            for place, patch in enumerate(batch, start=1)
        ]
    return sheet_of(rows, title=title, notes=notes)


def _panels(patch: Patch, colours: Rgb, spacing_mm: tuple[float, float, float]) -> Rgb:
    flat = [plane for plane in PLANES if patch.image.shape[plane.normal] == 1]
    low, high = np.percentile(patch.image, [0.5, 99.5])
    grey = np.clip((patch.image - low) / max(float(high - low), 1e-6), 0, 1) * 255
    middle = _middle(patch.classes)
    size_mm = np.array(patch.image.shape) * np.array(spacing_mm)
    shown = flat[:1] or list(PLANES)
    extent = max(size_mm[axis] for plane in shown for axis in plane.axes)
    panels = []
    for plane in shown:
        across, down = (max(2, round(_PANEL_PX * size_mm[axis] / extent)) for axis in plane.axes)
        picture = resized(plane.cut(grey, middle[plane.normal]).astype(np.uint8), (down, across))
        classes = plane.cut(patch.classes, middle[plane.normal]).astype(np.uint16)
        rows = np.arange(down) * classes.shape[0] // down
        columns = np.arange(across) * classes.shape[1] // across
        panels.append(tinted(picture, classes[rows[:, None], columns], colours))
    return row_of(panels, GAP)


def _middle(classes: NDArray[Any]) -> list[int]:
    """For each axis the plane that shows most labelled voxels; the middle where there are none."""
    found = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        counts = (classes > 0).sum(axis=others)
        found.append(int(counts.argmax()) if counts.any() else classes.shape[axis] // 2)
    return found
