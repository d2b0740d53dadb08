"""Train a segmenter: a dataset in, a run folder with a model package out.

::

    RUN/
      run.json  plan.json        what was asked for, what was decided
      cache/                     preprocessed cases, for --resume and further runs into RUN
      checkpoint.safetensors     the state, for --resume
      log.jsonl  tensorboard/  overlays/
      model/                     the package
      validation/                masks and metrics of the fold's validation cases
      report.html                curves, Dice, best and worst cases, time and memory, the plan
      outcome.json               what a fold took, once it is done
      failed_batch/              only where a loss was not finite twice: what was learned from

``--fold all`` trains each fold into ``RUN/fold_N`` and joins them in ``RUN/model``. Several
configurations get a run folder each within ``RUN``: :mod:`medseg.workflows.configurations`. So
do the stages of a cascade: :mod:`medseg.workflows.cascade_training`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medseg.core.plan import Fingerprint, Plan
from medseg.core.settings import CASCADE, TrainSettings, launched
from medseg.datasets.dataset import Split
from medseg.datasets.open import open_dataset
from medseg.datasets.scheme import training_scheme
from medseg.inference.device import choose_device
from medseg.io.atomic import write_text
from medseg.planning.presets import check_network
from medseg.training.budget import measure_case, measure_mask, typical_case
from medseg.training.determinism import deterministic
from medseg.training.processes import device_of, team_of
from medseg.workflows.cascade_training import train_cascade
from medseg.workflows.configurations import train_configurations
from medseg.workflows.fine_tune import Start, changes_of
from medseg.workflows.fold import train_fold
from medseg.workflows.judge import join_folds, reading_and_scoring_s
from medseg.workflows.plan import decide, look_into, splits_of
from medseg.workflows.run import Fold, Ground, Progress, Run, keep_ground, open_run, read_ground
from medseg.workflows.training_report import write_training_report

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
        ``{"model": path, "metrics": {...} or None, "seconds": {phase: s}, "steps": n,
        "report": path}``; in
        those processes of a torchrun that do not lead, an empty dictionary. Of several
        configurations also ``"configurations"``, what ``configurations.json`` holds.

    Raises:
        DatasetError: The dataset does not hold together.
        SettingsError: A setting is unknown or does not fit.
        Interrupted: ``stop`` said so; go on with ``resume``.
    """
    pairs = settings.pop("set", ())
    built = TrainSettings.build(config=config, pairs=pairs, stated=settings)
    data = open_dataset(dataset)
    launch = launched()
    # Started anew by the launcher, with the command that it was given at first.
    again = launch is not None and launch.restarts > 0 and (Path(out) / "run.json").is_file()
    check_network(built.network)
    device = choose_device(device_of(launch, built.device))
    with team_of(launch, device) as team, deterministic(built.deterministic):
        run = Run(
            dataset=data,
            labels=training_scheme(data, built.labels).labels,
            settings=built,
            folder=Path(out),
            device=device,
            progress=progress if team.leads else lambda phase, done, total, note: None,
            stop=stop,
            team=team,
            resumed=resume or again,
        )
        with team.told_of_losses():
            return _train(run)


def _train(run: Run) -> dict[str, Any]:
    """All folds, one after another. One process leads; others help where a network learns."""
    splits = splits_of(run)
    if run.settings.compares:
        return train_configurations(run, splits, _train)
    if run.settings.configuration == CASCADE:
        return train_cascade(run, splits, _train)
    named = run.settings.start_from
    start = None if named is None else Start.read(named)
    ground = None
    if run.team.leads:
        if run.settings.deterministic and run.settings.budget_s is not None:
            _log.warning("a budget ends by the clock, so that weights differ from run to run")
        ground = open_run(run, splits, resume=run.resumed) or _lay_ground(run, splits, start)
    run.team.wait()
    ground = ground or read_ground(run)
    assert ground is not None
    outcomes = []
    for number, (name, split) in enumerate(splits.items()):
        fold = Fold(name, split, left=len(splits) - number, of=len(splits))
        outcomes.append(train_fold(run, ground, fold, start=start))
    if not run.team.leads:
        return {}
    result = outcomes[0] if len(outcomes) == 1 else join_folds(run, outcomes)
    report = write_training_report(run, list(splits))
    return {**result, "report": str(report)}


def _lay_ground(run: Run, splits: dict[str, Split], start: Start | None) -> Ground:
    """Check, fingerprint, preprocess, plan: all that comes before the first step."""
    fingerprint = run.fingerprint or look_into(run, splits, keep=True)
    write_text(run.folder / "fingerprint.json", fingerprint.model_dump_json(indent=2))
    changes = changes_of(start, run, fingerprint)
    if run.earlier is not None:
        changes |= run.earlier.changes(len(fingerprint.channels))
    plan = decide(run, fingerprint, changes=changes, folds_left=len(splits))
    ground = _timed(run, plan, fingerprint, splits)
    keep_ground(run, ground)
    return ground


def _timed(run: Run, plan: Plan, fingerprint: Fingerprint, splits: dict[str, Split]) -> Ground:
    """The plan, and what its cases cost; of a run without a budget only the network's part."""
    case_s = mask_s = measure_case(plan, typical_case(plan, fingerprint), run.device)
    judged_s = 0.0
    held = [split for split in splits.values() if split.validation]
    if run.left_s is not None:
        mask_s += measure_mask(plan, fingerprint, run.device)
        if held:
            (known,) = run.dataset.select(held[0].train[:1])
            judged_s = mask_s + reading_and_scoring_s(known, plan)
    return Ground(
        plan,
        case_s=case_s,
        step_size=plan.training.batch_size * plan.training.accumulate * run.team.size,
        prepared_s=time.perf_counter() - run.began,
        mask_s=mask_s,
        judged_s=judged_s,
    )
