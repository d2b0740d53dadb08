"""Pictures in layers, for a page where each can be faded: the scan, and masks over it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medseg.core.labels import LabelSet
from medseg.report.painting import PLANES, Plane, coloured, windowed
from medseg.report.pictures import CasePicture, best_cuts

_PANEL_PX = 300
_GAP_PX = 8
_FILL = 0.45


@dataclass(frozen=True)
class Layers:
    """PNG pictures of one size, to be laid over each other.

    Attributes:
        base: The scan, or black.
        masks: What each mask is called, and its picture, transparent where it is 0.
    """

    base: bytes
    masks: tuple[tuple[str, bytes], ...]


def overlay_layers(case: CasePicture, labels: LabelSet) -> Layers:
    """Draw the three planes of a case side by side, in layers of one size.

    The planes are cut where the masks show the most. The first mask is drawn as outlines
    alone, so that it can be told from the next, which is filled.

    Args:
        case: Grid, masks and scan.
        labels: Names and colours.
    """
    turn = case.geometry.orientation_to_ras()
    grid = case.geometry.reoriented(turn)
    masks = {name: turn.apply(mask) for name, mask in case.masks.items()}
    flat = [plane for plane in PLANES if grid.shape[plane.normal] == 1]
    planes = flat[:1] or list(PLANES)
    cuts = best_cuts(list(masks.values()), grid.shape)
    sizes = [[grid.shape[axis] * grid.spacing_mm[axis] for axis in plane.axes] for plane in planes]
    scale = _PANEL_PX * (1.6 if flat else 1.0) / max(max(size) for size in sizes)
    pixels = [(max(1, round(a * scale)), max(1, round(b * scale))) for a, b in sizes]

    def cut(volume: NDArray[Any], plane: Plane, size: tuple[int, int]) -> NDArray[Any]:
        return _stretch(plane.cut(volume, cuts[plane.normal]), size)

    shades = None if case.voxels is None else windowed(turn.apply(case.voxels), case.modality)
    base = _sheet(pixels, channels=3)
    layers = {name: _sheet(pixels, channels=4) for name in masks}
    for plane, size, place in zip(planes, pixels, _places(pixels), strict=True):
        spot = (slice(0, size[1]), slice(place, place + size[0]))
        if shades is not None:
            grey = cut(shades, plane, size)
            base[spot] = grey[..., None] if grey.ndim == 2 else np.moveaxis(grey, 0, -1)
        for number, (name, mask) in enumerate(masks.items()):
            values = cut(mask, plane, size)
            layers[name][spot] = _painted(values, labels, filled=number > 0)
    return Layers(_png(base), tuple((name, _png(layer)) for name, layer in layers.items()))


def _painted(values: NDArray[Any], labels: LabelSet, *, filled: bool) -> NDArray[np.uint8]:
    colours = coloured(values, labels, alpha=_FILL if filled else 0.0)
    edge = np.zeros(values.shape, dtype=np.bool_)
    reach = 1 if filled else 2
    for shift in range(1, reach + 1):
        for axis in (0, 1):
            edge |= (np.roll(values, shift, axis) != values) | (
                np.roll(values, -shift, axis) != values
            )
    colours[..., 3][edge & (values > 0)] = 1.0
    if not filled:
        # Outlines in white stay apart from the filled mask of the same colours.
        colours[..., :3] = 0.35 * colours[..., :3] + 0.65
    return (colours * 255).astype(np.uint8)


def _stretch(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Nearest pixels: a mask must not be mixed, and a scan may look as it is."""
    rows = (np.arange(size[1]) * image.shape[-2] // size[1]).astype(np.intp)
    columns = (np.arange(size[0]) * image.shape[-1] // size[0]).astype(np.intp)
    return np.asarray(image[..., rows[:, None], columns])


def _places(pixels: Sequence[tuple[int, int]]) -> list[int]:
    starts = [0]
    for width, _ in pixels[:-1]:
        starts.append(starts[-1] + width + _GAP_PX)
    return starts


def _sheet(pixels: Sequence[tuple[int, int]], *, channels: int) -> NDArray[np.uint8]:
    width = _places(pixels)[-1] + pixels[-1][0]
    return np.zeros((max(height for _, height in pixels), width, channels), dtype=np.uint8)


def _png(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
