"""medseg against nnU-Net on the same trained models: are the masks the same?

    python benchmarks/peers/agreement.py OUT [--kinds regions plane] [--keep DIR]

OUT is what ``train_nnunet.py`` wrote. Each model is imported with ``medseg import-nnunet``, the
held-out phantoms are segmented with ``medseg predict``, and the masks are compared with
nnU-Net's: Dice of each label, and the share of equal voxels within the union of both
foregrounds dilated by 3 voxels. Exit code 1 where a kind misses the goal: a mean Dice of 0.999,
no Dice below 0.99, and 99.5 % of voxels equal.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

MEAN_DICE, LEAST_DICE, EQUAL_SHARE = 0.999, 0.99, 0.995
_DILATION_VOXELS = 3


@dataclass(frozen=True)
class Agreement:
    """Dice of each label value, and the share of equal voxels near the foregrounds."""

    dice: dict[int, float]
    equal_share: float
    different: int


def compare(ours: NDArray[np.generic], theirs: NDArray[np.generic]) -> Agreement:
    """Compare two masks (I, J, K); a label that neither has is left out."""
    values = sorted((set(np.unique(ours)) | set(np.unique(theirs))) - {0})
    dice = {}
    for value in values:
        one, other = ours == value, theirs == value
        dice[int(value)] = 2.0 * float((one & other).sum()) / float(one.sum() + other.sum())
    near = (ours != 0) | (theirs != 0)
    if near.any():
        near = binary_dilation(near, iterations=_DILATION_VOXELS)
    equal = ours == theirs
    share = float(equal[near].mean()) if near.any() else 1.0
    return Agreement(dice, share, int((~equal).sum()))


def voxels(path: Path) -> NDArray[np.generic]:
    """The mask of a NIfTI file."""
    return np.asarray(nib.load(path).dataobj)


def medseg(*arguments: str | Path) -> float:
    """Run a command of medseg; returns the seconds it took."""
    command = [sys.executable, "-m", "medseg", *map(str, arguments)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])}: {(done.stderr or done.stdout)[-2000:]}")
    return time.perf_counter() - started


def trained_model(root: Path) -> Path:
    """nnU-Net's folder of a kind: of a cascade the last stage."""
    folders = sorted((root / "results").glob("*/*__*__*/plans.json"))
    last = [path for path in folders if path.parent.name.endswith("cascade_fullres")]
    return (last or folders)[0].parent


def agree(root: Path, out: Path) -> list[Agreement]:
    """Import the model of one kind, segment its held-out phantoms, compare."""
    folds = sorted(path.name.removeprefix("fold_") for path in trained_model(root).glob("fold_*"))
    medseg("import-nnunet", trained_model(root), "--out", out / "model", "--folds", ",".join(folds))
    medseg("predict", out / "model", root / "images", "--out", out / "masks")
    masks = sorted((root / "predictions").glob("*.nii.gz"))
    return [compare(voxels(out / "masks" / path.name), voxels(path)) for path in masks]


def passes(agreements: list[Agreement]) -> bool:
    """Whether the goal is met over all cases of a kind."""
    dice = [score for one in agreements for score in one.dice.values()]
    share = min(one.equal_share for one in agreements)
    return float(np.mean(dice)) >= MEAN_DICE and min(dice) >= LEAST_DICE and share >= EQUAL_SHARE


def told(name: str, agreements: list[Agreement]) -> str:
    """One line of the table."""
    values = sorted({value for one in agreements for value in one.dice})
    scores = [
        f"{value}: {np.mean([one.dice[value] for one in agreements if value in one.dice]):.5f}"
        for value in values
    ]
    dice = [score for one in agreements for score in one.dice.values()]
    return (
        f"{name:12s} Dice {', '.join(scores)} | least {min(dice):.5f} | equal "
        f"{100 * min(one.equal_share for one in agreements):.3f} % at least | "
        f"{sum(one.different for one in agreements)} voxels differ | "
        f"{'passes' if passes(agreements) else 'MISSES'}"
    )


def main() -> None:
    """Compare every kind and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="what train_nnunet.py wrote")
    parser.add_argument("--kinds", nargs="+", help="only these")
    parser.add_argument("--keep", type=Path, help="leave medseg's models and masks here")
    options = parser.parse_args()
    kinds = options.kinds or sorted(path.parent.name for path in options.out.glob("*/predictions"))
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        keep = options.keep or Path(folder)
        for name in kinds:
            try:
                found = agree(options.out / name, keep / name)
            except RuntimeError as error:
                print(f"{name:12s} FAILS: {error}", flush=True)
                missed.append(name)
                continue
            print(told(name, found), flush=True)
            missed += [] if passes(found) else [name]
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
