"""Say what a scan or a model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.errors import FileError
from medseg.io.formats import read_label_names, read_scan


def info(path: str | Path) -> dict[str, Any]:
    """Describe a scan or a model package, as JSON could hold it.

    A scan: ``shape`` (I, J, K), ``spacing_mm``, ``size_mm``, ``axis_codes``, ``channels``,
    ``dtype``, ``range`` and more. A model: the facts of its package.

    Args:
        path: A scan file, a model folder, or a run folder that holds ``model/``.

    Raises:
        FileError: It is neither, or the file is damaged.
        PackageError: The model is damaged or was written by a newer medseg.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / "model.json").is_file():
            # The package room brings torch along; a scan needs none.
            from medseg.package.package import read_package_info

            return {"kind": "model", **read_package_info(folder)}
    if path.is_dir():
        raise FileError(
            str(path),
            expected="a scan, or a folder with model.json",
            got="another folder",
            cure="Give one scan file, or the folder `model` of a training run.",
        )
    return _scan_info(path)


def _scan_info(path: Path) -> dict[str, Any]:
    scan = read_scan(path)
    voxels = scan.voxels()
    grid = scan.geometry
    finite = np.isfinite(voxels)
    some = bool(finite.any())
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
        "dtype": str(voxels.dtype),
        "modality": scan.modality,
        "range": [float(voxels[finite].min()), float(voxels[finite].max())] if some else None,
        "non_finite_voxels": int(finite.size - np.count_nonzero(finite)),
    }
    labels = read_label_names(path)
    if labels is not None:
        facts["labels"] = {str(label.value): label.name for label in labels.labels}
    return facts
