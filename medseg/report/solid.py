"""Labels as solid bodies, seen from the patient's front: what is hit first, lit from above."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# From the patient's upper right front; x to the left of the picture, y towards the viewer.
_LIGHT = np.array([0.45, 0.75, 0.5]) / np.linalg.norm([0.45, 0.75, 0.5])
_AMBIENT = 0.35
# Farther bodies are darker, down to this.
_FARTHEST = 0.6


def front_view(
    mask: NDArray[Any],
    table: NDArray[np.uint16],
    colours: NDArray[np.uint8],
    *,
    spacing_mm: tuple[float, float, float],
    size_px: tuple[int, int],
    paper: tuple[int, int, int],
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Draw a mask from the front, in parallel projection.

    Args:
        mask: (I, J, K) integers in RAS+ order.
        table: Row of the colours for each value.
        colours: (N, 3) red, green, blue.
        spacing_mm: Of the voxels.
        size_px: Rows and columns of the picture.
        paper: Colour where nothing is.

    Returns:
        The picture (rows, columns, 3), and which row of the colours each pixel shows
        (rows, columns), 0 for none.
    """
    inside = (mask > 0)[:, ::-1]
    depth = inside.argmax(axis=1)
    hit = np.take_along_axis(inside, depth[:, None], axis=1)[:, 0]
    values = np.take_along_axis(mask, (mask.shape[1] - 1 - depth)[:, None], axis=1)[:, 0]
    shown = table[np.where(hit, values, 0)][::-1, ::-1].T
    away_mm = (depth * spacing_mm[1]).astype(np.float32)[::-1, ::-1].T
    large = nearest(shown, size_px)
    light = _lit(away_mm, shown, spacing_mm, size_px)
    picture = (colours[large] * light[..., None]).astype(np.uint8)
    picture[large == 0] = paper
    return picture, large


def _lit(
    away_mm: NDArray[np.float32],
    shown: NDArray[np.uint16],
    spacing_mm: tuple[float, float, float],
    size_px: tuple[int, int],
) -> NDArray[np.float32]:
    """How bright each pixel is, 0 to 1."""
    hit = (shown > 0).astype(np.float32)
    if not hit.any():
        return np.zeros(size_px, dtype=np.float32)
    near, far = float(away_mm[hit > 0].min()), float(away_mm[hit > 0].max())
    # The steps of the voxels are smoothed away, but not over the edges of bodies.
    weight = _blurred(hit)
    smooth = _blurred(np.where(hit > 0, away_mm - near, 0.0)) / np.maximum(weight, 1e-6)
    smooth = np.where(
        np.abs(smooth - (away_mm - near)) < 3 * max(spacing_mm), smooth, away_mm - near
    )
    width_mm = shown.shape[1] * spacing_mm[0] / size_px[1]
    height_mm = shown.shape[0] * spacing_mm[2] / size_px[0]
    field = np.asarray(
        Image.fromarray(smooth.astype(np.float32)).resize(size_px[::-1], Image.Resampling.BILINEAR)
    )
    down, across = np.gradient(field, height_mm, width_mm) if min(size_px) > 1 else (field, field)
    # Of the surface y = -depth, with x to the left of the picture and z upwards.
    normal = np.stack([-across, np.ones_like(field), -down], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    shine = _AMBIENT + (1 - _AMBIENT) * np.clip(normal @ _LIGHT, 0.0, 1.0)
    fade = 1.0 - (1.0 - _FARTHEST) * field / max(far - near, 1e-6)
    return np.asarray(np.clip(shine * fade * 1.15, 0.0, 1.0), dtype=np.float32)


def _blurred(plane: NDArray[Any]) -> NDArray[np.float32]:
    """Three turns of a running mean over three pixels, about a Gaussian of 1.4 pixels."""
    blurred = np.asarray(plane, dtype=np.float32)
    for axis in (0, 1, 0, 1, 0, 1):
        padded = np.pad(blurred, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        low, middle, high = (
            np.take(padded, range(n, n + blurred.shape[axis]), axis=axis) for n in range(3)
        )
        blurred = np.asarray((low + middle + high) / 3, dtype=np.float32)
    return blurred


def nearest(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """A plane with other numbers of rows and columns; each pixel takes the nearest value."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for old, new in zip(plane.shape, size, strict=True)
    )
    return np.asarray(plane[rows[:, None], columns])
