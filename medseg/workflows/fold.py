"""One fold: train, choose on its inner cases, judge once on its validation cases."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from medseg.datasets.splits import inner_split
from medseg.io.atomic import write_text
from medseg.report.training import plan_values
from medseg.training.cache import CachedCase, build_cache
from medseg.training.checkpoint import TrainState
from medseg.training.looks import LOOKS
from medseg.training.loop import TrainJob, train_network
from medseg.training.mlflow_log import MlflowLog
from medseg.training.monitor import RunMonitor, advice, peak_memory
from medseg.training.schedule import Schedule
from medseg.training.set_aside import affordable_looks
from medseg.training.step import new_state
from medseg.workflows.fine_tune import Start
from medseg.workflows.judge import package_fold, save_with_metrics, validate_fold
from medseg.workflows.quality_study import FoldStudy
from medseg.workflows.run import Fold, Ground, Run, is_spacious, schedule_of

_log = logging.getLogger(__name__)


def train_fold(
    run: Run, ground: Ground, fold: Fold, *, start: Start | None = None
) -> dict[str, Any]:
    """Train one fold; where that is done already, nothing is done again.

    Args:
        run: Whose folder it goes to.
        ground: What the run stands on.
        fold: Which of its splits.
        start: The model to begin with; None for fresh weights.

    Returns:
        As :func:`medseg.workflows.train.train` does; empty in a process that does not lead.
    """
    team, folder, began = run.team, run.fold_folder(fold.name), time.perf_counter()
    learn_ids, inner_ids = inner_split(
        fold.split.train, share=run.settings.inner_share, seed=run.settings.seed,
        groups=run.dataset.groups,
    )  # fmt: skip
    study = FoldStudy(run, ground, folder, inner=inner_ids)

    def schedule_now() -> Schedule:
        study_s = study.closing_seconds(len(fold.split.validation))
        return schedule_of(run, ground, fold, inner=len(inner_ids), study_s=study_s)

    if (folder / "outcome.json").is_file():
        outcome = _outcome(folder, team.first(schedule_now))
        if outcome is not None:
            return outcome
    if team.leads:
        study.look(learn_ids)
    learn, inner = _cached(run, ground, learn_ids, inner_ids)
    # Only now: of a budget, what is left after preparing is for training.
    schedule = team.first(schedule_now)
    prepared = time.perf_counter()
    job = _job(run, ground, schedule, learn=learn, inner=inner, folder=folder)
    first = None if start is None else start.state(run, ground.plan)
    if not team.leads:
        train_network(job, first)
        return {}
    state = _train_and_tell(run, job, first, study=study, shown=inner or learn)
    trained = time.perf_counter()
    facts = {"fold": fold.name, "cases": len(learn)}
    if start is not None:
        facts["begun_with"] = start.package.sha256
    package = package_fold(run, ground.plan, state, inner, facts=facts)
    metrics = validate_fold(run, package, fold.split, folder)
    profile = study.finish(package, fold.split.validation)
    save_with_metrics(folder / "model", package, metrics, profile)
    if fold.left == fold.of:  # what comes before all folds counts to the first
        began = run.began
    times = (began, prepared, trained, time.perf_counter())
    return _keep_outcome(run, folder, schedule, steps=state.step, times=times)


def _cached(
    run: Run, ground: Ground, learn: tuple[str, ...], inner: tuple[str, ...]
) -> tuple[list[CachedCase], list[CachedCase]]:
    """Preprocessed cases to learn from, and those kept back."""
    cases, report = run.dataset.select(learn + inner), run.phase("preprocess")
    cached = run.team.first(
        lambda: build_cache(
            run.folder / "cache", cases, ground.plan, progress=report, kept=run.kept
        )
    )
    if run.earlier is not None:
        earlier, folder = run.earlier, run.folder / "coarse"
        cached = run.team.first(
            lambda: earlier.attach(cached, cases, ground.plan, folder=folder, progress=report)
        )
    return cached[: len(learn)], cached[len(learn) :]


def _job(
    run: Run,
    ground: Ground,
    schedule: Schedule,
    *,
    learn: list[CachedCase],
    inner: list[CachedCase],
    folder: Path,
) -> TrainJob:
    looks = affordable_looks(
        ground.case_s, inner=len(inner), looks=len(LOOKS), training_s=schedule.seconds
    )
    return TrainJob(
        plan=ground.plan, cases=learn, inner=inner[:looks], schedule=schedule,
        seed=run.settings.seed, device=run.device, checkpoint=folder / "checkpoint.safetensors",
        checkpoint_every_s=run.settings.checkpoint_every_s, exact=run.settings.deterministic,
        spacious=is_spacious(run, ground.plan), team=run.team, parts=ground.parts(run.team.size),
        stop=run.stop,
    )  # fmt: skip


def _keep_outcome(
    run: Run,
    folder: Path,
    schedule: Schedule,
    *,
    steps: int,
    times: tuple[float, float, float, float],
) -> dict[str, Any]:
    """Write down what a fold took: from its begin, when it was prepared, trained, and done."""
    began, prepared, trained, ended = times
    seconds = {
        "prepare": round(prepared - began, 1), "train": round(trained - prepared, 1),
        "validate": round(ended - trained, 1), "total": round(ended - began, 1),
    }  # fmt: skip
    facts = {
        "schedule": asdict(schedule), "steps": steps, "seconds": seconds,
        "memory": peak_memory(run.device),
    }  # fmt: skip
    write_text(folder / "outcome.json", json.dumps(facts, indent=2))
    return _as_result(folder, facts)


def _outcome(folder: Path, schedule: Schedule) -> dict[str, Any] | None:
    """What came of a fold that is done and was not made longer since."""
    try:
        facts = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _as_result(folder, facts) if facts.get("schedule") == asdict(schedule) else None


def _as_result(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    table = folder / "validation" / "metrics.json"
    metrics = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else None
    return {
        "model": str(folder / "model"), "metrics": metrics, "steps": facts["steps"],
        "seconds": facts["seconds"],
    }  # fmt: skip


def _train_and_tell(
    run: Run,
    job: TrainJob,
    first: TrainState | None,
    *,
    study: FoldStudy,
    shown: list[CachedCase],
) -> TrainState:
    """Train, and show what happens: in the run's folder, the log and the progress bar."""
    folder, address = job.checkpoint.parent, run.settings.mlflow
    monitor = RunMonitor(folder)
    mlflow = address and MlflowLog(address, folder, parameters=plan_values(job.plan))
    reporter = _EpochReporter(monitor, mlflow or None)
    done = False
    start = first or new_state(job.plan, seed=job.seed, device=job.device)

    def stepped(step: int, share: float) -> None:
        run.progress("train", int(1000 * share), 1000, f"step {step}{reporter.note}")
        study.sample_stage(start.average, share)

    told = replace(
        job,
        on_epoch=reporter.epoch,
        on_step=stepped,
        on_look=lambda predictor, step: monitor.picture(predictor, shown, step),
    )
    try:
        state = train_network(told, start)
        done = True
    finally:
        monitor.close()
        if mlflow:
            mlflow.close(done=done)
    if (tip := advice(state.history, run.device.type)) is not None:
        _log.warning("%s", tip)
    return state


class _EpochReporter:
    """Tells the facts of each epoch to the monitor, the log and the progress bar."""

    def __init__(self, monitor: RunMonitor, mlflow: MlflowLog | None) -> None:
        self.monitor, self.mlflow, self.note, self.dice = monitor, mlflow, "", ""

    def epoch(self, facts: dict[str, Any]) -> None:
        self.monitor.epoch(facts)
        if self.mlflow is not None:
            self.mlflow.epoch(facts)
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
