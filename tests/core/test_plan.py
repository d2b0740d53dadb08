from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from medseg.core.errors import PackageError, SettingsError
from medseg.core.labels import LabelSet
from medseg.core.plan import PLAN_FORMAT, ChannelPlan, NetworkPlan, Plan, TrainingPlan, edited
from medseg.core.settings import TrainSettings


def network(**changes: Any) -> NetworkPlan:
    fields: dict[str, Any] = {
        "spatial_dims": 3,
        "in_channels": 1,
        "classes": 3,
        "features": (8, 16, 32),
        "strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)),
        "kernels": ((3, 3, 1), (3, 3, 3), (3, 3, 3)),
    }
    return NetworkPlan(**(fields | changes))


def plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "labels": LabelSet.from_names({1: "liver", 2: "spleen"}),
        "channels": (ChannelPlan(name="MR", normalisation="zscore"),),
        "spacing_mm": (1.5, 1.5, None),
        "patch_size": (16, 12, 6),
        "network": network(),
        "training": TrainingPlan(batch_size=2, learning_rate=0.001),
    }
    return Plan(**(fields | changes))


def test_json_and_back() -> None:
    made = plan(reasons={"spacing_mm": "the median"})
    assert Plan.from_json(made.to_json()) == made
    assert json.loads(made.to_json())["format_version"] == PLAN_FORMAT


def test_divisor_is_the_product_of_the_strides() -> None:
    assert network().divisor == (4, 4, 2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"patch_size": (16, 12, 5)}, "multiple of"),
        ({"labels": LabelSet.from_names({1: "liver"})}, "network.classes must be 2"),
        ({"network": network(in_channels=2)}, "in_channels must be 1"),
        ({"network": network(spatial_dims=2, strides=((1, 1, 1), (2, 2, 1), (2, 2, 1)))}, "2D"),
        ({"spacing": 1}, "Extra inputs"),
        ({"axis_order": (0, 1, 1)}, "axis_order must hold 0, 1 and 2"),
        ({"activation": "regions"}, "network.classes must be 2"),
        ({"cascade_labels": 2}, "in_channels must be 3"),
        ({"inference": {"left_right_pairs": (("liver", "kidney"),)}}, "unknown labels: kidney"),
    ],
)
def test_plans_that_do_not_fit(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        plan(**changes)


def test_regions_have_no_channel_for_background_and_a_cascade_has_channels_for_labels() -> None:
    assert plan(activation="regions", network=network(classes=2)).network.classes == 2
    assert plan(cascade_labels=2, network=network(in_channels=3)).cascade_labels == 2


def test_stages_and_ct_need_all_their_parts() -> None:
    with pytest.raises(ValidationError, match="one entry per stage"):
        network(features=(8, 16))
    with pytest.raises(ValidationError, match="needs clip_low"):
        ChannelPlan(name="CT", normalisation="ct", clip_low=-100, clip_high=200, mean=40)


def test_foreign_json() -> None:
    newer = plan().to_json().replace('"format_version": 1', '"format_version": 99')
    with pytest.raises(PackageError, match="newer medseg"):
        Plan.from_json(newer)
    for text in ("{", "[]", "{}", '{"format_version": "1"}'):
        with pytest.raises(PackageError, match="a plan in a test"):
            Plan.from_json(text, source="a plan in a test")


def test_edited_gives_a_new_checked_plan() -> None:
    first = plan()
    second = edited(first, {"training.batch_size": 4, "patch_size": [8, 8, 2]})
    assert (second.training.batch_size, second.patch_size) == (4, (8, 8, 2))
    assert (first.training.batch_size, first.patch_size) == (2, (16, 12, 6))
    assert edited(first, {}) == first


def test_words_for_dicom_series_are_set_by_hand() -> None:
    settings = TrainSettings.build(
        config=None, pairs=["plan.series_words=[portal, B30f]"], stated={}
    )
    second = edited(plan(), settings.plan_changes())
    assert second.series_words == ("portal", "B30f")
    assert Plan.from_json(second.to_json()) == second
    # Plans of before, without the key, still load.
    raw = json.loads(second.to_json())
    del raw["series_words"]
    assert Plan.from_json(json.dumps(raw)).series_words == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"nope": 1},
        {"series_words": "portal"},
        {"series_words": [""]},
        {"series_words": [1.0]},
        {"training.nope": 1},
        {"patch_size.x": 1},
        {"patch_size": [7, 8, 2]},
        {"training": 3},
    ],
)
def test_edits_that_do_not_hold(changes: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        edited(plan(), changes)
