"""How much memory a scan will take, worked out before; and what to choose so that it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Literal

import psutil
import torch

from medseg.core.errors import ResourceError
from medseg.core.plan import Plan
from medseg.inference.windows import Tiling
from medseg.networks.cost import network_cost
from medseg.transforms.preprocess import RestoreRecord
from medseg.transforms.restore import is_axis_parallel, working_bytes
from medseg.transforms.winners import class_dtype

Ring = Literal["auto", "fp32", "fp16"]
_SHARE_OF_FREE = 0.8
# Their activations are worked out from their stages.
_UNETS = ("unet", "residual_unet")
# What the C library keeps of freed memory in pieces below 32 MB, which it may not give back: 47
# to 80 MB were seen, by processor.
_ALLOCATOR_BYTES = 96_000_000
_CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class Limits:
    """What a prediction may take.

    Attributes:
        max_memory_bytes: Of RAM, above what the process and the scan as it was read take; None
            for 80 % of what is free.
        max_device_memory_bytes: The same of the device.
        ring: Precision of the logits that are carried; ``"auto"`` takes fp32 where it fits.
    """

    max_memory_bytes: int | None = None
    max_device_memory_bytes: int | None = None
    ring: Ring = "auto"


@dataclass(frozen=True)
class Setup:
    """How a scan is run, as far as memory depends on it.

    Attributes:
        device: Where the network runs.
        batch: Tiles at a time.
        half: Whether carried logits are float16.
        held_on: Where carried logits are.
        views: Members times mirrored views.
        extra_channels: Carried beside the classes.
        products: Bytes per voxel of the target of what is made beside labels, held in memory.
        skip_air: Whether the logits of one tile are kept for tiles that hold a single value.
        keeps_labels: Whether the labels are gathered in memory.
    """

    device: torch.device
    batch: int = 1
    half: bool = False
    held_on: torch.device = field(default_factory=lambda: torch.device("cpu"))
    views: int = 1
    extra_channels: int = 0
    products: int = 0
    skip_air: bool = False
    keeps_labels: bool = True


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of one scan in bytes, by what takes it.

    Attributes:
        ram: By name, above the process and the scan as it was read.
        device: By name, above the weights; empty where the network runs on the CPU.
    """

    ram: dict[str, int]
    device: dict[str, int]

    @property
    def ram_bytes(self) -> int:
        """All of RAM."""
        return sum(self.ram.values())

    @property
    def device_bytes(self) -> int:
        """All of the device."""
        return sum(self.device.values())

    def describe(self) -> str:
        """One line for people."""
        texts = []
        for where, parts in (("RAM", self.ram), ("device", self.device)):
            if parts:
                listed = ", ".join(f"{n} {_gb(v)}" for n, v in parts.items() if v >= 10**7)
                texts.append(f"{where} {_gb(sum(parts.values()))}" + f" ({listed})" * bool(listed))
        return "; ".join(texts)


