"""Phantoms for the models that nnU-Net trains: ellipsoids in a body, on lopsided grids.

Nothing of medseg is imported: this runs in nnU-Net's own environment. Labels are told apart by
intensity and size, never by side, because nnU-Net mirrors its training images.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        pitch_mm: Distance of many small organs of random labels; None: one of each label.
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
    pitch_mm: float | None = None


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


def organs(
    look: Look, rng: np.random.Generator, extent_mm: NDArray[np.float64], labels: int
) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
    """Value, centre and radii (mm, about the middle of the grid) of each ellipsoid."""
    if look.nested:
        radii = extent_mm * rng.uniform(0.29, 0.34, 3)
        centre = extent_mm * rng.uniform(-0.06, 0.06, 3)
        for value, share in enumerate((1.0, 0.68, 0.4)[:labels], start=1):
            yield value, centre, radii * share
    elif look.pitch_mm:
        counts = np.maximum(np.floor(extent_mm / look.pitch_mm), 1).astype(int)
        for place in np.ndindex(*counts):
            centre = (np.asarray(place) - (counts - 1) / 2.0) * look.pitch_mm
            shift = look.pitch_mm * rng.uniform(-0.08, 0.08, 3)
            radii = look.pitch_mm * rng.uniform(0.28, 0.4, 3)
            yield int(rng.integers(1, labels + 1)), centre + shift, radii
    else:
        places = np.array([[-0.2, -0.14, 0.06], [0.22, 0.1, -0.06], [-0.08, 0.24, 0.02]])
        sizes = np.array([[0.15, 0.16, 0.24], [0.13, 0.15, 0.2], [0.12, 0.1, 0.16]])
        turn = rng.choice([-1.0, 1.0], 3)  # no label has a side of its own
        for value in range(1, labels + 1):
            centre = extent_mm * (places[value - 1] * turn + rng.uniform(-0.03, 0.03, 3))
            yield value, centre, extent_mm * sizes[value - 1] * rng.uniform(0.9, 1.15, 3)


def paint(
    mask: NDArray[np.uint8], spacing: NDArray[np.float64], value: int,
    centre: NDArray[np.float64], radii: NDArray[np.float64],
) -> None:  # fmt: skip
    """Set the voxels within an ellipsoid, in place; mm about the middle of the grid."""
    middle = (np.asarray(mask.shape) - 1) / 2.0
    low = np.clip(np.floor((centre - radii) / spacing + middle), 0, mask.shape).astype(int)
    high = np.clip(np.ceil((centre + radii) / spacing + middle) + 1, 0, mask.shape).astype(int)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    mask[box][distance(low, high, middle, spacing, centre, radii) <= 1.0] = value


def distance(
    low: NDArray[np.int_], high: NDArray[np.int_], middle: NDArray[np.float64],
    spacing: NDArray[np.float64], centre: NDArray[np.float64], radii: NDArray[np.float64],
) -> NDArray[np.float32]:  # fmt: skip
    """Squared distance from an ellipsoid's centre in units of its radii, for a box of voxels."""
    i, j, k = (
        (((np.arange(low[a], high[a]) - middle[a]) * spacing[a] - centre[a]) / radii[a]) ** 2
        for a in range(3)
    )
    total = i[:, None, None] + j[None, :, None] + k[None, None, :]
    return np.asarray(total, dtype=np.float32)


def phantom(
    look: Look, seed: int, *, labels: int
) -> tuple[list[NDArray[np.int16]], NDArray[np.uint8], NDArray[np.float64]]:
    """One image (I, J, K) a channel, the mask (I, J, K) and the affine of a case."""
    rng = np.random.Generator(np.random.PCG64(seed))
    spacing = np.asarray(look.spacing_mm) * rng.uniform(1 - look.vary, 1 + look.vary, 3)
    shape = np.asarray(look.shape) + rng.integers(-1, 3, 3) * (np.asarray(look.shape) > 1)
    x, y, z = rng.uniform(-80.0, 80.0, 3)
    affine = affine_of(look, spacing, (float(x), float(y), float(z)))
    extent = shape * spacing
    whole = (np.zeros(3, dtype=int), shape, (shape - 1) / 2.0, spacing, np.zeros(3))
    body = distance(*whole, extent * 0.46) <= 1.0
    mask = np.zeros(shape, dtype=np.uint8)
    for value, centre, radii in organs(look, rng, extent, labels):
        paint(mask, spacing, value, centre, radii)
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
