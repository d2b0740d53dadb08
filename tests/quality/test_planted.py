"""Planted faults, and what is learned from them: predicted Dice falls as the fault grows."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.profile import Profile
from medseg.inference.confidence import Sureness
from medseg.quality.features import Scale, View
from medseg.quality.planted import KINDS, faulty_masks
from medseg.quality.profile import learn_profile
from medseg.quality.samples import (
    KnownCase,
    Study,
    planted_samples,
    samples_of,
    with_expectations,
)
from medseg.quality.score import judge
from tests.phantoms import blobs, oblique_affine

LABELS = LabelSet.from_names({1: "low", 2: "high"})
SHAPE = (40, 30, 22)
SCALE = Scale((False,))


def known(seed: int, **changes: object) -> KnownCase:
    image, mask = blobs(SHAPE, seed=seed)
    geometry = Geometry(SHAPE, oblique_affine((1.5, 2.0, 3.0)))
    view = View(geometry, image[None], SCALE)
    return KnownCase(seed, mask, LABELS, view, view.look(mask, LABELS), **changes)  # type: ignore[arg-type]


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def test_faults_of_all_kinds_and_sizes() -> None:
    _, mask = blobs(SHAPE, seed=3)
    before, rng = mask.copy(), np.random.default_rng(0)
    made = list(faulty_masks(mask, 2, (1.5, 2.0, 3.0), rng, each=12))
    assert np.array_equal(mask, before)
    assert 11 * len(KINDS) <= len(made) <= 12 * len(KINDS)
    sizes = np.array([dice(one == 2, mask == 2) for one in made])
    for low, high in ((0.0, 0.6), (0.6, 0.8), (0.8, 0.9), (0.9, 1.0)):
        assert ((sizes >= low) & (sizes < high)).mean() > 0.05
    for one in made:
        assert one.shape == mask.shape
        assert one.dtype == mask.dtype
        assert set(np.unique(one)) <= {0, 1, 2}
        assert (one == 2).any()


def test_the_same_chance_gives_the_same_faults() -> None:
    _, mask = blobs(SHAPE, seed=3)
    first, second = (
        list(faulty_masks(mask, 1, (1.5, 2.0, 3.0), np.random.default_rng(5))) for _ in range(2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def study() -> Study:
    looks = {seed: known(seed).look for seed in range(12)}
    profile = learn_profile(list(looks.values()), LABELS, SCALE)
    rng = np.random.default_rng(0)
    samples = [
        sample
        for seed in range(20, 28)
        for sample in planted_samples(known(seed), profile, rng, most=28)
    ]
    return Study(looks, samples)


def test_predicted_dice_follows_the_fault(study: Study) -> None:
    profile = study.profile(LABELS, SCALE)
    assert profile is not None
    case = known(40)
    truth, found = [], []
    for faulty in faulty_masks(case.mask, 2, (1.5, 2.0, 3.0), np.random.default_rng(9), each=4):
        judged = judge(case.view.look(faulty, LABELS), profile).labels["high"]
        assert judged.dice is not None
        truth.append(dice(faulty == 2, case.mask == 2))
        found.append(judged.dice[0])
    assert np.corrcoef(truth, found)[0, 1] > 0.7
    sound = judge(case.look, profile).labels["high"]
    assert sound.dice is not None
    assert sound.dice[0] > 0.85


def test_many_labels_share_what_is_affordable() -> None:
    case = known(1)
    profile = learn_profile([known(n).look for n in range(6)], LABELS, SCALE)
    rng = np.random.default_rng(0)
    few = list(planted_samples(case, profile, rng, most=len(KINDS)))
    assert len({one.label for one in few}) == 1
    assert len(few) <= 2 * len(KINDS)
    # Who has little time stops anywhere: each label has its turn, and faults come with sound ones.
    begun = [list(islice(planted_samples(case, profile, rng, most=28), 3)) for _ in range(12)]
    assert {few[0].label for few in begun} == {"low", "high"}
    assert all(any(one.dice == 1 for one in few) for few in begun)


def test_samples_of_a_networks_mask() -> None:
    case = known(1)
    profile = learn_profile([known(n).look for n in range(6)], LABELS, SCALE)
    mask = case.mask.copy()
    mask[:, :15][mask[:, :15] == 1] = 0
    sure = {name: Sureness(0.8, 0.9, 0.7) for name in LABELS.names}
    low, high = samples_of(case, mask, profile, sure, made="model")
    assert low.dice == pytest.approx(dice(mask == 1, case.mask == 1))
    assert (high.dice, high.made, high.case) == (1.0, "model", 1)
    assert high.inputs["promised Dice"] == pytest.approx(np.log(4))


def test_a_network_is_unsure_where_it_promises_less_than_it_usually_does(study: Study) -> None:
    known_profile = learn_profile(list(study.looks.values()), LABELS, SCALE)
    usually = {"low": Sureness(0.6, 0.7, 0.6), "high": Sureness(0.97, 0.98, 0.97)}
    samples = [
        sample
        for seed in range(30, 36)
        for sample in samples_of(
            known(seed), known(seed).mask, known_profile, usually, made="model"
        )
    ]
    profile = with_expectations(known_profile, samples)
    assert profile.labels["low"].usual_dice == 1.0
    look = known(40).look
    assert judge(look, profile, usually).reasons == []
    less = {"low": Sureness(0.55, 0.7, 0.6), "high": Sureness(0.9, 0.9, 0.9)}
    assert judge(look, profile, less).reasons == [
        "high: the network itself is unsure (it promises a Dice of 0.90)"
    ]


def test_ignored_voxels_and_labels_nobody_looked_for_count_nowhere() -> None:
    profile = learn_profile([known(n).look for n in range(6)], LABELS, SCALE)
    case = known(1)
    mask = case.mask.copy()
    mask[:2] = 2
    ignoring = known(1, ignored=np.arange(SHAPE[0])[:, None, None] < np.array([[[2]]]))
    found = samples_of(ignoring, mask, profile, {}, made="stage")
    assert [one.dice for one in found] == [1.0, 1.0]
    look = case.look.__class__(
        {"low": case.look.labels["low"]}, case.look.scan, "RAS", unknown=("high",)
    )
    partly = KnownCase(1, case.mask, LABELS, case.view, look)
    assert [one.label for one in samples_of(partly, mask, profile, {}, made="stage")] == ["low"]
    seen = learn_profile([look, *(known(n).look for n in range(5))], LABELS, SCALE)
    assert seen.labels["high"].seen_share == 1.0


def test_a_study_survives_the_disk(study: Study) -> None:
    text = study.to_json()
    again = Study.from_json(text)
    assert again.samples == study.samples
    assert again.looks == study.looks
    assert isinstance(again.profile(LABELS, SCALE), Profile)
    for damaged in ("", "{", "[]", json.dumps({"looks": {"a": 1}, "samples": []})):
        with pytest.raises((ValueError, KeyError, TypeError)):
            Study.from_json(damaged)
    assert Study().profile(LABELS, SCALE) is None
