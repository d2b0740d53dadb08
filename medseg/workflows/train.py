"""Train a segmenter: a dataset in, a run folder with a model package out.

::

    RUN/
      run.json  plan.json        what was asked for, what was decided
      cache/                     preprocessed cases, for --resume and further runs into RUN
      checkpoint.safetensors     the state, for --resume
      log.jsonl  tensorboard/  overlays/
      model/                     the package
      validation/                masks and metrics of the fold's validation cases

``--fold all`` trains each fold into ``RUN/fold_N`` and joins them in ``RUN/model``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg import __version__
from medseg.core.errors import FileError, Interrupted, SettingsError
from medseg.core.labels import LabelSet
from medseg.core.plan import Plan
from medseg.core.settings import TrainSettings
from medseg.datasets.dataset import Case, Dataset, Split
from medseg.datasets.inspect import verify_cases
from medseg.datasets.msd import read_msd
from medseg.datasets.splits import folds, inner_split, split_for
from medseg.evaluation.evaluate import score_case, summarise
from medseg.inference.device import choose_device
from medseg.inference.predictor import Predictor
from medseg.io.atomic import write_text
from medseg.io.formats import read_mask
from medseg.package.package import ModelFile, ModelPackage, load_package, save_package
from medseg.planning.fingerprint import take_fingerprint
from medseg.planning.planner import make_plan, means_for
from medseg.training.budget import (
    affordable_looks,
    closing_seconds,
    measure_case,
    measure_step,
)
from medseg.training.cache import CachedCase, build_cache
from medseg.training.checkpoint import TrainState
from medseg.training.determinism import deterministic
from medseg.training.loop import LOOKS, TrainJob, train_network
from medseg.training.monitor import RunMonitor
from medseg.training.postprocessing import learn_postprocessing
from medseg.training.schedule import Schedule
from medseg.workflows import segment

DEFAULT_EPOCHS = 200
Progress = Callable[[str, int, int, str], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """What every part of a run needs to know."""

    dataset: Dataset
    labels: LabelSet
    settings: TrainSettings
    folder: Path
    device: torch.device
    progress: Progress
    stop: Callable[[], bool]
    began: float = field(default_factory=time.perf_counter)

    def phase(self, name: str) -> Callable[[int, int, str], None]:
        """Progress of one phase; between two cases it is also where a stop is heard."""

        def report(done: int, total: int, note: str) -> None:
            self.progress(name, done, total, note)
            if self.stop():
                raise Interrupted(name, got="a request to stop", cure="Add --resume.")

        return report

    @property
    def left_s(self) -> float | None:
        """Seconds of the budget that are left."""
        budget = self.settings.budget_s
        return None if budget is None else budget - (time.perf_counter() - self.began)


@dataclass(frozen=True)
class _Ground:
    """What all folds of a run stand on; kept in ``run.json``."""

    plan: Plan
    case_s: float


def train(
    dataset: str | Path,
    out: str | Path,
    *,
    config: str | Path | None = None,
    resume: bool = False,
    progress: Progress = lambda phase, done, total, note: None,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> dict[str, Any]:
    """Train on a dataset in MSD layout and write ``out/model``.

    Args:
        dataset: Folder with ``dataset.json``, ``imagesTr``, ``labelsTr``.
        out: Run folder; new, or one that was stopped, with ``resume``.
        config: A preset by name, or a YAML file.
        resume: Go on from the state in ``out``.
        progress: Called with (phase, done, total, note).
        stop: Asked after each step and case; True saves the state and ends the run.
        **settings: Fields of ``TrainSettings``: ``fold``, ``labels``, ``budget`` (``"10min"``)
            or ``epochs``, ``device``, ``seed``, ``deterministic``, ``plan`` ...; ``set`` takes
            ``["key=value"]`` pairs as the command line does.

    Returns:
        ``{"model": path, "metrics": {...} or None, "seconds": {phase: s}, "steps": n}``.

    Raises:
        DatasetError: The dataset does not hold together.
        SettingsError: A setting is unknown or does not fit.
        Interrupted: ``stop`` said so; go on with ``resume``.
    """
    pairs = settings.pop("set", ())
    built = TrainSettings.build(config=config, pairs=pairs, stated=settings)
    data = read_msd(Path(dataset))
    run = _Run(
        dataset=data,
        labels=data.labels.regroup(built.labels) if built.labels else data.labels,
        settings=built, folder=Path(out), device=choose_device(built.device),
        progress=progress, stop=stop,
    )
    splits = _splits(run)
    ground = _open_run(run, splits, resume=resume)
    with deterministic(built.deterministic):
        if ground is None:
            ground = _lay_ground(run, splits)
        outcomes = [
            _train_fold(run, ground, split, name=name, folds_left=len(splits) - number)
            for number, (name, split) in enumerate(splits.items())
        ]
    if len(outcomes) == 1:
        return outcomes[0]
    return _join_folds(run, outcomes)


def _splits(run: _Run) -> dict[str, Split]:
    """Name -> split of each fold to train."""
    if run.settings.fold == "all":
        made = folds(run.dataset, seed=run.settings.seed)
        return {str(number): split for number, split in enumerate(made)}
    if run.settings.fold == "0" and run.dataset.splits is None and len(run.dataset.cases) < 2:
        _log.warning("one case alone: it is trained on, and nothing is left to validate with")
        return {"all-data": split_for(run.dataset, "all-data", run.settings.seed)}
    return {run.settings.fold: split_for(run.dataset, run.settings.fold, run.settings.seed)}


def _open_run(run: _Run, splits: dict[str, Split], *, resume: bool) -> _Ground | None:
    """Check that the folder is new, or the very run that is to go on; its ground if laid."""
    asked = {
        "settings": run.settings.model_dump(mode="json", exclude={"device"}),
        "splits": {name: [list(s.train), list(s.validation)] for name, s in splits.items()},
    }
    note = run.folder / "run.json"
    if not note.is_file():
        if resume:
            raise SettingsError(
                f"--resume with --out {run.folder}", expected="a run that was stopped",
                got="no run.json", cure="Leave --resume away.",
            )
        write_text(note, json.dumps(asked, indent=2))
        return None
    if not resume:
        raise SettingsError(
            f"--out {run.folder}", expected="a new folder", got="a run",
            cure="Add --resume to go on with it, or choose another folder.",
        )
    try:
        was = json.loads(note.read_text(encoding="utf-8"))
        changed = [
            key for key in asked["settings"] if asked["settings"][key] != was["settings"].get(key)
        ]
        if changed or was["splits"] != asked["splits"]:
            raise SettingsError(
                "--resume", expected=f"the settings of the run ({note})",
                got=f"other {', '.join(changed) or 'cases'}", cure="Give the same command again.",
            )
        if "plan" not in was:
            return None
        return _Ground(Plan.model_validate(was["plan"]), float(was["case_s"]))
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(str(note), expected="a run's settings", got=str(error)) from error


def _lay_ground(run: _Run, splits: dict[str, Split]) -> _Ground:
    """Check, fingerprint, preprocess, plan: all that comes before the first step."""
    everyone = sorted({case for split in splits.values() for case in split.train + split.validation})
    verify_cases(
        run.dataset.select(tuple(everyone)), run.dataset, progress=run.phase("check")
    ).raise_problems()
    cases = _training_cases(run, splits)
    fingerprint = take_fingerprint(
        run.dataset, cases, run.labels, progress=run.phase("fingerprint")
    )
    write_text(run.folder / "fingerprint.json", fingerprint.model_dump_json(indent=2))
    means = means_for(
        run.device.type, two_dimensional=fingerprint.two_dimensional,
        training_s=None if run.left_s is None else run.left_s / len(splits),
    )
    options: dict[str, Any] = {
        "network": run.settings.network, "width": run.settings.base_features,
        "changes": run.settings.plan_changes(),
    }
    draft = make_plan(fingerprint, run.labels, means, **options)
    cached = build_cache(
        run.folder / "cache", cases, draft, progress=run.phase("preprocess")
    )
    plan = make_plan(
        fingerprint, run.labels, means, **options,
        step_cost=lambda candidate: measure_step(candidate, cached, run.device),
    )
    ground = _Ground(plan, measure_case(plan, cached, run.device))
    write_text(run.folder / "plan.json", plan.to_json())
    note = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    note |= {"plan": plan.model_dump(mode="json"), "case_s": ground.case_s}
    write_text(run.folder / "run.json", json.dumps(note, indent=2))
    return ground


def _training_cases(run: _Run, splits: dict[str, Split]) -> tuple[Case, ...]:
    return run.dataset.select(tuple(sorted({c for split in splits.values() for c in split.train})))


def _train_fold(
    run: _Run, ground: _Ground, split: Split, *, name: str, folds_left: int
) -> dict[str, Any]:
    """Train one fold, choose on its inner cases, judge once on its validation cases."""
    folder = run.folder if run.settings.fold != "all" else run.folder / f"fold_{name}"
    began, settings = time.perf_counter(), run.settings
    learn_ids, inner_ids = inner_split(split.train, share=settings.inner_share, seed=settings.seed)
    cached = build_cache(
        run.folder / "cache", run.dataset.select(learn_ids + inner_ids), ground.plan,
        progress=run.phase("preprocess"),
    )
    learn, inner = cached[: len(learn_ids)], cached[len(learn_ids) :]
    schedule = _schedule(run, ground, folder, inner=len(inner), split=split, folds_left=folds_left)
    looks = affordable_looks(
        ground.case_s, inner=len(inner), looks=len(LOOKS), training_s=schedule.seconds
    )
    monitor = RunMonitor(folder)
    job = TrainJob(
        plan=ground.plan, cases=learn, inner=inner[:looks], schedule=schedule,
        seed=settings.seed, device=run.device, checkpoint=folder / "checkpoint.safetensors",
        exact=settings.deterministic, stop=run.stop, on_epoch=_epoch_reporter(run, monitor),
        on_step=lambda step, share: run.progress("train", int(1000 * share), 1000, f"step {step}"),
        on_look=lambda predictor, step: monitor.picture(predictor, inner or learn, step),
    )
    try:
        state = train_network(job)
    finally:
        monitor.close()
    trained = time.perf_counter()
    package = _package(run, ground.plan, state, inner, folder=folder, name=name)
    metrics = _validate(run, package, split, folder)
    if metrics is not None:
        _save_with_metrics(folder / "model", package, metrics)
    ended = time.perf_counter()
    return {
        "model": str(folder / "model"), "metrics": metrics, "steps": state.step,
        "seconds": {
            "prepare": round(began - run.began, 1), "train": round(trained - began, 1),
            "validate": round(ended - trained, 1), "total": round(ended - run.began, 1),
        },
    }  # fmt: skip


def _schedule(
    run: _Run, ground: _Ground, folder: Path, *, inner: int, split: Split, folds_left: int
) -> Schedule:
    """Steps, or the seconds that are left when all that comes after the last step is set aside."""
    steps_per_epoch = ground.plan.training.steps_per_epoch
    if run.left_s is None:
        return Schedule((run.settings.epochs or DEFAULT_EPOCHS) * steps_per_epoch)
    kept = folder / "schedule.json"
    if kept.is_file():
        return Schedule(0, seconds=float(json.loads(kept.read_text(encoding="utf-8"))["seconds"]))
    closing = closing_seconds(ground.case_s, inner=inner, validation=len(split.validation))
    seconds = run.left_s / folds_left - closing
    least = 0.1 * (run.settings.budget_s or 0.0) / folds_left
    if seconds < least:
        _log.warning("the budget is nearly spent before the first step; training for %.0f s", least)
    write_text(kept, json.dumps({"seconds": max(seconds, least)}))
    return Schedule(0, seconds=max(seconds, least))


def _epoch_reporter(run: _Run, monitor: RunMonitor) -> Callable[[dict[str, Any]], None]:
    def report(facts: dict[str, Any]) -> None:
        monitor.epoch(facts)
        dice = ", ".join(
            f"{label} {value:.3f}" for label, value in facts.get("dice", {}).items() if value
        )
        _log.info(
            "epoch %d: loss %.3f, %.2f steps/s, data wait %.0f %%%s", facts["epoch"], facts["loss"],
            facts["steps_per_s"], 100 * facts["data_wait_share"], f", Dice {dice}" if dice else "",
        )  # fmt: skip

    return report


def _package(
    run: _Run, plan: Plan, state: TrainState, inner: list[CachedCase], *, folder: Path, name: str
) -> ModelPackage:
    """Write the package with the best weights and the post-processing that the inner cases chose."""
    assert state.best is not None
    state.average.load_state_dict(state.best)
    predictor = Predictor([state.average], plan, run.device)
    final = plan.model_copy(update={"postprocess": learn_postprocessing(predictor, inner)})
    model = ModelFile(
        medseg_version=__version__, weights=("weights.safetensors",), plan=final,
        licence=run.dataset.licence,
        training={
            "dataset": run.dataset.name, "fold": name, "inner_cases": len(inner),
            "seed": run.settings.seed, "deterministic": run.settings.deterministic,
            "steps": state.step, "seconds": round(state.elapsed_s, 1),
            "inner_dice": round(state.best_score, 4) if inner else None,
            "device": run.device.type, "torch": torch.__version__,
        },
    )
    save_package(folder / "model", model, [state.best])
    return load_package(folder / "model")


def _save_with_metrics(folder: Path, package: ModelPackage, metrics: dict[str, Any]) -> None:
    """Write the package again with its figures; names of cases stay out of it."""
    facts = {"validation": {key: metrics[key] for key in ("mean", "labels")}}
    facts["validation"]["cases"] = len(metrics["cases"])
    save_package(folder, package.model.model_copy(update={"metrics": facts}), package.members)


def _validate(
    run: _Run, package: ModelPackage, split: Split, folder: Path
) -> dict[str, Any] | None:
    """Segment the fold's validation cases from their files, once, and score them."""
    if not split.validation:
        return None
    predictor = Predictor(package.networks(), package.plan, run.device)
    report = run.phase("validate")
    scores = {}
    for number, case in enumerate(run.dataset.select(split.validation), start=1):
        assert case.label is not None
        scan = segment.read(case.image, package.plan)
        provenance = segment.provenance_of(
            predictor, package.sha256, input_sha256=[segment.file_sha256(case.image)]
        )
        prediction = segment.finish(
            segment.segment(scan, predictor), scan, package.plan, provenance=provenance
        )
        segment.write(prediction, folder / "validation" / f"{case.id}.nii.gz")
        reference = run.labels.to_values(run.labels.to_classes(read_mask(case.label)[0]))
        scores[case.id] = score_case(
            prediction.labels, reference, spacing_mm=scan.geometry.spacing_mm, labels=run.labels
        )
        report(number, len(split.validation), case.id)
    metrics = summarise(scores, run.labels)
    write_text(folder / "validation" / "metrics.json", json.dumps(metrics, indent=2))
    return metrics


def _join_folds(run: _Run, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """One package of all folds; a post-processing step stays where every fold chose it."""
    packages = [load_package(outcome["model"]) for outcome in outcomes]
    plan = packages[0].plan
    chosen = [{(s.step, s.label) for s in package.plan.postprocess} for package in packages]
    steps = tuple(s for s in plan.postprocess if all((s.step, s.label) in c for c in chosen))
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
    save_package(run.folder / "model", model, [package.members[0] for package in packages])
    return {
        "model": str(run.folder / "model"), "metrics": {"mean": means}, "folds": outcomes,
        "steps": sum(outcome["steps"] for outcome in outcomes),
        "seconds": {"total": round(time.perf_counter() - run.began, 1)},
    }  # fmt: skip
