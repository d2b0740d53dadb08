"""Instances: masks in, masks of numbered bodies and a table of them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg.core.errors import SettingsError
from medseg.core.labels import Label, LabelSet, palette_colour
from medseg.core.results import Measurements, Prediction
from medseg.io.atomic import write_text
from medseg.io.formats import write_mask
from medseg.io.guarded import GuardedReader
from medseg.postprocess.instances import InstanceOptions, find_instances, measure_instances
from medseg.workflows.mask_cases import (
    MaskCase,
    Progress,
    chosen_labels,
    dataset_names,
    find_mask_cases,
    for_each,
    keep_inputs,
    read_mask_case,
    suffix_of,
)
from medseg.workflows.outputs import joined, table_of

TABLE = "instances.csv"


def make_instances(
    masks: str | Path,
    out: str | Path,
    *,
    scans: str | Path | None = None,
    labels: str | None = None,
    options: InstanceOptions | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Number the bodies of labels, see :func:`medseg.postprocess.instances.find_instances`.

    Args:
        masks: A folder of masks, or one.
        out: Another folder; gets ``<case>.nii.gz`` (the format of the mask where it can be
            written) with the numbers, and ``instances.csv`` with a row for each body.
        scans: Their scans by the same case ids, for mean intensities.
        labels: Names or values of the labels wanted, with commas; None for all.
        options: How bodies are told apart; None for the usual.
        workers: Cases worked on at once; by default one per core.
        progress: Called with (done, total, case id).

    Returns:
        ``{"columns": [...], "rows": [{column: figure}], "cases": {case id: path}, "failed":
        {case id: message}}``.

    Raises:
        InputError: There is no mask, or all failed.
        LabelError: A label is unknown.
        OutputError: A file cannot be written.
    """
    folder = Path(out)
    keep_inputs(folder, masks, *([] if scans is None else [scans]))
    cases, names = find_mask_cases(masks, scans), dataset_names(masks)

    def work(case: MaskCase, reader: GuardedReader) -> tuple[str, Measurements]:
        read = read_mask_case(case, reader, names=names)
        wanted = chosen_labels(read.mask, read.labels, labels)
        found = find_instances(read.mask, read.geometry, wanted, options)
        voxels = None if read.scan is None else read.scan.voxels()
        channels = () if read.scan is None else read.scan.channels
        table = measure_instances(found, read.geometry, wanted, voxels=voxels, channels=channels)
        path = folder / f"{case.case}{suffix_of(case.mask)}"
        grid = read.grid
        made = Prediction(
            found.numbers, grid.geometry, _numbered(found.values, wanted), forms=grid.forms,
            slices=grid.slices,
        )  # fmt: skip
        write_mask(path, made)
        return str(path), table

    done, failed = for_each(cases, work, workers=workers, progress=progress)
    columns, rows = joined({case: table for case, (_, table) in done.items()})
    write_text(folder / TABLE, table_of(columns, rows))
    files = {case: path for case, (path, _) in done.items()}
    return {"columns": list(columns), "rows": rows, "cases": files, "failed": failed}


def least_of(text: str) -> float:
    """A least volume as it is typed: ``50mm3``, of flat images ``30mm2``.

    Raises:
        SettingsError: It is no number.
    """
    number = text.strip().removesuffix("mm3").removesuffix("mm2").strip()
    try:
        return float(number)
    except ValueError as error:
        raise SettingsError(
            "--min-volume", expected="a volume such as 50mm3, or an area such as 30mm2", got=text
        ) from error


def _numbered(values: tuple[int, ...], labels: LabelSet) -> LabelSet:
    """A label for each body: ``lesion 3``."""
    names = dict(zip(labels.values, labels.names, strict=True))
    # An empty mask has nothing to be named, and a set of labels holds one at least.
    owners = values or labels.values[:1]
    return LabelSet(
        labels=tuple(
            Label(
                value=number, name=f"{names[value][:180]} {number}",
                colour=palette_colour(number - 1),
            )
            for number, value in enumerate(owners, start=1)
        )
    )  # fmt: skip
