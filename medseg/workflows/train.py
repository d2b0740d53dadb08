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
from pathlib import Path
from typing import Any

from medseg.core.settings import TrainSettings
from medseg.datasets.dataset import Case, Split
from medseg.datasets.inspect import label_presence, verify_cases
from medseg.datasets.open import open_dataset, require_trainable
from medseg.datasets.splits import folds, inner_split, split_for
from medseg.inference.device import choose_device
from medseg.io.atomic import write_text
from medseg.networks.build import check_network
from medseg.planning.fingerprint import take_fingerprint
from medseg.planning.planner import make_plan, means_for
from medseg.training.budget import affordable_looks, measure_case, measure_step, typical_case
from medseg.training.cache import build_cache
from medseg.training.determinism import deterministic
from medseg.training.loop import LOOKS, TrainJob, train_network
from medseg.training.monitor import RunMonitor
from medseg.workflows.judge import join_folds, package_fold, save_with_metrics, validate_fold
from medseg.workflows.run import Ground, Progress, Run, open_run, schedule_of

_log = logging.getLogger(__name__)


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
    """Train on a dataset and write ``out/model``.

    Args:
        dataset: A folder or a table of any layout that ``open_dataset`` knows.
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
    data = require_trainable(open_dataset(dataset))
    run = Run(
        dataset=data,
        labels=data.labels.regroup(built.labels) if built.labels else data.labels,
        settings=built,
        folder=Path(out),
        device=choose_device(built.device),
        progress=progress,
        stop=stop,
    )
    check_network(built.network)
    if built.deterministic and built.budget_s is not None:
        _log.warning("a budget ends by the clock, so that weights differ from run to run")
    splits = _splits(run)
    ground = open_run(run, splits, resume=resume)
    with deterministic(built.deterministic):
        if ground is None:
            ground = _lay_ground(run, splits)
        outcomes = [
            _train_fold(run, ground, split, name=name, folds_left=len(splits) - number)
            for number, (name, split) in enumerate(splits.items())
        ]
    if len(outcomes) == 1:
        return outcomes[0]
    return join_folds(run, outcomes)


def _splits(run: Run) -> dict[str, Split]:
    """Name -> split of each fold to train."""
    made_here = run.dataset.splits is None and run.settings.fold != "all-data"
    presence = label_presence(run.dataset) if made_here else None
    if run.settings.fold == "all":
        made = folds(run.dataset, seed=run.settings.seed, presence=presence)
        return {str(number): split for number, split in enumerate(made)}
    if run.settings.fold == "0" and run.dataset.splits is None and len(run.dataset.cases) < 2:
        _log.warning("one case alone: it is trained on, and nothing is left to validate with")
        return {"all-data": split_for(run.dataset, "all-data", run.settings.seed)}
    fold = run.settings.fold
    return {fold: split_for(run.dataset, fold, run.settings.seed, presence=presence)}


def _lay_ground(run: Run, splits: dict[str, Split]) -> Ground:
    """Check, fingerprint, preprocess, plan: all that comes before the first step."""
    everyone = sorted({c for split in splits.values() for c in split.train + split.validation})
    named = run.dataset.select(tuple(everyone))
    verify_cases(named, run.dataset, progress=run.phase("check")).raise_problems()
    cases = _training_cases(run, splits)
    fingerprint = take_fingerprint(
        run.dataset, cases, run.labels, progress=run.phase("fingerprint")
    )
    write_text(run.folder / "fingerprint.json", fingerprint.model_dump_json(indent=2))
    means = means_for(
        run.device.type,
        two_dimensional=fingerprint.two_dimensional,
        training_s=None if run.left_s is None else run.left_s / len(splits),
    )
    options: dict[str, Any] = {
        "network": run.settings.network,
        "width": run.settings.base_features,
        "changes": run.settings.plan_changes(),
    }
    plan = make_plan(
        fingerprint,
        run.labels,
        means,
        **options,
        step_cost=lambda draft: measure_step(draft, typical_case(draft, fingerprint), run.device),
    )
    ground = Ground(plan, measure_case(plan, typical_case(plan, fingerprint), run.device))
    write_text(run.folder / "plan.json", plan.to_json())
    note = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    note |= {"plan": plan.model_dump(mode="json"), "case_s": ground.case_s}
    write_text(run.folder / "run.json", json.dumps(note, indent=2))
    return ground


def _training_cases(run: Run, splits: dict[str, Split]) -> tuple[Case, ...]:
    return run.dataset.select(tuple(sorted({c for split in splits.values() for c in split.train})))


def _train_fold(
    run: Run, ground: Ground, split: Split, *, name: str, folds_left: int
) -> dict[str, Any]:
    """Train one fold, choose on its inner cases, judge once on its validation cases."""
    folder = run.fold_folder(name)
    began, settings = time.perf_counter(), run.settings
    learn_ids, inner_ids = inner_split(
        split.train, share=settings.inner_share, seed=settings.seed, groups=run.dataset.groups
    )
    cached = build_cache(
        run.folder / "cache",
        run.dataset.select(learn_ids + inner_ids),
        ground.plan,
        progress=run.phase("preprocess"),
    )
    learn, inner = cached[: len(learn_ids)], cached[len(learn_ids) :]
    schedule = schedule_of(
        run, ground, folder, inner=len(inner), split=split, folds_left=folds_left
    )
    looks = affordable_looks(
        ground.case_s, inner=len(inner), looks=len(LOOKS), training_s=schedule.seconds
    )
    monitor = RunMonitor(folder)
    reporter = _EpochReporter(monitor)
    job = TrainJob(
        plan=ground.plan,
        cases=learn,
        inner=inner[:looks],
        schedule=schedule,
        seed=settings.seed,
        device=run.device,
        checkpoint=folder / "checkpoint.safetensors",
        exact=settings.deterministic,
        stop=run.stop,
        on_epoch=reporter.epoch,
        on_step=lambda step, share: run.progress(
            "train", int(1000 * share), 1000, f"step {step}{reporter.note}"
        ),
        on_look=lambda predictor, step: monitor.picture(predictor, inner or learn, step),
    )
    try:
        state = train_network(job)
    finally:
        monitor.close()
    trained = time.perf_counter()
    package = package_fold(run, ground.plan, state, inner, learned=len(learn), name=name)
    metrics = validate_fold(run, package, split, folder)
    if metrics is not None:
        save_with_metrics(folder / "model", package, metrics)
    ended = time.perf_counter()
    return {
        "model": str(folder / "model"), "metrics": metrics, "steps": state.step,
        "seconds": {
            "prepare": round(began - run.began, 1), "train": round(trained - began, 1),
            "validate": round(ended - trained, 1), "total": round(ended - run.began, 1),
        },
    }  # fmt: skip


class _EpochReporter:
    """Tells the facts of each epoch to the monitor, the log and the progress bar."""

    def __init__(self, monitor: RunMonitor) -> None:
        self.monitor, self.note, self.dice = monitor, "", ""

    def epoch(self, facts: dict[str, Any]) -> None:
        self.monitor.epoch(facts)
        known = {label: dice for label, dice in facts.get("dice", {}).items() if dice is not None}
        if known:
            self.dice = ", Dice " + ", ".join(
                f"{label} {dice:.3f}" for label, dice in known.items()
            )
        wait = f"data wait {100 * facts['data_wait_share']:.0f} %"
        self.note = f", loss {facts['loss']:.3f}, {wait}{self.dice}"
        _log.info(
            "epoch %d: loss %.3f, %.2f steps/s, %s%s", facts["epoch"], facts["loss"],
            facts["steps_per_s"], wait, self.dice if known else "",
        )  # fmt: skip
