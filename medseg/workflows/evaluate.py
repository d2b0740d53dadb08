"""Evaluate: masks and their references in, scores out."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import (
    DatasetError,
    GeometryError,
    InputError,
    LabelError,
    MedsegError,
    SettingsError,
)
from medseg.core.labels import LabelSet
from medseg.core.scan import Scan
from medseg.datasets.open import open_dataset
from medseg.evaluation.evaluate import METRICS, CaseScores, score_case, summarise
from medseg.io.atomic import write_bytes, write_text
from medseg.io.formats import read_label_names, read_mask, read_scan
from medseg.report.pictures import CasePicture, case_montage
from medseg.workflows.pairing import MaskPair, index_by_case, label_folder, pair_masks

_LOG = logging.getLogger(__name__)
_WORST_SHOWN = 4

Progress = Callable[[int, int, str], None]


class EvaluateOptions(TypedDict, total=False):
    """What :func:`evaluate` can be told besides.

    Attributes:
        cases: Only these case ids; others count neither as missing nor as unpaired.
        labels: What to score: a label set, or a selection such as ``"liver=1+2,spleen"``.
            Where a label unites several values, the references' values are united.
        images: Folder of the scans, by the same case ids, for the picture.
        workers: Cases scored at once; by default one per CPU core.
        progress: Called as (cases done, cases in all, case id) after each case.
    """

    cases: Sequence[str] | None
    labels: LabelSet | str | None
    images: str | Path | None
    workers: int | None
    progress: Progress | None


@dataclass(frozen=True)
class _Rules:
    """What holds for all cases."""

    tolerance_mm: float
    labels: LabelSet | None

    @property
    def unites(self) -> bool:
        """Whether a label stands for other values in the references than its own."""
        return self.labels is not None and any(
            label.sources not in ((), (label.value,)) for label in self.labels.labels
        )


def evaluate(
    predictions: str | Path,
    references: str | Path,
    out: str | Path | None = None,
    *,
    tolerance_mm: float = 1.0,
    allow_missing: bool = False,
    **options: Unpack[EvaluateOptions],
) -> dict[str, Any]:
    """Score masks against references, paired by case id.

    The case id is the path below the folder without the suffix. A reference without a
    prediction is scored like an empty one. Label names come from the predictions' NIfTI
    header, else from a ``dataset.json`` in or above the references' folder.

    Args:
        predictions: A folder of masks, or one mask.
        references: A folder of masks (``labelsTr`` or the dataset that holds it), or one.
        out: Folder for ``metrics.json``, ``metrics.csv`` and ``worst.png``, each written
            whole or not at all; None to write nothing.
        tolerance_mm: How far a border may be off for NSD.
        allow_missing: Leave references without a prediction out instead.
        **options: See :class:`EvaluateOptions`.

    Returns:
        What ``metrics.json`` holds: ``mean``, ``labels``, ``cases`` and ``definitions`` as
        :func:`medseg.evaluation.evaluate.summarise` gives them, and ``missing`` (case
        ids), ``failed`` (case id to message) and ``unpaired`` (predictions without a
        reference).

    Raises:
        InputError: Nothing can be paired, or no case can be scored.
        OutputError: A result cannot be written.
    """
    if not tolerance_mm >= 0:
        raise SettingsError("tolerance_mm", expected="0 or more", got=str(tolerance_mm))
    predictions, references = Path(predictions), label_folder(Path(references))
    picture = None if out is None else Path(out) / "worst.png"
    pairs, unpaired = pair_masks(predictions, references, cases=options.get("cases"), skip=picture)
    labels = _labels(options.get("labels"), pairs, references)
    missing = [pair.case for pair in pairs if pair.prediction is None]
    if allow_missing:
        pairs = [pair for pair in pairs if pair.prediction is not None]
    rules = _Rules(tolerance_mm, labels)
    scores, failed = _score_all(
        pairs, rules, workers=options.get("workers"), progress=options.get("progress")
    )
    if not scores:
        case, message = next(iter(failed.items()))
        raise InputError(
            f"all {len(failed)} cases failed", expected="one that can be scored",
            got=f"for {case}: {message}",
        )  # fmt: skip
    result = summarise(scores, labels, tolerance_mm=tolerance_mm)
    result |= {"missing": missing, "failed": failed, "unpaired": unpaired}
    if picture is not None:
        write_text(picture.with_name("metrics.json"), json.dumps(result, indent=2) + "\n")
        write_text(picture.with_name("metrics.csv"), _table(result))
        _draw_worst(picture, pairs, scores, rules=rules, images=options.get("images"))
    return result


def _labels(
    given: LabelSet | str | None, pairs: Sequence[MaskPair], references: Path
) -> LabelSet | None:
    """What to score; None when no name is known."""
    if isinstance(given, LabelSet):
        return given
    stated = next(filter(None, (_names_in(pair.prediction) for pair in pairs)), None)
    known = _dataset_labels(references)
    if isinstance(given, str):
        base = known or stated
        if base is None:
            raise LabelError(
                f"labels '{given}'", expected="masks whose labels have names", got="none",
                cure="Put a dataset.json beside the references.",
            )  # fmt: skip
        return base.regroup(given)
    if stated is not None and known is not None:
        _compare_names(stated, known)
    return stated or known


def _names_in(prediction: Path | None) -> LabelSet | None:
    if prediction is None:
        return None
    try:
        return read_label_names(prediction)
    except MedsegError:
        # A damaged file is told about when its turn comes.
        return None


def _dataset_labels(references: Path) -> LabelSet | None:
    for folder in (references, *references.absolute().parents[:2]):
        if not (folder / "dataset.json").is_file():
            continue
        try:
            return open_dataset(folder, lenient=True).labels
        except DatasetError as error:
            _LOG.warning("label names are not taken from %s: %s", folder / "dataset.json", error)
    return None


def _compare_names(stated: LabelSet, known: LabelSet) -> None:
    theirs = dict(zip(known.values, known.names, strict=True))
    for label in stated.labels:
        other = theirs.get(label.value)
        if other is not None and other.casefold() != label.name.casefold():
            _LOG.warning(
                "value %d is '%s' in the predictions, but '%s' in dataset.json",
                label.value, label.name, other,
            )  # fmt: skip


def _score_all(
    pairs: Sequence[MaskPair], rules: _Rules, *, workers: int | None, progress: Progress | None
) -> tuple[dict[str, CaseScores], dict[str, str]]:
    """Score the cases in threads; reading, counting and distances leave Python's lock free."""
    scores: dict[str, CaseScores] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(max(1, workers or os.cpu_count() or 1)) as pool:
        jobs = {pool.submit(_score, pair, rules): pair.case for pair in pairs}
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                case = jobs[job]
                _collect(job, case, scores=scores, failed=failed)
                if progress is not None:
                    progress(done, len(jobs), case)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    order = [pair.case for pair in pairs]
    return (
        {case: scores[case] for case in order if case in scores},
        {case: failed[case] for case in order if case in failed},
    )


