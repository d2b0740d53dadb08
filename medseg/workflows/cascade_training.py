"""Train a cascade: a coarse network that sees much, then a fine one that sees its labels, too.

::

    RUN/
      run.json  fingerprint.json
      low/      a run of its own on the coarse grid, in folds
        validation/   masks of those cases that are in none of its folds
      fine/     the second stage, a run of its own; coarse/ holds the labels on its grid
      model/    the package of both
      report.html

The second stage must learn from labels as faulty as those that it will be given: each case's
were made by a network that never saw it. With ``--fold all`` the folds of both stages are the
same. Else the training cases are shared out to three folds for the first stage, and where the
package runs, the mean of the three networks comes first.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.errors import SettingsError
from medseg.datasets.dataset import Dataset, Split
from medseg.datasets.reading import read_case_image
from medseg.inference.predictor import Predictor
from medseg.io.atomic import write_text
from medseg.package.package import copy_package, load_package
from medseg.report.html import Block, Links, Text, render_page
from medseg.workflows import segment
from medseg.workflows.earlier_stage import EarlierStage
from medseg.workflows.plan import look_into
from medseg.workflows.run import Run, open_run, was_decided

INNER_FOLDS = 3
# Of a budget: the first stage, and the second; between them masks are made.
_LOW, _FINE = 0.32, 0.64
_log = logging.getLogger(__name__)


def train_cascade(
    run: Run, splits: dict[str, Split], train_one: Callable[[Run], dict[str, Any]]
) -> dict[str, Any]:
    """Train both stages and join them in ``RUN/model``.

    Args:
        run: Whose settings name the cascade.
        splits: Its folds.
        train_one: Trains a run of one network.

    Returns:
        As :func:`medseg.workflows.train.train`; empty in a process that does not lead.

    Raises:
        SettingsError: The dataset or a setting does not go with a cascade.
    """
    _check(run, splits)
    run.team.first(lambda: _open(run, splits))
    low = _stage(run, "low", share=_LOW)
    low = replace(low, dataset=_in_folds(run, splits), began=run.began)
    low = replace(low, settings=low.settings.model_copy(update={"fold": "all"}))
    first = train_one(low)
    earlier = run.team.first(lambda: _earlier(run, low, splits))
    fine = replace(_stage(run, "fine", share=_FINE), earlier=earlier)
    second = train_one(fine)
    return _joined(run, first, second) if run.team.leads else {}


def _check(run: Run, splits: dict[str, Split]) -> None:
    settings, what = run.settings, "--configuration cascade"
    for option, value in (("--plan", settings.plan_file), ("--from", settings.start_from)):
        if value is not None:
            raise SettingsError(
                f"{option} {value}", expected="one network", got=what,
                cure="Leave one of the two away.",
            )  # fmt: skip
    if run.dataset.regions:
        raise SettingsError(what, expected="labels that do not overlap", got="regions")
    if len(splits) > 1:
        judged = {case for split in splits.values() for case in split.validation}
        alone = sorted({c for split in splits.values() for c in split.train} - judged)
        if alone:
            raise SettingsError(
                what, expected="each case in the validation part of one fold",
                got=f"{len(alone)} in none, {alone[0]} the first",
                cure="Train one fold, or leave the dataset's own splits away.",
            )  # fmt: skip
    if min(len(split.train) for split in splits.values()) < 2:
        raise SettingsError(what, expected="two training cases or more", got="one")


def _open(run: Run, splits: dict[str, Split]) -> None:
    note = run.folder / "run.json"
    if not run.team.leads:
        return
    open_run(run, splits, resume=run.resumed)
    if was_decided(note):
        return
    fingerprint = look_into(run, splits)
    if fingerprint.two_dimensional:
        raise SettingsError(
            "--configuration cascade", expected="volumes", got="images of single slices"
        )
    write_text(run.folder / "fingerprint.json", fingerprint.model_dump_json(indent=2))
    facts = json.loads(note.read_text(encoding="utf-8")) | {"configurations": ["low", "fine"]}
    write_text(note, json.dumps(facts, indent=2))


def _stage(run: Run, name: str, *, share: float) -> Run:
    budget = run.settings.budget_s
    return run.part(
        name,
        configuration="3d-low" if name == "low" else "3d",
        budget_s=None if budget is None else share * budget,
    )


def _in_folds(run: Run, splits: dict[str, Split]) -> Dataset:
    """The dataset that the first stage learns from, with its folds."""
    if len(splits) > 1:
        return replace(run.dataset, splits=tuple(splits.values()))
    (split,) = splits.values()
    cases = run.dataset.select(split.train)
    groups: dict[str, list[str]] = {}
    for case in sorted(cases, key=lambda case: case.id):
        groups.setdefault(f"group {case.group}" if case.group else f"case {case.id}", []).append(
            case.id
        )
    names = np.random.default_rng(run.settings.seed).permutation(sorted(groups)).tolist()
    count = min(INNER_FOLDS, len(names))
    if count < 2:
        raise SettingsError(
            "--configuration cascade", expected="training cases of two groups", got="one group"
        )
    parts = [sorted(c for name in names[n::count] for c in groups[name]) for n in range(count)]
    folds = tuple(
        Split(tuple(c for c in split.train if c not in set(part)), tuple(part)) for part in parts
    )
    return replace(run.dataset, cases=cases, splits=folds)


def _earlier(run: Run, low: Run, splits: dict[str, Split]) -> EarlierStage:
    """The first stage, and a mask of every case; those of validation cases are made here."""
    packages = {"": low.folder / "model"}
    masks: dict[str, Path] = {}
    for number, split in enumerate(low.dataset.splits or ()):
        folder = low.fold_folder(str(number))
        masks |= {c: folder / "validation" / f"{c}.nii.gz" for c in split.validation}
        if len(splits) > 1:
            packages[str(number)] = folder / "model"
    rest = [c for split in splits.values() for c in split.validation if c not in masks]
    masks |= {c: low.folder / "validation" / f"{c}.nii.gz" for c in rest}
    stage = EarlierStage(packages, masks, run.labels)
    if rest and run.team.leads:
        _segment(run, low, stage, tuple(rest))
    return stage


def _segment(run: Run, low: Run, stage: EarlierStage, case_ids: tuple[str, ...]) -> None:
    """Masks by the mean of the first stage's networks, as the package will make them."""
    package, report = load_package(stage.packages[""]), low.phase("validate")
    note = low.folder / "validation" / "made_of.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == package.sha256:
        return
    plan = package.plan.model_copy(update={"postprocess": ()})
    predictor = Predictor(package.networks(), plan, low.device)
    for number, case_id in enumerate(case_ids, start=1):
        (case,) = run.dataset.select((case_id,))
        scan = segment.read(read_case_image(case), plan)
        classes, _ = segment.segment(scan, predictor)
        segment.write(segment.finish(classes, scan, plan), stage.masks[case_id])
        report(number, len(case_ids), case_id)
    write_text(note, json.dumps(package.sha256))


def _joined(run: Run, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    copy_package(run.folder / "fine" / "model", run.folder / "model")
    dice = [one["metrics"]["mean"]["dice"] if one["metrics"] else None for one in (first, second)]
    words = [f"{name} {value:.4f}" for name, value in zip(("first", "both"), dice, strict=True)
             if value is not None]  # fmt: skip
    page: list[Block] = [
        Text("A coarse network, then one on the fine grid that sees what the first found."),
        Text(f"Mean Dice of cases that were not trained on: {', '.join(words)}."),
        Links(["low/report.html", "fine/report.html"]),
    ]
    write_text(run.folder / "report.html", render_page("Cascade", page))
    seconds = {"low": first["seconds"]["total"], "fine": second["seconds"]["total"]}
    return {
        **second,
        "model": str(run.folder / "model"), "steps": first["steps"] + second["steps"],
        "seconds": {**seconds, "total": round(time.perf_counter() - run.began, 1)},
        "report": str(run.folder / "report.html"),
    }  # fmt: skip
