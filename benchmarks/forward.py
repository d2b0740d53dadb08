"""One forward pass of a U-Net on a CPU: OpenVINO against torch eager, in one run.

``python benchmarks/forward.py`` times tiles of 96^3 and 128^3 voxels through a plain U-Net of
32 channels in 5 and 6 stages with 15 classes, by turns, and prints the ratio of the quickest
tries, how close the logits are, and what a first conversion and a later start cost.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable

import torch

from medseg.core.plan import NetworkPlan
from medseg.inference.backends import TorchBackend
from medseg.inference.openvino_backend import Source, least_tile, open_backend
from medseg.inference.tile import agreement, sample_tile
from medseg.networks.build import build_network

STAGES = {96: 5, 128: 6}
FEATURES = (32, 64, 128, 256, 320, 320)


def source_of(side: int) -> Source:
    """A U-Net with random weights that are a function of nothing but its size."""
    stages = STAGES.get(side, 5)
    plan = NetworkPlan(
        spatial_dims=3,
        in_channels=1,
        classes=15,
        features=FEATURES[:stages],
        strides=((1, 1, 1), *[(2, 2, 2)] * (stages - 1)),
        kernels=((3, 3, 3),) * stages,
    )
    network = TorchBackend(build_network(plan, seed=0), torch.device("cpu"))
    patch = (side, side, side)
    return Source(network, 1, patch, least_tile(patch, plan.divisor), f"benchmark {side}")


def seconds_of(work: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(side: int, tries: int) -> None:
    """Print one line for tiles of one size."""
    source = source_of(side)
    convert_s = seconds_of(lambda: open_backend(source))
    start_s = seconds_of(lambda: open_backend(source))
    fast, tile = open_backend(source), sample_tile(1, source.patch)
    close = agreement(source.reference(tile), fast(tile))
    best = [float("inf"), float("inf")]
    for _ in range(tries):
        for place, backend in enumerate((source.reference, fast)):
            best[place] = min(best[place], seconds_of(lambda run=backend: run(tile)))
    print(
        f"tile {side}^3, {STAGES.get(side, 5)} stages, fp32: torch eager {best[0]:.2f} s, "
        f"OpenVINO {best[1]:.2f} s, ratio {best[0] / best[1]:.2f}; {close}; "
        f"first conversion with its check {convert_s:.1f} s, from the cache {start_s:.2f} s"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[96, 128])
    parser.add_argument("--tries", type=int, default=3)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEDSEG_CACHE"] = folder
        for side in options.sides:
            measure(side, options.tries)


if __name__ == "__main__":
    main()
