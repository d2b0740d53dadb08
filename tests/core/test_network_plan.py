"""Plans of networks: what each allows, and what it says to the rest."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from medseg.core.errors import SettingsError
from medseg.core.network_options import NETWORK_KINDS
from medseg.core.plan import NetworkPlan, Plan, edited
from tests.models import small_plan
from tests.network_plans import small_network, small_plan_of


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", list(NETWORK_KINDS))
def test_a_plan_comes_back_from_its_json(name: str, dims: int) -> None:
    plan = small_plan_of(name, dims)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert type(again.network.options) is NETWORK_KINDS[name].options
    assert hash(again.network) == hash(plan.network)


def test_options_are_filled_in_and_can_be_set_by_name() -> None:
    network = {**small_plan().network.model_dump(), "name": "deeplab", "deep_supervision": False}
    plan = edited(small_plan(), {"network": {**network, "options": {"low_stage": 0}}})
    assert plan.network.options.model_dump() == {
        "rates": (6, 12, 18), "pyramid_features": 256, "low_stage": 0, "low_features": 48,
    }  # fmt: skip
    changed = edited(plan, {"network.options.rates": [2, 5]})
    assert changed.network.options.model_dump()["rates"] == (2, 5)
    with pytest.raises(SettingsError, match=r"plan.network.options.rate: .*no such key"):
        edited(plan, {"network.options.rate": [2]})
    with pytest.raises(SettingsError, match=r"options.*rates.0 of deeplab.*greater than or equal"):
        edited(plan, {"network.options.rates": [0]})


def test_a_plan_without_options_is_as_before() -> None:
    data = small_plan().network.model_dump()
    data.pop("options")
    assert NetworkPlan.model_validate(data) == small_plan().network


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("unet", {"options": {"rates": (1,)}}, "options of unet: none; not rates"),
        ("fcn", {"options": {"rates": (1,)}}, "options of fcn: fused_stages; not rates"),
        ("fcn", {"options": {"fused_stages": 4}}, "at most 3, its stages"),
        ("fcn", {"deep_supervision": True}, "deep_supervision must be false"),
        ("deeplab", {"options": {"low_stage": 2}}, "low_stage below 2"),
        ("dynunet", {"encoder_convolutions": (1, 1, 1)}, "its own number of convolutions"),
        ("attention_unet", {"kernels": ((3, 3, 1), (3, 3, 3), (3, 3, 3))}, "in each stage"),
        ("segresnet", {"features": (4, 8, 20)}, r"features \(4, 8, 16\)"),
        ("segresnet", {"options": {"groups": 3}}, "multiples of options.groups, 3"),
        ("segresnet", {"strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2))}, r"strides \(2, 2, 2\)"),
        ("mednext", {"options": {"expansions": (2, 2)}}, "3 options.expansions"),
        ("mednext", {"kernels": ((3, 3, 1),) * 3}, r"the kernel \(3, 3, 3\)"),
        ("swin_unetr", {"options": {"heads": (5, 6, 12, 24)}}, "heads that divide"),
        ("swin_unetr", {"features": (10, 10, 20, 40, 80, 160)}, "multiples of 12"),
        ("unetr", {"options": {}}, "image_size of unetr: Field required"),
        ("unetr", {"features": (4, 8, 16, 32, 25)}, "heads that divide 25"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(
    name: str, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=told) as caught:
        small_network(name, 3, **changes)
    assert caught.value.error_count() == 1


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"network.name: .*one of unet, residual_unet, fcn"):
        edited(small_plan(), {"network.name": "vnet"})


def test_two_stages_are_too_few_for_dynunet() -> None:
    data = small_plan().network.model_dump() | {"name": "dynunet", "deep_supervision": False}
    with pytest.raises(ValidationError, match="3 stages or more"):
        NetworkPlan.model_validate(data)


def test_patches_that_no_network_could_learn_from() -> None:
    with pytest.raises(SettingsError, match=r"more than \(2, 2, 2\), one step"):
        edited(small_plan(), {"patch_size": [2, 2, 2]})
    plan = small_plan_of("unetr", 3)
    assert plan.network.fixed_size == plan.patch_size == (32, 16, 48)
    with pytest.raises(SettingsError, match=r"must be network.options.image_size, \(32, 16, 48\)"):
        edited(plan, {"patch_size": [48, 16, 48]})
    both = {"patch_size": [48, 16, 48], "network.options.image_size": [48, 16, 48]}
    assert edited(plan, both).network.fixed_size == (48, 16, 48)


def test_dilation_doubles_where_deeplab_takes_no_step() -> None:
    strides = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (1, 1, 1), (1, 1, 1))
    sizes = {"features": (4,) * 5, "strides": strides, "kernels": ((3, 3, 3),) * 5}
    plan, _ = small_network("deeplab", 3, **sizes)
    assert plan.dilations == (1, 1, 1, 2, 4)
    assert plan.divisor == (4, 4, 2)
    plain, _ = small_network("unet", 3, **sizes)
    assert plain.dilations == (1,) * 5
