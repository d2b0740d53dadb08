"""What a machine can do, measured."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg.core.plan import Plan, edited
from medseg.inference.predictor import Predictor
from medseg.training import probe
from medseg.training.budget import measure_mask, typical_case
from medseg.training.probe import QuickerFormat, bf16_gain, bf16_pays
from medseg.transforms.preprocess import RestoreRecord
from tests.models import small_plan
from tests.planning_facts import fingerprint

CPU = torch.device("cpu")


def test_bf16_is_measured_once_and_leaves_chance_alone() -> None:
    bf16_gain.cache_clear()
    torch.manual_seed(5)
    gain = bf16_gain()
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
    assert gain > 0
    assert bf16_gain() == gain
    assert bf16_gain.cache_info().misses == 1


@pytest.mark.parametrize(("gain", "pays"), [(0.2, False), (1.1, False), (1.3, True)])
def test_bf16_is_taken_where_it_is_clearly_quicker(
    gain: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "bf16_gain", lambda: gain)
    assert bf16_pays(CPU) is pays
    # On a GPU half precision is taken anyway.
    assert not bf16_pays(torch.device("meta"))


def test_a_typical_case_lies_as_the_plan_turns_it() -> None:
    facts = fingerprint(median_shape=(30, 41, 52), median_spacing_mm=(4.0, 1.0, 0.5))
    plan = small_plan(dims=2, axis_order=(1, 2, 0), spacing_mm=(2.0, 1.0, None))
    # 41 x 1 mm in steps of 2 mm, 52 x 0.5 mm in steps of 1 mm, 30 slices as they are.
    assert typical_case(plan, facts).image.shape == (1, 20, 26, 30)


@pytest.mark.parametrize(("last", "taken"), [(1.0, False), (0.97, False), (0.5, True)])
def test_the_quicker_memory_format_is_taken(last: float, taken: bool) -> None:
    def step_cost(draft: Plan) -> float:
        return last if draft.training.memory_format == "channels_last" else 1.0

    quicker, plan = QuickerFormat(step_cost), small_plan()
    assert quicker(plan) == last
    settled = quicker.settled(plan)
    assert settled.training.memory_format == ("channels_last" if taken else "contiguous")
    assert ("memory_format" in settled.reasons) is taken
    # Nothing is known of a wider network, nor of the same one in another precision.
    for key, value in (("network.features", (8, 16)), ("training.precision", "bf16")):
        other = edited(plan, {key: value})
        assert quicker.settled(other) == other


def test_a_network_whose_norms_are_not_ours_keeps_its_format() -> None:
    asked = []
    plan = small_plan()
    network = plan.network.model_copy(update={"name": "segresnet"})
    plan = plan.model_copy(update={"network": network})
    quicker = QuickerFormat(lambda draft: asked.append(draft.training.memory_format) or 1.0)
    assert quicker(plan) == 1.0
    assert asked == ["contiguous"]
    assert quicker.settled(plan) == plan


@pytest.mark.parametrize("dims", [2, 3])
def test_masks_of_cases_larger_than_a_patch_are_timed_by_a_part(
    dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = fingerprint(median_shape=(60, 41, 52), median_spacing_mm=(4.0, 1.0, 0.5))
    plan = small_plan(dims=dims, axis_order=(1, 2, 0), spacing_mm=(2.0, 1.0, 4.0))
    seen: list[tuple[int, ...]] = []
    infer, clock = Predictor.infer, iter(range(0, 10_000, 3))

    def watched(self: Predictor, voxels: Tensor, record: RestoreRecord) -> Any:
        seen.append(record.working.shape)
        return infer(self, voxels, record)

    monkeypatch.setattr(Predictor, "infer", watched)
    # Whatever is done takes three seconds: the mask takes none more than its logits.
    monkeypatch.setattr("medseg.training.budget.time.perf_counter", lambda: next(clock))
    assert measure_mask(plan, facts, CPU) == 0
    assert len(set(seen)) == 1
    assert all(side <= most for side, most in zip(seen[0], plan.patch_size, strict=True))

    # The mask of a part takes five seconds, its logits two; the case has 20 x 26 x 60 voxels.
    times = iter([0, 5, 7, 10, 15, 17])
    monkeypatch.setattr("medseg.training.budget.time.perf_counter", lambda: next(times))
    part = prod(seen[0])
    assert measure_mask(plan, facts, CPU) == pytest.approx(3 * 20 * 26 * 60 / part)
