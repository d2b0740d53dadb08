"""What a machine can do, measured."""

from __future__ import annotations

import pytest
import torch

from medseg.training import probe
from medseg.training.budget import typical_case
from medseg.training.probe import bf16_gain, bf16_pays
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
