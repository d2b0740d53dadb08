"""Pictures of scans and masks: three planes, as radiologists look at them.

A scan is turned to the closest RAS+ order first, then shown from the patient's feet and
front: the patient's right is on the left of the picture. Nothing here keeps state, so
threads may draw at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import GeometryError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.report.painting import (
    DIM,
    PLANES,
    Colour,
    Plane,
    coloured,
    draw_legend,
    frame,
    label_colour,
    new_figure,
    new_panel,
    outline,
    show,
    to_png,
    windowed,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_IN, _GAP_IN, _HEAD_IN, _LEFT_IN = 2.3, 0.06, 0.5, 0.28
_TITLE_IN, _LEGEND_ROW_IN, _LEGEND_COLUMN_IN = 0.35, 0.19, 1.7
_LEGEND_MOST = 24
_TRUTH = "truth"


@dataclass(frozen=True)
class CasePicture:
    """One case to be drawn.

    Attributes:
        title: Above the case.
        geometry: The grid of scan and masks.
        masks: (I, J, K) label values by what they are, for example ``"truth"`` and
            ``"prediction"``; drawn in this order. On the others a white line shows the truth.
        voxels: (I, J, K), or (C, I, J, K) of which the first channel is shown, or all
            three of a uint8 colour picture; None to show the masks alone.
        modality: ``"CT"`` for the soft-tissue window (-160 to 240 HU), else percentiles 1
            to 99.5. Where it is "", intensities that reach below -500 are taken for CT.
    """

    title: str
    geometry: Geometry
    masks: Mapping[str, NDArray[Any]]
    voxels: NDArray[Any] | None = field(default=None, repr=False)
    modality: str = ""


def overlay_planes(
    voxels: NDArray[Any] | None,
    masks: Mapping[str, NDArray[Any]],
    *,
    geometry: Geometry,
    labels: LabelSet,
    title: str = "",
    modality: str = "",
) -> bytes:
    """Draw one case: scan and masks side by side, one row for each of the three planes.

    Each plane is cut where it shows the most: every label counts by its area there as a share
    of its largest. A 2D image is one row. See :class:`CasePicture` for the arguments.

    Returns:
        A PNG picture.

    Raises:
        GeometryError: A mask or the scan is not of the grid's shape.
    """
    return case_montage([CasePicture(title, geometry, masks, voxels, modality)], labels)


def case_montage(cases: Sequence[CasePicture], labels: LabelSet, *, title: str = "") -> bytes:
    """Draw several cases on one sheet, two side by side, with one legend.

    Args:
        cases: At least one.
        labels: Names and colours; values that it lacks are drawn grey.
        title: Above them all.

    Returns:
        A PNG picture.

    Raises:
        GeometryError: A mask or a scan is not of its grid's shape.
    """
    blocks = [_Block(case) for case in cases]
    columns = min(2, len(blocks))
    rows = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
    block_width_in = max(block.width_in for block in blocks)
    width_in = columns * block_width_in + (columns + 1) * 0.15
    entries = _legend_entries(blocks, labels)
    per_row = max(1, int(width_in / _LEGEND_COLUMN_IN))
    legend_in = _LEGEND_ROW_IN * -(-len(entries) // per_row) + 0.15
    title_in = _TITLE_IN if title else 0.05
    height_in = title_in + sum(max(b.height_in for b in row) for row in rows) + legend_in
    figure = new_figure(width_in, height_in)
    if title:
        write(figure, width_in / 2, height_in - 0.22, title, size=12, weight="bold", ha="center")
    top_in = height_in - title_in
    for row in rows:
        for column, block in enumerate(row):
            left_in = 0.15 + column * (block_width_in + 0.15)
            block.draw(figure, labels, left_in=left_in, top_in=top_in)
        top_in -= max(block.height_in for block in row)
    draw_legend(figure, entries, columns=per_row)
    return to_png(figure)


class _Block:
    """One case turned to RAS, with the size that it takes on the sheet."""

    def __init__(self, case: CasePicture) -> None:
        arrays = {**case.masks, **({} if case.voxels is None else {"scan": case.voxels})}
        for name, array in arrays.items():
            if array.shape[-3:] != case.geometry.shape:
                raise GeometryError(
                    f"picture of {case.title or 'a case'}, {name}",
                    expected=f"shape {case.geometry.shape}", got=str(array.shape),
                )  # fmt: skip
        turn = case.geometry.orientation_to_ras()
        grid = case.geometry.reoriented(turn)
        self.title = case.title
        self.masks = {name: turn.apply(mask) for name, mask in case.masks.items()}
        self.shades = (
            None if case.voxels is None else windowed(turn.apply(case.voxels), case.modality)
        )
        self.spacing_mm = grid.spacing_mm
        flat = [plane for plane in PLANES if grid.shape[plane.normal] == 1]
        self.flat = bool(flat)
        self.planes = (flat[0],) if flat else PLANES
        self.cuts = best_cuts(list(self.masks.values()), grid.shape)
        sizes_mm = [
            [grid.shape[axis] * grid.spacing_mm[axis] for axis in plane.axes]
            for plane in self.planes
        ]
        panel_in = _PANEL_IN * (1.4 if flat else 1.0)
        self.scale = panel_in / max(max(size) for size in sizes_mm)
        self.panel_in = self.scale * max(width for width, _ in sizes_mm)
        self.rows_in = [self.scale * height for _, height in sizes_mm]

    @property
    def panels(self) -> list[str]:
        """What is drawn side by side: "" for the bare scan, then the masks."""
        return [*([""] if self.shades is not None else []), *self.masks]

    @property
    def width_in(self) -> float:
        return _LEFT_IN + len(self.panels) * (self.panel_in + _GAP_IN)

    @property
    def height_in(self) -> float:
        return _HEAD_IN + sum(self.rows_in) + len(self.rows_in) * _GAP_IN + 0.1

    @property
    def reference(self) -> NDArray[Any] | None:
        return self.masks.get(_TRUTH)

    def draw(self, figure: Figure, labels: LabelSet, *, left_in: float, top_in: float) -> None:
        """Draw the case with its upper left corner at a place on the sheet."""
        write(figure, left_in, top_in - 0.16, self.title, size=9, weight="bold")
        for column, name in enumerate(self.panels):
            x_in = left_in + _LEFT_IN + column * (self.panel_in + _GAP_IN)
            lined = bool(name) and name != _TRUTH and self.reference is not None
            head = f"{name or 'scan'}{' (white line: truth)' if lined else ''}"
            middle_in = x_in + self.panel_in / 2
            write(figure, middle_in, top_in - 0.38, head, size=7.5, color=DIM, ha="center")
            y_in = top_in - _HEAD_IN
            for plane, row_in in zip(self.planes, self.rows_in, strict=True):
                y_in -= row_in
                axes = new_panel(figure, (x_in, y_in, self.panel_in, row_in))
                self._draw_plane(axes, plane, name, labels=labels)
                if column == 0 and not self.flat:
                    write(
                        figure, left_in + 0.14, y_in + row_in / 2, plane.name, size=7.5,
                        color=DIM, ha="center", rotation=90,
                    )  # fmt: skip
                y_in -= _GAP_IN

    def _draw_plane(self, axes: Axes, plane: Plane, name: str, *, labels: LabelSet) -> None:
        cut = self.cuts[plane.normal]
        across, down = (self.spacing_mm[axis] for axis in plane.axes)
        if self.shades is not None:
            image = plane.cut(self.shades, cut)
            image = image if image.ndim == 2 else np.moveaxis(image, 0, -1)
            show(axes, image, (across, down), interpolation="bilinear")
        if name:
            mask = plane.cut(self.masks[name], cut)
            alpha = 0.38 if self.shades is not None else 0.8
            show(axes, coloured(mask, labels, alpha=alpha), (across, down))
            for value in np.unique(mask[mask > 0]):
                colour = label_colour(int(value), labels)
                outline(axes, mask == value, (across, down), color=colour, width=1.1)
            if name != _TRUTH and self.reference is not None:
                truth = plane.cut(self.reference, cut)
                for value in np.unique(truth[truth > 0]):
                    outline(axes, truth == value, (across, down), color="white", width=0.7)
        shape = plane.cut(next(iter(self.masks.values())), cut).shape
        frame(axes, (shape[1] * across, shape[0] * down), letters=plane.letters, flat=self.flat)


def best_cuts(masks: Sequence[NDArray[Any]], shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Index along each axis of the slice that shows the most of all labels.

    A label counts by its area in the slice as a share of its largest area in any. So a pair
    of kidneys is cut through one of them, where the centroid would show the spine between
    them. Of equal slices the one nearest the centroid is taken.
    """
    mask = next((mask for mask in masks if mask.any()), None)
    if mask is None:
        return shape[0] // 2, shape[1] // 2, shape[2] // 2
    places = np.nonzero(mask)
    found, inverse = np.unique(mask[places], return_inverse=True)
    cuts = []
    for axis, size in enumerate(shape):
        slots = inverse.reshape(-1) * size + places[axis]
        areas = np.bincount(slots, minlength=len(found) * size).reshape(len(found), size)
        shown = (areas / areas.max(axis=1, keepdims=True)).sum(axis=0)
        away = np.abs(np.arange(size) - float(places[axis].mean())) / size
        cuts.append(int(np.argmax(shown - 1e-6 * away)))
    return cuts[0], cuts[1], cuts[2]


def _legend_entries(blocks: Sequence[_Block], labels: LabelSet) -> list[tuple[str, Colour]]:
    """Name and colour of each label that can be seen in a panel."""
    seen: set[int] = set()
    for block in blocks:
        for mask in block.masks.values():
            for plane in block.planes:
                seen.update(np.unique(plane.cut(mask, block.cuts[plane.normal])).tolist())
    shown = [label for label in labels.labels if label.value in seen]
    entries = [
        (_short(label.name), label_colour(label.value, labels)) for label in shown[:_LEGEND_MOST]
    ]
    if len(shown) > _LEGEND_MOST:
        entries.append((f"and {len(shown) - _LEGEND_MOST} more", label_colour(0, labels)))
    return entries


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"
