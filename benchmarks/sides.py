"""Does mirroring mix up left and right? Three trainings, counted voxel by voxel.

    python benchmarks/sides.py --out runs/sides

The first two are on phantoms with paired organs alone (kidneys, lungs) in a body without any
side: what lies left and what lies right is drawn from one distribution, surfaces and noise have no
direction, loops of bowel lie anywhere, and the window of the scan is moved at random. Nothing
tells left from right but the place in the body.

    exchanged      as planned: mirrored from left to right, labels of each pair exchanged
    kept           the same, but labels keep their names in the mirror
    abdomen        sample_data/abdomen, whose liver has no partner (the planner would not mirror
                   it), mirrored with labels of the kidneys exchanged

A voxel of an organ is on the wrong side where it got the name of its partner. With labels that
keep their names half of what a network sees says left and half says right, so that chance, half of
the voxels, is all that can be expected. Networks, cases and steps are few: this is about sides.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "sample_data")]

from make_phantoms import (  # noqa: E402
    Blob,
    Floats,
    around,
    grid,
    make_bumps,
    noise,
    place,
    render,
    size,
)

import medseg  # noqa: E402
from medseg.core.labels import left_right_pairs  # noqa: E402
from medseg.io.formats import read_mask  # noqa: E402

LABELS = {1: "lung_left", 2: "lung_right", 3: "kidney_left", 4: "kidney_right"}
TRAINED, HELD_OUT = 16, 8
GOAL, CHANCE = 0.001, (0.35, 0.65)
# The window moves by so much about the body along x and y: all organs still show.
_SHIFT_MM = (42.0, 15.0)
# The first so many grids of the sample data are not turned: a turn has a side, too.
_UPRIGHT = 5
_PLAN: dict[str, Any] = {
    "spacing_mm": [8.0, 8.0, 8.0],
    "patch_size": [40, 32, 24],
    "training": {"steps_per_epoch": 50},
}


@dataclass(frozen=True)
class Sides:
    """What became of the voxels of paired organs.

    Attributes:
        wrong: Share of the voxels that are found which have the name of the partner.
        found: Share of all voxels of the organs that got either name of their pair.
        dice: Mean over cases and labels of pairs.
        seconds: For training and prediction.
    """

    wrong: float
    found: float
    dice: float
    seconds: float


def pair_of_organs(rng: np.random.Generator, scale: float, *, side: float) -> list[Blob]:
    """Lung and kidney of a side: 1 for right, -1 for left. Both sides have one distribution."""
    label = 1 if side > 0 else 0
    lung = Blob(
        place(rng, (side * 74.0, -4.0, 78.0), 5.0, scale), size(rng, (50.0, 62.0, 56.0), scale),
        make_bumps(rng, 0.1), around(rng, -780.0, 40.0), label=1 + label, texture_hu=0.0,
    )  # fmt: skip
    kidney = Blob(
        place(rng, (side * 66.0, -38.0, -32.0), 6.0, scale), size(rng, (27.0, 29.0, 50.0), scale),
        make_bumps(rng, 0.1), around(rng, 145.0, 16.0), label=3 + label, texture_hu=0.0,
    )  # fmt: skip
    psoas = Blob(
        place(rng, (side * 38.0, -52.0, -60.0), 2.0, scale), size(rng, (17.0, 19.0, 75.0), scale),
        make_bumps(rng, 0.08), around(rng, 58.0, 4.0), texture_hu=0.0,
    )  # fmt: skip
    return [psoas, lung, kidney]


def symmetric_anatomy(rng: np.random.Generator) -> list[Blob]:
    """A body that could as well be its mirror image, but for the names of its organs."""
    scale = around(rng, 1.0, 0.07)
    layers = [((166.0, 118.0), -100.0), ((146.0, 100.0), 55.0), ((134.0, 88.0), -95.0)]
    parts = [
        Blob((0.0, 0.0, 0.0), (scale * rx, scale * ry, 900.0), np.zeros((0, 5)), hu, texture_hu=0.0)
        for (rx, ry), hu in layers
    ]
    middle = [
        ((0.0, -66.0 * scale, 0.0), (21.0 * scale, 18.0 * scale, 900.0), 210.0),
        ((0.0, -88.0 * scale, 0.0), (7.0, 16.0, 900.0), 180.0),
        ((0.0, -37.0 * scale, 0.0), (11.0, 10.0, 900.0), 130.0),
    ]
    parts += [Blob(c, radii, np.zeros((0, 5)), hu, texture_hu=0.0) for c, radii, hu in middle]
    for _ in range(16):
        x, y, z = around(rng, 0.0, 85.0), around(rng, 30.0, 32.0), around(rng, -60.0, 60.0)
        hu = float(rng.choice([35.0, 45.0, 60.0, 110.0]))
        radii = size(rng, (20.0, 17.0, 19.0), scale)
        parts.append(Blob((x, y, z), radii, make_bumps(rng, 0.2), hu, texture_hu=0.0))
    pairs = [pair_of_organs(rng, scale, side=side) for side in (-1.0, 1.0)]
    return [*parts, *pairs[0], *pairs[1]]


def make_case(case: int) -> tuple[NDArray[np.int16], NDArray[np.uint8], Floats]:
    """HU (I, J, K), mask (I, J, K) and the RAS+ affine in mm, in one of many orientations."""
    rng = np.random.Generator(np.random.PCG64([7, case]))
    blobs = symmetric_anatomy(rng)
    shape, affine = grid(rng, case % _UPRIGHT)
    affine[:2, 3] += rng.uniform(-1.0, 1.0, 2) * _SHIFT_MM
    hu, mask = render(blobs, shape, affine, parts=1)
    affine[:3, 3] += np.round(rng.uniform((-30.0, -180.0, -700.0), (30.0, -60.0, 200.0)), 1)
    grey = np.floor(hu + 14.0 * noise(rng, hu.shape) + 0.5)
    return np.asarray(np.clip(grey, -1024, 3071), np.int16), mask, affine


def write_cases(folder: Path) -> Path:
    """Training and held-out cases in the layout of the Medical Segmentation Decathlon."""
    names = [f"paired_{case:02d}" for case in range(TRAINED + HELD_OUT)]
    for case, name in enumerate(names):
        voxels, mask, affine = make_case(case)
        for room, array in (("imagesTr", voxels), ("labelsTr", mask)):
            (folder / room).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), folder / room / f"{name}.nii.gz")
    description = {
        "name": "paired",
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(value): name for value, name in LABELS.items()}},
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in names
        ],
        "test": [],
    }
    folds = [{"train": names[:TRAINED], "val": names[TRAINED:]}]
    for file, content in (("dataset.json", description), ("splits.json", folds)):
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
    return folder


def measure(data: Path, out: Path, changes: dict[str, Any], epochs: int) -> Sides:
    """Train on the first fold, segment its held-out scans from their files, and count."""
    started = time.perf_counter()
    plan = {**_PLAN, **changes, "training": {**_PLAN["training"], **changes.get("training", {})}}
    trained = medseg.train(
        data, out / "run", epochs=epochs, base_features=8, device="cpu", inner_share=0.0, plan=plan
    )
    decided = medseg.load_model(trained["model"], device="cpu").plan
    if decided.training.augmentation.mirror_axes != (0,):
        raise RuntimeError(f"not mirrored: {decided.reasons['mirror_axes']}")
    held_out = json.loads((data / "splits.json").read_text(encoding="utf-8"))[0]["val"]
    scans = [data / "imagesTr" / f"{name}.nii.gz" for name in held_out]
    medseg.predict(trained["model"], scans, out / "masks", device="cpu")
    pairs = [
        (decided.labels.named(left).value, decided.labels.named(right).value)
        for left, right in left_right_pairs(decided.labels)
    ]
    return _counted(data, out / "masks", held_out, pairs=pairs, started=started)


def _counted(
    data: Path,
    masks: Path,
    names: Sequence[str],
    *,
    pairs: Sequence[tuple[int, int]],
    started: float,
) -> Sides:
    right = wrong = total = 0
    dice = []
    for name in names:
        file = f"{name}.nii.gz"
        truth, found = read_mask(data / "labelsTr" / file)[0], read_mask(masks / file)[0]
        for own, partner in [*pairs, *(pair[::-1] for pair in pairs)]:
            organ = truth == own
            total += int(organ.sum())
            right += int((found[organ] == own).sum())
            wrong += int((found[organ] == partner).sum())
            dice.append(
                2 * (found[organ] == own).sum() / max(1, organ.sum() + (found == own).sum())
            )
    seconds = round(time.perf_counter() - started, 1)
    share = wrong / max(1, right + wrong)
    return Sides(share, (right + wrong) / total, float(np.mean(dice)), seconds)


def main() -> int:
    """Run all three; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "sides")
    parser.add_argument("--epochs", type=int, default=7, help="of 50 steps")
    given = parser.parse_args()
    paired = write_cases(given.out / "paired")
    runs: dict[str, tuple[Path, dict[str, Any]]] = {
        "exchanged": (paired, {}),
        "kept": (paired, {"inference": {"left_right_pairs": []}}),
        "abdomen": (
            ROOT / "sample_data" / "abdomen",
            {"training": {"augmentation": {"mirror_axes": [0]}}},
        ),
    }
    result = {}
    for name, (data, changes) in runs.items():
        sides = measure(data, given.out / name, changes, given.epochs)
        result[name] = asdict(sides)
        print(
            f"{name}: {100 * sides.wrong:.3f} % on the wrong side, {100 * sides.found:.1f} % "
            f"found, Dice {sides.dice:.3f}, {sides.seconds:.0f} s",
            flush=True,
        )
    (given.out / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    low, high = CHANCE
    missed = result["exchanged"]["wrong"] >= GOAL or not low < result["kept"]["wrong"] < high
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
