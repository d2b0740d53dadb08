"""Previews: a whole case on one small sheet, quick enough for thousands of them.

Three planes through all labels, the brightest of all that lies behind each pixel, the labels
as solid bodies seen from the front, and three planes through each label. Everything is in
true proportion, turned to the patient's axes; the patient's right is on the left. Drawn with
NumPy and Pillow alone, and without state, so that threads may draw at the same time.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medseg.core.errors import GeometryError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.postprocess.surfaces import label_boxes
from medseg.report.painting import PLANES, Plane, shaded, window_of
from medseg.report.panels import (
    GAP,
    INK,
    LINE,
    PAPER,
    Rgb,
    as_rgb,
    font,
    grid_of,
    lettered,
    resized,
    row_of,
    sheet_of,
    tinted,
)
from medseg.report.solid import front_view, nearest

_UNNAMED = (153, 153, 153)
# Of a small label this much around it is shown, as a share of its size and in mm.
_MARGIN, _MARGIN_MM = 0.35, 12.0
_LONGEST_NAME = 34


@dataclass(frozen=True)
class PreviewOptions:
    """Sizes of a preview.

    Attributes:
        panel_px: Longest side of the large panels.
        organ_px: Longest side of the panels of one label.
        organs: Labels that get panels of their own; more are named alone.
    """

    panel_px: int = 256
    organ_px: int = 96
    organs: int = 24


def draw_preview(
    mask: NDArray[Any],
    geometry: Geometry,
    labels: LabelSet,
    *,
    voxels: NDArray[Any] | None = None,
    title: str = "",
    modality: str = "",
    options: PreviewOptions | None = None,
) -> Image.Image:
    """Draw one case.

    Args:
        mask: (I, J, K) integers; 0 is background.
        geometry: Its grid.
        labels: Names and colours; values that it lacks are grey.
        voxels: (I, J, K), or (C, I, J, K) of which the first channel is shown, or all three of
            a uint8 colour picture; None shows the mask alone.
        title: Above it.
        modality: As for :class:`medseg.report.pictures.CasePicture`.
        options: Sizes; None for the usual.

    Raises:
        GeometryError: The mask or the scan is not of the grid's shape.
    """
    for name, array in (("mask", mask), ("scan", voxels)):
        if array is not None and array.shape[-3:] != geometry.shape:
            raise GeometryError(
                f"preview of {title or 'a case'}, {name}",
                expected=f"shape {geometry.shape}", got=str(array.shape),
            )  # fmt: skip
    sizes = options or PreviewOptions()
    case = _Case(mask, geometry, labels, voxels, modality)
    rows = [row_of(case.panels(sizes.panel_px), GAP)]
    width = max(rows[0].shape[1], sizes.panel_px + 2 * GAP)
    cells = [case.organ_cell(n, sizes.organ_px) for n in case.order[: sizes.organs]]
    if cells:
        rows += grid_of(cells, width)
    rest = [case.names[n] for n in case.order[sizes.organs :]]
    notes = [f"and {len(rest)} more: {', '.join(rest)}"[: width // 7]] if rest else []
    notes += [] if case.order else ["no label in this mask"]
    return sheet_of(rows, title=title, notes=notes)


def draw_montage(previews: Sequence[tuple[str, Image.Image]], *, columns: int = 0) -> Image.Image:
    """Draw several previews, made smaller, on one sheet.

    Args:
        previews: Title and picture of each; at least one.
        columns: Side by side; 0 for as many as make the sheet about square.
    """
    widest = max(picture.width for _, picture in previews)
    scale = min(1.0, 640 / widest)
    tiles = [
        picture.resize(
            (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
            Image.Resampling.LANCZOS,
        )
        for _, picture in previews
    ]
    wide, high = max(t.width for t in tiles) + GAP, max(t.height for t in tiles) + GAP
    columns = columns or max(1, round(np.sqrt(len(tiles) * high / wide)))
    columns = min(columns, len(tiles))
    sheet = Image.new("RGB", (columns * wide + GAP, -(-len(tiles) // columns) * high), PAPER)
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (GAP + number % columns * wide, number // columns * high))
    return sheet


def png_of(picture: Image.Image) -> bytes:
    """The picture as PNG, packed quickly rather than tightly."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


