"""Best configuration by cross-validation: train several, compare them, keep one.

::

    RUN/
      run.json  fingerprint.json   what was asked for and what is compared
      2d/  3d/  3d-low/            a run folder each
      pairs/2d+3d/                 masks and metrics of the mean of two, on the same cases
      configurations.json          how each did
      model/                       what was taken: a package, or a set of two
      report.html

Each is judged by the masks of its validation cases, which it never saw; with ``--fold all``
these are all cases. Several runs in one folder go on as one: those that are done are not done
again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medseg.core.errors import FileError, SettingsError
from medseg.core.plan import Fingerprint
from medseg.datasets.dataset import Split
from medseg.evaluation.best import Judged, Standing, choose_best, dice_of
from medseg.evaluation.evaluate import plain
from medseg.io.atomic import write_text
from medseg.package.package import copy_package
from medseg.planning.choices import sensible
from medseg.planning.draft import share_seen
from medseg.planning.planner import means_for
from medseg.report.configurations import configurations_page
from medseg.workflows.pairs import judge_pairs, keep_pair
from medseg.workflows.plan import decide, look_into
from medseg.workflows.run import Run, open_run, read_ground, was_decided

# Of a budget, for the means of two: their cases are segmented once more.
_COMPARING = 0.1
# Channels of the finest stage when it is only checked whether a plan can be made.
_FEW_CHANNELS = 8
TrainOne = Callable[[Run], dict[str, Any]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A configuration that was trained.

    Attributes:
        run: Its own.
        result: As :func:`medseg.workflows.train.train` returns it.
        case_s: Seconds that its network takes for a typical case.
    """

    run: Run
    result: dict[str, Any]
    case_s: float

    @property
    def name(self) -> str:
        """Of the configuration."""
        return self.run.settings.configuration


def train_configurations(run: Run, splits: dict[str, Split], train_one: TrainOne) -> dict[str, Any]:
    """Train each configuration in a folder of its own, and keep the best as ``RUN/model``.

    A budget is shared evenly.

    Args:
        run: Whose settings name several configurations.
        splits: Its folds.
        train_one: Trains a run of one configuration.

    Returns:
        As :func:`medseg.workflows.train.train`; empty in a process that does not lead.

    Raises:
        SettingsError: They cannot be compared, or one of them does not fit the dataset.
    """
    _check(run, splits)
    known = run.team.first(lambda: _names(run, splits))
    names = known["configurations"]
    found = [
        _trained(run, name, names=names, train_one=train_one, first=number == 0)
        for number, name in enumerate(names)
    ]
    return _keep_best(run, splits, found) if run.team.leads else {}


def _check(run: Run, splits: dict[str, Split]) -> None:
    settings = run.settings
    what = f"--configuration {settings.configuration}"
    if not all(split.validation for split in splits.values()):
        raise SettingsError(
            what, expected="validation cases to compare by", got=f"--fold {settings.fold}",
            cure="Use --fold 0 to 4 or all, and a dataset of at least two cases.",
        )  # fmt: skip
    for option, value in (("--plan", settings.plan_file), ("--from", settings.start_from)):
        if value is not None:
            raise SettingsError(
                f"{option} {value}", expected="one configuration", got=what,
                cure=f"{option} decides the dimensions; leave one of the two away.",
            )  # fmt: skip


def _names(run: Run, splits: dict[str, Split]) -> dict[str, Any]:
    """What is compared, from ``run.json``; decided by the leader where it is not yet there."""
    note = run.folder / "run.json"
    if run.team.leads:
        open_run(run, splits, resume=run.resumed)
        if not was_decided(note):
            fingerprint = look_into(run, splits)
            write_text(run.folder / "fingerprint.json", fingerprint.model_dump_json(indent=2))
            names = _candidates(run, fingerprint)
            _check_plans(run, fingerprint, names, folds=len(splits))
            facts = json.loads(note.read_text(encoding="utf-8")) | {"configurations": names}
            write_text(note, json.dumps(facts, indent=2))
    known: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    return known


def _candidates(run: Run, fingerprint: Fingerprint) -> list[str]:
    asked = run.settings.configuration
    if asked != "best":
        return asked.split(",")
    usual = means_for(run.device.type, two_dimensional=False, training_s=None)
    return list(sensible(fingerprint, seen=share_seen(fingerprint, usual.patch_voxels)))


