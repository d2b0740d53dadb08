"""A training step on a CPU with and without the memory that the last step freed.

    python benchmarks/kept_memory.py [--patch 40 56 40] [--features 16 32 64 128] [--rounds 3]

Whole steps of a plain U-Net (batch 2 of noise, three classes, AdamW, fp32) in processes of their
own, in turns; the C library's settings are the only difference. Told are the medians of the mean
step, the page faults of a step and the peak of the process (Linux).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext

STEPS, WARM = 12, 4


def steps(patch: list[int], features: list[int], *, kept: bool) -> dict[str, float]:
    """Seconds and page faults of a step, and the peak in MB."""
    import torch

    from medseg.core.network_plan import NetworkPlan
    from medseg.networks.build import build_network
    from medseg.training.kept_memory import freed_memory_kept

    depth = len(features)
    plan = NetworkPlan(
        name="unet", spatial_dims=3, in_channels=1, classes=3, features=tuple(features),
        strides=((1, 1, 1),) + ((2, 2, 2),) * (depth - 1), kernels=((3, 3, 3),) * depth,
    )  # fmt: skip
    network = build_network(plan, seed=0).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-6)
    images, labels = torch.randn(2, 1, *patch), torch.randint(0, 3, (2, *patch))

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        outputs = network(images)
        finest = outputs[0] if isinstance(outputs, list) else outputs
        torch.nn.functional.cross_entropy(finest, labels).backward()
        optimiser.step()

    with freed_memory_kept("cpu") if kept else nullcontext():
        for _ in range(WARM):
            step()
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(STEPS):
            step()
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    faults = (after.ru_minflt - before.ru_minflt) / STEPS
    return {"step_s": took / STEPS, "faults": faults, "peak_mb": after.ru_maxrss / 1024}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
    parser.add_argument("--features", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=("kept", "given-back"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(steps(options.patch, options.features, kept=options.one == "kept")))
        return
    found: dict[str, list[dict[str, float]]] = {"given-back": [], "kept": []}
    for _ in range(options.rounds):
        for name, runs in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
            told = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(told.stdout.splitlines()[-1]))
    middle = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    for name, facts in middle.items():
        print(
            f"{name}: {facts['step_s']:.3f} s a step, {facts['faults']:.0f} page faults, peak "
            f"{facts['peak_mb']:.0f} MB"
        )
    print(f"ratio {middle['given-back']['step_s'] / middle['kept']['step_s']:.2f}")


if __name__ == "__main__":
    main()
