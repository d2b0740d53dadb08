"""Judge masks from anywhere by what a model knows of its training: the least trusted first."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medseg.core.errors import LabelError, PackageError, SettingsError
from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.io.atomic import write_text
from medseg.io.guarded import GuardedReader
from medseg.quality.sides import side_warnings
from medseg.workflows.api import package_of
from medseg.workflows.mask_cases import (
    MaskCase,
    Progress,
    dataset_names,
    find_mask_cases,
    for_each,
    read_mask_case,
)
from medseg.workflows.outputs import table_of
from medseg.workflows.qc import judged, noted

_FORMATS = (".csv", ".json")
_COLUMNS = (
    "case", "label", "trust", "predicted_dice", "interval_low", "interval_high", "case_trust",
    "reasons",
)  # fmt: skip


def judge_masks(
    model: str | Path,
    scans: str | Path,
    masks: str | Path,
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge masks of any origin, by shape, place and brightness; no network runs.

    Args:
        model: A package with a profile, or the run folder that holds it.
        scans: A folder of scans, or one.
        masks: A folder of masks by the same case ids, or one; labels by the model's names, or
            by its values where they have none.
        out: ``.csv`` (a row per case and label) or ``.json``; None to write nothing.
        workers: Cases worked on at once; by default one per core.
        progress: Called with (done, total, case id).

    Returns:
        ``{"cases": {case: {"trust", "reasons", "labels"}}, "failed": {case: message}}``, the
        least trusted first.

    Raises:
        PackageError: The model is damaged, or has no profile.
        InputError: Nothing can be paired, or all cases failed.
        LabelError: The masks have no label of the model.
        OutputError: The table cannot be written.
    """
    path = None if out is None else Path(out)
    if path is not None and path.suffix.lower() not in _FORMATS:
        raise SettingsError(f"--out {path}", expected="a name ending in .csv or .json",
                            got=path.suffix or "none")  # fmt: skip
    package = package_of(model)
    profile, own = package.profile, package.plan.labels
    if profile is None:
        raise PackageError(
            str(model), expected="a model that knows what is normal (profile.json)", got="none",
            cure="Train it with this medseg; imported models have no profile.",
        )  # fmt: skip
    cases, names = find_mask_cases(masks, scans), dataset_names(masks) or own

    def work(case: MaskCase, reader: GuardedReader) -> dict[str, Any]:
        read = read_mask_case(case, reader, names=names)
        labels = _shared(read.labels, own, case)
        facts = noted(None, side_warnings(read.mask, read.geometry, labels), case.case)
        prediction = Prediction(read.mask, read.geometry, labels, facts)
        assert read.scan is not None
        found: dict[str, Any] = judged(prediction, profile, read.scan.voxels()).provenance["qc"]
        return found

    found, failed = for_each(cases, work, workers=workers, progress=progress)
    ordered = dict(sorted(found.items(), key=lambda item: (item[1]["trust"], item[0])))
    result = {"cases": ordered, "failed": failed}
    if path is not None:
        as_json = path.suffix.lower() == ".json"
        text = json.dumps(result, indent=2) + "\n" if as_json else table_of(_COLUMNS, _rows(result))
        write_text(path, text)
    return result


def _shared(labels: LabelSet, own: LabelSet, case: MaskCase) -> LabelSet:
    """The labels of a mask that the model knows, by the model's names."""
    known = {name.casefold(): name for name in own.names}
    both = [
        label.model_copy(update={"name": known[label.name.casefold()]})
        for label in labels.labels
        if label.name.casefold() in known
    ]
    if not both:
        raise LabelError(
            f"labels of {case.mask}", expected=f"some of {', '.join(own.names[:5])}",
            got=", ".join(labels.names[:5]),
            cure="Judge them by a model of the same organs.",
        )  # fmt: skip
    return LabelSet(labels=tuple(both))


def _rows(result: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for case, one in result["cases"].items():
        for label, own in one["labels"].items():
            low, high = own.get("interval", (None, None))
            about = [text for text in one["reasons"] if text.startswith((f"{label}: ", "scan: "))]
            yield {
                "case": case, "label": label, "trust": own["trust"],
                "predicted_dice": own.get("predicted_dice"), "interval_low": low,
                "interval_high": high, "case_trust": one["trust"], "reasons": "; ".join(about),
            }  # fmt: skip
