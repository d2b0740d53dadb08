"""Evaluate: masks and their references in, scores out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypedDict, Unpack

from medseg.core.errors import InputError, MedsegError, SettingsError
from medseg.core.labels import LabelSet
from medseg.evaluation.compare import compare
from medseg.evaluation.evaluate import CaseScores, ScoreOptions, score_case, summarise
from medseg.io.guarded import GuardedReader
from medseg.workflows.calibration import calibrate
from medseg.workflows.evaluation_labels import find_scheme, lesion_values, organ_values
from medseg.workflows.groups import read_groups
from medseg.workflows.mask_reading import Rules, read_pair
from medseg.workflows.pairing import MaskPair, label_folder, pair_masks

_LOG = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]


class EvaluateOptions(TypedDict, total=False):
    """What :func:`evaluate` can be told besides.

    Attributes:
        cases: Only these case ids; others count neither as missing nor as unpaired.
        labels: What to score: a label set, or a selection such as ``"liver=1+2,spleen"``.
            Where a label unites several values, the references' values are united.
        lesions: Names of labels whose single lesions are scored too, or ``"*"`` for all.
        against: Other predictions of the same cases, to be compared with.
        second_reader: A second reader's masks: how far readers agree is how good a mask can be.
        probabilities: Folder of the probabilities (C, I, J, K), background first, by the same
            case ids: how far they can be believed.
        groups: A table of case and group, or a ``splits.json``: figures for each group or fold.
        organs: Every folder with masks is one case, with a file per organ. Folders called
            ``segmentations``, ``masks`` or ``organs`` are taken for that without asking.
        resample: ``"nearest"`` brings predictions on another grid to that of the reference.
        ignore: Value of voxels in the references that count nowhere; by default that of the label
            ``ignore`` of a ``dataset.json``.
        images: Folder of the scans, by the same case ids, for the pictures.
        tables: Formats of a table to be written besides: ``"md"``, ``"tex"``.
        workers: Cases scored at once; by default one per CPU core.
        progress: Called as (cases done, cases in all, case id) after each case.
    """

    cases: Sequence[str] | None
    labels: LabelSet | str | None
    lesions: Sequence[str] | str | None
    against: str | Path | None
    second_reader: str | Path | None
    probabilities: str | Path | None
    groups: str | Path | None
    organs: bool
    resample: str | None
    ignore: int | None
    images: str | Path | None
    tables: Sequence[str]
    workers: int | None
    progress: Progress | None


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
    header, else from a ``dataset.json`` in or above the references' folder; those of a
    folder with a file per organ are the names of the files. Regions of a ``dataset.json`` (as
    nnU-Net has them) overlap; they are scored as sets.

    Args:
        predictions: A folder of masks, or one mask.
        references: A folder of masks (``labelsTr`` or the dataset that holds it), or one.
        out: Folder for ``metrics.json``, ``metrics.csv``, ``report.html`` and ``worst.png``,
            each written whole or not at all; None to write nothing.
        tolerance_mm: How far a border may be off for NSD.
        allow_missing: Leave references without a prediction out instead.
        **options: See :class:`EvaluateOptions`.

    Returns:
        What ``metrics.json`` holds: ``mean``, ``labels``, ``cases`` and ``definitions`` as
        :func:`medseg.evaluation.evaluate.summarise` gives them, and ``missing`` (case
        ids), ``failed`` (case id to message) and ``unpaired`` (predictions without a
        reference). Where asked for also ``comparison`` (as
        :func:`medseg.evaluation.compare.compare` gives it), ``second_reader`` and ``groups``
        (by name), both with ``mean`` and ``labels``, and ``calibration`` (as
        :func:`medseg.workflows.calibration.calibrate` gives it).

    Raises:
        InputError: Nothing can be paired, or no case can be scored.
        OutputError: A result cannot be written.
    """
    _check_options(tolerance_mm, options)
    folder = None if out is None else Path(out)
    predictions, references = Path(predictions), label_folder(Path(references))
    groups = options.get("groups")
    grouped = {} if groups is None else read_groups(groups)
    pairs, unpaired = _pair(predictions, references, folder, options)
    rules = _rules(pairs, references, tolerance_mm, options)
    missing = [pair.case for pair in pairs if pair.prediction is None]
    if allow_missing:
        pairs = [pair for pair in pairs if pair.prediction is not None]
    scores, failed = _score_all(pairs, rules, options)
    if not scores:
        case, message = next(iter(failed.items()))
        raise InputError(
            f"all {len(failed)} cases failed", expected="one that can be scored",
            got=f"for {case}: {message}",
        )  # fmt: skip
    result = summarise(scores, rules.labels, tolerance_mm=tolerance_mm)
    result["definitions"] |= _scheme_told(rules)
    result |= {"missing": missing, "failed": failed, "unpaired": unpaired}
    result |= _besides(scores, rules, references, options)
    result |= _by_group(scores, rules, grouped)
    probabilities = options.get("probabilities")
    if probabilities is not None:
        scored = [pair for pair in pairs if pair.case in scores]
        result["calibration"] = calibrate(scored, rules, Path(probabilities))
    if folder is not None:
        # Pictures and pages take a while to load, and are not always wanted.
        from medseg.workflows.evaluation_report import write_results

        write_results(
            folder, result, [pair for pair in pairs if pair.case in scores], rules,
            images=options.get("images"), tables=options.get("tables", ()),
        )  # fmt: skip
    return result


