"""``RUN/report.html``: what a run did, made of what it left on the disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.errors import MedsegError
from medseg.core.plan import Plan
from medseg.datasets.reading import read_case_image
from medseg.io.atomic import write_text
from medseg.package.package import load_package
from medseg.report.evaluation import ShownCase
from medseg.report.overlay import overlay_layers
from medseg.report.pictures import CasePicture
from medseg.report.training import FoldStory, training_page
from medseg.training.monitor import advice
from medseg.workflows.held_out import held_out_pair
from medseg.workflows.run import Run

_log = logging.getLogger(__name__)
_WORST_SHOWN, _BEST_SHOWN = 3, 1


def write_training_report(run: Run, names: Sequence[str]) -> Path:
    """Write the page.

    Args:
        run: That is done.
        names: Of its folds.

    Returns:
        Where it is.

    Raises:
        OutputError: It cannot be written.
    """
    # Of many folds each shows one case: a page must stay small enough to open.
    worst, best = (_WORST_SHOWN, _BEST_SHOWN) if len(names) == 1 else (1, 0)
    plan = load_package(run.folder / "model").plan
    folds = [_story(run, plan, name, worst=worst, best=best) for name in names]
    tips = [advice(fold.history, run.device.type) for fold in folds]
    notes = sorted({tip for tip in tips if tip is not None})
    path = run.folder / "report.html"
    write_text(path, training_page(plan, folds, notes=notes))
    return path


def _story(run: Run, plan: Plan, name: str, *, worst: int, best: int) -> FoldStory:
    folder = run.fold_folder(name)
    log = folder / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    metrics = _json(folder / "validation" / "metrics.json")
    shown = _standing_out(run, plan, folder, worst=worst, best=best)
    history = [json.loads(line) for line in lines if line]
    return FoldStory(name, history, metrics, _json(folder / "outcome.json") or {}, shown)


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _standing_out(run: Run, plan: Plan, folder: Path, *, worst: int, best: int) -> list[ShownCase]:
    """The cases of the lowest and of the highest mean Dice, drawn."""
    metrics = _json(folder / "validation" / "metrics.json") or {"cases": {}}
    dice = {}
    for case, labels in metrics["cases"].items():
        known = [row["dice"] for row in labels.values() if row["dice"] is not None]
        if known:
            dice[case] = float(np.mean(known))
    order = sorted(dice, key=lambda case: dice[case])
    if not order:
        return []
    low = order[: max(1, min(worst, len(order) - best))]
    high = [case for case in order[::-1][:best] if case not in low]
    drawn = []
    for kind, cases in (("Worst", low), ("Best", high)):
        for case in cases:
            try:
                title = f"{kind}: {case}   {dice[case]:.3f}"
                drawn.append(_draw(run, plan, case, folder=folder, title=title))
            except (MedsegError, OSError) as error:
                _log.warning("case %s is not drawn: %s", case, error)
    return drawn


def _draw(run: Run, plan: Plan, case_id: str, *, folder: Path, title: str) -> ShownCase:
    (case,) = run.dataset.select((case_id,))
    scan = read_case_image(case)
    pair = held_out_pair(case, plan, folder / "validation")
    masks = {"truth": pair.reference, "prediction": pair.prediction}
    picture = CasePicture(title, scan.geometry, masks, scan.voxels(), scan.modality)
    layers = overlay_layers(picture, run.labels)
    return ShownCase(title, layers.base, layers.masks)
