"""A picture for a finding: the scan, and the mask over it where the finding is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import MedsegError
from medseg.core.geometry import Geometry
from medseg.datasets.dataset import Case, Dataset
from medseg.datasets.reading import HERE, Reader, read_case_image, read_case_mask
from medseg.quality.anatomy import tiny_parts
from medseg.quality.finding import Finding
from medseg.report.pictures import overlay_planes


def picture_of(finding: Finding, dataset: Dataset, reader: Reader = HERE) -> bytes | None:
    """A PNG of the case that a finding is about; None where nothing can be drawn.

    A mask on another grid is drawn where its header places it in the patient.
    """
    case = next((case for case in dataset.cases if case.id == finding.case), None)
    if case is None:
        return None
    scan, voxels = _scan_of(case, reader)
    mask, grid = _mask_of(case, reader)
    geometry = scan or grid
    if geometry is None:
        return None
    if mask is None or grid is None:
        mask, grid = np.zeros(geometry.shape, dtype=np.uint8), geometry
    masks = {"mask": to_grid(mask, grid, geometry)}
    shown = _focus(finding, masks["mask"])
    if shown is not None:
        # The first mask decides where the cuts are.
        masks = {"finding": shown, **masks}
    title = f"{case.id}: {finding.kind}"
    modality = dataset.modalities[0]
    if voxels is not None and voxels.dtype != np.uint8:
        voxels = np.nan_to_num(voxels[:1], nan=0.0, posinf=0.0, neginf=0.0)
    try:
        return overlay_planes(
            voxels, masks, geometry=geometry, labels=dataset.labels, title=title, modality=modality
        )
    except MedsegError:
        return None


def to_grid(mask: NDArray[Any], grid: Geometry, target: Geometry) -> NDArray[Any]:
    """A mask on another grid, by the nearest voxel in the patient; 0 outside its own."""
    if grid.difference(target) is None:
        return mask
    from scipy.ndimage import affine_transform

    matrix = np.linalg.inv(grid.affine_ras) @ target.affine_ras
    moved = affine_transform(
        mask,
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=target.shape,
        order=0,
        mode="grid-constant",
    )
    return np.asarray(moved)


def _scan_of(case: Case, reader: Reader) -> tuple[Geometry | None, NDArray[Any] | None]:
    try:
        scan = read_case_image(case, reader)
        return scan.geometry, scan.voxels()
    except MedsegError:
        return None, None


def _mask_of(case: Case, reader: Reader) -> tuple[NDArray[Any] | None, Geometry | None]:
    try:
        mask, scan = read_case_mask(case, reader)
    except MedsegError:
        return _rounded_mask(case, reader)
    return mask, scan.geometry


def _rounded_mask(case: Case, reader: Reader) -> tuple[NDArray[Any] | None, Geometry | None]:
    """What can be drawn of a mask that holds no whole numbers."""
    try:
        if case.label is None:
            return None, None
        scan = reader.scan(case.label)
        values = np.nan_to_num(scan.voxels()[0])
        return np.clip(np.rint(values), 0, 65535).astype(np.uint16), scan.geometry
    except MedsegError:
        return None, None


def _focus(finding: Finding, mask: NDArray[Any]) -> NDArray[Any] | None:
    """The part of the mask that the finding is about; None where it is all of it."""
    if not finding.labels:
        return None
    own = np.isin(mask, finding.labels)
    if finding.kind == "stray-parts":
        own = tiny_parts(mask, finding.labels)
    shown = np.where(own, mask, 0)
    return shown if shown.any() and (shown != mask).any() else None
