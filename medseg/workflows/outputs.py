"""What is made of a mask: files of single labels, outlines, surfaces, figures, a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.geometry import Geometry
from medseg.core.labels import Label, LabelSet
from medseg.core.results import Figure, Measurements, Prediction
from medseg.io.atomic import write_bytes, write_text
from medseg.io.contours import (
    CONTOUR_SUFFIXES,
    write_contours_coco,
    write_contours_geojson,
    write_contours_json,
    write_contours_svg,
)
from medseg.io.formats import write_mask
from medseg.io.mesh import write_meshes
from medseg.postprocess.contours import contours
from medseg.postprocess.measurements import measure
from medseg.postprocess.surfaces import MeshOptions, meshes
from medseg.report.previews import draw_preview, png_of
from medseg.workflows.output_options import Outputs, beside, file_words, stem_of


def write_outputs(
    prediction: Prediction,
    mask_path: Path,
    wanted: Outputs,
    *,
    voxels: NDArray[Any] | None = None,
    channels: Sequence[str] = (),
    modality: str = "",
    workers: int = 1,
) -> list[Path]:
    """Write what is wanted beside a mask.

    Args:
        prediction: The mask.
        mask_path: Where it lies, or will; names and places of the files follow from that.
        wanted: What.
        voxels: (C, I, J, K) intensities on the mask's grid, for figures and the picture.
        channels: Their names.
        modality: Of the scan, for the window of the picture.
        workers: Labels worked on at once.

    Returns:
        The files that were written.

    Raises:
        InputError: A volume is wanted in a format of pictures.
        OutputError: A file cannot be written.
    """
    mask, geometry, labels = prediction.labels, prediction.geometry, prediction.label_set
    files: list[Path] = []
    if wanted.per_label:
        files += write_per_label(prediction, beside(mask_path, "_labels"), workers=workers)
    if wanted.contours:
        path = beside(mask_path, f"_contours{CONTOUR_SUFFIXES[wanted.contours]}")
        write_outlines(path, mask, geometry, labels, kind=wanted.contours, name=mask_path.name)
        files.append(path)
    if wanted.meshes:
        place = beside(mask_path, "_meshes")
        made = meshes(mask, geometry, labels, options=MeshOptions(workers=workers))
        files += write_surfaces(place, made, labels, kind=wanted.meshes)
    if wanted.measure:
        found = measure(mask, geometry, labels, voxels=voxels, channels=channels, workers=workers)
        files.append(beside(mask_path, "_measurements.csv"))
        write_text(files[-1], table_of(found.columns, _true_volumes(found.rows, prediction)))
    if wanted.preview:
        picture = draw_preview(
            mask, geometry, labels, voxels=voxels, title=stem_of(mask_path), modality=modality
        )
        files.append(beside(mask_path, "_preview.png"))
        write_bytes(files[-1], png_of(picture))
    return files


def _true_volumes(
    rows: Sequence[Mapping[str, Figure]], prediction: Prediction
) -> list[dict[str, Figure]]:
    """Rows in which planes at uneven distances count with their own thickness."""
    if prediction.slices is None or prediction.slices.even:
        return [dict(row) for row in rows]
    volumes_ml = prediction.volumes_ml()
    return [
        {**row, "volume_ml": volumes_ml[str(row["label"])]} if row["voxels"] else dict(row)
        for row in rows
    ]


def write_per_label(prediction: Prediction, folder: Path, *, workers: int = 1) -> list[Path]:
    """Write a mask of 0 and 1 for each label, of absent ones too, several at once.

    Raises:
        OutputError: A file cannot be written.
    """
    words = file_words(prediction.label_set)

    def write(label: Label) -> Path:
        alone = label.model_copy(update={"value": 1, "sources": (1,)})
        own = np.asarray(prediction.labels == label.value).view(np.uint8)
        path = folder / f"{words[label.value]}.nii.gz"
        write_mask(path, replace(prediction, labels=own, label_set=LabelSet(labels=(alone,))))
        return path

    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(pool.map(write, prediction.label_set.labels))


def write_outlines(
    path: Path,
    mask: NDArray[Any],
    geometry: Geometry,
    labels: LabelSet,
    *,
    kind: str,
    plane: str = "axial",
    name: str = "",
) -> None:
    """Write the outlines of a mask in one of the formats.

    Raises:
        InputError: A volume in a format of pictures.
        OutputError: The file cannot be written.
    """
    found = contours(mask, geometry, labels, plane=plane)
    if kind == "coco":
        write_contours_coco(path, [(name, found)])
        return
    write = {
        "json": write_contours_json, "geojson": write_contours_geojson, "svg": write_contours_svg,
    }[kind]  # fmt: skip
    write(path, found)


def write_surfaces(
    place: Path, made: Sequence[Any], labels: LabelSet, *, kind: str, scene: bool = False
) -> list[Path]:
    """Write surfaces, one file per label in a folder, or all in one file of that name.

    Raises:
        OutputError: A file cannot be written.
    """
    if scene or kind == "glb":
        path = place.with_name(f"{place.name}.{kind}")
        write_meshes(path, made)
        return [path]
    words = file_words(labels)
    files = []
    for mesh in made:
        files.append(place / f"{words[mesh.label.value]}.{kind}")
        write_meshes(files[-1], [mesh])
    return files


def table_of(columns: Sequence[str], rows: Iterable[Mapping[str, Figure]]) -> str:
    """Rows as CSV; figures with seven digits, empty where there is none."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    return stream.getvalue()


def joined(tables: Mapping[str, Measurements]) -> tuple[tuple[str, ...], list[dict[str, Figure]]]:
    """Columns and rows of all cases, with a column ``case``."""
    columns = dict.fromkeys(["case"])
    for table in tables.values():
        columns |= dict.fromkeys(table.columns)
    rows = [{"case": case, **row} for case, table in tables.items() for row in table.rows]
    return tuple(columns), rows


def _cell(figure: Figure) -> str:
    if figure is None:
        return ""
    return f"{figure:.7g}" if isinstance(figure, float) else str(figure)
