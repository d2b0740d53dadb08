"""Batches depend on the seed and the step, and on nothing else."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from medseg.training.cache import CachedCase, _places
from medseg.training.loader import Batches
from tests.models import small_plan
from tests.phantoms import blobs

CPU = torch.device("cpu")
CALM = {
    "training.augmentation.affine_probability": 0.0,
    "training.augmentation.intensity_probability": 0.0,
}


def cached(seed: int, shape: tuple[int, int, int] = (24, 20, 16)) -> CachedCase:
    image, label = blobs(shape, seed=seed)
    rows = _places(label)
    places = {v: rows[rows[:, 0] == v, 1:] for v in (1, 2)}
    return CachedCase(f"case {seed}", image[None].astype(np.float32), label, places)


CASES = [cached(0), cached(1, (17, 30, 12)), cached(2, (10, 9, 6))]


def batches(seed: int = 0, workers: int = 0, **changes: object) -> Batches:
    return Batches(CASES, small_plan(**changes), seed=seed, device=CPU, workers=workers)


def test_any_order_any_worker_gives_the_same_batch() -> None:
    ahead = list(islice(batches().iterate(0), 5))
    threaded = list(islice(batches(workers=2).iterate(0), 5))
    late = batches().batch(3)
    for (a, b), (c, d) in zip(ahead, threaded, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b.labels, d.labels)
    assert torch.equal(ahead[3][0], late[0])
    assert not torch.equal(ahead[3][0], batches(seed=1).batch(3)[0])
    assert not torch.equal(ahead[3][0], ahead[2][0])


def test_each_case_comes_once_a_round() -> None:
    source = batches()
    drawn = [draw.case for step in range(6) for draw in source.draw(step)]
    for start in range(0, len(drawn), len(CASES)):
        assert sorted(drawn[start : start + len(CASES)]) == [0, 1, 2]


def test_a_calm_patch_is_a_crop_of_the_case_with_its_label() -> None:
    source = batches(**CALM)
    for step in range(6):
        images, targets = source.batch(step)
        labels = targets.labels
        for draw, image, label in zip(source.draw(step), images, labels, strict=True):
            case = CASES[draw.case]
            start = (draw.centre - (np.array((16, 12, 8)) - 1) / 2).round().astype(int)
            expected = np.zeros((16, 12, 8), dtype=np.float32)
            expected_label = np.zeros((16, 12, 8), dtype=np.int64)
            for place in np.ndindex(16, 12, 8):
                at = tuple(np.array(place) + start)
                if all(0 <= i < n for i, n in zip(at, case.label.shape, strict=True)):
                    expected[place] = case.image[0][at]
                    expected_label[place] = case.label[at]
            np.testing.assert_allclose(image[0].numpy(), expected, atol=0.05)
            np.testing.assert_array_equal(label.numpy(), expected_label)


def test_half_of_each_batch_holds_foreground() -> None:
    source = batches(**CALM)
    assert all(bool((source.batch(step)[1].labels[1] > 0).any()) for step in range(10))


def test_places_are_evenly_spread_voxels_of_each_class() -> None:
    label = np.zeros((40, 40, 40), dtype=np.uint8)
    label[5:35, 5:35, 5:35] = 3
    label[0, 0, :2] = 1
    rows = _places(label)
    assert {int(v): int((rows[:, 0] == v).sum()) for v in np.unique(rows[:, 0])} == {1: 2, 3: 9000}
    assert all(label[i, j, k] == v for v, i, j, k in rows)
    assert rows[rows[:, 0] == 3, 1].max() == pytest.approx(34)


def test_a_mirrored_patch_has_left_and_right_exchanged() -> None:
    changes: dict[str, object] = {
        **CALM, "training.augmentation.mirror_axes": (0, 1),
        "inference.left_right_pairs": (("low", "high"),),
    }  # fmt: skip
    source, seen = batches(**changes), set()
    for step in range(12):
        images, targets = source.batch(step)
        for draw, image, label in zip(source.draw(step), images, targets.labels, strict=True):
            case = CASES[draw.case]
            start = (draw.centre - (np.array((16, 12, 8)) - 1) / 2).round().astype(int)
            wide = [(20, 20)] * 3
            cut = tuple(slice(a + 20, a + 20 + n) for a, n in zip(start, (16, 12, 8), strict=True))
            expected = np.flip(np.pad(case.image[0], wide)[cut], draw.variation.mirrored)
            np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-5)
            truth = np.flip(np.pad(case.label, wide)[cut], draw.variation.mirrored)
            if 0 in draw.variation.mirrored:
                truth = np.array([0, 2, 1])[truth]
            np.testing.assert_array_equal(label.numpy(), truth)
            seen.add(draw.variation.mirrored)
    assert seen == {(), (0,), (1,), (0, 1)}
