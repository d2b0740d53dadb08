"""Post-process masks: folders of masks in, cleaned masks and what was removed out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import FileError, InputError, LabelError, MedsegError
from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.io.atomic import write_text
from medseg.io.formats import FORMATS, read_label_names, write_mask
from medseg.io.guarded import GuardedReader
from medseg.postprocess.chain import StepChange, apply_with_changes, parse_steps
from medseg.workflows.pairing import index_by_case

_LOG = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]


def postprocess(
    masks: str | Path,
    out: str | Path,
    *,
    steps: str,
    connectivity: int = 26,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Apply post-processing steps to masks; type, header and grid of each stay.

    Label names come from the masks' NIfTI headers; every label may be named by its value.

    Args:
        masks: A folder of masks, or one.
        out: Another folder; gets a mask of the same format and a JSON of what each step
            removed (mm3) for each case. What only is read comes as NIfTI.
        steps: As :func:`medseg.postprocess.chain.parse_steps` takes them.
        connectivity: 6, 18 or 26; flat masks also 4 or 8.
        progress: Called with (done, total, case id).

    Returns:
        ``{"out": path, "cases": {case id: changes}, "failed": {case id: message}}``.

    Raises:
        InputError: A step is unknown, or no mask could be done.
        OutputError: A result cannot be written.
    """
    masks, out = Path(masks), Path(out)
    home = masks if masks.is_dir() else masks.parent
    if out.resolve() == home.resolve():
        raise InputError(f"--out {out}", expected="another folder", got="that of the masks")
    files = index_by_case(masks, "masks")
    if not files:
        raise FileError(f"masks {masks}", expected="a folder of masks", got="none in it")
    done: dict[str, Any] = {}
    failed: dict[str, str] = {}
    with GuardedReader() as reader:
        for number, (case, path) in enumerate(files.items(), start=1):
            try:
                done[case] = _one(path, out / case, reader, steps, connectivity)
            except (LabelError, FileError, InputError) as error:
                failed[case] = str(error)
                _LOG.warning("case %s: %s", case, error)
                if len(files) == 1:
                    raise
            if progress is not None:
                progress(number, len(files), case)
    if not done:
        case, message = next(iter(failed.items()))
        raise InputError(
            f"all {len(failed)} masks failed", expected="one that can be done",
            got=f"for {case}: {message}",
        )  # fmt: skip
    return {"out": str(out), "cases": done, "failed": failed}


def labels_of(path: Path, mask: NDArray[Any]) -> LabelSet:
    """The labels of a mask: names from its header, else the values themselves.

    Raises:
        LabelError: It holds no label, or values above 65535.
    """
    known = read_names_or_none(path)
    names = {} if known is None else dict(zip(known.values, known.names, strict=True))
    for value in np.unique(mask).tolist():
        name = str(value) if str(value) not in names.values() else f"label {value}"
        names.setdefault(int(value), name)
    return LabelSet.from_names(names)


def _one(
    path: Path, target: Path, reader: GuardedReader, steps: str, connectivity: int
) -> dict[str, Any]:
    mask, scan = reader.mask(path)
    changes: list[StepChange] = []
    if not mask.any() and read_names_or_none(path) is None:
        # Without a label there is nothing to name, and nothing to remove.
        labels, after = LabelSet.from_names({1: "1"}), mask
    else:
        labels = labels_of(path, mask)
        chain = parse_steps(steps, labels, connectivity=connectivity)
        after, changes = apply_with_changes(mask, chain, labels, scan.geometry)
    if after.dtype.itemsize > 4:
        after = after.astype(labels.dtype)  # NIfTI readers do not expect 64-bit labels
    made = Prediction(after, scan.geometry, labels, forms=scan.forms, slices=scan.slices)
    report = {"steps": [asdict(change) for change in changes], "volumes_ml": made.volumes_ml()}
    write_mask(target.with_name(target.name + suffix_of(path)), made)
    write_text(target.with_name(f"{target.name}.json"), json.dumps(report, indent=2))
    return report


def read_names_or_none(path: Path) -> LabelSet | None:
    """The label names that a file holds; None also where they cannot be read."""
    try:
        return read_label_names(path)
    except MedsegError:
        return None


def suffix_of(path: Path) -> str:
    """That of the file where masks can be written so, else ``.nii.gz``."""
    known = (suffix for row in FORMATS for suffix in row.written)
    return next((suffix for suffix in known if path.name.lower().endswith(suffix)), ".nii.gz")
