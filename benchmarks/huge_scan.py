"""Memory of scans that are large, or have many classes; each run in a process of its own.

    python benchmarks/huge_scan.py long       512 x 512 x 2000, from disk to disk
    python benchmarks/huge_scan.py classes    118 classes, 512 x 512 x 800, in memory
                                              [--peer /python/of/an/environment/with/nnunetv2]

The scan is a phantom of ellipsoids, each of its own intensity, made slice by slice. The network
is small, so that the run ends: means of 4 x 4 x 4 voxels, a score for each class by how near
the mean is to its intensity, and interpolation back to the voxels. Tiles are 128 x 128 x 128 at
1.5 mm and overlap by half. ``--slices`` makes a quick look. Peak memory is VmHWM, the highest
resident set that Linux saw of the process.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from huge_scan_peer import AIR_HU, SPACING_MM, STEP_HU, WORKING_MM, Nearest, status_mb
from isal import isal_zlib

from medseg.core.labels import LabelSet
from medseg.core.plan import (
    ChannelPlan,
    InferencePlan,
    NetworkPlan,
    Plan,
    PostprocessStep,
    TrainingPlan,
)
from medseg.inference.memory import Limits
from medseg.inference.predictor import Predictor
from medseg.io.formats import read_scan
from medseg.transforms.preprocess import preprocess_scan
from medseg.workflows.streamed import segment_to_disk

SIDE = 512


def write_phantom(path: Path, slices: int, organs: int, *, pieces: int = 1) -> None:
    """Ellipsoids in noise, 512 x 512 x ``slices`` int16, plane by plane; pieces of each organ."""
    rng = np.random.default_rng(0)
    size, count = np.array([SIDE, SIDE, slices]), organs * pieces
    centres = size * rng.uniform(0.15, 0.85, (count, 3))
    radii = rng.uniform(0.04, 0.12, (count, 3)) * [SIDE, SIDE, min(slices, SIDE)]
    noise = rng.normal(0, 8, (SIDE, SIDE, 8)).astype(np.float32)
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    affine[:3, 3] = 200.0, 190.0, -900.0
    header = nib.Nifti1Header()
    header.set_data_shape((SIDE, SIDE, slices))
    header.set_data_dtype(np.int16)
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_xyzt_units("mm")
    header["vox_offset"], header["magic"] = 352, header.single_magic
    gzip = isal_zlib.compressobj(0, isal_zlib.DEFLATED, 16 + isal_zlib.MAX_WBITS)
    i, j = (np.arange(SIDE)[:, None], np.arange(SIDE)[None])
    with path.open("wb") as raw:
        raw.write(gzip.compress(header.binaryblock + bytes(4)))
        for k in range(slices):
            plane = np.full((SIDE, SIDE), AIR_HU)
            for organ in np.flatnonzero(np.abs(k - centres[:, 2]) < radii[:, 2]):
                a, b, c = centres[organ]
                u, v, w = radii[organ]
                inside = ((i - a) / u) ** 2 + ((j - b) / v) ** 2 < 1 - ((k - c) / w) ** 2
                plane[inside] = AIR_HU + STEP_HU * (organ % organs + 1)
            plane += np.roll(noise[..., k % 8], 17 * k, axis=0)
            raw.write(gzip.compress(np.round(plane).astype(np.int16).tobytes(order="F")))
        raw.write(gzip.flush())


def plan_for(classes: int, *, patch: int = 128) -> Plan:
    """CT at 1.5 mm, tiles that overlap by half, the largest region of each label kept."""
    labels = LabelSet.from_names({value: f"organ {value}" for value in range(1, classes)})
    return Plan(
        labels=labels,
        channels=(
            ChannelPlan(name="CT", normalisation="ct", clip_low=-1024, clip_high=3071, mean=0,
                        std=1000),
        ),
        spacing_mm=(WORKING_MM,) * 3,
        patch_size=(patch,) * 3,
        network=NetworkPlan(
            spatial_dims=3, in_channels=1, classes=classes, features=(4, 4),
            strides=((1, 1, 1), (4, 4, 4)), kernels=((3, 3, 3), (3, 3, 3)),
        ),
        training=TrainingPlan(batch_size=1, learning_rate=1e-3),
        # As the peer weighs its tiles.
        inference=InferencePlan(gaussian_centre="voxel", gaussian_floor=0.0),
        postprocess=tuple(PostprocessStep(step="largest", label=name) for name in labels.names),
    )  # fmt: skip


def work_long(scan: Path, mask: Path, classes: int) -> dict[str, Any]:
    """From disk to disk, post-processing included."""
    predictor = Predictor([Nearest(classes)], plan_for(classes), torch.device("cpu"), batch=1)
    before, started = status_mb("VmRSS"), time.perf_counter()
    done = segment_to_disk(read_scan(scan), predictor, mask)
    return {
        "imports_mb": before,
        "peak_mb": status_mb("VmHWM"),
        "seconds": time.perf_counter() - started,
        "phases": done.seconds,
    }


def work_classes(scan: Path, mask: Path, classes: int, *, ring: str, patch: int) -> dict[str, Any]:
    """Labels of a scan in memory, with carried logits of one precision."""
    plan = plan_for(classes, patch=patch)
    limits = Limits(max_memory_bytes=10**12, ring=ring)  # type: ignore[arg-type]
    predictor = Predictor([Nearest(classes)], plan, torch.device("cpu"), batch=1, limits=limits)
    before, started = status_mb("VmRSS"), time.perf_counter()
    labels, _ = predictor.segment(read_scan(scan))
    took, peak = time.perf_counter() - started, status_mb("VmHWM")
    np.save(mask, labels)
    return {"imports_mb": before, "peak_mb": peak, "seconds": took}


def in_own_process(command: list[str]) -> dict[str, Any]:
    """Run a script and read the JSON of its last line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_long(folder: Path, slices: int) -> None:
    """The row of the long scan."""
    classes = 5
    scan, mask = folder / "scan.nii.gz", folder / "mask.nii.gz"
    write_phantom(scan, slices, classes - 1, pieces=max(6, slices // 40))
    found = in_own_process([sys.executable, __file__, "long", str(scan), str(mask),
                            str(classes)])  # fmt: skip
    image = nib.load(mask)
    phases = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["phases"].items())
    print(f"{image.shape} int16 .nii.gz, {SPACING_MM} mm, {classes} classes, from disk to disk: "
          f"peak {found['peak_mb'] / 1e3:.2f} GB in total ({found['imports_mb'] / 1e3:.2f} GB of "
          f"it before the scan), {found['seconds']:.0f} s ({phases})")  # fmt: skip
    voxels = SIDE * SIDE * slices
    print(f"the scan alone as int16: {2 * voxels / 1e9:.2f} GB, as float32 {4 * voxels / 1e9:.2f}")


def measure_classes(folder: Path, slices: int) -> None:
    """The row of many classes, with both precisions."""
    classes, scan, masks = 118, folder / "scan.nii.gz", {}
    write_phantom(scan, slices, classes - 1)
    scan_mb = 2 * SIDE * SIDE * slices / 1e6
    for ring in ("fp32", "fp16"):
        found = run_classes(scan, folder / f"{ring}.npy", classes, ring=ring, patch=128)
        masks[ring] = np.load(folder / f"{ring}.npy")
        above = found["peak_mb"] - found["imports_mb"] - scan_mb
        print(f"{classes} classes, {masks[ring].shape}, ring {ring}: peak {above / 1e3:.2f} GB "
              f"above the scan ({scan_mb / 1e3:.2f} GB) and {found['imports_mb'] / 1e3:.2f} GB of "
              f"imports, {found['seconds']:.0f} s")  # fmt: skip
    equal = float((masks["fp16"] == masks["fp32"]).mean())
    inside = masks["fp32"] > 0
    same = float((masks["fp16"] == masks["fp32"])[inside].mean())
    print(f"fp16 labels equal to fp32: {equal:.4%} of all voxels, {same:.4%} of foreground")
    print(need_of_peer(classes, masks["fp32"].shape))


def measure_peer(folder: Path, python: str) -> None:
    """Both at a size at which the peer fits."""
    classes, patch, slices, side = 118, 64, 200, 160
    whole, scan = folder / "whole.nii.gz", folder / "small.nii.gz"
    write_phantom(whole, slices, classes - 1)
    image, begin = nib.load(whole), (SIDE - side) // 2
    nib.save(image.slicer[begin : begin + side, begin : begin + side - 10], scan)
    found = run_classes(scan, folder / "ours.npy", classes, ring="fp16", patch=patch)
    # The peer gets the preprocessed scan, and its time and memory begin there.
    voxels, record = preprocess_scan(read_scan(scan), plan_for(classes, patch=patch))
    np.save(folder / "input.npy", voxels.numpy())
    script = str(Path(__file__).with_name("huge_scan_peer.py"))
    shape = record.oriented.shape
    theirs = in_own_process([python, script, str(folder / "input.npy"), str(folder / "peer.npy"),
                             str(classes), str(patch), *map(str, shape)])  # fmt: skip
    ours_mb, theirs_mb = (one["peak_mb"] - one["imports_mb"] for one in (found, theirs))
    mask = record.orientation.apply(np.load(folder / "ours.npy"))
    equal = float((mask == np.load(folder / "peer.npy")).mean())
    print(f"{classes} classes, {shape}, tile {patch}: nnU-Net {theirs_mb / 1e3:.2f} GB in "
          f"{theirs['seconds']:.0f} s, medseg {ours_mb / 1e3:.2f} GB in {found['seconds']:.0f} s "
          f"(from the file), 1/{theirs_mb / ours_mb:.1f} of the memory, "
          f"{equal:.3%} of labels equal")  # fmt: skip
    print(need_of_peer(classes, shape))


def run_classes(scan: Path, mask: Path, classes: int, *, ring: str, patch: int) -> dict[str, Any]:
    """``work_classes`` in a process of its own."""
    return in_own_process([sys.executable, __file__, "classes", str(scan), str(mask),
                           str(classes), "--ring", ring, "--patch", str(patch)])  # fmt: skip


def need_of_peer(classes: int, shape: tuple[int, ...]) -> str:
    """What nnU-Net 2.8 holds at the end of its export, worked out from its source.

    float16 logits of the whole working grid, their float64 copy, and float16 logits of the
    whole scan, all at once; with float32 logits the first and the last are twice that.
    """
    working = math.prod(round(n * s / WORKING_MM) for n, s in zip(shape, SPACING_MM, strict=True))
    half = classes * (2 * working + 8 * working + 2 * math.prod(shape))
    single = classes * (4 * working + 8 * working + 4 * math.prod(shape))
    return (f"nnU-Net's need at {shape} by arithmetic: {half / 1e9:.1f} GB (logits float16), "
            f"{single / 1e9:.1f} GB (float32)")  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", choices=["long", "classes"])
    parser.add_argument("files", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--slices", type=int, help="fewer for a quick look")
    parser.add_argument("--peer", help="python of an environment with nnunetv2")
    parser.add_argument("--folder", help="a folder on a disk for the phantom; it is deleted after")
    for hidden in ("--ring", "--patch"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.files:
        scan, mask, classes = Path(options.files[0]), Path(options.files[1]), int(options.files[2])
        if options.row == "long":
            found = work_long(scan, mask, classes)
        else:
            patch = int(options.patch)
            found = work_classes(scan, mask, classes, ring=options.ring, patch=patch)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        if options.row == "long":
            measure_long(Path(name), options.slices or 2000)
            return
        measure_classes(Path(name), options.slices or 800)
        if options.peer:
            measure_peer(Path(name), options.peer)


if __name__ == "__main__":
    main()