def _check_plans(run: Run, fingerprint: Fingerprint, names: Sequence[str], *, folds: int) -> None:
    """Plan each in short: what cannot be planned must not come out after hours of the first."""
    for name in names:
        changes = {
            "configuration": name, "budget_s": None,
            "base_features": run.settings.base_features or _FEW_CHANNELS,
        }  # fmt: skip
        one = replace(run, settings=run.settings.model_copy(update=changes))
        try:
            decide(one, fingerprint, changes=one.settings.plan_changes(), folds_left=folds)
        except SettingsError as error:
            raise SettingsError(
                f"{error.what} (configuration {name})",
                expected=error.expected, got=error.got, cure=error.cure,
            ) from error  # fmt: skip


def _trained(
    run: Run, name: str, *, names: Sequence[str], train_one: TrainOne, first: bool
) -> Candidate:
    whole_s = run.settings.budget_s
    kept = _COMPARING if len(names) > 1 else 0.0
    share = None if whole_s is None else (1 - kept) * whole_s / len(names)
    own = run.part(name, configuration=name, budget_s=share)
    if first:  # what comes before all of them counts to it
        own = replace(own, began=run.began)
    _log.info("configuration %s, %d of %d", name, names.index(name) + 1, len(names))
    result = train_one(own)
    ground = read_ground(own)
    assert ground is not None
    return Candidate(own, result, ground.case_s)


def _keep_best(run: Run, splits: dict[str, Split], found: Sequence[Candidate]) -> dict[str, Any]:
    judged = [Judged(one.name, _dice(one.run, splits), one.case_s) for one in found]
    allowed_s = None if run.settings.budget_s is None else _COMPARING * run.settings.budget_s
    pairs, notes = judge_pairs(run, splits, judged, allowed_s=allowed_s)
    taken, standings = choose_best([*judged, *(pair.judged for pair in pairs)])
    table = {
        "taken": taken,
        "reason": _reason(taken, standings),
        "cases": len(judged[0].dice),
        "models": [_row(one) for one in standings],
        "notes": notes,
    }
    singles = {one.name: one for one in found}
    if taken in singles:
        copy_package(singles[taken].run.folder / "model", run.folder / "model")
        metrics = singles[taken].result["metrics"]
    else:
        metrics = keep_pair(run, next(pair for pair in pairs if pair.judged.name == taken))
    write_text(run.folder / "configurations.json", json.dumps(table, indent=2))
    page = configurations_page(table, [f"{name}/report.html" for name in singles])
    write_text(run.folder / "report.html", page)
    seconds = {name: one.result["seconds"]["total"] for name, one in singles.items()}
    return {
        "model": str(run.folder / "model"), "metrics": metrics, "configurations": table,
        "steps": sum(one.result["steps"] for one in found),
        "seconds": {**seconds, "total": round(time.perf_counter() - run.began, 1)},
        "report": str(run.folder / "report.html"),
    }  # fmt: skip


def _dice(run: Run, splits: dict[str, Split]) -> dict[str, dict[str, float | None]]:
    """By validation case and label value, of all folds."""
    dice: dict[str, dict[str, float | None]] = {}
    for name in splits:
        path = run.fold_folder(name) / "validation" / "metrics.json"
        try:
            dice |= dice_of(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FileError(str(path), expected="metrics of cases", got=str(error)) from error
    return dice


def _row(one: Standing) -> dict[str, Any]:
    test = one.behind
    return {
        "name": one.name,
        "dice": plain(one.dice),
        "dice_interval": [plain(end) for end in one.interval],
        "behind": None if test is None else plain(test.mean_difference),
        "behind_interval": [] if test is None else [plain(end) for end in test.interval],
        "p_value": None if test is None else plain(test.p_value),
        "case_s": round(one.cost_s, 4),
    }


def _reason(taken: str, standings: Sequence[Standing]) -> str:
    best = next(one for one in standings if one.behind is None)
    if taken == best.name:
        return f"{taken} was taken: the highest mean Dice, {best.dice:.4f}."
    kept = next(one for one in standings if one.name == taken)
    low, high = kept.behind.interval if kept.behind else (0.0, 0.0)
    return (
        f"{taken} was taken: {kept.dice:.4f}, where {best.name} has {best.dice:.4f}. The "
        f"interval of the difference, {low:.4f} to {high:.4f}, holds 0, and {taken} takes "
        f"{kept.cost_s:.2f} s for a scan, {best.name} {best.cost_s:.2f} s."
    )
