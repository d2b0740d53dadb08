"""Surfaces and outlines of masks: folders of masks in, folders of meshes and polygons out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg.core.errors import SettingsError
from medseg.core.results import Contours
from medseg.io.contours import CONTOUR_SUFFIXES, write_contours_coco
from medseg.io.guarded import GuardedReader
from medseg.postprocess.contours import contours as contours_of
from medseg.postprocess.surfaces import MeshOptions, meshes
from medseg.workflows.mask_cases import (
    MaskCase,
    Progress,
    dataset_names,
    find_mask_cases,
    for_each,
    keep_inputs,
    read_mask_case,
)
from medseg.workflows.output_options import Outputs
from medseg.workflows.outputs import write_outlines, write_surfaces


def make_meshes(
    masks: str | Path,
    out: str | Path,
    *,
    kind: str = "stl",
    scene: bool = False,
    options: MeshOptions | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the surfaces of masks as ``out/<case>/<label>.<kind>``.

    Args:
        masks: A folder of masks, or one.
        out: Folder for the surfaces.
        kind: ``"stl"``, ``"ply"``, ``"obj"``, ``"vtp"`` or ``"glb"``.
        scene: All labels in one file ``out/<case>.<kind>``; GLB always has them so.
        options: Smoothing, and how many triangles are taken away.
        workers: Cases worked on at once; by default one per core.
        progress: Called with (done, total, case id).

    Returns:
        ``{"cases": {case id: [paths]}, "failed": {case id: message}}``.

    Raises:
        InputError: There is no mask, or all failed.
        MissingPackageError: Triangles are to be taken away, and the package for it is missing.
        OutputError: A file cannot be written.
        SettingsError: There is no such format.
    """
    Outputs(meshes=kind or "none")
    keep_inputs(Path(out), masks)
    cases, names, folder = find_mask_cases(masks), dataset_names(masks), Path(out)

    def work(case: MaskCase, reader: GuardedReader) -> list[str]:
        read = read_mask_case(case, reader, names=names)
        made = meshes(read.mask, read.geometry, read.labels, options=options)
        place = folder / case.case
        files = write_surfaces(place, made, read.labels, kind=kind, scene=scene)
        return [str(path) for path in files]

    done, failed = for_each(cases, work, workers=workers, progress=progress)
    return {"cases": done, "failed": failed}


def make_contours(
    masks: str | Path,
    out: str | Path,
    *,
    kind: str = "json",
    plane: str = "axial",
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the outlines of masks as ``out/<case>.json``; COCO as one ``out/coco.json``.

    Args:
        masks: A folder of masks, or one.
        out: Folder for the outlines.
        kind: ``"json"``; of pictures also ``"geojson"``, ``"svg"`` and ``"coco"``.
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        workers: Cases worked on at once; by default one per core.
        progress: Called with (done, total, case id).

    Returns:
        ``{"cases": {case id: path}, "failed": {case id: message}}``.

    Raises:
        InputError: There is no mask, or all failed; volumes in a format of pictures.
        OutputError: A file cannot be written.
        SettingsError: There is no such format or plane.
    """
    Outputs(contours=kind or "none")
    if plane not in ("axial", "coronal", "sagittal"):
        raise SettingsError("--plane", expected="axial, coronal or sagittal", got=repr(plane))
    keep_inputs(Path(out), masks)
    cases, names, folder = find_mask_cases(masks), dataset_names(masks), Path(out)
    found: dict[str, Contours] = {}

    def work(case: MaskCase, reader: GuardedReader) -> str:
        read = read_mask_case(case, reader, names=names)
        if kind == "coco":
            found[case.case] = contours_of(read.mask, read.geometry, read.labels)
            return str(folder / "coco.json")
        path = folder / f"{case.case}{CONTOUR_SUFFIXES[kind]}"
        write_outlines(path, read.mask, read.geometry, read.labels, kind=kind, plane=plane)
        return str(path)

    done, failed = for_each(cases, work, workers=workers, progress=progress)
    if kind == "coco":
        files = {case.case: case.mask for case in cases}
        pictures = [(files[case].name, found[case]) for case in done]
        write_contours_coco(folder / "coco.json", pictures)
    return {"cases": done, "failed": failed}
