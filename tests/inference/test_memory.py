"""The estimate of memory against what a process really takes, and what is chosen from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.core.errors import ResourceError
from medseg.core.geometry import Geometry
from medseg.core.plan import Plan, edited
from medseg.inference import memory
from medseg.inference.memory import Limits, Setup, estimate, fit
from medseg.transforms.preprocess import RestoreRecord
from tests.models import small_plan

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

# In a process of its own, whose peak is set back once everything has run at a small size.
_MEASURE = """
import json, sys
import numpy as np, torch
from medseg.core.geometry import Geometry
from medseg.core.plan import Plan
from medseg.inference.memory import Limits
from medseg.inference.predictor import Predictor
from medseg.networks.build import build_network
from medseg.transforms.preprocess import RestoreRecord
from medseg.transforms.restore import ArraySink

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

plan, ring, batch = Plan.from_json(sys.argv[1]), sys.argv[2], int(sys.argv[3])
predictor = Predictor(
    [build_network(plan.network, seed=0)], plan, torch.device("cpu"), batch=batch,
    limits=Limits(ring=ring, max_memory_bytes=10**12))
def run(shape):
    record = RestoreRecord.for_plan(Geometry(shape, np.diag([0.8, 0.8, 1.0, 1.0])), plan)
    voxels = torch.randn(1, *record.working.shape)
    return predictor.stream(voxels, record, ArraySink(record.target.shape, "uint8"))
run((40, 30, 20))
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
found = run((190, 170, 180)).estimate
print(json.dumps([status("VmHWM") - before, found.ram_bytes]))
"""


def plan_of(labels: int, patch: int, **changes: Any) -> Plan:
    from medseg.core.labels import LabelSet

    names = LabelSet.from_names({value: f"organ {value}" for value in range(1, labels + 1)})
    return edited(
        small_plan(),
        {
            "labels": names.model_dump(),
            "network.classes": labels + 1,
            "patch_size": (patch, patch, patch),
            "spacing_mm": (1.5, 1.5, 1.5),
            **changes,
        },
    )


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("labels", "patch", "ring", "batch"), [(40, 48, "fp32", 1), (40, 48, "fp16", 2)]
)
def test_the_estimate_covers_the_real_peak(labels: int, patch: int, ring: str, batch: int) -> None:
    """At most 5 % below what was measured, never above twice of it."""
    plan = plan_of(labels, patch)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, plan.to_json(), ring, str(batch)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured, estimated = json.loads(done.stdout)
    assert measured <= 1.05 * estimated, (measured, estimated)
    assert measured >= 0.5 * estimated, (measured, estimated)


def record_of(plan: Plan, shape: tuple[int, int, int] = (512, 512, 800)) -> RestoreRecord:
    return RestoreRecord.for_plan(Geometry(shape, np.diag([0.8, 0.8, 1.0, 1.0])), plan)


def test_carried_logits_are_flat_in_slices_and_linear_in_classes() -> None:
    def carried(labels: int, slices: int) -> int:
        plan = plan_of(labels, 128)
        record = record_of(plan, (512, 512, slices))
        return estimate(record, plan, Setup(CPU)).ram["carried logits"]

    assert carried(117, 3000) == pytest.approx(carried(117, 800), rel=0.1)
    assert carried(117, 800) == pytest.approx(2 * carried(58, 800), rel=1e-6)
    # 118 classes of a large CT: far below the 19 GB of all logits at the model's spacing.
    assert carried(117, 800) < 4.3e9


def test_batch_then_precision_then_place_are_given_up() -> None:
    plan = plan_of(117, 128)
    record = record_of(plan)

    def chosen(limit: int, ring: str = "auto") -> Setup:
        limits = Limits(max_memory_bytes=limit, ring=ring)  # type: ignore[arg-type]
        return fit(record, plan, Setup(CPU, batch=4), limits=limits)[0]

    def needed(batch: int, half: bool) -> int:
        return estimate(record, plan, Setup(CPU, batch=batch, half=half)).ram_bytes

    assert (chosen(needed(4, False)).batch, chosen(needed(4, False)).half) == (4, False)
    assert chosen(needed(4, False) - 1).batch == 2
    assert not chosen(needed(1, False)).half
    assert chosen(needed(1, False) - 1).half
    assert chosen(10**12, "fp16").half
    with pytest.raises(
        ResourceError, match=r"--max-memory: expected at least .* GB .*--max-memory"
    ):
        chosen(needed(1, True) - 1)
    with pytest.raises(ResourceError):
        chosen(needed(1, False) - 1, "fp32")


def test_preparing_must_fit_too() -> None:
    plan = plan_of(2, 16)
    record = record_of(plan)
    limits = Limits(max_memory_bytes=memory.preparing_bytes(record, plan) - 1)
    fit(record, plan, Setup(CPU), limits=limits)
    with pytest.raises(ResourceError, match="preparing the scan"):
        fit(record, plan, Setup(CPU), limits=limits, preparing=True)


def test_a_small_device_leaves_the_carried_logits_in_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(117, 64)
    record = record_of(plan)
    monkeypatch.setattr(memory, "free_device_bytes", lambda device: 4 * 10**9)
    wanted = Setup(CUDA, batch=4, held_on=CUDA)
    limits = Limits(max_memory_bytes=10**11)
    assert fit(record, plan, wanted, limits=limits)[0].held_on == CUDA
    chosen, found = fit(
        record, plan, wanted, limits=Limits(10**11, max_device_memory_bytes=8 * 10**8)
    )
    assert chosen.held_on == CPU
    assert found.device_bytes <= 8 * 10**8
    assert "carried logits" in found.ram
    assert "device" in found.describe()
    with pytest.raises(ResourceError, match="--max-device-memory"):
        fit(record, plan, wanted, limits=Limits(10**11, max_device_memory_bytes=10**6))


def test_a_control_group_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    free = memory.free_bytes()
    assert free > 0
    numbers = {"memory.max": 3 * 10**6, "memory.current": 10**6}
    monkeypatch.setattr(memory, "_number", lambda path: numbers.get(path.name))
    assert memory.free_bytes() == 2 * 10**6
    monkeypatch.setattr(memory, "_number", lambda path: None)
    assert memory.free_bytes() > 2 * 10**6


def test_free_device_memory_of_a_cpu_is_none() -> None:
    assert memory.free_device_bytes(CPU) == 0
