"""Phantoms for the models that nnU-Net trains: ellipsoids in a body, on lopsided grids.

Nothing of medseg is imported: this runs in nnU-Net's own environment. Labels are told apart by
intensity and size, never by side, because nnU-Net mirrors its training images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Look:
    """How the scans of one kind look.

    Attributes:
        shape: Voxels along i, j, k, about; each case differs a little.
        spacing_mm: Voxel sizes along i, j, k, about.
        flips: Axes that run the other way than RAS.
        order: Which of the patient's axes i, j and k follow.
        angles_deg: Turns about x and y: an oblique grid.
        air: Intensity outside the body, one a channel.
        tissue: Intensity of the body and of labels 1, 2, 3, one row a channel.
        noise: Standard deviation of the noise within the body.
        nested: Label 2 lies within 1, and 3 within 2.
        vary: How much the spacing of cases differs.
        zero_outside: The outside is exactly 0, as after skull stripping.
    """

    shape: tuple[int, int, int]
    spacing_mm: Vector
    flips: tuple[bool, bool, bool] = (False, False, False)
    order: tuple[int, int, int] = (0, 1, 2)
    angles_deg: tuple[float, float] = (0.0, 0.0)
    air: tuple[float, ...] = (-1000.0,)
    tissue: tuple[tuple[float, ...], ...] = ((20.0, 90.0, 170.0, 250.0),)
    noise: float = 9.0
    nested: bool = False
    vary: float = 0.12
    zero_outside: bool = False


def affine_of(
    look: Look, spacing_mm: NDArray[np.float64], origin_mm: Vector
) -> NDArray[np.float64]:
    """(4, 4) RAS+ affine in mm of a look's grid."""
    a, b = np.deg2rad(look.angles_deg)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    signs = np.where(look.flips, -1.0, 1.0)
    axes = np.eye(3)[:, list(look.order)] * signs
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_y @ axes * spacing_mm
    affine[:3, 3] = origin_mm
    return affine


def ellipsoids(
    look: Look, rng: np.random.Generator, extent_mm: NDArray[np.float64], labels: int
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Centre and radii (mm, about the middle of the grid) of each label."""
    if look.nested:
        radii = extent_mm * rng.uniform(0.29, 0.34, 3)
        centre = extent_mm * rng.uniform(-0.06, 0.06, 3)
        return [(centre, radii * share) for share in (1.0, 0.68, 0.4)[:labels]]
    places = np.array([[-0.2, -0.14, 0.06], [0.22, 0.1, -0.06], [-0.08, 0.24, 0.02]])
    sizes = np.array([[0.15, 0.16, 0.24], [0.13, 0.15, 0.2], [0.12, 0.1, 0.16]])
    turn = rng.choice([-1.0, 1.0], 3)  # no label has a side of its own
    return [
        (extent_mm * (place * turn + rng.uniform(-0.03, 0.03, 3)),
         extent_mm * size * rng.uniform(0.9, 1.15, 3))
        for place, size in zip(places[:labels], sizes, strict=False)
    ]  # fmt: skip


def phantom(
    look: Look, seed: int, *, labels: int
) -> tuple[list[NDArray[np.int16]], NDArray[np.uint8], NDArray[np.float64]]:
    """One image (I, J, K) a channel, the mask (I, J, K) and the affine of a case."""
    rng = np.random.Generator(np.random.PCG64(seed))
    spacing = np.asarray(look.spacing_mm) * rng.uniform(1 - look.vary, 1 + look.vary, 3)
    shape = np.asarray(look.shape) + rng.integers(-1, 3, 3) * (np.asarray(look.shape) > 1)
    x, y, z = rng.uniform(-80.0, 80.0, 3)
    affine = affine_of(look, spacing, (float(x), float(y), float(z)))
    middle = (shape - 1) / 2.0
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    local_mm = (grid - middle) * spacing  # along i, j, k
    extent = shape * spacing
    body = ((local_mm / (extent * 0.46)) ** 2).sum(-1) <= 1.0
    mask = np.zeros(shape, dtype=np.uint8)
    for value, (centre, radii) in enumerate(ellipsoids(look, rng, extent, labels), start=1):
        mask[(((local_mm - centre) / radii) ** 2).sum(-1) <= 1.0] = value
    mask[~body] = 0
    images = []
    for air, tissue in zip(look.air, look.tissue, strict=True):
        clean = np.where(body, np.asarray(tissue)[mask], air)
        fine = rng.normal(0.0, look.noise, tuple(shape))
        slow = gaussian_filter(rng.normal(0.0, 1.0, tuple(shape)), 2.5 / spacing * 2.0)
        image = clean + fine + slow / max(float(slow.std()), 1e-6) * look.noise * 0.5
        image = gaussian_filter(image, 0.5 / spacing)
        if look.zero_outside:
            image = np.where(body, np.maximum(image, 1.0), 0.0)
        images.append(np.round(image).astype(np.int16))
    return images, mask, affine


def write(path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """A NIfTI file with qform and sform in mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
