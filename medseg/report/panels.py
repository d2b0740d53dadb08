"""Panels of pixels: labels over grey, letters, rows and sheets; NumPy and Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PAPER, INK = (16, 17, 20), (242, 242, 242)
_DIM = (154, 160, 166)
GAP, LINE = 6, 16
_ALPHA = 0.35

Rgb = NDArray[np.uint8]


def resized(plane: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A grey or colour plane with other numbers of rows and columns, smoothly."""
    picture = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR))


def as_rgb(grey: NDArray[np.uint8]) -> Rgb:
    """(rows, columns, 3) of a grey or colour plane."""
    return grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)


def tinted(grey: NDArray[np.uint8], shown: NDArray[np.uint16], colours: Rgb) -> Rgb:
    """Labels over grey: a tint inside, full colour along the borders."""
    picture = as_rgb(grey).copy()
    inside = shown > 0
    if inside.any():
        tint = colours[shown[inside]]
        mixed = picture[inside] * (1 - _ALPHA) + tint * _ALPHA
        picture[inside] = mixed.astype(np.uint8)
        edge = inside & _is_edge(shown)
        picture[edge] = colours[shown[edge]]
    return picture


def _is_edge(shown: NDArray[np.uint16]) -> NDArray[np.bool_]:
    edge = np.zeros(shown.shape, dtype=np.bool_)
    down, right = shown[1:] != shown[:-1], shown[:, 1:] != shown[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


@lru_cache(maxsize=8)
def font(size: int) -> Any:
    """The font that comes with Pillow."""
    return ImageFont.load_default(size)


def lettered(picture: Rgb, letters: tuple[str, str, str, str]) -> Rgb:
    """With the sides of the patient: left, right, above, below."""
    drawn = Image.fromarray(picture)
    brush = ImageDraw.Draw(drawn)
    width, height = drawn.size
    places = (
        (2, height // 2, "lm"), (width - 2, height // 2, "rm"),
        (width // 2, 1, "ma"), (width // 2, height - 2, "md"),
    )  # fmt: skip
    for letter, (x, y, anchor) in zip(letters, places, strict=True):
        brush.text((x, y), letter, INK, font(12), anchor=anchor, stroke_width=1, stroke_fill=0)
    return np.asarray(drawn)


def row_of(panels: Sequence[Rgb], gap: int) -> Rgb:
    """Panels side by side, in the middle of the row's height."""
    height = max(panel.shape[0] for panel in panels)
    width = sum(panel.shape[1] + gap for panel in panels) + gap
    row = np.full((height, width, 3), PAPER, dtype=np.uint8)
    left = gap
    for panel in panels:
        top = (height - panel.shape[0]) // 2
        row[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
        left += panel.shape[1] + gap
    return row


def grid_of(cells: Sequence[Rgb], width: int) -> list[Rgb]:
    """Panels of one size in rows that fill a width."""
    columns = max(1, (width - GAP) // (cells[0].shape[1] + GAP))
    return [row_of(cells[at : at + columns], GAP) for at in range(0, len(cells), columns)]


def sheet_of(rows: Sequence[Rgb], *, title: str, notes: Sequence[str]) -> Image.Image:
    """Rows below each other, with a title above and notes below."""
    width = max(row.shape[1] for row in rows)
    head = LINE + GAP if title else GAP
    height = head + sum(row.shape[0] + GAP for row in rows) + len(notes) * LINE
    picture = Image.new("RGB", (width, height), PAPER)
    brush = ImageDraw.Draw(picture)
    if title:
        brush.text((GAP, 3), title[: width // 6], INK, font(13))
    top = head
    for row in rows:
        picture.paste(Image.fromarray(row), (0, top))
        top += row.shape[0] + GAP
    for note in notes:
        brush.text((GAP, top - 2), note, _DIM, font(12))
        top += LINE
    return picture