class _Case:
    """A case turned to RAS, its label values replaced by 0, 1, 2 ... in the order of the labels."""

    def __init__(
        self,
        mask: NDArray[Any],
        geometry: Geometry,
        labels: LabelSet,
        voxels: NDArray[Any] | None,
        modality: str,
    ) -> None:
        turn = geometry.orientation_to_ras()
        self.spacing_mm = geometry.reoriented(turn).spacing_mm
        self.mask = turn.apply(mask)
        self.voxel_ml = geometry.voxel_volume_mm3 / 1000.0
        self.values, self.counts = _values_in(mask)
        known = {label.value: label for label in labels.labels}
        self.names = [known[v].name if v in known else str(v) for v in self.values]
        colours = [known[v].colour if v in known else _UNNAMED for v in self.values]
        self.colours = np.array([(0, 0, 0), *colours], dtype=np.uint8)
        # Number of each value, as rows of the colours.
        self.table = np.zeros(max(self.values, default=0) + 1, dtype=np.uint16)
        self.table[self.values] = np.arange(1, len(self.values) + 1)
        positions = {value: n for n, value in enumerate(labels.values)}
        numbers = range(len(self.values))
        self.order = sorted(numbers, key=lambda n: positions.get(self.values[n], len(positions)))
        self.is_colour = voxels is not None and (
            voxels.ndim == 4 and len(voxels) == 3 and voxels.dtype == np.uint8
        )
        self.scan = None
        if voxels is not None:
            kept = voxels if self.is_colour or voxels.ndim == 3 else voxels[0]
            self.window = (0.0, 255.0) if self.is_colour else window_of(kept, modality)
            self.scan = turn.apply(kept)
        self.boxes = label_boxes(self.mask, self.values)
        self.areas = [_areas(self.mask[self.boxes[v]] == v) for v in self.values]
        flat = [plane for plane in PLANES if self.mask.shape[plane.normal] == 1]
        self.planes = (flat[0],) if flat else PLANES

    def panels(self, size_px: int) -> list[Rgb]:
        """The large ones: planes, brightest, solid; of a flat picture without and with labels."""
        shape = self.mask.shape
        sides_mm = [n * s for n, s in zip(shape, self.spacing_mm, strict=True)]
        drawn = [axis for plane in self.planes for axis in plane.axes]
        scale = size_px / max(sides_mm[axis] for axis in drawn)
        cuts = self._best_cuts()
        whole = tuple(slice(0, n) for n in shape)
        if len(self.planes) == 1:
            scale *= 1.5
            bare = self.plane(self.planes[0], cuts, whole, scale, labelled=False)
            both = [bare] if self.scan is not None else []
            return [*both, self.plane(self.planes[0], cuts, whole, scale)]
        made = [self.plane(plane, cuts, whole, scale) for plane in self.planes]
        return [*made, *self._from_the_front(scale)]

    def _from_the_front(self, scale: float) -> list[Rgb]:
        """The brightest behind each pixel with the labels tinted, and the labels as bodies."""
        coronal = PLANES[1]
        height, width = self._size_px(coronal, tuple(slice(0, n) for n in self.mask.shape), scale)
        solid, shown = front_view(
            self.mask, self.table, self.colours, spacing_mm=self.spacing_mm,
            size_px=(height, width), paper=PAPER,
        )  # fmt: skip
        made = [lettered(solid, coronal.letters)]
        if self.scan is not None and not self.is_colour:
            brightest = np.fmax.reduce(self.scan, axis=1)[::-1, ::-1].T
            # What lies behind everything is air; the brightest are bones and contrast.
            low = self.window[0]
            finite = np.nan_to_num(brightest.astype(np.float32), posinf=0.0, neginf=0.0)
            high = max(float(np.percentile(finite, 99.5)), low + 1e-6)
            grey = resized(shaded(brightest, (low, high)), (height, width))
            made.insert(0, lettered(tinted(grey, shown, self.colours), coronal.letters))
        return made

    def organ_cell(self, number: int, size_px: int) -> Rgb:
        """Name, volume and three small planes of one label."""
        box = self.boxes[self.values[number]]
        cuts = [
            part.start + int(areas.argmax())
            for part, areas in zip(box, self.areas[number], strict=True)
        ]
        frame = self._around(box)
        planes = self.planes
        longest = max(
            (frame[a].stop - frame[a].start) * self.spacing_mm[a]
            for plane in planes for a in plane.axes
        )  # fmt: skip
        tiles = [self.plane(plane, cuts, frame, size_px / longest, small=True) for plane in planes]
        cell = np.full((size_px + LINE + 4, len(tiles) * (size_px + 2), 3), PAPER, np.uint8)
        for place, tile in enumerate(tiles):
            high, wide = min(tile.shape[0], size_px), min(tile.shape[1], size_px)
            top, left = (size_px - high) // 2, place * (size_px + 2) + (size_px - wide) // 2
            cell[LINE + 2 + top :, left:][:high, :wide] = tile[:high, :wide]
        cell[3:13, :10] = self.colours[number + 1]
        volume_ml = self.counts[number] * self.voxel_ml
        picture = Image.fromarray(cell)
        # A flat picture has no volume, and little room for names.
        caption = (
            _short(self.names[number], 12)
            if len(tiles) == 1
            else (f"{_short(self.names[number], _LONGEST_NAME)}  {_volume(volume_ml)}")
        )
        ImageDraw.Draw(picture).text((15, 0), caption, INK, font(12))
        return np.asarray(picture)

    def plane(
        self,
        plane: Plane,
        cuts: Sequence[int],
        frame: Sequence[slice],
        scale: float,
        *,
        labelled: bool = True,
        small: bool = False,
    ) -> Rgb:
        """One plane of the scan with the labels over it, cut to a frame."""
        size = self._size_px(plane, frame, scale)
        box = [*frame]
        box[plane.normal] = slice(cuts[plane.normal], cuts[plane.normal] + 1)
        cut = self.mask[tuple(box)]
        shown = self._numbers(nearest(plane.cut(cut, 0), size))
        if self.scan is None:
            grey = np.zeros((*size, 3), dtype=np.uint8)
        elif self.is_colour:
            grey = resized(np.moveaxis(plane.cut(self.scan[(slice(None), *box)], 0), 0, -1), size)
        else:
            grey = resized(shaded(plane.cut(self.scan[tuple(box)], 0), self.window), size)
        picture = tinted(grey, shown, self.colours) if labelled else as_rgb(grey)
        plain = small or len(self.planes) == 1
        return picture if plain else lettered(picture, plane.letters)

    def _best_cuts(self) -> list[int]:
        """As :func:`medseg.report.pictures.best_cuts`: where the most of all labels is seen."""
        cuts = []
        for axis, size in enumerate(self.mask.shape):
            shown = np.zeros(size)
            middle = 0.0
            for value, areas in zip(self.values, self.areas, strict=True):
                part, own = self.boxes[value][axis], areas[axis]
                shown[part] += own / own.max()
                middle += float(np.arange(part.start, part.stop) @ own)
            centre = middle / sum(self.counts) if self.counts else (size - 1) / 2
            # Of equal slices the one nearest to the middle of all is taken.
            cuts.append(int(np.argmax(shown - 1e-6 * np.abs(np.arange(size) - centre) / size)))
        return cuts

    def _size_px(self, plane: Plane, frame: Sequence[slice], scale: float) -> tuple[int, int]:
        across, down = (
            max(1, round((frame[a].stop - frame[a].start) * self.spacing_mm[a] * scale))
            for a in plane.axes
        )
        return down, across

    def _around(self, box: Sequence[slice]) -> tuple[slice, ...]:
        """A box with some of what lies around it, equally wide in mm along all axes."""
        sides_mm = [(p.stop - p.start) * s for p, s in zip(box, self.spacing_mm, strict=True)]
        wide_mm = max(sides_mm) * (1 + _MARGIN) + _MARGIN_MM
        frame = []
        for part, size, step, side in zip(
            box, self.mask.shape, self.spacing_mm, sides_mm, strict=True
        ):
            more = max(0, round((wide_mm - side) / 2 / step))
            frame.append(slice(max(0, part.start - more), min(size, part.stop + more)))
        return tuple(frame)

    def _numbers(self, values: NDArray[Any]) -> NDArray[np.uint16]:
        numbers: NDArray[np.uint16] = self.table[np.maximum(values, 0)]
        return numbers


def _values_in(mask: NDArray[Any]) -> tuple[list[int], list[int]]:
    """Values above 0, and how many voxels each has."""
    if mask.dtype.kind in "ub" and mask.dtype.itemsize <= 2:
        counts = np.zeros(1 << 8 * mask.dtype.itemsize, dtype=np.int64)
        for plane in mask if mask.strides[0] >= mask.strides[-1] else mask.T:
            counts += np.bincount(plane.ravel(order="K"), minlength=counts.size)
        found = np.flatnonzero(counts[1:]) + 1
        return found.tolist(), counts[found].tolist()
    values, numbers = np.unique(mask, return_counts=True)
    return values[values > 0].tolist(), numbers[values > 0].tolist()


def _areas(own: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Along each axis the voxels of a label on each slice."""
    pairs = ((1, 2), (0, 2), (0, 1))
    return [np.asarray(np.count_nonzero(own, axis=pair)) for pair in pairs]


def _short(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _volume(volume_ml: float) -> str:
    digits = 0 if volume_ml >= 100 else 1 if volume_ml >= 10 else 2
    return f"{volume_ml:.{digits}f} ml"
