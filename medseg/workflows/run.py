"""A training run as a folder: what was asked for, what it stands on, when it ends."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.core.errors import FileError, Interrupted, SettingsError
from medseg.core.labels import LabelSet
from medseg.core.plan import Fingerprint, Plan
from medseg.core.settings import TrainSettings
from medseg.datasets.dataset import Dataset, Split
from medseg.datasets.kept import KeptCases
from medseg.io.atomic import remove_leftovers, write_text
from medseg.planning.memory import estimated_step_bytes
from medseg.training.processes import Team
from medseg.training.schedule import Schedule
from medseg.training.set_aside import closing_seconds

if TYPE_CHECKING:
    import torch

    from medseg.workflows.earlier_stage import EarlierStage

DEFAULT_EPOCHS = 200
Progress = Callable[[str, int, int, str], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What every part of a run needs to know.

    ``fingerprint`` is there where the cases were looked into for several runs at once;
    ``earlier`` where this is the second stage of a cascade; ``kept`` holds small cases from the
    look into them until they are preprocessed.
    """

    dataset: Dataset
    labels: LabelSet
    settings: TrainSettings
    folder: Path
    device: torch.device
    progress: Progress
    stop: Callable[[], bool]
    team: Team = field(default_factory=Team)
    resumed: bool = False
    began: float = field(default_factory=time.perf_counter)
    fingerprint: Fingerprint | None = None
    earlier: EarlierStage | None = None
    kept: KeptCases = field(default_factory=KeptCases)

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

    def part(self, name: str, **changes: Any) -> Run:
        """A run of its own in a folder within this one, of the same cases; it begins now.

        Args:
            name: Of the folder, and in what the progress says.
            **changes: Of the settings.
        """
        folder = self.folder / name
        return replace(
            self,
            settings=self.settings.model_copy(update=changes),
            folder=folder,
            progress=lambda phase, done, total, note: self.progress(
                phase, done, total, f"{name}: {note}"
            ),
            resumed=was_decided(folder / "run.json"),
            began=time.perf_counter(),
            fingerprint=read_fingerprint(self.folder),
        )

    @property
    def left_s(self) -> float | None:
        """Seconds of the budget that are left."""
        budget = self.settings.budget_s
        return None if budget is None else budget - (time.perf_counter() - self.began)

    @property
    def epochs(self) -> int:
        """As set, or the usual number; they count where there is no budget."""
        return self.settings.epochs or DEFAULT_EPOCHS


@dataclass(frozen=True)
class Ground:
    """What all folds of a run stand on; kept in ``run.json``.

    Attributes:
        plan: What was decided.
        case_s: Seconds that the network takes for a case.
        mask_s: Seconds to make its mask, and to say how sure the network is.
        judged_s: Seconds to read it, make its mask and score it.
        step_size: Samples of a step, of all processes: it stays when their number changes.
        prepared_s: Seconds that it took to decide.
    """

    plan: Plan
    case_s: float
    step_size: int
    prepared_s: float = 0.0
    mask_s: float = 0.0
    judged_s: float = 0.0

    def parts(self, processes: int) -> int:
        """Batches of each process that make a step.

        Raises:
            SettingsError: The samples of a step cannot be shared by so many.
        """
        batch = self.plan.training.batch_size
        parts, rest = divmod(self.step_size, batch * processes)
        if rest:
            raise SettingsError(
                f"{processes} processes",
                expected=f"a number that shares {self.step_size} samples a step in batches of "
                f"{batch}",
                got=f"{self.step_size / (batch * processes):g} batches for each",
                cure="Go on with as many processes as before, or with one.",
            )
        return parts


@dataclass(frozen=True)
class Fold:
    """One of the splits of a run.

    Attributes:
        name: ``"0"`` ... or ``"all-data"``.
        split: Cases to train on and to judge by.
        left: How many folds are still to be trained, this one among them.
        of: How many there are.
    """

    name: str
    split: Split
    left: int = 1
    of: int = 1


# What may differ when a run goes on: it changes nothing that is learned.
_FREE = {"device", "checkpoint_every_s", "mlflow"}


