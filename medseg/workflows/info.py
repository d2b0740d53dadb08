"""Say what a scan, a DICOM study or a model is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.errors import MedsegError
from medseg.core.scan import Scan
from medseg.io.formats import is_dicom_source, read_label_names, read_scan


def info(path: str | Path) -> dict[str, Any]:
    """Describe a scan or a model package, as JSON could hold it.

    A scan: ``shape`` (I, J, K), ``spacing_mm``, ``size_mm``, ``axis_codes``, ``channels``,
    ``dtype``, ``range`` and more. DICOM: ``series``, a list with ``series`` (what selects it),
    ``modality``, ``description``, ``slices``, ``spacing_mm``, ``gaps``, ``reasons_against``
    and more for each; and ``masks``, where there are segmentations or structure sets: a list
    with ``file`` and ``labels`` (value to name). A model or a set of models: the facts
    of its package; of a model also ``parameters`` and ``gflops_per_patch`` of one member
    (a multiplication and an addition are two operations).

    Args:
        path: A scan file; a folder, zip or DICOMDIR of DICOM; a model or set folder, a run
            folder that holds ``model/``, or a trained model of nnU-Net v2.

    Raises:
        FileError: It is neither, or the file is damaged.
        PackageError: The model is damaged or was written by a newer medseg.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / "model.json").is_file():
            # The package room brings torch along; a scan needs none.
            from medseg.package.package import read_package_info

            return _with_cost({"kind": "model", **read_package_info(folder)})
    if (path / "set.json").is_file():
        from medseg.package.model_set import read_set_info

        return {"kind": "set", **read_set_info(path)}
    if (path / "plans.json").is_file():
        from medseg.package.nnunet import load_nnunet

        package = load_nnunet(path)
        return _with_cost(
            {"kind": "model", "sha256": package.sha256, **package.model.model_dump(mode="json")}
        )
    if is_dicom_source(path):
        return _study_info(path)
    return _scan_info(path)


def _with_cost(facts: dict[str, Any]) -> dict[str, Any]:
    """With what the network of a model costs, after its hash."""
    from medseg.core.plan import Plan
    from medseg.networks.cost import network_cost

    plan = Plan.model_validate(facts["plan"])
    cost = network_cost(plan.network, plan.patch_size)
    found = {"parameters": cost.parameters, "gflops_per_patch": round(cost.gflops, 3)}
    return {"kind": facts["kind"], "sha256": facts["sha256"], **found, **facts}


def _study_info(path: Path) -> dict[str, Any]:
    # It takes a while to load, and most scans are no DICOM.
    from medseg.io.dicom import find_series
    from medseg.io.dicom_masks import list_structures

    everything = find_series(path)
    studies = list(dict.fromkeys(found.study_uid for found in everything))
    series = [
        {
            "study": studies.index(found.study_uid) + 1,
            "series": found.id,
            "modality": found.modality,
            "description": found.description,
            "kernel": found.kernel,
            "slices": found.slices,
            "shape": None if found.shape is None else list(found.shape),
            "spacing_mm": None
            if found.spacing_mm is None
            else [round(side, 4) for side in found.spacing_mm],
            "axis_codes": found.axis_codes,
            "tilt_degrees": found.tilt_degrees,
            "gaps": found.gaps,
            "reasons_against": list(found.reasons_against),
            "uid": found.uid,
        }
        for found in everything
    ]
    facts: dict[str, Any] = {"kind": "study", "series": series}
    masks = [
        {"file": name, "labels": {}, "fault": str(found)}
        if isinstance(found, MedsegError)
        else {"file": name, "labels": {str(label.value): label.name for label in found.labels}}
        for name, found in list_structures(path)
    ]
    return facts | ({"masks": masks} if masks else {})


def _scan_info(path: Path) -> dict[str, Any]:
    scan = read_scan(path)
    grid = scan.geometry
    values = _look_through(scan)
    facts: dict[str, Any] = {
        "kind": "scan",
        "shape": list(grid.shape),
        "channels": list(scan.channels),
        "spacing_mm": [round(side, 6) for side in grid.spacing_mm],
        "size_mm": [
            round(side * count, 3) for side, count in zip(grid.spacing_mm, grid.shape, strict=True)
        ],
        "axis_codes": grid.axis_codes,
        "shear_voxels": round(grid.shear_voxels, 4),
        "affine_ras": grid.affine_ras.tolist(),
        "dtype": values.dtype,
        "modality": scan.modality,
        "range": list(values.range) if values.range else None,
        "non_finite_voxels": values.non_finite,
    }
    labels = read_label_names(path)
    if labels is not None:
        facts["labels"] = {str(label.value): label.name for label in labels.labels}
    return facts


@dataclass(frozen=True)
class _Values:
    """What the voxels of a scan are; ``range`` is of the finite ones."""

    dtype: str
    range: tuple[float, float] | None
    non_finite: int


def _look_through(scan: Scan) -> _Values:
    """Look at every voxel once, with a slab of them in memory at a time."""
    dtype, non_finite = "", 0
    extremes: list[float] = []
    for slab in scan.slabs():
        dtype = str(slab.dtype)
        if slab.dtype.kind == "f":
            finite = np.isfinite(slab)
            non_finite += int(finite.size - np.count_nonzero(finite))
            values = slab if finite.all() else slab[finite]
        else:
            values = slab
        if values.size:
            extremes += [float(values.min()), float(values.max())]
    return _Values(dtype, (min(extremes), max(extremes)) if extremes else None, non_finite)
