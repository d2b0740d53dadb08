"""Trust: sound masks are quiet, faults are told in plain words, and profiles keep no case."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medseg.core.errors import PackageError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.profile import Profile, Usual
from medseg.inference.confidence import Sureness
from medseg.quality.features import CaseLook, Scale, look_at_case
from medseg.quality.profile import learn_profile, usual
from medseg.quality.score import CaseTrust, judge
from tests.phantoms import blobs, oblique_affine

LABELS = LabelSet.from_names({1: "low", 2: "high"})
SCALE = Scale((True,))
SHAPE = (48, 36, 28)


def look_of(image: np.ndarray, mask: np.ndarray) -> CaseLook:
    geometry = Geometry(mask.shape, oblique_affine((1.5, 2.0, 3.0), angles_deg=(5.0, 0.0, 3.0)))
    return look_at_case(mask, geometry, LABELS, voxels=image[None], scale=SCALE)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return learn_profile([look_of(*blobs(SHAPE, seed=n)) for n in range(14)], LABELS, SCALE)


def judged(profile: Profile, image: np.ndarray, mask: np.ndarray) -> CaseTrust:
    return judge(look_of(image, mask), profile)


def test_sound_masks_are_trusted(profile: Profile) -> None:
    for seed in (50, 51, 52):
        found = judged(profile, *blobs(SHAPE, seed=seed))
        assert found.trust > 0.5
        assert found.reasons == []


def test_faults_are_told(profile: Profile) -> None:
    image, sound = blobs(SHAPE, seed=50)
    usual_trust = judged(profile, image, sound).trust

    strays = sound.copy()
    strays[2:4, 2:4, 2:4] = strays[2:4, 30:32, 20:22] = 1
    assert told(judged(profile, image, strays), "low").startswith("3 parts")

    half = np.where((sound == 2) & (np.arange(SHAPE[1])[:, None] > 15), 0, sound)
    assert "below training" in told(judged(profile, image, half), "high")

    moved = np.where(sound == 2, 0, sound)
    moved[np.roll(sound, -10, axis=1) == 2] = 2
    assert "beside low" in told(judged(profile, image, moved), "high")
    assert "too far back" in told(judged(profile, image, moved), "high")

    border = sound.copy()
    border[:8, 15:20, 12:16] = 1
    assert "touches the image border (L)" in told(judged(profile, image, border), "low")

    gone = np.where(sound == 2, 0, sound)
    absent = "absent, though 100 % of training masks show it"
    assert told(judged(profile, image, gone), "high") == absent

    dark = judged(profile, np.full_like(image, 5), sound)
    assert any(line.startswith("scan: intensity 0 p99") for line in dark.reasons)

    for mask in (strays, half, moved, border, gone):
        assert judged(profile, image, mask).trust < usual_trust


def told(found: CaseTrust, label: str) -> str:
    lines = [line for line in found.reasons if line.startswith(f"{label}: ")]
    assert len(lines) == 1, found.reasons
    return lines[0].removeprefix(f"{label}: ")


def test_an_unsure_network_is_told(profile: Profile) -> None:
    sure = {"low": Sureness(0.95, 0.97, 0.96), "high": Sureness(0.41, 0.6, 0.4)}
    found = judge(look_of(*blobs(SHAPE, seed=50)), profile, sure)
    assert "it promises a Dice of 0.41" in told(found, "high")
    assert found.labels["high"].trust < 0.45 < found.labels["low"].trust
    assert list(found.to_json()["labels"]) == ["low", "high"]


def test_members_that_disagree_are_told(profile: Profile) -> None:
    sure = {"low": Sureness(0.95, 0.97, 0.96, 0.12), "high": Sureness(0.9, 0.9, 0.9, 0.41)}
    found = judge(look_of(*blobs(SHAPE, seed=50)), profile, sure)
    assert told(found, "high").endswith("members or mirrored views disagree (0.41)")
    assert not any("disagree" in line for line in found.reasons if line.startswith("low"))


def test_scans_that_are_no_ct_are_told() -> None:
    def ct(seed: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = blobs(SHAPE, seed=seed)
        image[:4] = -1000
        return image, mask

    known = learn_profile([look_of(*ct(n)) for n in range(8)], LABELS, SCALE)
    image, mask = ct(40)
    assert judged(known, image, mask).scan_reasons == ()
    offset = judged(known, image + 1024, mask)
    assert offset.reasons[0] == "scan: not CT-like intensities"


def test_other_spacing_and_orientation_are_told(profile: Profile) -> None:
    image, mask = blobs(SHAPE, seed=50)
    affine = np.diag([-1.5, 2.0, 6.0, 1.0])
    look = look_at_case(mask, Geometry(SHAPE, affine), LABELS, voxels=image[None], scale=SCALE)
    first, _, last = judge(look, profile).scan_reasons
    assert first.startswith("down to up spacing (6 mm)")
    assert last == "stored as LAS, training scans as RAS"


def test_the_profile_survives_json_and_names_no_case(profile: Profile) -> None:
    text = profile.to_json()
    assert Profile.from_json(text) == profile
    assert profile.summary() == {"cases": 14, "masks": 0}
    keys = set(json.loads(text))
    assert keys == {
        "format_version", "cases", "absolute", "labels", "scan", "axis_codes",
        "with_confidence", "alone",
    }  # fmt: skip
    newer = json.dumps(json.loads(text) | {"format_version": 9})
    for damaged in (newer, "{", json.dumps(json.loads(text) | {"cases": 0}), "[" * 100_000):
        with pytest.raises(PackageError):
            Profile.from_json(damaged)


def test_usual_against_numpy() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 4000)
    found = usual(values, 0.1)
    assert found is not None
    assert found.middle == pytest.approx(np.median(values))
    assert found.spread == pytest.approx(2.0, rel=0.05)
    assert usual([1.0] * 4, 0.1) is None
    assert usual([1.0] * 5, 0.25) == Usual(middle=1.0, spread=0.25)
    assert usual([1.0, np.nan] * 5, 0.25) == Usual(middle=1.0, spread=0.25)


def test_an_empty_mask_of_what_few_cases_show_is_neither_trusted_nor_not() -> None:
    def rare(seed: int) -> CaseLook:
        image, mask = blobs(SHAPE, seed=seed)
        return look_of(image, mask if seed % 2 else np.zeros_like(mask))

    known = learn_profile([rare(n) for n in range(14)], LABELS, SCALE)
    assert known.labels["low"].seen_share == 0.5
    empty = judge(rare(20), known)
    assert (empty.trust, empty.reasons) == (0.5, ["scan: no label to be judged"])


def test_labels_that_training_cuts_off_are_judged_by_what_is_seen() -> None:
    def cut(seed: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = blobs(SHAPE, seed=seed)
        return image[10:], mask[10:]

    known = learn_profile([look_of(*cut(n)) for n in range(8)], LABELS, SCALE)
    assert known.labels["low"].cut_share == 1.0
    assert judged(known, *cut(30)).reasons == []
