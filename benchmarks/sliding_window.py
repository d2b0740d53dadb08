"""The sliding window itself: medseg against MONAI's, same network, tiles and overlap, on the CPU.

    python benchmarks/sliding_window.py [--rounds 3] [--classes 25] [--side 96] [--patch 64]

Both get a volume whose windows they place alike and give the logits of all voxels; then labels,
MONAI by the largest of its logits, medseg as in use, without holding them. Time inside the
network is taken off by a clock around it: the network is the same, and its noise is larger than
all the rest. They run in turn; medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from medseg.core.labels import LabelSet
from medseg.core.plan import ChannelPlan, NetworkPlan, Plan, TrainingPlan
from medseg.inference.predictor import Predictor
from medseg.networks.build import build_network


class Clocked(nn.Module):
    """A network and the seconds that it took."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        started = time.perf_counter()
        logits: Tensor = self.network(x)
        self.seconds += time.perf_counter() - started
        return logits


def plan_of(classes: int, patch: int) -> Plan:
    """A U-Net of four stages."""
    return Plan(
        labels=LabelSet.from_names({n: f"organ {n}" for n in range(1, classes)}),
        channels=(ChannelPlan(name="ct", normalisation="none"),),
        spacing_mm=(None, None, None),
        patch_size=(patch, patch, patch),
        network=NetworkPlan(
            spatial_dims=3, in_channels=1, classes=classes, features=(32, 64, 128, 256),
            strides=((1, 1, 1), *((2, 2, 2),) * 3), kernels=((3, 3, 3),) * 4,
            deep_supervision=False,
        ),
        training=TrainingPlan(batch_size=2, learning_rate=0.01),
    )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--classes", type=int, default=25)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--patch", type=int, default=64)
    options = parser.parse_args()
    side, patch = options.side, options.patch
    if (side - patch) % (patch // 2):
        parser.error("--side must be --patch and a number of half patches")
    plan = plan_of(options.classes, patch)
    network = Clocked(build_network(plan.network, seed=0)).eval()
    predictor = Predictor([network], plan, torch.device("cpu"))
    voxels = torch.randn(1, side, side, side)

    def monai() -> Tensor:
        whole = sliding_window_inference(
            voxels[None], plan.patch_size, predictor.batch, network, overlap=0.5, mode="gaussian"
        )
        return whole[0]  # type: ignore[return-value, index]

    sides: dict[str, Callable[[], object]] = {
        "MONAI": monai,
        "medseg": lambda: predictor.logits(voxels),
        "MONAI to labels": lambda: monai().argmax(0),
        "medseg to labels": lambda: predictor.classes(voxels),
    }
    total: dict[str, list[float]] = {name: [] for name in sides}
    outside: dict[str, list[float]] = {name: [] for name in sides}
    with torch.inference_mode():
        network(voxels[None, :, :patch, :patch, :patch])
        for _ in range(options.rounds):
            for name, work in sides.items():
                network.seconds, started = 0.0, time.perf_counter()
                work()
                took = time.perf_counter() - started
                total[name].append(took)
                outside[name].append(took - network.seconds)
    middle = {name: statistics.median(total[name]) for name in sides}
    rest = {name: statistics.median(outside[name]) for name in sides}
    for name in sides:
        print(f"{name}: {middle[name]:.2f} s, outside the network {rest[name]:.2f} s "
              f"({100 * rest[name] / middle[name]:.1f} %)")  # fmt: skip
    for what in ("", " to labels"):
        theirs, ours = f"MONAI{what}", f"medseg{what}"
        print(f"sliding window{what}, {options.classes} classes, {side}^3 in {patch}^3: "
              f"ratio {middle[theirs] / middle[ours]:.2f}, "
              f"outside the network {rest[theirs] / rest[ours]:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