def _check_options(tolerance_mm: float, options: EvaluateOptions) -> None:
    if not tolerance_mm >= 0:
        raise SettingsError("tolerance_mm", expected="0 or more", got=str(tolerance_mm))
    resample = options.get("resample")
    if resample not in (None, "nearest"):
        raise SettingsError(
            "resample", expected="nearest", got=str(resample),
            cure="Labels cannot be interpolated otherwise.",
        )  # fmt: skip
    unknown = [name for name in options.get("tables", ()) if name not in ("md", "tex")]
    if unknown:
        raise SettingsError("tables", expected="md, tex", got=", ".join(unknown))


def _pair(
    predictions: Path, references: Path, out: Path | None, options: EvaluateOptions
) -> tuple[list[MaskPair], list[str]]:
    return pair_masks(
        predictions, references, cases=options.get("cases"),
        skip=None if out is None else out / "worst.png", organs=options.get("organs", False),
    )  # fmt: skip


def _rules(
    pairs: Sequence[MaskPair], references: Path, tolerance_mm: float, options: EvaluateOptions
) -> Rules:
    labels, regions, ignore = find_scheme(
        options.get("labels"), pairs, references, ignore=options.get("ignore")
    )
    return Rules(
        tolerance_mm, labels, lesion_values(options.get("lesions"), labels),
        organ_values(pairs, references), options.get("resample") == "nearest",
        ignore=ignore, regions=regions,
    )  # fmt: skip


def _scheme_told(rules: Rules) -> dict[str, str]:
    told: dict[str, str] = {}
    if rules.regions:
        told["regions"] = "a label has all voxels of its region, also what another is painted over"
    if rules.ignore is not None:
        told["ignore"] = f"where the reference is {rules.ignore}, both masks count as empty"
    return told


def _besides(
    scores: Mapping[str, CaseScores], rules: Rules, references: Path, options: EvaluateOptions
) -> dict[str, Any]:
    """Other masks of the same cases: another model's, a second reader's."""
    found: dict[str, Any] = {}
    for key, place in (
        ("comparison", options.get("against")), ("second_reader", options.get("second_reader")),
    ):  # fmt: skip
        if place is None:
            continue
        chosen: EvaluateOptions = {**options, "cases": list(scores)}
        pairs, _ = _pair(Path(place), references, None, chosen)
        others, failed = _score_all([pair for pair in pairs if pair.prediction], rules, options)
        if not others:
            raise InputError(
                str(place), expected="masks of the cases that are scored",
                got=next(iter(failed.values()), "none"),
            )  # fmt: skip
        if key == "comparison":
            found[key] = compare(scores, others, rules.labels) | {"against": Path(place).name}
        else:
            found[key] = _summary(others, rules) | {"cases": len(others)}
    return found


def _by_group(
    scores: Mapping[str, CaseScores], rules: Rules, grouped: Mapping[str, str]
) -> dict[str, Any]:
    if not grouped:
        return {}
    alone = [case for case in scores if case not in grouped]
    if alone:
        _LOG.warning("%d cases are in no group, %s the first", len(alone), alone[0])
    groups = {}
    for group in dict.fromkeys(grouped[case] for case in scores if case in grouped):
        own = {case: found for case, found in scores.items() if grouped.get(case) == group}
        groups[group] = _summary(own, rules) | {"cases": len(own)}
    return {"groups": groups}


def _summary(scores: Mapping[str, CaseScores], rules: Rules) -> dict[str, Any]:
    whole = summarise(scores, rules.labels, tolerance_mm=rules.tolerance_mm)
    return {key: whole[key] for key in ("mean", "labels")}


def _score_all(
    pairs: Sequence[MaskPair], rules: Rules, options: EvaluateOptions
) -> tuple[dict[str, CaseScores], dict[str, str]]:
    """Score the cases in threads; reading, counting and distances leave Python's lock free."""
    scores: dict[str, CaseScores] = {}
    failed: dict[str, str] = {}
    workers = max(1, options.get("workers") or os.cpu_count() or 1)
    progress = options.get("progress")
    # Few cases leave cores for their labels.
    inner = max(1, workers // max(1, len(pairs)))
    with ThreadPoolExecutor(workers) as pool, GuardedReader() as reader:
        jobs = {pool.submit(_score, pair, rules, inner, reader): pair.case for pair in pairs}
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


def _score(pair: MaskPair, rules: Rules, workers: int, reader: GuardedReader) -> CaseScores:
    prediction, reference, scan, left_out = read_pair(pair, rules, reader)
    ignored = 0 if left_out is None else int(left_out.sum())
    options = ScoreOptions(rules.lesions, scan.geometry.voxel_volume_mm3, workers, ignored)
    return score_case(
        prediction, reference, spacing_mm=scan.geometry.spacing_mm, labels=rules.labels,
        tolerance_mm=rules.tolerance_mm, options=options,
    )  # fmt: skip
