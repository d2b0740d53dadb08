"""Learned post-processing: planted strays go, held-out Dice stays, noise teaches nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.plan import PostprocessStep
from medseg.evaluation.overlap import dice, overlap_counts
from medseg.evaluation.statistics import bootstrap_interval
from medseg.postprocess.chain import apply_chain
from medseg.training.learned_steps import HeldOutPair, learn_steps
from medseg.training.postprocessing import learn_postprocessing
from tests.models import small_plan
from tests.phantoms import oblique_affine
from tests.training.test_loader import cached

ORGAN_AND_LESIONS = LabelSet.from_names({3: "organ", 7: "lesion"})
SHAPE = (40, 33, 27)
Mask = NDArray[np.uint8]


def grid(number: int) -> Geometry:
    """Lopsided, and of another voxel volume in each case."""
    return Geometry(SHAPE, oblique_affine((0.9 + 0.05 * (number % 4), 1.2, 2.1)))


def ellipsoid(centre: Any, radius: Any) -> NDArray[np.bool_]:
    axes = zip(np.ogrid[tuple(slice(n) for n in SHAPE)], centre, radius, strict=True)
    return np.asarray(sum(((axis - c) / r) ** 2 for axis, c, r in axes) <= 1.0)


def phantom(number: int) -> tuple[HeldOutPair, list[NDArray[np.intp]]]:
    """An organ with three lesions about it, a prediction with strays, and where these are."""
    rng = np.random.default_rng(number)
    reference = np.zeros(SHAPE, np.uint8)
    reference[ellipsoid(np.array(SHAPE) * [0.3, 0.5, 0.5] + rng.uniform(-2, 2, 3), (8, 9, 7))] = 3
    for place in ((0.75, 0.2, 0.3), (0.75, 0.75, 0.3), (0.75, 0.5, 0.75)):
        radius = rng.uniform(2.6, 4.0, 3)
        reference[ellipsoid(np.array(SHAPE) * place + rng.uniform(-1, 1, 3), radius)] = 7
    prediction = np.where(ndimage.binary_erosion(reference > 0), reference, 0).astype(np.uint8)
    strays: list[NDArray[np.intp]] = []
    free = ndimage.binary_erosion(reference == 0, iterations=3, border_value=1)
    while len(strays) < 12:
        corner = rng.integers(0, np.array(SHAPE) - 3)
        box = tuple(slice(c, c + s) for c, s in zip(corner, rng.integers(1, 4, 3), strict=True))
        if free[box].all():
            prediction[box] = (3, 7)[len(strays) % 2]
            strays.append(np.argwhere(np.pad(np.ones([s.stop - s.start for s in box]), 0)) + corner)
            around = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in box)
            free[around] = False
    return HeldOutPair(prediction, reference, grid(number)), strays


def cleaned(pair: HeldOutPair, steps: tuple[PostprocessStep, ...], labels: LabelSet) -> Any:
    return apply_chain(pair.prediction, steps, labels, geometry=pair.geometry)


def case_dice(mask: Any, reference: Any, labels: LabelSet) -> list[float]:
    counts = overlap_counts(mask, reference, labels.values)
    return [dice(counts[value]) for value in labels.values]


def test_planted_strays_are_recovered_on_held_out_phantoms() -> None:
    made = [phantom(number) for number in range(24)]
    steps = learn_steps(lambda: (pair for pair, _ in made[:12]), ORGAN_AND_LESIONS)
    assert [(step.step, step.label) for step in steps] == [
        ("largest", "organ"), ("min-volume", "lesion"),
    ]  # fmt: skip
    assert "on 12 cases that were not trained on" in steps[0].evidence
    planted = recovered = planted_voxels = recovered_voxels = 0
    for pair, strays in made[12:]:
        after = cleaned(pair, steps, ORGAN_AND_LESIONS)
        for stray in strays:
            left = np.count_nonzero(after[tuple(stray.T)])
            planted, planted_voxels = planted + 1, planted_voxels + len(stray)
            recovered, recovered_voxels = recovered + (left == 0), recovered_voxels + len(stray)
            recovered_voxels -= left
        right = (pair.prediction == pair.reference) & (pair.reference > 0)
        np.testing.assert_array_equal(after[right], pair.prediction[right])
    assert planted == 144
    assert recovered >= 0.99 * planted
    assert recovered_voxels >= 0.99 * planted_voxels


def test_holes_are_filled_where_that_helps() -> None:
    def pairs(*, hollow: bool) -> Iterator[HeldOutPair]:
        for number in range(6):
            pair, _ = phantom(number)
            prediction = pair.reference.copy()
            middle = np.argwhere(pair.reference == 3).mean(axis=0).astype(int)
            prediction[tuple(slice(m - 1, m + 2) for m in middle)] = 0
            yield HeldOutPair(prediction, prediction if hollow else pair.reference, pair.geometry)

    found = learn_steps(lambda: pairs(hollow=False), ORGAN_AND_LESIONS)
    assert [step.text for step in found] == ["fill-holes:organ"]
    assert learn_steps(lambda: pairs(hollow=True), ORGAN_AND_LESIONS) == ()


def test_gain_and_interval_by_hand() -> None:
    """Six cases of 90 right voxels of 100; in four a stray of 10, 20, 30 and 40."""
    strays = (0, 0, 10, 20, 30, 40)

    def pairs() -> Iterator[HeldOutPair]:
        for stray in strays:
            prediction, reference = np.zeros((2, 20, 10, 3), np.uint8)
            reference[:10, :, 0] = 1
            prediction[:9, :, 0] = 1
            prediction[12 : 12 + stray // 10, :, 2] = 1
            yield HeldOutPair(prediction, reference, None)

    (step,) = learn_steps(pairs, LabelSet.from_names({1: "a"}))
    gains = [180 / 190 - 180 / (190 + stray) for stray in strays]
    low, high = bootstrap_interval(gains)
    assert step.text == "largest:a"
    assert step.evidence.endswith(
        f"on 6 cases that were not trained on: gain {np.mean(gains):.4f}, "
        f"95 % interval {low:.4f} to {high:.4f}"
    )


def test_few_cases_and_noise_teach_nothing(caplog: pytest.LogCaptureFixture) -> None:
    made = [phantom(number)[0] for number in range(8)]
    assert learn_steps(lambda: made[:4], ORGAN_AND_LESIONS) == ()
    assert "fewer than 5" in caplog.text
    # A stray in one of eight cases, as good as chance; and both parts of an organ are right.
    clean = [HeldOutPair(p.reference, p.reference, p.geometry) for p in made[1:]]
    one = [made[0], *clean]
    assert learn_steps(lambda: one, ORGAN_AND_LESIONS) == ()
    halves = []
    for pair in made:
        split = pair.reference.copy()
        split[:, SHAPE[1] // 2] = 0
        halves.append(HeldOutPair(split, pair.reference, pair.geometry))
    assert [s for s in learn_steps(lambda: halves, ORGAN_AND_LESIONS) if s.label == "organ"] == []


def test_a_label_that_is_wrongly_found() -> None:
    """Removing it where it is not wanted counts, although no Dice is defined there."""

    def pairs() -> Iterator[HeldOutPair]:
        for number in range(10):
            prediction, reference = np.zeros((2, 12, 9, 7), np.uint8)
            prediction[2, 2, 2] = 1
            if number % 2:
                prediction[4:9, 4:7, 2:6] = reference[4:9, 4:7, 2:6] = 1
                prediction[2, 2, 2] = 0
            affine = oblique_affine((1.0, 2.0, 3.0))
            yield HeldOutPair(prediction, reference, Geometry((12, 9, 7), affine))

    (step,) = learn_steps(pairs, LabelSet.from_names({1: "a"}))
    # Between 6 mm3, which is wrong, and 60 voxels of 6 mm3.
    assert step.text == f"min-volume:a={np.sqrt(6.0 * 360.0):.3g}mm3"
    assert "0.5000 -> 1.0000" in step.evidence


def hippocampus(shared_data: Callable[[str], Path]) -> tuple[Path, LabelSet]:
    home = shared_data("hippocampus")
    return home, LabelSet.from_names({1: "Anterior", 2: "Posterior"})


def assert_never_worse(pairs: list[HeldOutPair], labels: LabelSet) -> None:
    """Learned on either half, applied to the other: no label falls beyond the noise."""
    for half in (0, 1):
        steps = learn_steps(lambda half=half: pairs[half::2], labels)
        before, after = (
            np.array([case_dice(mask(p), p.reference, labels) for p in pairs[1 - half :: 2]])
            for mask in (lambda p: p.prediction, lambda p, s=steps: cleaned(p, s, labels))
        )
        for gains in (after - before).T:
            assert bootstrap_interval(gains)[1] >= 0.0
            assert gains.mean() >= -1e-3


def test_strays_as_large_as_lesions() -> None:
    """What removes them removes as much that is right: held-out Dice must not pay for it."""
    pairs = []
    for number in range(16):
        pair, _ = phantom(number)
        lesions = np.where(pair.reference == 7, 7, 0).astype(np.uint8)
        other = np.where(phantom(number + 50)[0].reference == 7, 7, 0).astype(np.uint8)
        strays = np.roll(other, SHAPE[0] // 2, axis=0)
        pairs.append(HeldOutPair(np.maximum(lesions, strays), lesions, pair.geometry))
    assert_never_worse(pairs, LabelSet.from_names({7: "lesion"}))


def test_a_peers_predictions_of_hippocampus(shared_data: Callable[[str], Path]) -> None:
    home, labels = hippocampus(shared_data)
    files = sorted((home.parents[1] / "peers" / "nnunet_hippocampus_predictions").glob("*.nii.gz"))
    if not files:
        pytest.skip("the peer's predictions are not here")
    pairs = []
    for file in files:
        mask = nib.load(file)
        reference = np.asarray(nib.load(home / "labelsTr" / file.name).dataobj).astype(np.uint8)
        prediction = np.asarray(mask.dataobj).astype(np.uint8)
        pairs.append(HeldOutPair(prediction, reference, Geometry(mask.shape, mask.affine)))
    assert_never_worse(pairs, labels)


def degraded(home: Path, cases: int | None = None) -> list[HeldOutPair]:
    """Bumpy borders, labels mixed up at their border, specks, and holes in some of the cases."""
    pairs = []
    for number, file in enumerate(sorted((home / "labelsTr").glob("*.nii.gz"))[:cases]):
        rng, mask = np.random.default_rng(number), nib.load(file)
        reference = np.asarray(mask.dataobj).astype(np.uint8)
        noise = ndimage.gaussian_filter(rng.standard_normal((3, *reference.shape)), (0, 1, 1, 1))
        noise /= noise.std()
        shares = [
            ndimage.gaussian_filter((reference == value).astype(float), 0.8) + 0.25 * field
            for value, field in enumerate(noise)
        ]
        prediction = np.argmax(shares, axis=0).astype(np.uint8)
        pairs.append(HeldOutPair(prediction, reference, Geometry(mask.shape, mask.affine)))
    return pairs


def test_degraded_hippocampus(shared_data: Callable[[str], Path]) -> None:
    home, labels = hippocampus(shared_data)
    pairs = degraded(home, 24)
    assert_never_worse(pairs, labels)
    assert learn_steps(lambda: pairs, labels)


@pytest.mark.acceptance
def test_all_of_hippocampus_fold_by_fold(shared_data: Callable[[str], Path]) -> None:
    """Learned on four folds, applied to the fifth, for the five folds of the data set."""
    home, labels = hippocampus(shared_data)
    names = [file.name.removesuffix(".nii.gz") for file in sorted((home / "labelsTr").glob("*.gz"))]
    pairs = dict(zip(names, degraded(home), strict=True))
    for split in json.loads((home / "splits.json").read_text(encoding="utf-8")):
        learn, judge = ([pairs[case] for case in split[key]] for key in ("train", "val"))
        steps = learn_steps(lambda learn=learn: learn, labels)
        gains = np.array([
            np.subtract(
                case_dice(cleaned(pair, steps, labels), pair.reference, labels),
                case_dice(pair.prediction, pair.reference, labels),
            )
            for pair in judge
        ])  # fmt: skip
        assert steps
        assert (gains.mean(axis=0) >= -1e-3).all()


@pytest.mark.acceptance
def test_strays_of_two_hundred_phantoms() -> None:
    steps = learn_steps(lambda: (phantom(number)[0] for number in range(100)), ORGAN_AND_LESIONS)
    planted = left = 0
    for number in range(100, 300):
        pair, strays = phantom(number)
        after = cleaned(pair, steps, ORGAN_AND_LESIONS)
        planted += len(strays)
        left += sum(bool(after[tuple(stray.T)].any()) for stray in strays)
    assert planted == 2400
    assert left <= 0.01 * planted


def test_from_a_predictor() -> None:
    cases = [cached(number) for number in range(6)]

    class Painter:
        """Stands for a predictor: the truth, with a stray voxel of ``high`` and none of ``low``."""

        plan = small_plan()

        def __init__(self) -> None:
            self.turn = -1

        def classes(self, voxels: Any) -> NDArray[np.uint8]:
            self.turn += 1
            mask = np.array(cases[self.turn].label, dtype=np.uint8)
            mask[0, 0, 0] = 2
            return mask

    steps = learn_postprocessing(Painter(), cases)  # type: ignore[arg-type]
    assert [(step.step, step.label) for step in steps] == [("largest", "high")]
    assert "1.0000" in steps[0].evidence
    assert learn_postprocessing(Painter(), cases[:4]) == ()  # type: ignore[arg-type]
    assert learn_postprocessing(Painter(), []) == ()  # type: ignore[arg-type]
