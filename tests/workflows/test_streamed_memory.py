"""Memory stays flat however many slices a scan has: measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.core.plan import PostprocessStep
from tests.models import small_plan
from tests.phantoms import oblique_affine

ROOT = Path(__file__).parents[2]
LINUX = Path("/proc/self/clear_refs")

# Peaks (MB) of a short scan, twice for buffers to grow, and of one twelve times as long.
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from medseg.core.plan import Plan
from medseg.inference.predictor import Predictor
from medseg.io.formats import read_scan
from medseg.postprocess import streamed as regions
from medseg.transforms import preprocess_stream
from medseg.workflows import streamed

# So small that the short scan fills a slab too.
preprocess_stream._SLAB_VOXELS = regions._SLAB_VOXELS = streamed._SLAB_VALUES = 1 << 18
folder = Path(sys.argv[1])
plan = Plan.from_json((folder / "plan.json").read_text())
model = Predictor([lambda x: torch.cat([0 * x, x, x * x - 1], 1)], plan, torch.device("cpu"))

def peak(name):
    Path("/proc/self/clear_refs").write_text("5")
    streamed.segment_to_disk(read_scan(folder / name), model, folder / "mask.nii.gz")
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))

print(json.dumps([peak(name) for name in ("short.nii", "short.nii", "long.nii")]))
"""


@pytest.mark.skipif(not os.access(LINUX, os.W_OK), reason="peaks are reset through /proc")
def test_twelve_times_the_slices_take_the_same_memory(tmp_path: Path) -> None:
    # Smooth, so that there are few regions.
    i, j, k = np.meshgrid(*(np.arange(n) / 9 for n in (128, 120, 40)), indexing="ij")
    wave = (2 * np.sin(i) * np.sin(j + 1) * np.cos(k)).astype(np.float32)
    affine = oblique_affine((1.5, 2.0, 2.5), angles_deg=(4.0, 0.0, 9.0))
    for name, turns in (("short", 1), ("long", 12)):
        image = nib.Nifti1Image(np.tile(wave, (1, 1, turns)), affine)
        nib.save(image, tmp_path / f"{name}.nii")
    steps = [PostprocessStep(step="largest", label=name).model_dump() for name in ("low", "high")]
    plan = small_plan(
        patch_size=(64, 48, 32),
        spacing_mm=(None, 2.5, 3.0),
        **{"inference.step": 1.0, "postprocess": steps},
    )
    (tmp_path / "plan.json").write_text(plan.to_json())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _, short_mb, long_mb = json.loads(done.stdout)
    # The longer scan is 27 MB more, and as much again in each step of preparing it as a whole.
    assert long_mb - short_mb < 20
