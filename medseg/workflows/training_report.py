"""``RUN/report.html``: what a run did, made of what it left on the disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.errors import MedsegError
from medseg.datasets.reading import read_case_image, read_case_mask
from medseg.io.atomic import write_text
from medseg.io.formats import read_mask
from medseg.package.package import load_package
from medseg.report.evaluation import ShownCase
from medseg.report.overlay import overlay_layers
from medseg.report.pictures import CasePicture
from medseg.report.training import FoldStory, training_page
from medseg.training.monitor import advice
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
    folds = [_story(run, name, worst=worst, best=best) for name in names]
    tips = [advice(fold.history, run.device.type) for fold in folds]
    notes = sorted({tip for tip in tips if tip is not None})
    plan = load_package(run.folder / "model").plan
    path = run.folder / "report.html"
    write_text(path, training_page(plan, folds, notes=notes))
    return path


def _story(run: Run, name: str, *, worst: int, best: int) -> FoldStory:
    folder = run.fold_folder(name)
    log = folder / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    metrics = _json(folder / "validation" / "metrics.json")
    shown = () if metrics is None else _standing_out(run, folder, metrics, worst=worst, best=best)
    history = [json.loads(line) for line in lines if line]
    return FoldStory(name, history, metrics, _json(folder / "outcome.json") or {}, shown)


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _standing_out(
    run: Run, folder: Path, metrics: Mapping[str, Any], *, worst: int, best: int
) -> list[ShownCase]:
    """The cases of the lowest and of the highest mean Dice, drawn."""
    dice = {}
    for case, labels in metrics["cases"].items():
        known = [row["dice"] for row in labels.values() if row["dice"] is not None]
        if known:
            dice[case] = float(np.mean(known))
    order = sorted(dice, key=lambda case: dice[case])
    low = order[: max(1, min(worst, len(order) - best))]
    high = [case for case in order[::-1][:best] if case not in low]
    drawn = []
    for kind, cases in (("Worst", low), ("Best", high)):
        for case in cases:
            try:
                drawn.append(_draw(run, folder, case, title=f"{kind}: {case}   {dice[case]:.3f}"))
            except (MedsegError, OSError) as error:
                _log.warning("case %s is not drawn: %s", case, error)
    return drawn


def _draw(run: Run, folder: Path, case_id: str, *, title: str) -> ShownCase:
    (case,) = run.dataset.select((case_id,))
    scan = read_case_image(case)
    truth = run.labels.to_values(run.labels.to_classes(read_case_mask(case)[0]))
    found, _ = read_mask(folder / "validation" / f"{case_id}.nii.gz")
    masks = {"truth": truth, "prediction": found}
    picture = CasePicture(title, scan.geometry, masks, scan.voxels(), scan.modality)
    layers = overlay_layers(picture, run.labels)
    return ShownCase(title, layers.base, layers.masks)