def _collect(
    job: Future[CaseScores], case: str, *, scores: dict[str, CaseScores], failed: dict[str, str]
) -> None:
    try:
        scores[case] = job.result()
    except MedsegError as error:
        failed[case] = str(error)
        _LOG.warning("case %s: %s", case, error)


def _score(pair: MaskPair, rules: _Rules) -> CaseScores:
    prediction, reference, scan = _read(pair, rules)
    return score_case(
        prediction, reference, spacing_mm=scan.geometry.spacing_mm, labels=rules.labels,
        tolerance_mm=rules.tolerance_mm,
    )  # fmt: skip


def _read(pair: MaskPair, rules: _Rules) -> tuple[NDArray[Any], NDArray[Any], Scan]:
    """Prediction and reference (I, J, K) on one grid, and the reference's scan."""
    # Structures of DICOM masks are known by their names; their numbers mean nothing.
    named = None if rules.unites else rules.labels
    reference, scan = read_mask(pair.reference, labels=named)
    if rules.unites and rules.labels is not None:
        reference = rules.labels.to_values(rules.labels.to_classes(reference))
    if pair.prediction is None:
        return np.zeros(reference.shape, dtype=np.uint8), reference, scan
    prediction, grid = read_mask(pair.prediction, labels=named)
    gap = grid.geometry.difference(scan.geometry)
    if gap is not None:
        raise GeometryError(
            f"grid of {pair.prediction}", expected=f"that of {pair.reference}", got=gap,
            cure="Resample the prediction to the reference's grid, or predict on that scan.",
        )  # fmt: skip
    return prediction, reference, scan


def _table(result: Mapping[str, Any]) -> str:
    """``metrics.csv``: a row per case and label; an empty field where undefined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "value", "name", *METRICS])
    for case, labels in result["cases"].items():
        for value, figures in labels.items():
            row = ["" if figures[metric] is None else figures[metric] for metric in METRICS]
            writer.writerow([case, value, result["labels"][value]["name"], *row])
    return text.getvalue()


def _draw_worst(
    path: Path,
    pairs: Sequence[MaskPair],
    scores: Mapping[str, CaseScores],
    *,
    rules: _Rules,
    images: str | Path | None,
) -> None:
    """Draw the cases of the lowest mean Dice; nothing when no case has a mask to show."""
    shown = [
        pair
        for pair in pairs
        if pair.prediction and pair.case in scores and np.isfinite(scores[pair.case].mean_dice)
    ]
    shown.sort(key=lambda pair: scores[pair.case].mean_dice)
    if not shown:
        path.unlink(missing_ok=True)
        return
    scans = {} if images is None else index_by_case(Path(images), "images")
    values = sorted({value for pair in shown for value in scores[pair.case].labels})
    labels = rules.labels or LabelSet.from_names({value: f"label {value}" for value in values})
    pictures = list(_pictures(shown[:_WORST_SHOWN], scores, rules=rules, scans=scans))
    write_bytes(path, case_montage(pictures, labels, title="Lowest mean Dice"))


def _pictures(
    pairs: Sequence[MaskPair],
    scores: Mapping[str, CaseScores],
    *,
    rules: _Rules,
    scans: Mapping[str, Path],
) -> Iterator[CasePicture]:
    for pair in pairs:
        prediction, reference, grid = _read(pair, rules)
        voxels, modality = _scan_voxels(pair.case, grid, scans)
        yield CasePicture(
            f"{pair.case}   Dice {scores[pair.case].mean_dice:.3f}",
            grid.geometry, {"truth": reference, "prediction": prediction}, voxels, modality,
        )  # fmt: skip


def _scan_voxels(
    case: str, grid: Scan, scans: Mapping[str, Path]
) -> tuple[NDArray[Any] | None, str]:
    """The scan under the masks; a picture without it is better than none."""
    path = scans.get(case) or scans.get(f"{case}_0000")
    if path is None:
        return None, ""
    try:
        scan = read_scan(path)
        gap = scan.geometry.difference(grid.geometry)
        if gap is None:
            return scan.voxels(), scan.modality
        _LOG.warning("case %s is drawn without its scan: %s", case, gap)
    except MedsegError as error:
        _LOG.warning("case %s is drawn without its scan: %s", case, error)
    return None, ""
