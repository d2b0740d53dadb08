"""Test-time mirroring of a network that was trained on mirrored scans with sides exchanged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from medseg.core.labels import LabelSet
from medseg.core.plan import Plan, edited
from medseg.inference.predictor import Predictor
from medseg.networks.build import build_network
from tests.models import small_plan

CPU = torch.device("cpu")
SHAPE = (24, 16, 8)
PAIRS = (("kidney_left", "kidney_right"),)


def body(seed: int) -> tuple[Tensor, Tensor]:
    """A spine and a kidney at each side of it, equal but for their place: scan and classes."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(side) for side in SHAPE), indexing="ij"), axis=-1)
    middle = 11.5 + rng.uniform(-1.5, 1.5)
    image, classes = rng.normal(0, 0.3, SHAPE), np.zeros(SHAPE, np.int64)
    image[np.abs(grid[..., 0] - middle) < 1.5] += 3
    for side, label in ((-1, 1), (1, 2)):
        centre = np.array([middle + side * rng.uniform(5, 6), *rng.uniform((6, 3), (10, 5))])
        inside = (((grid - centre) / (2.6, 3.0, 2.2)) ** 2).sum(axis=-1) <= 1
        image[inside] += 1.5
        classes[inside] = label
    return torch.from_numpy(image).float()[None], torch.from_numpy(classes)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Plan]:
    """Of the mirrored copies along I the labels of the two sides are exchanged."""
    labels = LabelSet.from_names({1: "kidney_left", 2: "kidney_right"})
    plan = edited(
        small_plan(),
        {
            "labels": labels.model_dump(),
            "spacing_mm": (None, None, None),
            "patch_size": SHAPE,
            "network.features": (8, 16),
            "network.deep_supervision": False,
        },
    )
    network = build_network(plan.network, seed=0).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    exchange = torch.tensor([0, 2, 1])
    for step in range(60):
        pairs = [body(1000 + 4 * step + n) for n in range(4)]
        images, classes = (torch.stack(part) for part in zip(*pairs, strict=True))
        if step % 2:
            images, classes = images.flip(2), exchange[classes.flip(1)]
        optimiser.zero_grad()
        weight = torch.tensor([1.0, 8.0, 8.0])
        cross_entropy(network(images), classes, weight=weight).backward()
        optimiser.step()
    return network.eval(), plan


def dice(
    network: nn.Module, plan: Plan, axes: tuple[int, ...], pairs: tuple[tuple[str, str], ...]
) -> float:
    """Mean over new bodies and both kidneys."""
    plan = edited(plan, {"inference.mirror_axes": axes, "inference.left_right_pairs": pairs})
    predictor, scores = Predictor([network], plan, CPU), []
    for seed in range(6):
        image, truth = body(seed)
        found = predictor.classes(image)
        for label in (1, 2):
            a, b = found == label, truth.numpy() == label
            scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(scores))


def test_mirroring_does_not_lower_paired_organs(trained: tuple[nn.Module, Plan]) -> None:
    network, plan = trained
    alone = dice(network, plan, (), ())
    assert alone > 0.8
    assert dice(network, plan, (0,), PAIRS) >= alone - 0.002
    assert dice(network, plan, (0, 1, 2), PAIRS) >= alone - 0.005
    # Without the pairs each view votes against the other.
    assert dice(network, plan, (0,), ()) < alone - 0.2