def open_run(run: Run, splits: dict[str, Split], *, resume: bool) -> Ground | None:
    """Check that the folder is new, or the very run that is to go on; its ground if laid."""
    asked = {
        "settings": run.settings.model_dump(mode="json", exclude=_FREE),
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
    if not resume and not was_decided(note):
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
    # A process that was killed left what it had begun to write.
    remove_leftovers(run.folder)
    try:
        was = json.loads(note.read_text(encoding="utf-8"))
        changed = _changed(was["settings"], asked["settings"])
        if changed or was["splits"] != asked["splits"]:
            raise SettingsError(
                "--resume",
                expected=f"the settings of the run ({note})",
                got=f"other {', '.join(changed) or 'cases'}",
                cure="Give the same command again.",
            )
        if was["settings"] != asked["settings"]:
            _log.info("the run is made longer; the learning rate follows its new length")
            write_text(note, json.dumps(was | asked, indent=2))
        return read_ground(run)
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(str(note), expected="a run's settings", got=str(error)) from error


def read_ground(run: Run) -> Ground | None:
    """What the run stands on; None before it was decided.

    Raises:
        FileError: ``run.json`` is damaged.
    """
    note = run.folder / "run.json"
    try:
        was = json.loads(note.read_text(encoding="utf-8"))
        if "plan" not in was:
            return None
        plan = Plan.model_validate(was["plan"])
        cost, size = float(was["case_s"]), int(was["step_size"])
        mask, judged = float(was.get("mask_s", cost)), float(was.get("judged_s", 1.5 * cost))
        return Ground(plan, cost, size, float(was["prepared_s"]), mask, judged)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(str(note), expected="a run's settings", got=str(error)) from error


def read_fingerprint(folder: Path) -> Fingerprint:
    """What the cases of a run are like.

    Raises:
        FileError: ``fingerprint.json`` is missing or damaged.
    """
    path = folder / "fingerprint.json"
    try:
        return Fingerprint.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FileError(str(path), expected="a fingerprint", got=str(error)) from error


def keep_ground(run: Run, ground: Ground) -> None:
    """Write down what was decided."""
    note = run.folder / "run.json"
    facts = json.loads(note.read_text(encoding="utf-8"))
    facts |= {
        "plan": ground.plan.model_dump(mode="json"), "case_s": ground.case_s,
        "step_size": ground.step_size, "prepared_s": ground.prepared_s,
        "mask_s": ground.mask_s, "judged_s": ground.judged_s,
    }  # fmt: skip
    write_text(run.folder / "plan.json", ground.plan.to_json())
    write_text(note, json.dumps(facts, indent=2))


def _changed(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that differ, but for a run that is only made longer."""
    length = ("budget_s", "epochs")
    changed = [key for key in now if now[key] != then.get(key) and key not in length]
    for key in length:
        least = then.get(key)
        if key == "epochs" and least is None and then.get("budget_s") is None:
            least = DEFAULT_EPOCHS
        same = now[key] == then.get(key)
        if not same and (least is None or now[key] is None or now[key] < least):
            changed.append(key)
    return changed


def was_decided(note: Path) -> bool:
    """Whether a run got beyond checking its cases, by its ``run.json``."""
    try:
        facts = json.loads(note.read_text(encoding="utf-8"))
        return "plan" in facts or "configurations" in facts
    except (OSError, ValueError):
        return False


def schedule_of(
    run: Run, ground: Ground, fold: Fold, *, inner: int, study_s: float = 0.0
) -> Schedule:
    """Steps, or the seconds that are left when all that comes after the last step is set aside.

    Args:
        run: With a budget or a number of epochs.
        ground: That it stands on.
        fold: Which is to be trained.
        inner: Cases that were kept back.
        study_s: What the study of its masks takes after the last step.
    """
    steps_per_epoch = ground.plan.training.steps_per_epoch
    if run.left_s is None:
        return Schedule(run.epochs * steps_per_epoch)
    kept, budget = run.fold_folder(fold.name) / "schedule.json", run.settings.budget_s or 0.0
    if kept.is_file():
        was = json.loads(kept.read_text(encoding="utf-8"))
        longer = (budget - was["budget_s"]) / fold.of
        return Schedule(0, seconds=float(was["seconds"]) + longer)
    held = len(fold.split.validation)
    closing = study_s + closing_seconds(
        ground.case_s, judged_s=ground.judged_s, inner=inner, validation=held
    )
    # A run that goes on has forgotten its start: each fold gets its share of the budget.
    share = (budget - ground.prepared_s) / fold.of if run.resumed else run.left_s / fold.left
    seconds = share - closing
    least = 0.1 * budget / fold.left
    if seconds < least:
        _log.warning("the budget is nearly spent before the first step; training for %.0f s", least)
    write_text(kept, json.dumps({"seconds": max(seconds, least), "budget_s": budget}))
    return Schedule(0, seconds=max(seconds, least))


def is_spacious(run: Run, plan: Plan) -> bool:
    """Whether steps on a CPU may take more memory than they need, to be quicker.

    Not where the memory was named, and not beyond a third of what is free.
    """
    if run.device.type != "cpu" or run.settings.target_memory or run.settings.preset:
        return False
    import psutil

    return 3 * estimated_step_bytes(plan) < int(psutil.virtual_memory().available)
