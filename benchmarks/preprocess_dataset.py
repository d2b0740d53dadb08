"""Preprocessing a dataset, from files to cache: medseg against nnU-Net.

    python benchmarks/preprocess_dataset.py DATASET --peer PYTHON [--rounds 3]
    python benchmarks/preprocess_dataset.py --ct --peer PYTHON

PYTHON is the interpreter of an environment with nnunetv2. The dataset is first converted to
nnU-Net's layout, so that both read the same files. medseg: ``medseg cache build``, which checks,
plans and preprocesses all cases; nnU-Net: ``nnUNetv2_plan_and_preprocess`` with the check of its
dataset, for its 3D configuration alone and (``--both``) for 2D and 3D as it does by default. Each
is timed from the command to its end, with as many processes or threads as there are cores; the
medians are compared. nnU-Net's start-up is the time that its command takes to print its help.

``--ct`` makes six synthetic CT scans (about 280 x 280 x 140 voxels of 0.7 to 0.9 mm, slices of
1.5 mm, noise, six organs), since small scans are mostly overhead; both resample them to the median
spacing. By its default medseg interpolates images linearly, nnU-Net with cubic splines.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

CT_MM = (0.7, 0.75, 0.8, 0.8, 0.85, 0.9)
CT_SIDE_MM, CT_SLICES = 224, 140


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Wall time of a process that ends well."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    took = time.perf_counter() - started
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:4])}: {(done.stderr or done.stdout)[-800:]}")
    return took


def write_ct(folder: Path) -> Path:
    """A dataset in MSD layout of noisy CT scans with ellipsoids."""
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    entries = []
    for number, side_mm in enumerate(CT_MM):
        shape = (round(CT_SIDE_MM / side_mm), round(CT_SIDE_MM / side_mm), CT_SLICES)
        grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
        image = rng.normal(-20, 25, shape)
        air = grid[0] ** 2 + grid[1] ** 2 > 0.9
        image[np.broadcast_to(air, shape)] = -1000
        mask = np.zeros(shape, np.uint8)
        for value in range(1, 7):
            middle, radius = rng.uniform(-0.5, 0.5, 3), rng.uniform(0.1, 0.3, 3)
            inside = (
                sum(((axis - m) / r) ** 2 for axis, m, r in zip(grid, middle, radius, strict=True))
                < 1
            )
            image[inside] += 30 * value
            mask[inside] = value
        affine = np.diag([side_mm, side_mm, 1.5, 1])
        file = f"ct_{number}.nii.gz"
        nib.save(nib.Nifti1Image(image.astype(np.int16), affine), folder / "imagesTr" / file)
        nib.save(nib.Nifti1Image(mask, affine), folder / "labelsTr" / file)
        entries.append({"image": f"imagesTr/{file}", "label": f"labelsTr/{file}"})
    labels = {"0": "background"} | {str(n): f"organ_{n}" for n in range(1, 7)}
    about = {"name": "ct", "modality": {"0": "CT"}, "labels": labels, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--ct", action="store_true", help="synthetic CT scans instead")
    parser.add_argument("--peer", required=True, help="python of an environment with nnunetv2")
    parser.add_argument("--both", action="store_true", help="nnU-Net's 2D configuration, too")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    medseg, cores = [sys.executable, "-m", "medseg"], str(os.cpu_count() or 1)
    command = str(Path(options.peer).with_name("nnUNetv2_plan_and_preprocess"))
    theirs = [command, "-d", "1", "--verify_dataset_integrity", "--clean", "-npfp", cores]
    theirs += ["-np", *[cores] * (1 + options.both), "-c", *["2d"] * options.both, "3d_fullres"]
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        source = write_ct(top / "ct") if options.ct else options.dataset
        raw = top / "Dataset001_Speed"
        convert = [*medseg, "convert", str(source), "--to", "nnunet", "--out", str(raw)]
        seconds(convert, dict(os.environ))
        peer_s, own_s, start_s = [], [], []
        for number in range(options.rounds):
            environment = {
                **os.environ, "nnUNet_raw": name, "nnUNet_preprocessed": str(top / f"p{number}"),
                "nnUNet_results": str(top / "results"),
            }  # fmt: skip
            ours = [*medseg, "cache", "build", str(raw), "--out", str(top / f"m{number}")]
            own_s.append(seconds([*ours, "--fold", "all-data"], environment))
            peer_s.append(seconds(theirs, environment))
            start_s.append(seconds([command, "-h"], environment))
    mine, peer, start = (statistics.median(times) for times in (own_s, peer_s, start_s))
    print(
        f"nnU-Net {peer:.1f} s, of which {start:.1f} s are the start of its command, medseg "
        f"{mine:.1f} s, ratio {peer / mine:.2f} (medians of {options.rounds})"
    )


if __name__ == "__main__":
    main()
