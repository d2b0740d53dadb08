"""Dice + cross-entropy of many classes: medseg's against MONAI's ``DiceCELoss``, on the CPU.

    python benchmarks/losses.py [--classes 50] [--side 96] [--batch 2] [--rounds 5]

Each side runs in fresh processes: one measures the peak of the memory that forward and backward
take, the logits and the gradient by them included, above what imports take; others the time,
in turn, of which medians are compared. Values and gradients are compared, too.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
SIDES = ("monai", "medseg")


def loss_of(side: str, classes: int) -> Loss:
    """The loss of one side, from logits (N, classes, I, J, K) and labels (N, I, J, K)."""
    if side == "monai":
        from monai.losses import DiceCELoss

        theirs = DiceCELoss(
            include_background=False, softmax=True, to_onehot_y=True, batch=True,
            smooth_nr=1e-5, smooth_dr=1e-5,
        )  # fmt: skip
        return lambda logits, labels: theirs(logits, labels[:, None])
    from medseg.core.labels import LabelSet
    from medseg.core.plan import ChannelPlan, NetworkPlan, Plan, TrainingPlan
    from medseg.training.losses import SegmentationLoss
    from medseg.training.targets import Targets

    plan = Plan(
        labels=LabelSet.from_names({n: f"organ {n}" for n in range(1, classes)}),
        channels=(ChannelPlan(name="ct", normalisation="none"),),
        spacing_mm=(1, 1, 1), patch_size=(8, 8, 8),
        network=NetworkPlan(
            spatial_dims=3, in_channels=1, classes=classes, features=(8, 16),
            strides=((1, 1, 1), (2, 2, 2)), kernels=((3, 3, 3),) * 2,
        ),
        training=TrainingPlan(batch_size=2, learning_rate=0.01),
    )  # fmt: skip
    ours = SegmentationLoss(plan, torch.device("cpu"))
    return lambda logits, labels: ours([logits], Targets(labels))


def drawn(options: argparse.Namespace, side: int) -> tuple[Tensor, Tensor]:
    """Random logits and labels."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, options.classes, side, side, side)
    logits = torch.randn(shape, generator=generator)
    labels = torch.randint(0, options.classes, (shape[0], *shape[2:]), generator=generator)
    return logits.requires_grad_(), labels


def step(loss: Loss, logits: Tensor, labels: Tensor) -> float:
    """Seconds of forward and backward."""
    logits.grad = None
    started = time.perf_counter()
    loss(logits, labels).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


def worker(options: argparse.Namespace) -> None:
    """Measure one side in this process and print it as JSON."""
    loss = loss_of(options.worker, options.classes)
    # What is allocated once, whatever the size.
    step(loss, *drawn(options, 8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    logits, labels = drawn(options, options.side)
    took = [step(loss, logits, labels)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    took += [step(loss, logits, labels) for _ in range(2)]
    print(json.dumps({"mib": peak / 1024, "seconds": min(took)}))


def fresh(options: argparse.Namespace, side: str) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--worker", side]
    for name in ("classes", "side", "batch"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", choices=SIDES)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            results[side].append(fresh(options, side))
    held = options.batch * options.classes * options.side**3 * 4 / 2**20
    print(f"{options.classes} classes, {options.batch} x {options.side}^3: logits {held:.0f} MiB")
    medians = {}
    for side, found in results.items():
        medians[side] = {key: statistics.median(one[key] for one in found) for key in found[0]}
        print(f"{side}: {medians[side]['mib']:.0f} MiB, {medians[side]['seconds']:.2f} s")
    for key, what in (("mib", "memory"), ("seconds", "time")):
        print(f"{what}: {medians['monai'][key] / medians['medseg'][key]:.2f}x")
    logits, labels = drawn(options, 32)
    values, gradients = [], []
    for side in SIDES:
        value = loss_of(side, options.classes)(logits, labels)
        values.append(float(value.detach()))
        gradients.append(torch.autograd.grad(value, logits)[0])
    gap = float((gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max())
    print(f"value off by {abs(values[0] - values[1]):.1e}, gradient by {gap:.1e} of its largest")


if __name__ == "__main__":
    main()
