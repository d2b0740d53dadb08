"""The Dice that probabilities promise: against plain numpy, block by block or at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.core.geometry import Geometry
from medseg.core.scan import Scan
from medseg.inference.confidence import Confidence
from medseg.inference.predictor import Predictor
from medseg.networks.build import build_network
from medseg.transforms.preprocess import preprocess_scan
from tests.models import small_plan
from tests.phantoms import lopsided_volume

PLAN = small_plan()


def promised(chances: np.ndarray, mask: np.ndarray) -> dict[str, tuple[float, float, float]]:
    found = {}
    for n, name in ((1, "low"), (2, "high")):
        inside = chances[n][mask == n].sum()
        size, everywhere = (mask == n).sum(), chances[n].sum()
        found[name] = (2 * inside / (size + everywhere), inside / size, inside / everywhere)
    return found


@pytest.mark.parametrize("given", [False, True])
def test_against_numpy_in_blocks(given: bool) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (3, 13, 7, 5)).astype(np.float32)
    chances = np.exp(logits) / np.exp(logits).sum(axis=0)
    mask = rng.integers(0, 3, logits.shape[1:]) if given else chances.argmax(axis=0)
    taken = []
    confidence = Confidence(PLAN, mask if given else None)
    consume = confidence.before(lambda block, corner: taken.append(corner))
    for i, j in ((0, 0), (0, 4), (6, 0), (6, 4)):
        block = logits[:, i : i + (6 if i == 0 else 7), j : j + (4 if j == 0 else 3)]
        # What is carried beside the classes is none of its business.
        consume(torch.from_numpy(np.concatenate([block, block[:1]])), (i, j, 0))
    assert taken == [(0, 0, 0), (0, 4, 0), (6, 0, 0), (6, 4, 0)]
    for name, (dice, inside, found) in promised(chances, mask).items():
        own = confidence.of_labels()[name]
        assert (own.dice, own.inside, own.found) == pytest.approx((dice, inside, found), rel=1e-5)


def test_a_label_that_is_neither_there_nor_expected_is_no_surprise() -> None:
    logits = torch.full((3, 4, 3, 2), -30.0)
    logits[0] = 30.0
    confidence = Confidence(PLAN)
    confidence.add(logits, (0, 0, 0))
    assert confidence.to_json()["low"] == {"dice": 1.0, "inside": 0.0, "found": 1.0}


def test_regions_count_by_themselves() -> None:
    plan = small_plan(**{"activation": "regions", "network.classes": 2})
    logits = torch.tensor([[2.0, 2.0, -1.0], [3.0, -4.0, -4.0]]).reshape(2, 3, 1, 1)
    confidence = Confidence(plan)
    confidence.add(logits, (0, 0, 0))
    first, second = confidence.of_labels().values()
    chances = 1 / (1 + np.exp(-logits.numpy().reshape(2, 3)))
    assert first.dice == pytest.approx(2 * chances[0, :2].sum() / (2 + chances[0].sum()))
    assert second.dice == pytest.approx(2 * chances[1, 0] / (1 + chances[1].sum()))


def test_a_run_tells_it_and_gives_the_same_labels() -> None:
    voxels, affine = lopsided_volume((25, 17, 11), oblique=True)
    scan = Scan.from_array(voxels.astype(np.float32), Geometry(voxels.shape, affine))
    predictor = Predictor([build_network(PLAN.network, seed=3)], PLAN, torch.device("cpu"))
    tensor, record = preprocess_scan(scan, PLAN)
    plain, facts = predictor.infer_with_facts(tensor, record)
    assert "confidence" not in facts
    predictor = predictor.adjusted(confidence=True)
    labels, facts = predictor.infer_with_facts(tensor, record)
    assert np.array_equal(plain, labels)
    logits = predictor.logits(tensor).softmax(dim=0).numpy()
    for name, expected in promised(logits, logits.argmax(axis=0)).items():
        assert tuple(facts["confidence"][name].values()) == pytest.approx(expected, abs=1e-4)


def test_members_that_disagree_are_told_by_label() -> None:
    voxels, affine = lopsided_volume((9, 8, 7), oblique=True)
    scan = Scan.from_array(voxels.astype(np.float32), Geometry(voxels.shape, affine))
    # One window covers the scan, so that each member is asked once for each voxel.
    plan = small_plan(spacing_mm=(None, None, None))
    assert all(side >= n for side, n in zip(plan.patch_size, (9, 8, 7), strict=True))
    networks = [build_network(plan.network, seed=seed) for seed in (3, 4)]
    predictor = Predictor(networks, plan, torch.device("cpu"))
    tensor, record = preprocess_scan(scan, plan)
    plain, _ = predictor.infer_with_facts(tensor, record)
    predictor = predictor.adjusted(confidence=True)
    labels, facts = predictor.infer_with_facts(tensor, record)
    assert np.array_equal(plain, labels)

    alone = [Predictor([one], plan, torch.device("cpu")).logits(tensor) for one in networks]
    chances = np.stack([one.softmax(dim=0).numpy() for one in alone]).astype(np.float64)
    variance = chances.var(axis=0).sum(axis=0)
    mask = torch.stack(alone).mean(dim=0).argmax(dim=0).numpy()
    for n, name in ((1, "low"), (2, "high")):
        expected = np.sqrt(variance[mask == n].mean())
        assert facts["confidence"][name]["disagreement"] == pytest.approx(expected, abs=2e-4)
        assert expected > 0.01
