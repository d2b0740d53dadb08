"""From the final state of a fold to a package that has been judged."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from medseg import __version__
from medseg.core.plan import Plan
from medseg.core.profile import Profile
from medseg.datasets.dataset import Case, Split
from medseg.datasets.reading import read_case_image, read_case_mask
from medseg.evaluation.evaluate import summarise
from medseg.inference.predictor import Predictor
from medseg.io.atomic import write_text
from medseg.package.package import ModelFile, ModelPackage, load_package, save_package
from medseg.training.cache import CachedCase
from medseg.training.checkpoint import TrainState, environment
from medseg.training.postprocessing import learn_postprocessing
from medseg.workflows import segment
from medseg.workflows.held_out import learn_from_folds
from medseg.workflows.quality_study import joined_profile, prepared_case
from medseg.workflows.run import Run
from medseg.workflows.scheme_scores import score_against_case


def package_fold(
    run: Run, plan: Plan, state: TrainState, inner: list[CachedCase], *, facts: dict[str, Any]
) -> ModelPackage:
    """Write the package: weights and post-processing as the inner cases chose them.

    Args:
        run: Whose folder it goes to.
        plan: Without post-processing.
        state: At the end of the training.
        inner: Cases kept back.
        facts: Of the training: the fold, and how many cases were trained on.
    """
    assert state.best is not None
    state.average.load_state_dict(state.best)
    predictor = Predictor([state.average], plan, run.device)
    # With all folds it is learned in the end, on every case of the dataset.
    steps = () if run.settings.fold == "all" else learn_postprocessing(predictor, inner)
    final = plan.model_copy(update={"postprocess": steps})
    model = ModelFile(
        medseg_version=__version__,
        weights=("weights.safetensors",),
        plan=final,
        licence=run.dataset.licence,
        training={
            **facts,
            "inner_cases": len(inner),
            "seed": run.settings.seed,
            "deterministic": run.settings.deterministic,
            "steps": state.step,
            "seconds": round(state.elapsed_s, 1),
            "inner_dice": round(state.best_score, 4) if inner else None,
            "device": run.device.type,
            "torch": environment(run.device)["torch"],
        },
    )
    folder = run.fold_folder(facts["fold"])
    previous = None if run.earlier is None else run.earlier.package(facts["fold"])
    save_package(folder / "model", model, [state.best], previous=previous)
    return load_package(folder / "model")


def save_with_metrics(
    folder: Path,
    package: ModelPackage,
    metrics: dict[str, Any] | None,
    profile: Profile | None = None,
) -> None:
    """Write the package again with its figures; names of cases stay out of it."""
    model = package.model
    if metrics is not None:
        facts = {"validation": {key: metrics[key] for key in ("mean", "labels")}}
        facts["validation"]["cases"] = len(metrics["cases"])
        model = model.model_copy(update={"metrics": facts})
    save_package(folder, model, package.members, previous=package.previous, profile=profile)


def validate_fold(
    run: Run, package: ModelPackage, split: Split, folder: Path
) -> dict[str, Any] | None:
    """Segment the fold's validation cases from their files, once, and score them."""
    if not split.validation:
        return None
    # Sidecars say how sure it is; predicted Dice is learned from it.
    predictor = Predictor(package.networks(), package.plan, run.device, confidence=True)
    report = run.phase("validate")
    scores = {}
    for number, case in enumerate(run.dataset.select(split.validation), start=1):
        scan = segment.read(read_case_image(case), package.plan)
        sums = [s for path in case.images for s in segment.input_hashes(path, package.plan)]
        provenance = segment.provenance_of(predictor, package.sha256, input_sha256=sums)
        prepared = prepared_case(run, case, scan, package.plan)
        classes = segment.infer(prepared, predictor)
        provenance |= prepared.facts
        prediction = segment.finish(classes, scan, package.plan, provenance=provenance)
        segment.write(prediction, folder / "validation" / f"{case.id}.nii.gz")
        scores[case.id] = score_against_case(
            prediction.labels, read_case_mask(case)[0], case=case, plan=package.plan,
            spacing_mm=scan.geometry.spacing_mm,
        )  # fmt: skip
        report(number, len(split.validation), case.id)
    metrics = summarise(scores, run.labels)
    write_text(folder / "validation" / "metrics.json", json.dumps(metrics, indent=2))
    return metrics


def reading_and_scoring_s(case: Case, plan: Plan) -> float:
    """Seconds that a case takes in :func:`validate_fold` beside the making of its mask.

    Measured on its own mask, moved by a voxel.

    Args:
        case: With a mask; best not one of those that are kept for judging.
        plan: Of the model.
    """
    began = time.perf_counter()
    scan = segment.read(read_case_image(case), plan)
    scan.voxels()
    for path in case.images:
        segment.input_hashes(path, plan)
    mask = read_case_mask(case)[0]
    own = plan.labels.to_values(plan.scheme.painted(plan.scheme.to_indices(mask)))
    score_against_case(
        np.roll(own, 1, axis=0), mask, case=case, plan=plan, spacing_mm=scan.geometry.spacing_mm
    )
    return time.perf_counter() - began


def join_folds(run: Run, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """One package of all folds, with the post-processing that their held-out masks teach."""
    packages = [load_package(outcome["model"]) for outcome in outcomes]
    plan, folders = packages[0].plan, [Path(outcome["model"]).parent for outcome in outcomes]
    steps = learn_from_folds(run.dataset, plan, folders)
    dice = [outcome["metrics"]["mean"]["dice"] for outcome in outcomes]
    means = {"folds": len(dice), "dice": float(np.mean(dice)), "dice_per_fold": dice}
    model = packages[0].model.model_copy(
        update={
            "plan": plan.model_copy(update={"postprocess": steps}),
            "weights": tuple(f"weights_{number}.safetensors" for number in range(len(packages))),
            "training": {**packages[0].model.training, "fold": "all"},
            "metrics": {"cross_validation": means},
        }
    )
    members = [package.members[0] for package in packages]
    profile = joined_profile(run, folders, plan)
    previous = None if run.earlier is None else run.earlier.package()
    save_package(run.folder / "model", model, members, previous=previous, profile=profile)
    return {
        "model": str(run.folder / "model"), "metrics": {"mean": means}, "folds": outcomes,
        "steps": sum(outcome["steps"] for outcome in outcomes),
        "seconds": {"total": round(time.perf_counter() - run.began, 1)},
    }  # fmt: skip
