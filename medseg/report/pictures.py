"""Pictures of scans and masks: three planes, as radiologists look at them.

A scan is turned to the closest RAS+ order first, then shown from the patient's feet and
front: the patient's right is on the left of the picture. Nothing here keeps state, so
threads may draw at the same time.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAPER, _INK, _DIM = "#101114", "#f2f2f2", "#9aa0a6"
_CT_WINDOW_HU = (-160.0, 240.0)
_DPI = 120
_PANEL_IN, _GAP_IN, _HEAD_IN, _LEFT_IN = 2.3, 0.06, 0.5, 0.28
_TITLE_IN, _LEGEND_ROW_IN, _LEGEND_COLUMN_IN = 0.35, 0.26, 1.7
_LEGEND_MOST = 24
_TRUTH = "truth"


@dataclass(frozen=True)
class _Plane:
    """One way to cut: the axis cut across, and the letters left, right, above and below."""

    name: str
    normal: int
    letters: tuple[str, str, str, str]

    @property
    def axes(self) -> tuple[int, int]:
        """The RAS axes across and down the picture."""
        across, down = (axis for axis in range(3) if axis != self.normal)
        return across, down

    def cut(self, volume: NDArray[Any], index: int) -> NDArray[Any]:
        """The slice (rows, columns) of an RAS volume: right or front left, top up."""
        return np.take(volume, index, axis=self.normal)[::-1, ::-1].T


_PLANES = (
    _Plane("axial", 2, ("R", "L", "A", "P")),
    _Plane("coronal", 1, ("R", "L", "S", "I")),
    _Plane("sagittal", 0, ("A", "P", "S", "I")),
)


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

    Each plane is cut where it shows the most: every label counts by the share of it that
    lies in the slice. A 2D image is one row. See :class:`CasePicture` for the arguments.

    Returns:
        A PNG picture.
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
    figure = _new_figure(width_in, height_in)
    if title:
        _text(figure, width_in / 2, height_in - 0.22, title, size=12, weight="bold", ha="center")
    top_in = height_in - title_in
    for row in rows:
        for column, block in enumerate(row):
            left_in = 0.15 + column * (block_width_in + 0.15)
            block.draw(figure, labels, left_in=left_in, top_in=top_in)
        top_in -= max(block.height_in for block in row)
    _draw_legend(figure, entries, columns=per_row)
    return _png(figure)


class _Block:
    """One case turned to RAS, with the size that it takes on the sheet."""

    def __init__(self, case: CasePicture) -> None:
        turn = case.geometry.orientation_to_ras()
        grid = case.geometry.reoriented(turn)
        self.title = case.title
        self.masks = {name: turn.apply(mask) for name, mask in case.masks.items()}
        self.grey = None if case.voxels is None else _windowed(turn.apply(case.voxels), case)
        self.spacing_mm = grid.spacing_mm
        flat = [plane for plane in _PLANES if grid.shape[plane.normal] == 1]
        self.flat = bool(flat)
        self.planes = (flat[0],) if flat else _PLANES
        self.cuts = _best_cuts(list(self.masks.values()), grid.shape)
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
        return [*([""] if self.grey is not None else []), *self.masks]

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
        _text(figure, left_in, top_in - 0.16, self.title, size=9, weight="bold")
        for column, name in enumerate(self.panels):
            x_in = left_in + _LEFT_IN + column * (self.panel_in + _GAP_IN)
            lined = bool(name) and name != _TRUTH and self.reference is not None
            head = f"{name or 'scan'}{' (white line: truth)' if lined else ''}"
            middle_in = x_in + self.panel_in / 2
            _text(figure, middle_in, top_in - 0.38, head, size=7.5, color=_DIM, ha="center")
            y_in = top_in - _HEAD_IN
            for plane, row_in in zip(self.planes, self.rows_in, strict=True):
                y_in -= row_in
                axes = _panel(figure, (x_in, y_in, self.panel_in, row_in))
                self._draw_plane(axes, plane, name, labels=labels)
                if column == 0 and not self.flat:
                    _text(
                        figure, left_in + 0.14, y_in + row_in / 2, plane.name, size=7.5,
                        color=_DIM, ha="center", rotation=90,
                    )  # fmt: skip
                y_in -= _GAP_IN

    def _draw_plane(self, axes: Axes, plane: _Plane, name: str, *, labels: LabelSet) -> None:
        cut = self.cuts[plane.normal]
        across, down = (self.spacing_mm[axis] for axis in plane.axes)
        if self.grey is not None:
            image = plane.cut(self.grey, cut)
            _show(axes, image, (across, down), interpolation="bilinear")
        if name:
            mask = plane.cut(self.masks[name], cut)
            alpha = 0.38 if self.grey is not None else 0.8
            _show(axes, _coloured(mask, labels, alpha=alpha), (across, down))
            for value in np.unique(mask[mask > 0]):
                colour = tuple(part / 255 for part in _colour(int(value), labels))
                _outline(axes, mask == value, (across, down), color=colour, width=1.1)
            if name != _TRUTH and self.reference is not None:
                truth = plane.cut(self.reference, cut)
                for value in np.unique(truth[truth > 0]):
                    _outline(axes, truth == value, (across, down), color="white", width=0.7)
        shape = plane.cut(next(iter(self.masks.values())), cut).shape
        _frame(axes, (shape[1] * across, shape[0] * down), letters=plane.letters, flat=self.flat)


def _best_cuts(masks: Sequence[NDArray[Any]], shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Index along each axis of the slice that shows the most of all labels.

    A label counts by the share of its voxels in the slice. So a pair of kidneys is cut
    through one of them, where the centroid would show the spine between them. Of equal
    slices the one nearest the centroid is taken.
    """
    mask = next((mask for mask in masks if mask.any()), None)
    if mask is None:
        return shape[0] // 2, shape[1] // 2, shape[2] // 2
    places = np.nonzero(mask)
    found, inverse, counts = np.unique(mask[places], return_inverse=True, return_counts=True)
    shares = 1.0 / counts[inverse.reshape(-1)]
    cuts = []
    for axis in range(3):
        shown = np.bincount(places[axis], weights=shares, minlength=shape[axis])
        away = np.abs(np.arange(shape[axis]) - float(places[axis].mean())) / shape[axis]
        cuts.append(int(np.argmax(shown - 1e-6 * len(found) * away)))
    return cuts[0], cuts[1], cuts[2]


