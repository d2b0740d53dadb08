"""Make the sample data: abdominal CT phantoms with liver, spleen and both kidneys.

    python sample_data/make_phantoms.py --out sample_data --seed 0

writes ``abdomen/`` (20 volumes) and ``abdomen_2d/`` (8 slices as PNG) in the layout of the
Medical Segmentation Decathlon, each with a ``splits.json`` of one fold.

The anatomy lives in RAS+ millimetres, so that left and right are the patient's own,
whatever orientation a volume is stored in. Both kidneys come from one distribution: only
their place tells them apart. The same seed gives the same voxels on every machine: random
bits come from PCG64, and all else is +, -, *, / and square roots, which IEEE 754 fixes
to the last bit (no sine, no matrix product, no library sum).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]
Vector = tuple[float, float, float]

LABELS = {"0": "background", "1": "liver", "2": "spleen", "3": "kidney_left", "4": "kidney_right"}
LIVER, SPLEEN, KIDNEY_LEFT, KIDNEY_RIGHT = 1, 2, 3, 4
VOLUMES, HELD_OUT_VOLUMES = 20, 4
SLICES, HELD_OUT_SLICES = 8, 2
ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "RPI", "LPI", "ASL", "SAR", "LPS", "RAI")
OBLIQUE_CASES = (5, 17)  # one to train on, one held out
# Rotations whose cosine and sine are exact decimals (7-24-25 and 20-99-101 triangles).
_TURN_Z, _TURN_X = (0.96, 0.28), (99.0 / 101.0, 20.0 / 101.0)
_WINDOW_HU = (-160.0, 240.0)


@dataclass(frozen=True)
class Blob:
    """An ellipsoid with a wavy surface.

    Attributes:
        centre_mm: RAS+.
        radii_mm: Along x, y, z before tilting.
        tilt: Cosine and sine of a turn about y, to lean a kidney or the spleen.
        bumps: Rows (kx, ky, kz, phase, height), waves on the unit ball.
        hu: Mean intensity.
        label: Mask value; 0 where it is only scenery.
        texture_hu: Height of the slow waves inside.
    """

    centre_mm: Vector
    radii_mm: Vector
    bumps: Floats
    hu: float
    label: int = 0
    tilt: tuple[float, float] = (1.0, 0.0)
    texture_hu: float = 4.0


def wave(turns: Floats) -> Floats:
    """A sine of period 1 made of parabolas, exact on every machine."""
    within = turns - np.floor(turns + 0.5)
    return np.asarray(8.0 * within * (1.0 - 2.0 * np.abs(within)))


def noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Nearly normal noise of unit variance: the sum of four uniform numbers, made of integers."""
    total = np.zeros(shape, dtype=np.int64)
    for _ in range(4):
        total += rng.integers(0, 65536, size=shape)
    return np.asarray((total - 131070) / 37837.0)


def make_bumps(rng: np.random.Generator, height: float, count: int = 5) -> Floats:
    """Random waves for the surface of a blob; together they stay below about ``height``."""
    rows = rng.uniform(-0.55, 0.55, size=(count, 5))
    rows[:, 3] = rng.uniform(0.0, 1.0, size=count)
    rows[:, 4] = rng.uniform(0.3, 1.0, size=count) * (2.0 * height / count)
    return rows


