"""Outlines as JSON, GeoJSON, SVG and COCO.

JSON holds corners in RAS+ mm. The others are for pictures (one slice): x runs along the
columns and y down the rows, in pixels from the picture's upper left corner, so that the
middle of the first pixel is (0.5, 0.5), as SVG, COCO and QuPath have it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import InputError
from medseg.core.labels import Label
from medseg.core.results import Contours, Region
from medseg.io.atomic import write_text

FORMAT_VERSION = 1
CONTOUR_SUFFIXES = {"json": ".json", "geojson": ".geojson", "svg": ".svg", "coco": ".coco.json"}
_DECIMALS_MM, _DECIMALS_PIXELS = 4, 3


def write_contours_json(path: Path, contours: Contours) -> None:
    """Write outlines in mm: labels, in them slices, in them regions with their holes.

    Raises:
        OutputError: The file cannot be written.
    """
    labels = []
    for label in contours.label_set.labels:
        slices: dict[int, list[dict[str, Any]]] = {}
        for region in contours.regions:
            if region.value == label.value:
                outline, *holes = (
                    np.round(contours.to_mm(ring), _DECIMALS_MM).tolist() for ring in region.rings
                )
                slices.setdefault(region.slice_index, []).append(
                    {"outline_mm": outline, "holes_mm": holes}
                )
        facts = {"value": label.value, "name": label.name, "colour": list(label.colour)}
        found = [{"slice": index, "regions": regions} for index, regions in slices.items()]
        labels.append({**facts, "slices": found})
    content = {
        "format": "medseg-contours",
        "format_version": FORMAT_VERSION,
        "space": "RAS",
        "unit": "mm",
        "shape": list(contours.geometry.shape),
        "affine_ras": contours.geometry.affine_ras.tolist(),
        "axis": contours.axis,
        "labels": labels,
    }
    write_text(path, json.dumps(content) + "\n")


def write_contours_geojson(path: Path, contours: Contours) -> None:
    """Write the outlines of a picture as GeoJSON polygons in pixels, as QuPath reads them.

    Raises:
        InputError: It is a volume.
        OutputError: The file cannot be written.
    """
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[*ring, ring[0]] for ring in _turned(rings)],
            },
            "properties": {
                "objectType": "annotation",
                "classification": {"name": label.name, "color": list(label.colour)},
            },
        }
        for label, rings in _drawn(contours, path)
    ]
    write_text(path, json.dumps({"type": "FeatureCollection", "features": features}) + "\n")


def write_contours_svg(path: Path, contours: Contours) -> None:
    """Write the outlines of a picture as SVG, a group per label.

    Raises:
        InputError: It is a volume.
        OutputError: The file cannot be written.
    """
    width, height, _ = contours.geometry.shape
    groups: dict[int, list[str]] = {}
    for label, rings in _drawn(contours, path):
        data = " ".join(
            "M" + " L".join(f"{x:g},{y:g}" for x, y in ring.tolist()) + " Z" for ring in rings
        )
        groups.setdefault(label.value, []).append(f'<path d="{data}"/>')
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">'
    ]
    for label in contours.label_set.labels:
        if label.value in groups:
            red, green, blue = label.colour
            lines += [
                f'<g fill="rgb({red},{green},{blue})" fill-opacity="0.35" fill-rule="evenodd" '
                f'stroke="rgb({red},{green},{blue})" stroke-width="1">',
                f"<title>{escape(_printable(label.name))}</title>",
                *groups[label.value],
                "</g>",
            ]
    write_text(path, "\n".join([*lines, "</svg>", ""]))


def write_contours_coco(path: Path, cases: Sequence[tuple[str, Contours]]) -> None:
    """Write the outlines of pictures as one COCO file; each region is an object.

    Regions with holes, which COCO's polygons cannot have, are run lengths.

    Args:
        path: Of the file.
        cases: Name and outlines of each picture.

    Raises:
        InputError: One is a volume.
        OutputError: The file cannot be written.
    """
    categories: dict[tuple[int, str], int] = {}
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number, (name, contours) in enumerate(cases, start=1):
        width, height, _ = contours.geometry.shape
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for label in contours.label_set.labels:
            categories.setdefault((label.value, label.name), len(categories) + 1)
        for label, rings in _drawn(contours, name):
            low, high = rings[0].min(axis=0), rings[0].max(axis=0)
            objects.append({
                "id": len(objects) + 1, "image_id": number,
                "category_id": categories[label.value, label.name], "iscrowd": int(len(rings) > 1),
                "bbox": [*low.tolist(), *(high - low).tolist()],
                "area": abs(_area(rings[0])) - sum(abs(_area(ring)) for ring in rings[1:]),
                "segmentation": [rings[0].ravel().tolist()] if len(rings) == 1
                else _run_lengths(rings, (width, height)),
            })  # fmt: skip
    named = [{"id": n, "name": name, "value": value} for (value, name), n in categories.items()]
    content = {"images": images, "annotations": objects, "categories": named}
    write_text(path, json.dumps(content) + "\n")


def _drawn(contours: Contours, source: object) -> Iterator[tuple[Label, list[NDArray[np.float64]]]]:
    """Label and rings (N, 2), x and y in pixels, of each region."""
    if contours.geometry.shape[2] != 1 or contours.axis != 2:
        raise InputError(
            f"outlines for {source}", expected="a picture (one slice)",
            got=f"a volume {contours.geometry.shape}", cure="Take --format json for volumes.",
        )  # fmt: skip
    by_value = {label.value: label for label in contours.label_set.labels}
    for region in contours.regions:
        yield by_value[region.value], _pixels(region)


def _pixels(region: Region) -> list[NDArray[np.float64]]:
    return [np.round(ring[:, :2] + 0.5, _DECIMALS_PIXELS) for ring in region.rings]


def _area(ring: NDArray[np.float64]) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _turned(rings: Sequence[NDArray[np.float64]]) -> list[list[list[float]]]:
    """Outlines counter-clockwise and holes clockwise, as RFC 7946 has it for y upwards."""
    return [
        (ring if (_area(ring) > 0) == (number == 0) else ring[::-1]).tolist()
        for number, ring in enumerate(rings)
    ]


def _run_lengths(
    rings: Sequence[NDArray[np.float64]], shape: tuple[int, int]
) -> dict[str, list[int]]:
    """COCO's plain run lengths: column by column, pixels outside first."""
    from medseg.io.rtstruct import fill

    inside = fill((ring - 0.5 for ring in rings), shape).ravel()
    ends = np.flatnonzero(np.diff(inside)) + 1
    counts = np.diff([0, *ends, inside.size]).tolist()
    return {"size": [shape[1], shape[0]], "counts": [0, *counts] if inside[0] else counts}


def _printable(text: str) -> str:
    """XML knows no control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
