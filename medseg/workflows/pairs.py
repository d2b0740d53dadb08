"""The mean of two configurations, judged on the cases that neither of them saw."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from medseg.datasets.dataset import Split
from medseg.datasets.reading import read_case_image, read_case_mask
from medseg.evaluation.best import Judged, dice_of
from medseg.evaluation.evaluate import CaseScores, summarise
from medseg.io.atomic import this_process, write_text
from medseg.package.package import load_package, swap
from medseg.training.set_aside import closing_seconds
from medseg.workflows import segment
from medseg.workflows.api import load_model
from medseg.workflows.make_set import make_set
from medseg.workflows.run import Run
from medseg.workflows.scheme_scores import score_against_case

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """Two configurations whose probabilities are averaged on the scan's own grid.

    Attributes:
        names: Of the two.
        judged: Its Dice, and what both take.
        metrics: As in ``metrics.json``.
    """

    names: tuple[str, str]
    judged: Judged
    metrics: dict[str, Any]


def judge_pairs(
    run: Run,
    splits: dict[str, Split],
    singles: Sequence[Judged],
    *,
    allowed_s: float | None,
) -> tuple[list[Pair], list[str]]:
    """Segment the validation cases by each pair, unless that was done already.

    Args:
        run: Whose folder holds the runs of the single configurations.
        splits: Its folds.
        singles: The configurations.
        allowed_s: Time that there is for it; pairs for which it does not reach are left out.

    Returns:
        The pairs that were judged, and a sentence for each thing that was left out.
    """
    if len(singles) > 1 and run.dataset.regions:
        return [], ["Means of two were left out: labels overlap."]
    cases = sum(len(split.validation) for split in splits.values())
    began, pairs, notes = time.perf_counter(), [], []
    for one, two in combinations(singles, 2):
        name, cost_s = f"{one.name}+{two.name}", one.cost_s + two.cost_s
        folder, made_of = run.folder / "pairs" / name, _identity(run, splits, (one, two))
        metrics = _done(folder, made_of)
        needed_s = closing_seconds(cost_s, judged_s=1.5 * cost_s, inner=0, validation=cases)
        spent_s = time.perf_counter() - began
        if metrics is None and allowed_s is not None and spent_s + needed_s > allowed_s:
            notes.append(f"{name} was left out: the budget does not reach for its cases.")
            continue
        if metrics is None:
            _log.info("the mean of %s and %s", one.name, two.name)
            metrics = _judge(run, splits, (one.name, two.name), folder) | {"made_of": made_of}
            write_text(folder / "metrics.json", json.dumps(metrics, indent=2))
        judged = Judged(name, dice_of(metrics), cost_s)
        pairs.append(Pair((one.name, two.name), judged, metrics))
    return pairs, notes


def keep_pair(run: Run, pair: Pair) -> dict[str, Any]:
    """Make the set of both, all folds of each, ``RUN/model``; returns its metrics."""
    with tempfile.TemporaryDirectory(
        prefix=f".medseg-{this_process()}-", dir=run.folder
    ) as staging:
        made = Path(staging) / "model"
        make_set(made, [run.folder / name for name in pair.names], combine="mean")
        swap(made, run.folder / "model")
    return {key: value for key, value in pair.metrics.items() if key != "made_of"}


def _identity(run: Run, splits: dict[str, Split], pair: Sequence[Judged]) -> list[str]:
    """Hashes of the packages whose mean it is."""
    return [load_package(_package(run, one.name, fold)).sha256 for one in pair for fold in splits]


def _package(run: Run, name: str, fold: str) -> Path:
    return run.folder / name / run.fold_folder(fold).relative_to(run.folder) / "model"


def _done(folder: Path, made_of: list[str]) -> dict[str, Any] | None:
    try:
        metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return metrics if metrics.get("made_of") == made_of else None


def _judge(
    run: Run, splits: dict[str, Split], names: tuple[str, str], folder: Path
) -> dict[str, Any]:
    scores: dict[str, CaseScores] = {}
    for fold, split in splits.items():
        packages = [_package(run, name, fold) for name in names]
        scores |= _fold_scores(run, packages, split, folder)
    return summarise(scores, run.labels)


def _fold_scores(
    run: Run, packages: Sequence[Path], split: Split, folder: Path
) -> dict[str, CaseScores]:
    with tempfile.TemporaryDirectory(
        prefix=f".medseg-{this_process()}-", dir=run.folder
    ) as staging:
        make_set(Path(staging) / "set", packages, combine="mean")
        model = load_model(Path(staging) / "set", str(run.device), backend="torch")
    plan = load_package(packages[0]).plan
    report, scores = run.phase("validate"), {}
    for number, case in enumerate(run.dataset.select(split.validation), start=1):
        scan = segment.read(read_case_image(case), model.plan)
        classes = model.infer(model.prepare(scan, grid="own", scan=scan))
        prediction = segment.finish(classes, scan, model.plan)
        segment.write(prediction, folder / "validation" / f"{case.id}.nii.gz")
        scores[case.id] = score_against_case(
            prediction.labels, read_case_mask(case)[0], case=case, plan=plan,
            spacing_mm=scan.geometry.spacing_mm,
        )  # fmt: skip
        report(number, len(split.validation), f"{folder.name}: {case.id}")
    return scores
