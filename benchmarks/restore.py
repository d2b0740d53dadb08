"""Logits back to the scan's grid and to labels: medseg against nnU-Net's default export.

    python benchmarks/restore.py --peer PYTHON [--rounds 3] [--shape 100 170 170]

PYTHON is the interpreter of an environment with nnunetv2. Both get the same logits of 25
classes (organs as ellipsoids, with noise) and restore them to twice the size along each axis.
nnU-Net's side is its own function for it, with the resampling that its planner writes into
every plan: order 1, all classes, then the argmax. Each side runs in processes of its own, in
turn. Seconds are medians; memory is the largest resident size above that of the same process
with the logits loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = 25
_FRAME = """
import json, resource, sys, time
import numpy as np
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
{prepare}
logits = np.load(sys.argv[1])
target = tuple(2 * side for side in logits.shape[1:])
work(logits[:, :8, :8, :8].copy(), (16, 16, 16))
before, started = peak(), time.perf_counter()
labels = work(logits, target)
seconds = time.perf_counter() - started
print(json.dumps({{"seconds": seconds, "bytes": peak() - before}}))
np.save(sys.argv[2], np.asarray(labels))
"""
_MEDSEG = """
import torch
from medseg.core.geometry import Geometry
from medseg.transforms.preprocess import RestoreRecord
from medseg.transforms.restore import restore_classes
def work(logits, target):
    record = RestoreRecord.of(Geometry(target, np.eye(4)), (2.0, 2.0, 2.0))
    return restore_classes(torch.from_numpy(logits), record)
"""
_PEER = """
import os, torch
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape as export)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
options = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
configuration = {
    "spacing": [2.0, 2.0, 2.0], "architecture": {},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": options}
plans = PlansManager({
    "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
    "label_manager": "LabelManager", "configurations": {"3d_fullres": configuration}})
names = {"background": 0, **{f"organ {n}": n for n in range(1, int(sys.argv[3]))}}
manager = plans.get_label_manager({"labels": names})
def work(logits, target):
    properties = {
        "spacing": [1.0, 1.0, 1.0], "shape_after_cropping_and_before_resampling": target,
        "shape_before_cropping": target, "bbox_used_for_cropping": [[0, side] for side in target]}
    return export(
        torch.from_numpy(logits), plans, plans.get_configuration("3d_fullres"), manager,
        properties, num_threads_torch=os.cpu_count())
"""


def phantom(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Logits as a trained network gives them: steep at the surfaces of organs, with noise."""
    rng = np.random.Generator(np.random.PCG64(seed))
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    logits = rng.standard_normal((CLASSES, *shape), np.float32) * 0.3
    logits[0] += 2
    for organ in range(1, CLASSES):
        centre, radius = rng.uniform(-0.6, 0.6, 3), rng.uniform(0.08, 0.35, 3)
        away = sum(((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radius, strict=True))
        logits[organ] += np.clip((1 - np.sqrt(away)) * 12, -15, 12).astype(np.float32)
    return logits


def measure(python: str, prepare: str, logits: Path, labels: Path) -> dict[str, Any]:
    """Run one side in a process of its own."""
    done = subprocess.run(
        [python, "-c", _FRAME.format(prepare=prepare), str(logits), str(labels), str(CLASSES)],
        capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-800:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="python of an environment with nnunetv2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", type=int, nargs=3, default=[100, 170, 170])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        logits, theirs, ours = (Path(folder) / f"{n}.npy" for n in ("logits", "peer", "medseg"))
        np.save(logits, phantom(tuple(options.shape)))
        peer, mine = [], []
        for _ in range(options.rounds):
            mine.append(measure(sys.executable, _MEDSEG, logits, ours))
            peer.append(measure(options.peer, _PEER, logits, theirs))
        differ = float((np.load(theirs) != np.load(ours)).mean())
    slow, fast = (statistics.median(run["seconds"] for run in runs) for runs in (peer, mine))
    much, little = (max(run["bytes"] for run in runs) for runs in (peer, mine))
    print(f"restore and argmax, {CLASSES} classes, {options.shape} to twice: "
          f"nnU-Net {slow:.1f} s, {much / 1e6:.0f} MB; medseg {fast:.2f} s, {little / 1e6:.0f} MB; "
          f"ratio {slow / fast:.1f}, memory 1/{much / little:.0f}, "
          f"{100 * differ:.4f} % of voxels differ")  # fmt: skip


if __name__ == "__main__":
    main()