def ball_coordinates(blob: Blob, x: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
    """Place in units of the blob's radii: its surface, without bumps, is at distance 1."""
    dx, dy, dz = (p - c for p, c in zip((x, y, z), blob.centre_mm, strict=True))
    cos, sin = blob.tilt
    rx, ry, rz = blob.radii_mm
    return (cos * dx + sin * dz) / rx, dy / ry, (cos * dz - sin * dx) / rz


def paint(blob: Blob, points: tuple[Floats, Floats, Floats], hu: Floats, labels: Floats) -> None:
    """Set intensity and label of the points inside a blob, in place; all arrays flat."""
    a, b, c = ball_coordinates(blob, *points)
    distance = np.sqrt(a * a + b * b + c * c)
    near = np.flatnonzero(distance < 1.6)
    a, b, c, distance = a[near], b[near], c[near], distance[near]
    limit = np.ones_like(distance)
    for kx, ky, kz, phase, height in blob.bumps:
        limit += height * wave(kx * a + ky * b + kz * c + phase)
    inside = distance < limit
    a, b, c, near = a[inside], b[inside], c[inside], near[inside]
    slow = wave(0.9 * a + 0.3 * b + 0.2) * wave(0.8 * c - 0.4 * b + 0.6)
    hu[near] = blob.hu + blob.texture_hu * slow
    labels[near] = blob.label


def around(rng: np.random.Generator, value: float, spread: float) -> float:
    """A uniform draw from value - spread to value + spread."""
    return float(rng.uniform(value - spread, value + spread))


def place(rng: np.random.Generator, centre: Vector, spread_mm: float, scale: float) -> Vector:
    """A centre in mm, scaled with the patient and shifted at random."""
    x, y, z = (around(rng, scale * value, spread_mm) for value in centre)
    return x, y, z


def size(rng: np.random.Generator, radii: Vector, scale: float) -> Vector:
    """Radii in mm, scaled with the patient, each varied by up to 12 %."""
    a, b, c = (scale * value * around(rng, 1.0, 0.12) for value in radii)
    return a, b, c


def body(rng: np.random.Generator, scale: float) -> list[Blob]:
    """Skin, fat, muscle wall, inner fat, spine and aorta."""
    wall = make_bumps(rng, 0.03)
    layers = [((166.0, 118.0), -100.0), ((146.0, 100.0), 55.0), ((134.0, 88.0), -95.0)]
    parts = [
        Blob((0.0, 0.0, 0.0), (scale * rx, scale * ry, 900.0), wall, hu, texture_hu=8.0)
        for (rx, ry), hu in layers
    ]
    psoas = [
        Blob(place(rng, (side * 38.0, -52.0, -60.0), 2.0, scale),
             size(rng, (17.0, 19.0, 75.0), scale), make_bumps(rng, 0.08), around(rng, 58.0, 4.0))
        for side in (-1.0, 1.0)
    ]  # fmt: skip
    spine = [
        Blob((0.0, -66.0 * scale, z), (21.0 * scale, 18.0 * scale, 15.5), make_bumps(rng, 0.05),
             around(rng, 210.0, 25.0), texture_hu=40.0)
        for z in np.arange(-180.0, 181.0, 33.0)
    ]  # fmt: skip
    process = Blob((0.0, -88.0 * scale, 0.0), (7.0, 16.0, 900.0), wall, 180.0, texture_hu=40.0)
    vessels = [
        Blob((x * scale, -37.0 * scale, 0.0), (11.0, 10.0, 900.0), wall, around(rng, hu, 17.0))
        for x, hu in ((-10.0, 150.0), (16.0, 115.0))
    ]
    return [*parts, *psoas, process, *spine, *vessels]


def bowel(rng: np.random.Generator, scale: float) -> list[Blob]:
    """Loops, some as bright as organs, some with gas, and the stomach."""
    parts = []
    for _ in range(16):
        x, y, z = around(rng, 0.0, 85.0), around(rng, 30.0, 32.0), around(rng, -60.0, 60.0)
        centre = place(rng, (x, y, z), 3.0, scale)
        hu = float(rng.choice([35.0, 45.0, 60.0, 110.0]))
        radii = size(rng, (20.0, 17.0, 19.0), scale)
        parts.append(Blob(centre, radii, make_bumps(rng, 0.2), hu, texture_hu=10.0))
        if rng.uniform() < 0.35:
            gas = (centre[0], centre[1] + 5.0, centre[2])
            parts.append(Blob(gas, (9.0, 7.0, 9.0), make_bumps(rng, 0.2), -650.0))
    stomach = Blob(
        place(rng, (-52.0, 30.0, 48.0), 5.0, scale), size(rng, (42.0, 34.0, 40.0), scale),
        make_bumps(rng, 0.15), around(rng, 40.0, 12.0), texture_hu=15.0,
    )  # fmt: skip
    return [*parts, stomach]


def kidney(rng: np.random.Generator, scale: float, *, side: float) -> list[Blob]:
    """One kidney in its fat, with a darker core; ``side`` is 1 for right, -1 for left."""
    label = KIDNEY_RIGHT if side > 0 else KIDNEY_LEFT
    centre = place(rng, (side * 66.0, -38.0, -32.0), 5.0, scale)
    radii = size(rng, (27.0, 29.0, 50.0), scale)
    # 5-12-13 and 9-40-41 triangles: leaning outwards at the lower pole.
    cos, sin = (12.0 / 13.0, 5.0 / 13.0) if rng.uniform() < 0.5 else (40.0 / 41.0, 9.0 / 41.0)
    bumps, hu = make_bumps(rng, 0.1), around(rng, 145.0, 16.0)
    tilt = (cos, side * sin)

    def shell(part: float, value: float, mask: int) -> Blob:
        a, b, c = (part * radius for radius in radii)
        return Blob(centre, (a, b, c), bumps, value, label=mask, tilt=tilt, texture_hu=8.0)

    return [shell(1.16, -98.0, 0), shell(1.0, hu, label), shell(0.5, hu - 35.0, label)]


def anatomy(rng: np.random.Generator) -> list[Blob]:
    """All parts of one patient, centred on (0, 0, 0), in the order in which they are painted."""
    scale = around(rng, 1.0, 0.07)
    liver_hu, spleen_hu = around(rng, 108.0, 12.0), around(rng, 118.0, 12.0)
    right, left = kidney(rng, scale, side=1.0), kidney(rng, scale, side=-1.0)
    lobes = [
        Blob(place(rng, (70.0, 8.0, 40.0), 6.0, scale), size(rng, (56.0, 66.0, 62.0), scale),
             make_bumps(rng, 0.14), liver_hu, label=LIVER, texture_hu=9.0),
        Blob(place(rng, (22.0, 42.0, 50.0), 6.0, scale), size(rng, (52.0, 32.0, 32.0), scale),
             make_bumps(rng, 0.14), liver_hu, label=LIVER, texture_hu=9.0),
    ]  # fmt: skip
    spleen = Blob(
        place(rng, (-92.0, -26.0, 42.0), 6.0, scale), size(rng, (27.0, 40.0, 42.0), scale),
        make_bumps(rng, 0.16), spleen_hu, label=SPLEEN, tilt=(40.0 / 41.0, -9.0 / 41.0),
    )  # fmt: skip
    return [
        *body(rng, scale), *bowel(rng, scale), right[0], left[0], *lobes, spleen,
        *right[1:], *left[1:],
    ]  # fmt: skip


def render(
    blobs: list[Blob], shape: tuple[int, int, int], affine: Floats, *, parts: int = 2
) -> tuple[Floats, NDArray[np.uint8]]:
    """Sample the anatomy on a grid, ``parts`` points along each voxel side.

    Returns HU (I, J, K), the mean over the points (partial volume), and the mask, the
    label that most of the points have.
    """
    i, j, k = (index.ravel().astype(np.float64) for index in np.indices(shape))
    offsets = [(n + 0.5) / parts - 0.5 for n in range(parts)]
    total, votes = np.zeros(i.size), np.zeros((len(LABELS), i.size), dtype=np.int64)
    for di, dj, dk in product(offsets, offsets, offsets if shape[2] > 1 else [0.0]):
        a, b, c = i + di, j + dj, k + dk
        x, y, z = (row[0] * a + row[1] * b + row[2] * c + row[3] for row in affine[:3])
        hu, labels = np.full(i.size, -1000.0), np.zeros(i.size)
        for blob in blobs:
            paint(blob, (x, y, z), hu, labels)
        total += hu
        for value in range(len(LABELS)):
            votes[value] += labels == value
    points = len(offsets) ** (3 if shape[2] > 1 else 2)
    mask = votes.argmax(axis=0).astype(np.uint8)
    return (total / points).reshape(shape), mask.reshape(shape)


def add_noise(hu: Floats, rng: np.random.Generator) -> NDArray[np.int16]:
    """Noise with some likeness between neighbours, less of it in air; rounded to whole HU."""
    white = noise(rng, hu.shape)
    grain = white + 0.5 * (np.roll(white, 1, axis=0) + np.roll(white, 1, axis=1))
    strength = np.where(hu > -900.0, 14.0, 3.0)
    return np.asarray(np.clip(np.floor(hu + strength * grain / 1.25 + 0.5), -1024, 3071), np.int16)


def grid(rng: np.random.Generator, case: int) -> tuple[tuple[int, int, int], Floats]:
    """Shape and RAS+ affine of a volume: spacing, orientation and place in the scanner."""
    spacing = [round(float(value), 2) for value in rng.uniform((3.5, 3.2, 4.4), (4.0, 4.0, 6.0))]
    extent = rng.uniform((328.0, 232.0, 188.0), (348.0, 252.0, 216.0))
    counts = [round(float(mm) / step) for mm, step in zip(extent, spacing, strict=True)]
    centre = (0.0, 0.0, around(rng, 0.0, 8.0))
    columns = np.zeros((3, 3))
    shape = [0, 0, 0]
    for axis, code in enumerate(ORIENTATIONS[case % len(ORIENTATIONS)]):
        world = next(n for n, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        columns[world, axis] = spacing[world] * (1.0 if code in "RAS" else -1.0)
        shape[axis] = counts[world]
    if case in OBLIQUE_CASES:
        columns = _turned(columns)
    affine = np.eye(4)
    affine[:3, :3] = columns
    for row in range(3):
        half = [columns[row, axis] * (shape[axis] - 1) / 2.0 for axis in range(3)]
        affine[row, 3] = centre[row] - (half[0] + half[1] + half[2])
    return (shape[0], shape[1], shape[2]), affine


def _turned(columns: Floats) -> Floats:
    """Turn the axes about x, then about z."""
    (cz, sz), (cx, sx) = _TURN_Z, _TURN_X
    x, y, z = columns
    y, z = cx * y - sx * z, sx * y + cx * z
    return np.stack([cz * x - sz * y, sz * x + cz * y, z])


def make_volume(case: int, seed: int) -> tuple[NDArray[np.int16], NDArray[np.uint8], Floats]:
    """One phantom: HU (I, J, K), mask (I, J, K) and its RAS+ affine in mm."""
    rng = np.random.Generator(np.random.PCG64([seed, case]))
    blobs = anatomy(rng)
    shape, affine = grid(rng, case)
    hu, mask = render(blobs, shape, affine)
    # The patient lies anywhere in the scanner; the voxels are the same.
    affine[:3, 3] += np.round(rng.uniform((-30.0, -180.0, -700.0), (30.0, -60.0, 200.0)), 1)
    return add_noise(hu, rng), mask, affine


def make_slice(case: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One axial slice as a picture, rows and columns: grey values and mask.

    Columns run to the patient's left and rows to the back, as slices are looked at.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 1000 + case]))
    blobs = anatomy(rng)
    shape, step = (144, 104, 1), 2.4
    affine = np.diag([-step, -step, 5.0, 1.0])
    affine[:3, 3] = (step * 71.5, step * 51.5, around(rng, 7.0, 6.0))
    hu, mask = render(blobs, shape, affine)
    low, high = _WINDOW_HU
    grey = np.clip((add_noise(hu, rng) - low) / (high - low), 0.0, 1.0)
    pixels = np.floor(grey * 255.0 + 0.5).astype(np.uint8)
    return pixels[:, :, 0].T.copy(), mask[:, :, 0].T.copy()


def write_volumes(folder: Path, seed: int) -> None:
    """Write the volumes and what describes them."""
    names = [f"abdomen_{case:02d}" for case in range(VOLUMES)]
    for case, name in enumerate(names):
        voxels, mask, affine = make_volume(case, seed)
        for room, array in (("imagesTr", voxels), ("labelsTr", mask)):
            image = nib.Nifti1Image(array, affine)
            image.set_qform(affine, code=1)
            image.set_sform(affine, code=1)
            image.header.set_xyzt_units("mm")
            (folder / room).mkdir(parents=True, exist_ok=True)
            nib.save(image, folder / room / f"{name}.nii.gz")
    _describe(folder, names, "CT", ".nii.gz", HELD_OUT_VOLUMES)


def write_slices(folder: Path, seed: int) -> None:
    """Write the slices as PNG and what describes them."""
    names = [f"slice_{case:02d}" for case in range(SLICES)]
    for case, name in enumerate(names):
        pixels, mask = make_slice(case, seed)
        for room, array in (("imagesTr", pixels), ("labelsTr", mask)):
            (folder / room).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / room / f"{name}.png", optimize=True)
    _describe(folder, names, "grey", ".png", HELD_OUT_SLICES)


def _describe(folder: Path, names: list[str], modality: str, suffix: str, held_out: int) -> None:
    description = {
        "name": folder.name,
        "description": "Computed phantoms, no patient. Made by sample_data/make_phantoms.py.",
        "licence": "Apache-2.0",
        "modality": {"0": modality},
        "labels": LABELS,
        "numTraining": len(names),
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/{name}{suffix}", "label": f"./labelsTr/{name}{suffix}"}
            for name in names
        ],
        "test": [],
    }
    folds = [{"train": names[:-held_out], "val": names[-held_out:]}]
    for name, content in (("dataset.json", description), ("splits.json", folds)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write both sets."""
    parser = argparse.ArgumentParser(description="Make the abdominal phantoms.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_volumes(arguments.out / "abdomen", arguments.seed)
    write_slices(arguments.out / "abdomen_2d", arguments.seed)


if __name__ == "__main__":
    main()