def estimate(
    record: RestoreRecord, plan: Plan, setup: Setup, *, volume_bytes: int | None = None
) -> MemoryEstimate:
    """Peak memory of running the network over a scan and restoring its labels.

    Args:
        record: The grids that the scan goes through.
        plan: Of the model.
        setup: How it is run.
        volume_bytes: What the network's input takes in RAM; None for all of it as float32.
    """
    size, patch = record.working.shape, prod(plan.patch_size)
    if volume_bytes is None:
        # Labels of an earlier stage are kept as one number a voxel.
        volume_bytes = (4 * len(plan.channels) + bool(plan.cascade_labels)) * prod(size)
    tiling = Tiling.of(size, plan.patch_size, plan.inference.step)
    channels = plan.network.classes + setup.extra_channels
    width = 2 if setup.half else 4
    carried = tiling.carried_voxels * channels * width
    if not is_axis_parallel(record):
        carried += prod(size) * channels * width
    # Beside a block that leaves, its float32 copy is gone through slab by slab.
    restoring = working_bytes(record, tiling.order, channels, width=width)
    # The sum, the view that is added to it, and its flipped copy; then the tile's weights.
    copies = 1 + (2 if setup.views > 1 else 0) + (2 if setup.extra_channels else 0)
    # One tile of the batch before is still being added up.
    logits = 4 * patch * channels * (setup.batch * copies + 1)
    tiles = 4 * patch * (2 * setup.batch * plan.network.in_channels + 2)
    running = {
        "network": setup.batch * _network_bytes(plan),
        "tiles": tiles + logits + (4 * patch * channels if setup.skip_air else 0),
    }
    holding = {"carried logits": carried, "restoring": restoring}
    target = prod(record.target.shape)
    dtype = class_dtype(plan.network.classes + 1)
    labels = target * dtype.itemsize * setup.keeps_labels
    ram = {"scan at the model's spacing": volume_bytes, "labels": labels}
    if setup.products:
        ram["products"] = target * setup.products
    device: dict[str, int] = {}
    on_cpu = setup.device.type == "cpu"
    (ram if on_cpu else device).update(running)
    (ram if setup.held_on.type == "cpu" else device).update(holding)
    if not on_cpu:
        ram["tiles on their way"] = tiles + (logits if setup.held_on.type == "cpu" else 0)
    ram["allocator"] = min(_ALLOCATOR_BYTES, sum(ram.values()) // 2)
    return MemoryEstimate(ram, device)


def preparing_bytes(record: RestoreRecord, plan: Plan) -> int:
    """Peak RAM of preprocessing, which is over when the network starts."""
    scan, working = prod(record.oriented.shape), prod(record.working.shape)
    if plan.crop != "none" or record.original.shape != record.oriented.shape:
        scan = max(scan, prod(record.original.shape))
    return 4 * len(plan.channels) * (3 * scan + working)


def check_shared_grid(record: RestoreRecord, plan: Plan, limits: Limits) -> None:
    """Refuse a scan that cannot be brought to a grid that several models share.

    Args:
        record: The way back from that grid.
        plan: Of the models together.
        limits: What may be taken.

    Raises:
        ResourceError: With the figure.
    """
    ram = limits.max_memory_bytes or int(_SHARE_OF_FREE * free_bytes())
    needed = preparing_bytes(record, plan)
    if needed > ram:
        _refuse("--max-memory", needed, ram, f"{_gb(needed)} to resample the scan")


def fit(
    record: RestoreRecord,
    plan: Plan,
    setup: Setup,
    *,
    limits: Limits,
    volume_bytes: int | None = None,
    preparing: bool = False,
) -> tuple[Setup, MemoryEstimate]:
    """Choose batch, precision and place of what is carried so that a scan fits.

    A smaller batch is tried before half precision, which is tried before RAM instead of the
    device's memory.

    Args:
        record: The grids that the scan goes through.
        plan: Of the model.
        setup: What is wanted; its batch is the largest.
        limits: What may be taken.
        volume_bytes: What the network's input takes in RAM; None for all of it as float32.
        preparing: Preprocessing is still to come, and must fit too.

    Raises:
        ResourceError: Nothing fits; with the figure.
    """
    ram = limits.max_memory_bytes or int(_SHARE_OF_FREE * free_bytes())
    room = limits.max_device_memory_bytes or int(_SHARE_OF_FREE * free_device_bytes(setup.device))
    before = preparing_bytes(record, plan) if preparing else 0
    least: tuple[Setup, MemoryEstimate] | None = None
    for choice in _choices(setup, limits.ring):
        found = estimate(record, plan, choice, volume_bytes=volume_bytes)
        if max(before, found.ram_bytes) <= ram and found.device_bytes <= room:
            return choice, found
        least = (choice, found)
    assert least is not None
    found = least[1]
    if max(before, found.ram_bytes) <= ram:
        _refuse("--max-device-memory", found.device_bytes, room, found.describe())
    what = f"preparing the scan {_gb(before)}" if before > found.ram_bytes else found.describe()
    _refuse("--max-memory", max(before, found.ram_bytes), ram, what)
    raise AssertionError


def _refuse(option: str, needed: int, allowed: int, what: str) -> None:
    raise ResourceError(
        option,
        expected=f"at least {_gb(needed, up=True)} for this scan",
        got=_gb(allowed),
        cure=f"It takes {what}. Free memory, or allow more with {option}.",
    )


def _choices(setup: Setup, ring: Ring) -> Iterator[Setup]:
    cpu = torch.device("cpu")
    places = [setup.held_on] if setup.held_on.type == "cpu" else [setup.held_on, cpu]
    halves = {"auto": (False, True), "fp32": (False,), "fp16": (True,)}[ring]
    for place in places:
        for half in halves:
            batch = setup.batch
            while batch >= 1:
                yield replace(setup, batch=batch, half=half, held_on=place)
                batch //= 2


def free_bytes() -> int:
    """RAM that can be had: what the system calls available, less if a control group allows less."""
    free = int(psutil.virtual_memory().available)
    for limit_file, used_file in _CGROUP_FILES:
        limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in (limit_file, used_file))
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used))
    return free


def free_device_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device; 0 of the CPU, which has none of its own."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds and does not use can be used again.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdigit() else None


def _network_bytes(plan: Plan) -> int:
    """Activations of one tile: the skips of all stages, and the widest step of the finest."""
    network, voxels, kept = plan.network, float(prod(plan.patch_size)), 0.0
    if network.name not in _UNETS:
        # A tenth more for what an operation holds beside its input and output.
        return int(1.1 * network_cost(network, plan.patch_size).activation_bytes)
    widest = 0.0
    for features, stride in zip(network.features, network.strides, strict=True):
        voxels /= prod(stride)
        kept += features * voxels
        # Joined features, the convolution's copy of them, its output, and the norm's.
        widest = max(widest, 6 * features * voxels)
    return int(4 * (kept + widest))


def _gb(count: int, *, up: bool = False) -> str:
    value = count / 1e9
    return f"{value + 0.05 * up:.1f} GB" if value >= 0.95 else f"{count / 1e6:.0f} MB"
