"""Measure: scans and masks in, a table of figures out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medseg.core.errors import SettingsError
from medseg.core.results import Measurements, Prediction
from medseg.io.atomic import write_text
from medseg.io.guarded import GuardedReader
from medseg.postprocess.measurements import measure as measure_mask
from medseg.workflows.mask_cases import (
    MaskCase,
    Progress,
    chosen_labels,
    dataset_names,
    find_mask_cases,
    for_each,
    read_mask_case,
)
from medseg.workflows.outputs import joined, table_of
from medseg.workflows.radiomics import extractor, with_radiomics

_FORMATS = (".csv", ".json")


def measure(
    scans: str | Path,
    masks: str | Path,
    out: str | Path | None = None,
    *,
    labels: str | None = None,
    radiomics: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure each label of each mask, see :func:`medseg.postprocess.measurements.measure`.

    Args:
        scans: A folder of scans, or one.
        masks: A folder of masks by the same case ids, or one.
        out: ``.csv`` or ``.json``, a row per case and label; None to write nothing.
        labels: Names or values of those to be measured, with commas; None for all.
        radiomics: Also the features of pyradiomics, of the first channel.
        workers: Cases worked on at once; by default one per core.
        progress: Called with (done, total, case id).

    Returns:
        ``{"columns": [...], "rows": [{column: figure}], "failed": {case id: message}}``.

    Raises:
        InputError: Nothing can be paired, or all cases failed.
        LabelError: A label is unknown.
        MissingPackageError: pyradiomics is not installed.
        OutputError: The table cannot be written.
    """
    path = None if out is None else Path(out)
    if path is not None and path.suffix.lower() not in _FORMATS:
        raise SettingsError(f"--out {path}", expected="a name ending in .csv or .json",
                            got=path.suffix or "none")  # fmt: skip
    extract = extractor() if radiomics else None
    cases, names = find_mask_cases(masks, scans), dataset_names(masks)

    def work(case: MaskCase, reader: GuardedReader) -> Measurements:
        read = read_mask_case(case, reader, names=names)
        wanted = chosen_labels(read.mask, read.labels, labels)
        voxels = None if read.scan is None else read.scan.voxels()
        channels = () if read.scan is None else read.scan.channels
        table = measure_mask(read.mask, read.geometry, wanted, voxels=voxels, channels=channels)
        if extract is None or read.scan is None:
            return table
        prediction = Prediction(read.mask, read.geometry, wanted)
        return with_radiomics(table, prediction, read.scan, extract)

    tables, failed = for_each(cases, work, workers=workers, progress=progress)
    columns, rows = joined(tables)
    result = {"columns": list(columns), "rows": rows, "failed": failed}
    if path is not None:
        as_json = path.suffix.lower() == ".json"
        write_text(
            path, json.dumps(result, indent=2) + "\n" if as_json else table_of(columns, rows)
        )
    return result