def _windowed(voxels: NDArray[Any], case: CasePicture) -> NDArray[np.uint8]:
    """Voxels (I, J, K) as 0 to 255, or (I, J, K, 3) of a colour picture."""
    if voxels.ndim == 4 and voxels.shape[0] == 3 and voxels.dtype == np.uint8:
        return np.moveaxis(voxels, 0, -1)
    volume = np.nan_to_num(
        (voxels[0] if voxels.ndim == 4 else voxels).astype(np.float32), posinf=0.0, neginf=0.0
    )
    # Every seventh voxel is enough for a window, and seven divides few row lengths.
    sample = volume.ravel(order="K")[:: max(1, min(7, volume.size // 1000))]
    low, high = (float(edge) for edge in np.percentile(sample, [1.0, 99.5]))
    if case.modality.upper() == "CT" or (not case.modality and float(sample.min()) < -500):
        low, high = _CT_WINDOW_HU
    scaled = (volume - low) / max(high - low, 1e-6)
    return (np.clip(scaled, 0.0, 1.0) * 255).astype(np.uint8)


def _colour(value: int, labels: LabelSet) -> tuple[int, int, int]:
    for label in labels.labels:
        if label.value == value:
            return label.colour
    return 160, 160, 160


def _coloured(mask: NDArray[Any], labels: LabelSet, *, alpha: float) -> NDArray[np.float64]:
    """(rows, columns, 4) red, green, blue and opacity, 0 to 1."""
    found, inverse = np.unique(mask, return_inverse=True)
    table = np.array([(*_colour(int(value), labels), 255 * alpha * (value > 0)) for value in found])
    return np.asarray(table[inverse.reshape(mask.shape)] / 255.0, dtype=np.float64)


def _new_figure(width_in: float, height_in: float) -> Figure:
    # Not through pyplot, which keeps every figure in a global list.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=_DPI, facecolor=_PAPER)
    FigureCanvasAgg(figure)
    return figure


def _panel(figure: Figure, box_in: tuple[float, float, float, float]) -> Axes:
    width_in, height_in = figure.get_size_inches()
    left, bottom, width, height = box_in
    return figure.add_axes(
        (left / width_in, bottom / height_in, width / width_in, height / height_in),
        facecolor="black",
    )


def _show(
    axes: Axes,
    image: NDArray[Any],
    spacing_mm: tuple[float, float],
    *,
    interpolation: str = "nearest",
) -> None:
    rows, columns = image.shape[:2]
    extent = (0.0, columns * spacing_mm[0], rows * spacing_mm[1], 0.0)
    axes.imshow(
        image, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation=interpolation,
        aspect="equal",
    )  # fmt: skip


def _outline(
    axes: Axes,
    region: NDArray[np.bool_],
    spacing_mm: tuple[float, float],
    *,
    color: Any,
    width: float,
) -> None:
    # One more voxel around closes the line where the region touches the edge.
    padded = np.pad(region, 1).astype(np.float32)
    x = (np.arange(padded.shape[1]) - 0.5) * spacing_mm[0]
    y = (np.arange(padded.shape[0]) - 0.5) * spacing_mm[1]
    axes.contour(x, y, padded, levels=[0.5], colors=[color], linewidths=width)


def _frame(
    axes: Axes, size_mm: tuple[float, float], *, letters: tuple[str, str, str, str], flat: bool
) -> None:
    # Panels of one column are equally wide, so that a narrow plane stands in the middle.
    width, height = size_mm
    axes.set(ylim=(height, 0.0), xticks=[], yticks=[], aspect="equal", anchor="C")
    axes.set_xlim(0.0, width)
    for side in axes.spines.values():
        side.set_visible(False)
    if flat:
        return
    places = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.96), (0.5, 0.04))
    for letter, (x, y) in zip(letters, places, strict=True):
        axes.text(
            x, y, letter, transform=axes.transAxes, color=_INK, fontsize=6.5, ha="center",
            va="center", alpha=0.85,
        )  # fmt: skip


def _text(
    figure: Figure, x_in: float, y_in: float, text: str, *, size: float, **style: Any
) -> None:  # noqa: PLR0913
    width_in, height_in = figure.get_size_inches()
    style = {"color": _INK, "va": "center", "ha": "left"} | style
    # A "$" in a case name is no formula.
    figure.text(
        x_in / width_in, y_in / height_in, text, fontsize=size, parse_math=False, **style
    )


def _legend_entries(
    blocks: Sequence[_Block], labels: LabelSet
) -> list[tuple[str, tuple[float, ...]]]:
    """Name and colour of each label that can be seen in a panel."""
    seen: set[int] = set()
    for block in blocks:
        for mask in block.masks.values():
            for plane in block.planes:
                seen.update(np.unique(plane.cut(mask, block.cuts[plane.normal])).tolist())
    shown = [label for label in labels.labels if label.value in seen]
    entries = [
        (label.name if len(label.name) <= 22 else f"{label.name[:21]}…",
         tuple(part / 255 for part in label.colour))
        for label in shown[:_LEGEND_MOST]
    ]  # fmt: skip
    if len(shown) > _LEGEND_MOST:
        entries.append((f"and {len(shown) - _LEGEND_MOST} more", (0.6, 0.6, 0.6)))
    return entries


def _draw_legend(
    figure: Figure, entries: Sequence[tuple[str, tuple[float, ...]]], *, columns: int
) -> None:
    from matplotlib.patches import Patch

    if not entries:
        return
    legend = figure.legend(
        handles=[Patch(color=colour) for _, colour in entries],
        labels=[name for name, _ in entries],
        loc="lower center", ncols=min(columns, len(entries)), frameon=False, fontsize=8,
        labelcolor=_INK, handlelength=1.0, handleheight=1.0,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()
