"""How well bad masks are found, and how well the Dice of masks is predicted.

    python benchmarks/quality_control.py hippocampus   (MSD Task04; looked for in MEDSEG_TEST_DATA)
    python benchmarks/quality_control.py phantoms      (made here)

Cases are parted at random into those that a small network and the profile learn from, those on
which predicted Dice is learned, and those on which all is judged. Masks of all qualities are
those of the network at several steps of its training. Faults of five kinds and three sizes are
planted in reference masks of cases to be judged, where their true Dice is known to the voxel,
and ranked against the same masks without faults, by mask and scan alone: the Dice predicted of a
faulty mask should be below that of a sound one. What the predictor has learned from are other
faults, of other cases, made by other code (``medseg.quality.planted``).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "sample_data")]

from make_phantoms import LABELS, make_volume  # noqa: E402
from planted import KINDS, SIZES, dice, plant  # noqa: E402

from medseg.core.labels import LabelSet  # noqa: E402
from medseg.core.plan import Plan  # noqa: E402
from medseg.core.profile import DiceModel, Profile  # noqa: E402
from medseg.datasets.dataset import Case, Dataset  # noqa: E402
from medseg.datasets.open import open_dataset  # noqa: E402
from medseg.datasets.reading import read_case_image, read_case_mask  # noqa: E402
from medseg.inference.predictor import Predictor  # noqa: E402
from medseg.planning.fingerprint import take_fingerprint  # noqa: E402
from medseg.planning.planner import make_plan, means_for  # noqa: E402
from medseg.quality.calibration import Sample, predict_dice  # noqa: E402
from medseg.quality.deviations import (  # noqa: E402
    deviations_of,
    inputs_of,
    scan_deviations,
    sureness_from,
)
from medseg.quality.features import Scale, View  # noqa: E402
from medseg.quality.profile import learn_profile  # noqa: E402
from medseg.quality.samples import (  # noqa: E402
    KnownCase,
    planted_samples,
    samples_of,
    with_expectations,
)
from medseg.training.cache import build_cache  # noqa: E402
from medseg.training.loop import TrainJob, train_network  # noqa: E402
from medseg.training.schedule import Schedule  # noqa: E402
from medseg.training.step import new_state  # noqa: E402
from medseg.transforms.preprocess import preprocess_scan  # noqa: E402

GOALS = {"small": 0.75, "medium": 0.90, "large": 0.97}
STEPS = (8, 15, 25, 40, 70, 120, 200, 300)
FAULTS_A_CASE = 14
DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Parts:
    """Cases that do not overlap."""

    dataset: Dataset
    learn: tuple[Case, ...]
    calibrate: tuple[Case, ...]
    test: tuple[Case, ...]

    @classmethod
    def of(cls, dataset: Dataset, sizes: tuple[int, int, int]) -> Parts:
        order = np.random.default_rng(0).permutation(len(dataset.cases))
        cases = [dataset.cases[int(place)] for place in order]
        a, b, c = np.cumsum(sizes)
        return cls(dataset, tuple(cases[:a]), tuple(cases[a:b]), tuple(cases[b:c]))


def main() -> int:
    """Run one data set; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=["hippocampus", "phantoms"])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "quality_control")
    given = parser.parse_args()
    out = given.out / given.data
    started = time.perf_counter()
    if given.data == "phantoms":
        parts = Parts.of(phantoms(out / "data", 80), (40, 16, 24))
    else:
        home = os.environ.get("MEDSEG_TEST_DATA", str(ROOT.parent / "shared" / "data"))
        parts = Parts.of(open_dataset(Path(home) / "hippocampus"), (120, 30, 40))
    plan = plan_of(parts)
    profile, test = learn(parts, plan, out)
    result = {
        "cases": [len(parts.learn), len(parts.calibrate), len(parts.test)],
        "masks": predictions(profile, test),
        "faults": faults(parts, plan, profile),
        "seconds": round(time.perf_counter() - started),
    }
    (out / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return tell(given.data, result)


def phantoms(folder: Path, count: int) -> Dataset:
    """Abdominal phantoms that differ from those of ``sample_data``."""
    names = [f"phantom_{number:03d}" for number in range(count)]
    for number, name in enumerate(names):
        for room in ("imagesTr", "labelsTr"):
            (folder / room).mkdir(parents=True, exist_ok=True)
        if not (folder / "labelsTr" / f"{name}.nii.gz").is_file():
            voxels, mask, affine = make_volume(number, seed=77)
            nib.save(nib.Nifti1Image(voxels, affine), folder / "imagesTr" / f"{name}.nii.gz")
            nib.save(nib.Nifti1Image(mask, affine), folder / "labelsTr" / f"{name}.nii.gz")
    listed = [
        {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in names
    ]
    facts = {"name": "phantoms", "modality": {"0": "CT"}, "labels": LABELS, "training": listed}
    (folder / "dataset.json").write_text(json.dumps(facts), encoding="utf-8")
    return open_dataset(folder)


def plan_of(parts: Parts) -> Plan:
    """A small network for the cases that it learns from."""
    found = take_fingerprint(parts.dataset, parts.learn, parts.dataset.labels)
    means = means_for("cpu", two_dimensional=False, training_s=300.0)
    return make_plan(found, parts.dataset.labels, means, width=12)


def known(case: Case, number: int, labels: LabelSet, plan: Plan) -> KnownCase:
    """A case with its reference mask."""
    scan, mask = read_case_image(case), read_case_mask(case)[0]
    view = View(scan.geometry, scan.voxels(), Scale.of(plan))
    return KnownCase(number, mask, labels, view, view.look(mask, labels))


def learn(parts: Parts, plan: Plan, out: Path) -> tuple[Profile, list[tuple[Sample, int]]]:
    """Train; the profile, and masks of the cases to be judged with the step that made each."""
    labels, scale = parts.dataset.labels, Scale.of(plan)
    looks = [known(case, n, labels, plan).look for n, case in enumerate(parts.learn)]
    profile = learn_profile(looks, labels, scale)
    calibrate = [known(case, n, labels, plan) for n, case in enumerate(parts.calibrate)]
    test = [known(case, n, labels, plan) for n, case in enumerate(parts.test)]
    samples: list[Sample] = []
    tested: list[tuple[Sample, int]] = []

    def judge_all(step: int, predictor: Predictor) -> None:
        made = "model" if step == STEPS[-1] else "stage"
        for case, one in zip(parts.calibrate, calibrate, strict=True):
            samples.extend(predicted(case, one, predictor, profile, made))
        found = [
            sample
            for case, one in zip(parts.test, test, strict=True)
            for sample in predicted(case, one, predictor, profile, made)
        ]
        tested.extend((sample, step) for sample in found)
        mean = np.mean([sample.dice for sample in found])
        print(f"  step {step}: mean Dice {mean:.3f}", flush=True)

    train(build_cache(out / "cache", parts.learn, plan), plan, out, judge_all)
    rng = np.random.default_rng(1)
    for one in calibrate:
        most = FAULTS_A_CASE * len(labels)
        samples += planted_samples(one, profile, rng, most=most)
    return with_expectations(profile, samples), tested


def train(cached: Any, plan: Plan, out: Path, judge_all: Callable[[int, Predictor], None]) -> None:
    """Train, and show the averaged network at each of ``STEPS``."""
    state = new_state(plan, seed=0, device=DEVICE)
    checkpoint = out / "checkpoint.safetensors"
    checkpoint.unlink(missing_ok=True)

    def stepped(step: int, share: float) -> None:
        if step in STEPS:
            networks = [copy.deepcopy(state.average)]
            judge_all(step, Predictor(networks, plan, DEVICE, confidence=True))

    job = TrainJob(
        plan=plan, cases=cached, inner=[], schedule=Schedule(STEPS[-1]), seed=0, device=DEVICE,
        checkpoint=checkpoint, on_step=stepped,
    )  # fmt: skip
    train_network(job, state)


def predicted(
    case: Case, one: KnownCase, predictor: Predictor, profile: Profile, made: Any
) -> list[Sample]:
    """What is seen of the network's mask of a case."""
    voxels, record = preprocess_scan(read_case_image(case), predictor.plan)
    classes, facts = predictor.infer_with_facts(voxels, record)
    mask, sureness = one.labels.to_values(classes), sureness_from(facts["confidence"])
    return samples_of(one, mask, profile, sureness, made=made)


def predictions(profile: Profile, tested: Sequence[tuple[Sample, int]]) -> dict[str, Any]:
    """Predicted against true Dice, over masks of all stages and of the finished network."""
    chosen: dict[str, Callable[[int], bool]] = {
        "all stages": lambda step: True, "finished network": lambda step: step == STEPS[-1],
    }  # fmt: skip
    found = {}
    for name, wanted in chosen.items():
        own = [sample for sample, step in tested if wanted(step)]
        for model, title in (
            (profile.with_confidence, "with confidence"), (profile.alone, "mask and scan alone"),
        ):  # fmt: skip
            found[f"{name}, {title}"] = agreement(model, own)
    return found


def agreement(model: DiceModel | None, samples: Sequence[Sample]) -> dict[str, float]:
    """Correlation, mean absolute error, coverage of the interval and its mean width."""
    assert model is not None
    got = np.array([predict_dice(model, one.label, one.inputs) for one in samples])
    truth = np.array([one.dice for one in samples])
    inside = (truth >= got[:, 1]) & (truth <= got[:, 2])
    return {
        "masks": len(samples), "r": float(np.corrcoef(got[:, 0], truth)[0, 1]),
        "mae": float(np.abs(got[:, 0] - truth).mean()), "covered": float(inside.mean()),
        "width": float((got[:, 2] - got[:, 1]).mean()),
    }  # fmt: skip


def faults(parts: Parts, plan: Plan, profile: Profile) -> dict[str, Any]:
    """AUROC of faulty below sound masks, by size and kind."""
    labels, rng = parts.dataset.labels, np.random.default_rng(2)
    sound: list[float] = []
    faulty: dict[tuple[str, str], list[float]] = {(s, k): [] for s in SIZES for k in KINDS}
    for number, case in enumerate(parts.test):
        one = known(case, number, labels, plan)
        other = read_case_mask(parts.learn[int(rng.integers(len(parts.learn)))])[0]
        for label in labels.labels:
            if label.name not in one.look.labels:
                continue
            sound.append(score(one, one.mask, label.name, profile))
            for size, kind in faulty:
                made = plant(
                    one.mask, label.value, kind, size, rng=rng,
                    spacing_mm=one.view.geometry.spacing_mm, other=other,
                )  # fmt: skip
                if made is not None and (made.mask == label.value).any():
                    low, high = SIZES[size]
                    assert low < dice(made.mask == label.value, one.mask == label.value) < high
                    faulty[size, kind].append(score(one, made.mask, label.name, profile))
    table: dict[str, Any] = {}
    for size in SIZES:
        every = [value for kind in KINDS for value in faulty[size, kind]]
        kinds = {k: [auroc(faulty[size, k], sound), len(faulty[size, k])] for k in KINDS}
        table[size] = {"all": auroc(every, sound), "masks": len(every), "kinds": kinds}
    return table | {"sound": len(sound)}


def score(case: KnownCase, mask: NDArray[Any], name: str, profile: Profile) -> float:
    """Predicted Dice of a label by mask and scan alone."""
    assert profile.alone is not None
    look = case.view.look(mask, case.labels)
    found = inputs_of(deviations_of(look, name, profile), scan_deviations(look, profile), None)
    return predict_dice(profile.alone, name, found)[0]


def auroc(below: Sequence[float], above: Sequence[float]) -> float:
    """How often a faulty mask has the lower score; ties count half."""
    if not below:
        return float("nan")
    low, high = np.array(below)[:, None], np.array(above)[None]
    return float(np.mean((low < high) + 0.5 * (low == high)))


def tell(data: str, result: dict[str, Any]) -> int:
    """Print what came out; 1 where a goal is missed."""
    print(f"{data}: {result['cases']} cases to learn, calibrate, judge; {result['seconds']} s")
    for name, row in result["masks"].items():
        print(
            f"  {name}: {row['masks']} masks, r {row['r']:.3f}, mean absolute error "
            f"{row['mae']:.3f}, covered {100 * row['covered']:.1f} %, width {row['width']:.2f}"
        )
    missed = []
    for size, goal in GOALS.items():
        row = result["faults"][size]
        kinds = ", ".join(f"{kind} {value:.3f} ({n})" for kind, (value, n) in row["kinds"].items())
        print(f"  {size} faults: AUROC {row['all']:.3f} of {row['masks']} (goal {goal}): {kinds}")
        missed += [size] * (row["all"] < goal)
    best = result["masks"]["all stages, with confidence"]
    missed += ["r"] * (best["r"] < 0.8) + ["error"] * (best["mae"] > 0.05)
    missed += ["coverage"] * (not 0.85 <= best["covered"] <= 0.95)
    print(f"  missed: {', '.join(missed) or 'nothing'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
