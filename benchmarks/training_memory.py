"""Memory of training on 200 full-body CTs.

    python benchmarks/training_memory.py [--cases 200] [--steps 20]

Four cached cases of 333 x 333 x 600 voxels (500 x 500 x 900 mm at 1.5 mm) with 60 labels are
written as ``medseg train`` caches them, and linked 50 times each, so that 200 cases need the
disk of four. In a process of its own batches of the planner's plan for a GPU (two patches of about
128^3) are then cut and varied, with four reading threads, and steps of its plan for a CPU are
trained. Told are the peak of the process (VmHWM: what pages of files
are mapped counts, too) and of anonymous memory, which no other process can have.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

SHAPE, LABELS, UNIQUE = (333, 333, 600), 60, 4


def write_cases(folder: Path, cases: int) -> None:
    """The unique cases, and links to them."""
    from medseg.training.cache import _places
    from medseg.training.cache_store import write_case

    for number in range(UNIQUE):
        rng = np.random.default_rng(number)
        image = rng.standard_normal((1, *SHAPE), dtype=np.float32)
        label = np.zeros(SHAPE, np.uint8)
        for value in range(1, LABELS + 1):
            corner = [int(rng.integers(0, side - 60)) for side in SHAPE]
            label[tuple(slice(start, start + 60) for start in corner)] = value
        home = folder / f"case_{number:03d}"
        home.mkdir(parents=True)
        write_case(home, image, label, places=_places(label), made_from={})
    for number in range(UNIQUE, cases):
        home, source = folder / f"case_{number:03d}", folder / f"case_{number % UNIQUE:03d}"
        home.mkdir()
        for file in source.iterdir():
            (home / file.name).hardlink_to(file)


def train(folder: Path, steps: int) -> None:
    """A few steps on all cases; prints what it took."""
    import torch

    from medseg.core.labels import LabelSet
    from medseg.core.plan import ChannelFacts, Fingerprint
    from medseg.planning.planner import make_plan, means_for
    from medseg.training.cache import CachedCase
    from medseg.training.cache_store import read_case
    from medseg.training.kept_memory import freed_memory_kept
    from medseg.training.loader import Batches
    from medseg.training.step import Stepper, new_state

    labels = LabelSet.from_names({n: f"organ_{n}" for n in range(1, LABELS + 1)})
    facts = ChannelFacts(
        name="CT", modality="CT", foreground_mean=0, foreground_std=1, percentile_00_5=-3,
        percentile_99_5=3, zero_share=0,
    )  # fmt: skip
    fingerprint = Fingerprint(
        cases=200, two_dimensional=False, median_spacing_mm=(1.5,) * 3, low_spacing_mm=(1.5,) * 3,
        median_shape=SHAPE, max_shape=SHAPE, channels=(facts,),
        label_voxel_share=dict.fromkeys(labels.names, 0.01),
        label_cases=dict.fromkeys(labels.names, 200),
    )  # fmt: skip
    large, small = (
        make_plan(fingerprint, labels, means_for(kind, two_dimensional=False, training_s=None))
        for kind in ("cuda", "cpu")
    )
    cases = []
    for home in sorted(folder.iterdir()):
        stored = read_case(home)
        assert stored is not None
        cases.append(CachedCase(home.name, stored.image, stored.label, stored.places))
    device = torch.device("cpu")
    opened = peaks()
    batches = Batches(cases, large, seed=0, device=device, workers=4)
    started = time.perf_counter()
    for _ in islice(batches.iterate(0), 4 * steps):
        pass
    read_s, read = (time.perf_counter() - started) / (4 * steps), peaks()
    step_once = Stepper(new_state(small, seed=0, device=device), small, device)
    with freed_memory_kept("cpu"):
        for batch in islice(Batches(cases, small, seed=0, device=device).iterate(0), steps):
            step_once([batch], 1e-4)
        trained = peaks()
    for what, (whole, own) in (
        (f"{len(cases)} cases opened", opened),
        (f"after {4 * steps} batches of 2 x {large.patch_size} ({read_s:.2f} s each)", read),
        (f"after {steps} training steps of 2 x {small.patch_size}", trained),
    ):
        print(f"{what}: peak {whole / 1e9:.2f} GB, anonymous now {own / 1e9:.2f} GB")


def peaks() -> tuple[int, int]:
    """Peak of the process, and its anonymous memory of the moment, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    facts = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return int(facts["VmHWM"]) * 1024, int(facts["RssAnon"]) * 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        train(options.folder, options.steps)
        return
    with tempfile.TemporaryDirectory() as name:
        write_cases(Path(name), options.cases)
        own = [sys.executable, __file__, "--steps", str(options.steps), "--folder", name]
        subprocess.run(own, check=True)


if __name__ == "__main__":
    main()
