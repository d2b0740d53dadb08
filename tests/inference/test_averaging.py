"""The mean of models through the disk against a plain mean of whole arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.labels import LabelSet
from medseg.core.plan import edited
from medseg.inference.averaging import MeanProbabilities
from medseg.inference.predictor import Predictor
from medseg.transforms.preprocess import RestoreRecord
from tests.models import small_plan

CPU = torch.device("cpu")


class Convolution(nn.Module):
    """One layer of random weights."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, classes, 3, padding=1)
        chance = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weights in self.layer.parameters():
                weights.copy_(2 * torch.randn(weights.shape, generator=chance))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@st.composite
def models(draw: st.DrawFn) -> tuple[Geometry, str, list[dict[str, Any]]]:
    """A scan's grid, an activation, and plans of two or three models."""
    sides = st.integers(3, 18)
    shape = (draw(sides), draw(sides), draw(sides))
    straight = Geometry(shape, np.diag([0.9, 1.3, 2.1, 1.0]) + np.eye(4, k=3) * 5)
    geometry = straight.reoriented(draw(st.sampled_from(ALL_ORIENTATIONS)))
    spacing, patch = st.sampled_from([0.9, 1.7, 2.4, None]), st.sampled_from([4, 6, 10])
    plans = [
        {
            "spacing_mm": tuple(draw(spacing) for _ in range(3)),
            "patch_size": tuple(draw(patch) for _ in range(3)),
            "axis_order": tuple(draw(st.permutations([0, 1, 2]))),
            "inference.step": draw(st.sampled_from([0.4, 0.5, 1.0])),
            "inference.mirror_axes": tuple(draw(st.sets(st.sampled_from([0, 1, 2]), max_size=1))),
        }
        for _ in range(draw(st.integers(2, 3)))
    ]
    return geometry, draw(st.sampled_from(["softmax", "regions"])), plans


@torch.inference_mode()
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(models())
def test_it_is_the_plain_mean(
    tmp_path: Path, case: tuple[Geometry, str, list[dict[str, Any]]]
) -> None:
    geometry, activation, plans = case
    labels = LabelSet.from_names({1: "a", 2: "b", 3: "c"})
    softmax = activation == "softmax"
    total = torch.zeros(3 + softmax, *geometry.shape)
    with MeanProbabilities(
        tmp_path, geometry.shape, 3, models=len(plans), activation=activation, precision="fp32"
    ) as mean:  # type: ignore[arg-type]
        for number, changes in enumerate(plans):
            # Each model has its labels in another order.
            names = [labels.names[(n + number) % 3] for n in range(3)]
            own = LabelSet.from_names(dict(enumerate(names, start=1)))
            plan = edited(
                small_plan(),
                {"labels": own.model_dump(), "activation": activation,
                 "network.classes": 3 + softmax, **changes},
            )  # fmt: skip
            record = RestoreRecord.for_plan(geometry, plan)
            coarse = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(number))
            voxels = interpolate(coarse, size=record.working.shape, mode="trilinear")[0]
            predictor = Predictor([Convolution(3 + softmax, number)], plan, CPU)
            mean.add(predictor, voxels, record, {n: labels.names.index(n) for n in names})
            total += chances(predictor, voxels, record, names=names, all_names=labels.names)
        found = np.zeros(geometry.shape, np.uint8)
        for box, classes in mean.classes():
            found[box] = classes
    total /= len(plans)
    if softmax:
        best = total.topk(2, dim=0)
        clear, expected = best.values[0] - best.values[1] > 1e-5, best.indices[0]
    else:
        clear = (total - 0.5).abs().amin(dim=0) > 1e-5
        expected = ((total > 0.5) * torch.arange(1, 4).view(-1, 1, 1, 1)).amax(dim=0)
    assert clear.float().mean() > 0.95
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert list(tmp_path.iterdir()) == []


def chances(
    predictor: Predictor, voxels: Tensor, record: RestoreRecord, *, names: Any, all_names: Any
) -> Tensor:
    """Probabilities on the scan's own grid: background if there is one, then ``all_names``."""
    logits = predictor.logits(voxels)
    for axis in range(3):
        size = list(logits.shape[1:])
        size[axis] = record.oriented.shape[axis]
        logits = interpolate(logits[None], size=size, mode="trilinear")[0]
    softmax = predictor.plan.activation == "softmax"
    found = logits.softmax(0) if softmax else logits.sigmoid()
    order = [0] * softmax + [names.index(name) + softmax for name in all_names]
    back = record.orientation.inverse()
    return torch.from_numpy(np.stack([back.apply(found[n].numpy()) for n in order]))


@pytest.mark.parametrize(("precision", "bytes_each"), [("fp32", 4), ("fp16", 2)])
def test_the_file_is_as_wide_as_asked(tmp_path: Path, precision: Any, bytes_each: int) -> None:
    with MeanProbabilities(
        tmp_path, (5, 6, 7), 4, models=2, activation="softmax", precision=precision
    ) as mean:
        assert mean.nbytes == 5 * 6 * 7 * 4 * bytes_each
