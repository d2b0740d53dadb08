"""Small made-up volumes and datasets for the tests of all rooms.

Lopsided on purpose (unequal sides and spacing, oblique, origin off zero): a cube with
isotropic voxels hides every mistake with axes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.core.geometry import Geometry

Triple = tuple[int, int, int]


def oblique_affine(
    spacing_mm: tuple[float, float, float] = (1.5, 2.0, 3.5),
    *,
    origin_mm: tuple[float, float, float] = (-31.0, 17.5, 42.25),
    angles_deg: tuple[float, float, float] = (12.0, -9.0, 20.0),
) -> NDArray[np.float64]:
    """(4, 4) RAS+ affine in mm, turned about x, then y, then z."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles_deg)):
        a, b = [other for other in range(3) if other != axis]
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    affine = np.eye(4)
    affine[:3, :3] = turn * np.asarray(spacing_mm)
    affine[:3, 3] = origin_mm
    return affine


def lopsided_volume(
    shape: Triple = (11, 8, 6), *, seed: int = 0, dtype: Any = np.int16, oblique: bool = False
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Random voxels (I, J, K), every one of its own value up to 32767, and an affine for them."""
    count = int(np.prod(shape))
    values = np.random.Generator(np.random.PCG64(seed)).permutation(count) % 32768
    angles = (12.0, -9.0, 20.0) if oblique else (0.0, 0.0, 0.0)
    return values.reshape(shape).astype(dtype), oblique_affine(angles_deg=angles)


def lopsided_geometry(shape: Triple = (11, 8, 6), *, oblique: bool = True) -> Geometry:
    """The grid of :func:`lopsided_volume`."""
    angles = (12.0, -9.0, 20.0) if oblique else (0.0, 0.0, 0.0)
    return Geometry(shape, oblique_affine(angles_deg=angles))


def blobs(
    shape: Triple = (24, 20, 16), *, seed: int = 0, noise: float = 20.0
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Image and mask (I, J, K): two bright ellipsoids, label 1 (value 300) and 2 (600).

    Label 1 lies in the lower half of the first axis, label 2 in the upper; both are there
    in every case, also when K is 1.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    size = np.asarray(shape, dtype=np.float64)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    mask = np.zeros(shape, dtype=np.uint8)
    for value, place in ((1, 0.28), (2, 0.72)):
        centre = (size - 1) * (np.array([place, 0.5, 0.5]) + rng.uniform(-0.06, 0.06, 3))
        radius = np.maximum(size * rng.uniform(0.14, 0.19, 3), 0.75)
        inside = (((grid - np.round(centre)) / radius) ** 2).sum(axis=-1) <= 1.0
        mask[inside] = value
    image = mask * 300.0 + rng.normal(0.0, noise, shape)
    return np.round(image).astype(np.int16), mask


def write_nifti(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64]) -> Path:
    """Save voxels with nibabel, qform and sform of code 1, in mm; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def write_msd_dataset(
    folder: Path,
    *,
    cases: int = 6,
    shape: Triple = (24, 20, 16),
    spacing_mm: tuple[float, float, float] = (1.5, 2.0, 3.0),
    channels: tuple[str, ...] = ("CT",),
    splits: bool = True,
    seed: int = 0,
) -> Path:
    """Write a tiny dataset in MSD layout: bright blobs, labels 1 ``low`` and 2 ``high``.

    The cases differ in size by a voxel or two, and in orientation. With several channels
    an image is (I, J, K, C). With ``splits`` the last third is the one fold's validation.
    Returns the folder.
    """
    names = [f"case_{number:03d}" for number in range(cases)]
    for number, name in enumerate(names):
        sizes = (shape[0] + number % 2, shape[1], shape[2] + number % 3 if shape[2] > 1 else 1)
        image, mask = blobs(sizes, seed=seed * 1000 + number)
        if len(channels) > 1:
            image = np.stack([image + 100 * c for c in range(len(channels))], axis=-1)
        affine = oblique_affine(
            spacing_mm, angles_deg=(0.0, 0.0, 0.0), origin_mm=(-20.0 - number, 11.0, 5.0)
        )
        if number % 2:  # half of the cases run to the patient's left
            image, mask = image[::-1], mask[::-1]
            affine[:3, 3] += affine[:3, 0] * (sizes[0] - 1)
            affine[:3, 0] *= -1
        write_nifti(folder / "imagesTr" / f"{name}.nii.gz", image, affine)
        write_nifti(folder / "labelsTr" / f"{name}.nii.gz", mask, affine)
    description = {
        "name": "blobs",
        "modality": {str(number): name for number, name in enumerate(channels)},
        "labels": {"0": "background", "1": "low", "2": "high"},
        "numTraining": cases,
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in names
        ],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    if splits:
        kept = max(1, cases // 3)
        fold = [{"train": names[:-kept], "val": names[-kept:]}]
        (folder / "splits.json").write_text(json.dumps(fold, indent=1), encoding="utf-8")
    return folder
