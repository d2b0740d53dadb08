"""Regions, ignore, partly annotated cases, missing channels: from masks to a loss that falls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medseg.core.labels import LabelSet
from medseg.core.plan import Plan
from medseg.datasets.open import open_dataset
from medseg.datasets.scheme import training_scheme
from medseg.networks.build import build_network
from medseg.training.cache import CachedCase, build_cache
from medseg.training.loader import Batches
from medseg.training.losses import SegmentationLoss
from medseg.training.targets import IGNORED
from medseg.training.validation import case_dice, predicted_classes
from tests.models import small_plan
from tests.phantoms import write_msd_dataset

CPU = torch.device("cpu")
SPACING = (1.5, 2.0, 3.0)
CALM = {
    "training.augmentation.affine_probability": 0.0,
    "training.augmentation.intensity_probability": 0.0,
}
REGIONS = {
    "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
    "regions_class_order": [1, 2],
}


def rewritten(path: Path, change: Any) -> None:
    image = nib.load(path)
    mask = change(np.asarray(image.dataobj).copy())
    nib.save(nib.Nifti1Image(mask, image.affine, image.header), path)


def sparse(mask: NDArray[Any]) -> NDArray[Any]:
    """Two slices of three are not labelled."""
    mask[:, :, np.arange(mask.shape[2]) % 3 != 1] = 3
    return mask


def only(value: int) -> Any:
    return lambda mask: mask * (mask == value)


def dataset_of(folder: Path, scheme: str) -> Path:
    """Four cases of bright blobs, labelled as the scheme has it."""
    write_msd_dataset(folder, cases=4, shape=(18, 14, 9), splits=False)
    path = folder / "dataset.json"
    about = json.loads(path.read_text())
    masks = [folder / "labelsTr" / f"case_{n:03d}.nii.gz" for n in range(4)]
    if scheme in ("ignore", "regions with ignore"):
        about["labels"]["3"] = "ignore"
        for mask in masks:
            rewritten(mask, sparse)
    if scheme.startswith("regions"):
        about |= REGIONS
    if scheme == "partial":
        for number, mask in enumerate(masks[:3]):
            rewritten(mask, only(1 + number % 2))
            about["training"][number]["annotated"] = [("low", "high")[number % 2]]
    path.write_text(json.dumps(about))
    return folder


def cached(folder: Path, **changes: Any) -> tuple[Plan, list[CachedCase]]:
    dataset = open_dataset(folder)
    scheme = training_scheme(dataset)
    plan = small_plan(**{
        "labels": scheme.labels.model_dump(), "ignore": scheme.ignore, "spacing_mm": SPACING,
        "activation": "regions" if scheme.regions else "softmax",
        "network.classes": len(scheme.labels) + (not scheme.regions), **changes,
    })  # fmt: skip
    return plan, build_cache(folder / "cache", dataset.cases, plan)


SCHEMES = ("plain", "ignore", "regions", "regions with ignore", "partial")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ten_steps_make_the_loss_fall(scheme: str, tmp_path: Path) -> None:
    plan, cases = cached(dataset_of(tmp_path, scheme))
    network = build_network(plan.network, seed=0).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01)
    batches, loss = Batches(cases, plan, seed=1, device=CPU), SegmentationLoss(plan, CPU)

    def seen() -> float:
        with torch.no_grad():
            fixed = [batches.batch(step) for step in (100, 101)]
            return float(sum(loss(network(images), targets) for images, targets in fixed))

    before = seen()
    for step in range(10):
        images, targets = batches.batch(step)
        optimiser.zero_grad()
        loss(network(images), targets, progress=step / 10).backward()
        optimiser.step()
    assert seen() < before - 0.1


def test_the_cache_holds_what_the_masks_say(tmp_path: Path) -> None:
    folder = dataset_of(tmp_path, "regions with ignore")
    plan, cases = cached(folder)
    mask = np.asarray(nib.load(folder / "labelsTr" / "case_000.nii.gz").dataobj)
    # On its own spacing nothing is resampled: 1 whole alone, 2 core, 3 to be ignored.
    np.testing.assert_array_equal(cases[0].label, mask)
    assert sorted(cases[0].places) == [0, 1, 2]
    assert plan.scheme.ignored == 3
    images, targets = Batches(cases, plan, seed=0, device=CPU).batch(0)
    assert set(targets.labels.unique().tolist()) <= {IGNORED, 0, 1, 2}
    assert bool((targets.labels == IGNORED).any())
    assert targets.known is None
    assert images.shape[2:] == targets.labels.shape[1:]


def test_each_sample_knows_the_labels_of_its_case(tmp_path: Path) -> None:
    plan, cases = cached(dataset_of(tmp_path, "partial"))
    assert [case.known for case in cases] == [(True, False), (False, True), (True, False), None]
    batches = Batches(cases, plan, seed=0, device=CPU)
    for step in range(4):
        known = batches.batch(step)[1].known
        assert known is not None
        rows = [list(cases[draw.case].known or (True, True)) for draw in batches.draw(step)]
        assert known.tolist() == rows


def test_a_region_that_nobody_annotated_teaches_its_output_nothing(tmp_path: Path) -> None:
    plan, cases = cached(dataset_of(tmp_path, "regions"))
    cases = [replace(case, known=(True, False)) for case in cases]
    network = build_network(plan.network, seed=0).train()
    images, targets = Batches(cases, plan, seed=0, device=CPU).batch(0)
    outputs = network(images)
    SegmentationLoss(plan, CPU)(outputs, targets).backward()
    heads = [
        parameter.grad for name, parameter in network.named_parameters()
        if len(parameter) == 2 and ("head" in name or "output" in name)
    ]  # fmt: skip
    assert heads
    for gradient in heads:
        assert gradient is not None
        assert float(gradient[1].abs().max()) == 0
        assert float(gradient[0].abs().max()) > 0


def made_case(
    places: dict[int, int], known: tuple[bool, ...] | None = None, channels: int = 1
) -> CachedCase:
    """A case of air with so many voxels of each label."""
    label = np.zeros((20, 18, 10), dtype=np.uint8)
    spots = {}
    for index, count in places.items():
        spots[index] = np.stack([np.full(3, n + 4 * index) % 9 for n in range(count)])
        label[tuple(spots[index].T)] = index
    image = np.ones((channels, *label.shape), dtype=np.float32)
    return CachedCase("made", image, label, spots, known)


def centred_on(cases: list[CachedCase], plan: Plan, *, steps: int = 400) -> dict[int, float]:
    """How often patches hold the place of each label in their middle, as shares."""
    batches, half = Batches(cases, plan, seed=0, device=CPU), np.array(plan.patch_size) // 2
    hits: dict[int, int] = {}
    for step in range(steps):
        for draw in batches.draw(step):
            case = cases[draw.case]
            over = np.array(case.label.shape) - plan.patch_size
            for index, voxels in case.places.items():
                starts = np.clip(voxels - half, 0, over) + (np.array(plan.patch_size) - 1) / 2
                if (starts == draw.centre).all(axis=1).any():
                    hits[index] = hits.get(index, 0) + 1
    return {index: count / sum(hits.values()) for index, count in sorted(hits.items())}


# Label 2 is in one case of four.
RARE = [made_case({1: 2, 2: 2}), *(made_case({1: 2}) for _ in range(3))]


@pytest.mark.parametrize(
    ("kind", "share"), [("case", 1 / 8), ("rare", 0.25 * 4 / 5), ("balanced", 1 / 2)]
)
def test_how_often_a_rare_label_is_drawn(kind: str, share: float) -> None:
    plan = small_plan(**CALM, **{
        "training.class_sampling": kind, "training.foreground_share": 1.0,
        "patch_size": (4, 4, 4),
    })  # fmt: skip
    found = centred_on(RARE, plan)
    assert sum(found.values()) == pytest.approx(1)
    assert found[2] == pytest.approx(share, abs=0.04)


def test_a_label_that_was_not_annotated_is_not_looked_for() -> None:
    plan = small_plan(**CALM, **{"training.foreground_share": 1.0, "patch_size": (4, 4, 4)})
    cases = [replace(RARE[0], known=(True, False))]
    assert centred_on(cases, plan, steps=50) == {1: 1.0}


def test_with_ignore_every_patch_holds_what_somebody_labelled(tmp_path: Path) -> None:
    folder = dataset_of(tmp_path, "plain")
    about = json.loads((folder / "dataset.json").read_text())
    about["labels"]["3"] = "ignore"
    (folder / "dataset.json").write_text(json.dumps(about))

    def scribble(mask: NDArray[Any]) -> NDArray[Any]:
        kept = np.full_like(mask, 3)
        kept[:, 1, 1] = mask[:, 1, 1]
        kept[:2, :2, :2] = 0
        kept[tuple(np.argwhere(mask == 2)[0])] = 2
        return kept

    for path in (folder / "labelsTr").glob("*.nii.gz"):
        rewritten(path, scribble)
    plan, cases = cached(folder, patch_size=(6, 4, 2), **CALM)
    batches = Batches(cases, plan, seed=0, device=CPU)
    for step in range(10):
        labels = batches.batch(step)[1].labels
        assert bool((labels != IGNORED).flatten(1).any(dim=1).all())


def test_missing_channels_are_zero_and_dropout_leaves_one() -> None:
    plan = small_plan(channels=3, **{"training.channel_dropout": 0.5, "training.batch_size": 3})
    cases = [replace(made_case({1: 3}, channels=3), missing=(1,))]
    batches, lost = Batches(cases, plan, seed=0, device=CPU), np.zeros(3)
    for step in range(60):
        draws = batches.draw(step)
        for draw in draws:
            assert 1 in draw.blank
            assert set(draw.blank) < {0, 1, 2}
            lost[list(draw.blank)] += 1
        if step < 6:
            images = batches.batch(step)[0]
            for image, draw in zip(images, draws, strict=True):
                blank = {n for n in range(3) if float(image[n].abs().max()) == 0}
                assert blank == set(draw.blank)
    # Of two that are there, one always stays; the other goes in half of the samples.
    assert lost[0] + lost[2] == pytest.approx(0.5 * 180, abs=25)


def test_dropout_changes_no_other_draw() -> None:
    cases = [made_case({1: 3}, channels=2)]
    without = Batches(cases, small_plan(channels=2), seed=0, device=CPU).draw(3)
    plan = small_plan(channels=2, **{"training.channel_dropout": 0.4})
    for a, b in zip(without, Batches(cases, plan, seed=0, device=CPU).draw(3), strict=True):
        assert a.blank == ()
        np.testing.assert_array_equal(a.centre, b.centre)
        np.testing.assert_array_equal(a.variation.matrix, b.variation.matrix)


class Saying:
    """Stands for a predictor: it says what it is told."""

    def __init__(self, plan: Plan, classes: NDArray[Any]) -> None:
        self.plan, self.said = plan, classes

    def classes(self, voxels: torch.Tensor) -> NDArray[Any]:
        return self.said


def test_dice_of_regions_counts_what_is_painted_over(tmp_path: Path) -> None:
    plan, _ = cached(dataset_of(tmp_path, "regions with ignore"))
    label = np.array([0, 1, 1, 2, 2, 3, 3]).reshape(7, 1, 1)
    said = np.array([1, 1, 2, 2, 0, 2, 1]).reshape(7, 1, 1)
    case = CachedCase("c", np.zeros((1, 7, 1, 1), dtype=np.float32), label, {})
    # whole: 4 are right of 4 said and 4 true, one of each missed. core: 1 of 2 and 2.
    np.testing.assert_allclose(case_dice(said, case, plan), [2 * 3 / 8, 2 * 1 / 4])
    np.testing.assert_allclose(
        case_dice(said, replace(case, known=(False, True)), plan), [np.nan, 0.5]
    )
    ((shown, prediction),) = predicted_classes(Saying(plan, said), [case])  # type: ignore[arg-type]
    np.testing.assert_array_equal(shown.label.ravel(), [0, 1, 1, 2, 2, 0, 0])
    np.testing.assert_array_equal(prediction.ravel(), [1, 1, 2, 2, 0, 0, 0])


def test_known_labels_change_sides_with_a_mirrored_sample() -> None:
    names = LabelSet.from_names({1: "kidney_left", 2: "kidney_right"}).model_dump()
    plan = small_plan(**{
        "labels": names, "inference.left_right_pairs": [("kidney_left", "kidney_right")],
        "training.augmentation.mirror_axes": (0,),
    })  # fmt: skip
    cases = [made_case({1: 40}, known=(True, False))]
    batches, met = Batches(cases, plan, seed=0, device=CPU), set()
    for step in range(8):
        targets = batches.batch(step)[1]
        assert targets.known is not None
        for draw, known, label in zip(
            batches.draw(step), targets.known, targets.labels, strict=True
        ):
            turned = 0 in draw.variation.mirrored
            met.add(turned)
            assert known.tolist() == ([False, True] if turned else [True, False])
            assert set(label.unique().tolist()) <= {0, 2 if turned else 1}
    assert met == {True, False}
