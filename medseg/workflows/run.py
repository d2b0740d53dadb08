"""A training run as a folder: what was asked for, what it stands on, when it ends."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.core.errors import FileError, Interrupted, SettingsError
from medseg.core.labels import LabelSet
from medseg.core.plan import Plan
from medseg.core.settings import TrainSettings
from medseg.datasets.dataset import Dataset, Split
from medseg.io.atomic import write_text
from medseg.training.budget import closing_seconds
from medseg.training.schedule import Schedule

if TYPE_CHECKING:
    import torch

DEFAULT_EPOCHS = 200
Progress = Callable[[str, int, int, str], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
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

    def fold_folder(self, name: str) -> Path:
        """Where a fold's files go: the run itself, or ``fold_N`` when all are trained."""
        return self.folder / f"fold_{name}" if self.settings.fold == "all" else self.folder

    @property
    def left_s(self) -> float | None:
        """Seconds of the budget that are left."""
        budget = self.settings.budget_s
        return None if budget is None else budget - (time.perf_counter() - self.began)


@dataclass(frozen=True)
class Ground:
    """What all folds of a run stand on; kept in ``run.json``."""

    plan: Plan
    case_s: float


def open_run(run: Run, splits: dict[str, Split], *, resume: bool) -> Ground | None:
    """Check that the folder is new, or the very run that is to go on; its ground if laid."""
    asked = {
        "settings": run.settings.model_dump(mode="json", exclude={"device"}),
        "splits": {name: [list(s.train), list(s.validation)] for name, s in splits.items()},
    }
    note = run.folder / "run.json"
    if not note.is_file():
        if resume:
            raise SettingsError(
                f"--resume with --out {run.folder}",
                expected="a run that was stopped",
                got="no run.json",
                cure="Leave --resume away.",
            )
        write_text(note, json.dumps(asked, indent=2))
        return None
    if not resume and not _has_plan(note):
        # Stopped before anything was decided (a fault in the dataset, say): start afresh.
        write_text(note, json.dumps(asked, indent=2))
        return None
    if not resume:
        raise SettingsError(
            f"--out {run.folder}",
            expected="a new folder",
            got="a run",
            cure="Add --resume to go on with it, or choose another folder.",
        )
    try:
        was = json.loads(note.read_text(encoding="utf-8"))
        changed = [
            key for key in asked["settings"] if asked["settings"][key] != was["settings"].get(key)
        ]
        if changed or was["splits"] != asked["splits"]:
            raise SettingsError(
                "--resume",
                expected=f"the settings of the run ({note})",
                got=f"other {', '.join(changed) or 'cases'}",
                cure="Give the same command again.",
            )
        if "plan" not in was:
            return None
        return Ground(Plan.model_validate(was["plan"]), float(was["case_s"]))
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(str(note), expected="a run's settings", got=str(error)) from error


def _has_plan(note: Path) -> bool:
    try:
        return "plan" in json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def schedule_of(
    run: Run, ground: Ground, folder: Path, *, inner: int, split: Split, folds_left: int
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
