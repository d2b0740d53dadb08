"""What an evaluation leaves in its folder: figures, tables, pictures, and the page."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import MedsegError
from medseg.core.labels import LabelSet
from medseg.core.scan import Scan
from medseg.evaluation.masks import LayeredMasks, Masks
from medseg.evaluation.statistics import mean_over_cases
from medseg.io.atomic import write_bytes, write_text
from medseg.io.guarded import GuardedReader
from medseg.report.evaluation import ShownCase, evaluation_page, summary_rows
from medseg.report.overlay import overlay_layers
from medseg.report.pictures import CasePicture, case_montage
from medseg.report.tables import latex_table, markdown_table
from medseg.workflows.mask_reading import Rules, read_pair
from medseg.workflows.pairing import MaskPair, index_by_case

_LOG = logging.getLogger(__name__)
_WORST_SHOWN, _BEST_SHOWN = 4, 2


def write_results(
    folder: Path,
    result: Mapping[str, Any],
    pairs: Sequence[MaskPair],
    rules: Rules,
    *,
    images: str | Path | None,
    tables: Sequence[str],
) -> None:
    """Write ``metrics.json``, ``metrics.csv``, ``worst.png``, ``report.html`` and tables.

    Args:
        folder: Where to.
        result: As :func:`medseg.workflows.evaluate.evaluate` returns it.
        pairs: The cases that are scored.
        rules: That they are scored by.
        images: Folder of the scans, for the pictures.
        tables: ``"md"``, ``"tex"``: formats of ``summary.*`` to be written besides.

    Raises:
        OutputError: A file cannot be written.
    """
    write_text(folder / "metrics.json", json.dumps(result, indent=2) + "\n")
    write_text(folder / "metrics.csv", _table(result))
    files = ["metrics.json", "metrics.csv"]
    for kind in tables:
        heads, rows = summary_rows(result)
        text = latex_table(heads, rows) if kind == "tex" else markdown_table(heads, rows)
        write_text(folder / f"summary.{kind}", text)
        files.append(f"summary.{kind}")
    worst, best = _standing_out(pairs, result)
    drawn = _pictures([*worst, *best], result, rules=rules, images=images)
    labels = rules.labels or LabelSet.from_names(
        {int(value): f"label {value}" for value in result["labels"] or {"1": ""}}
    )
    picture = folder / "worst.png"
    if worst:
        sheet = case_montage(drawn[: len(worst)], labels, title="Lowest mean Dice")
        write_bytes(picture, sheet)
        files.append(picture.name)
    else:
        picture.unlink(missing_ok=True)
    shown = []
    for place, case in enumerate(drawn):
        layers = overlay_layers(case, labels)
        kind = "Worst" if place < len(worst) else "Best"
        shown.append(ShownCase(f"{kind}: {case.title}", layers.base, layers.masks))
    write_text(folder / "report.html", evaluation_page(result, shown, files=files))


def _table(result: Mapping[str, Any]) -> str:
    """``metrics.csv``: a row per case and label; an empty field where undefined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metrics = [key for key in result["mean"] if not key.endswith("_interval")]
    writer.writerow(["case", "value", "name", *metrics])
    for case, labels in result["cases"].items():
        for value, figures in labels.items():
            row = ["" if figures[metric] is None else figures[metric] for metric in metrics]
            writer.writerow([case, value, result["labels"][value]["name"], *row])
    return text.getvalue()


def _standing_out(
    pairs: Sequence[MaskPair], result: Mapping[str, Any]
) -> tuple[list[MaskPair], list[MaskPair]]:
    """The cases of the lowest and of the highest mean Dice that have a mask to show."""
    dice = {pair.case: _mean_dice(result, pair.case) for pair in pairs if pair.prediction}
    known = [pair for pair in pairs if np.isfinite(dice.get(pair.case, np.nan))]
    known.sort(key=lambda pair: dice[pair.case])
    worst = min(_WORST_SHOWN, (len(known) + 1) // 2)
    return known[:worst], known[worst:][-_BEST_SHOWN:][::-1]


def _mean_dice(result: Mapping[str, Any], case: str) -> float:
    found = [row["dice"] for row in result["cases"][case].values() if row["dice"] is not None]
    return mean_over_cases(found)


def _pictures(
    pairs: Sequence[MaskPair],
    result: Mapping[str, Any],
    *,
    rules: Rules,
    images: str | Path | None,
) -> list[CasePicture]:
    scans = {} if images is None else index_by_case(Path(images), "images")
    pictures = []
    for pair in pairs:
        prediction, reference, grid, _ = read_pair(pair, rules)
        voxels, modality = _scan_voxels(pair.case, grid, scans)
        masks = {"truth": _image(reference), "prediction": _image(prediction)}
        title = f"{pair.case}   Dice {_mean_dice(result, pair.case):.3f}"
        pictures.append(CasePicture(title, grid.geometry, masks, voxels, modality))
    return pictures


def _image(masks: NDArray[Any] | Masks) -> NDArray[Any]:
    if isinstance(masks, np.ndarray):
        return masks
    assert isinstance(masks, LayeredMasks)
    return masks.painted(np.uint16)


def _scan_voxels(
    case: str, grid: Scan, scans: Mapping[str, Path]
) -> tuple[NDArray[Any] | None, str]:
    """The scan under the masks; a picture without it is better than none."""
    path = scans.get(case) or scans.get(f"{case}_0000")
    if path is None:
        return None, ""
    try:
        with GuardedReader() as reader:
            scan = reader.scan(path)
        gap = scan.geometry.difference(grid.geometry)
        if gap is None:
            return scan.voxels(), scan.modality
        _LOG.warning("case %s is drawn without its scan: %s", case, gap)
    except MedsegError as error:
        _LOG.warning("case %s is drawn without its scan: %s", case, error)
    return None, ""
