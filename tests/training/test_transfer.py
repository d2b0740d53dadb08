"""Weights of another model: what fits is taken, heads go by the names of labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medseg.core.labels import LabelSet
from medseg.core.plan import Plan, edited
from medseg.networks.build import build_network
from medseg.training.transfer import take_weights
from tests.models import small_plan

DEEP: dict[str, object] = {
    "network.features": (4, 8, 8, 8), "network.kernels": ((3, 3, 3),) * 4,
    "network.strides": ((1, 1, 1), (2, 2, 2), (2, 2, 1), (1, 1, 2)),
}  # fmt: skip


def named(*names: str, **changes: Any) -> Plan:
    labels = LabelSet.from_names(dict(enumerate(names, start=1)))
    scheme = {"labels": labels.model_dump(), "network.classes": len(labels) + 1}
    return edited(small_plan(), {**DEEP, **scheme, **changes})


def test_heads_go_by_name_and_the_rest_is_taken() -> None:
    source, plan = named("liver", "spleen"), named("Spleen", "kidney", "liver")
    old = build_network(source.network, seed=1).state_dict()
    network = build_network(plan.network, seed=2)
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    taken = take_weights(network, plan, source=source, weights=old)
    assert (taken.common, taken.new_labels) == (("Spleen", "liver"), ("kidney",))
    heads = [name for name in fresh if name.startswith("heads.")]
    # Two resolutions have a head, each of a weight and a bias.
    assert (len(heads), taken.heads, taken.fresh) == (4, 4, ())
    now = network.state_dict()
    for name in heads:
        expected = fresh[name].clone()
        for new_row, old_row in ((0, 0), (1, 2), (3, 1)):
            expected[new_row] = old[name][old_row]
        assert torch.equal(now[name], expected)
    for name in set(now) - set(heads):
        assert torch.equal(now[name], old[name])
    assert "kidney are new" in taken.sentence


def test_the_same_number_of_labels_is_no_reason_to_mix_them_up() -> None:
    source, plan = named("liver", "spleen"), named("spleen", "liver")
    old = build_network(source.network, seed=1)
    network = build_network(plan.network, seed=2)
    take_weights(network, plan, source=source, weights=old.state_dict())
    image = torch.randn(1, 1, 16, 12, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        was, now = old.eval()(image), network.eval()(image)
    assert torch.equal(now, was[:, [0, 2, 1]])


def test_another_number_of_channels_makes_the_first_layer_new() -> None:
    source = named("liver")
    channels = [{"name": name, "normalisation": "zscore"} for name in ("t1", "t2")]
    plan = named("liver", **{"channels": channels, "network.in_channels": 2})
    network = build_network(plan.network, seed=2)
    old = build_network(source.network, seed=1).state_dict()
    taken = take_weights(network, plan, source=source, weights=old)
    assert len(taken.fresh) == 1
    assert taken.fresh[0].startswith("down.0")
    assert "layers of other shapes are new: down.0" in taken.sentence
    assert taken.fitting + taken.heads + 1 == len(old)


@pytest.mark.parametrize("name", ["residual_unet", "unet"])
def test_equal_labels_give_an_equal_network(name: str) -> None:
    plan = named("liver", **{"network.name": name})
    old = build_network(plan.network, seed=1).state_dict()
    network = build_network(plan.network, seed=2)
    take_weights(network, plan, source=plan, weights=old)
    now = network.state_dict()
    assert all(torch.equal(now[key], value) for key, value in old.items())
