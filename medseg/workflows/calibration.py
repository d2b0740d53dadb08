"""Calibration of probabilities that lie beside the masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.errors import GeometryError, InputError, LabelError
from medseg.evaluation.calibration import expected_calibration_error
from medseg.evaluation.masks import LayeredMasks
from medseg.evaluation.statistics import bootstrap_interval, mean_over_cases
from medseg.io.formats import read_scan
from medseg.workflows.mask_reading import Rules, read_pair
from medseg.workflows.pairing import MaskPair, index_by_case


def calibrate(pairs: Sequence[MaskPair], rules: Rules, folder: Path) -> dict[str, Any]:
    """Expected calibration error of each case that has probabilities, as plain data.

    Args:
        pairs: The cases.
        rules: Whose labels are the channels, in order, after background; of one label its
            channel may be alone.
        folder: Scans (C, I, J, K) of probabilities, by the case ids.

    Returns:
        ``ece`` (mean over cases), ``ece_interval`` and ``cases`` (by case id).

    Raises:
        InputError: No case has probabilities, or a file holds others than 0 to 1.
        GeometryError: They are not on the reference's grid.
        LabelError: There are not as many channels as labels and background, or labels overlap.
    """
    if rules.regions:
        raise LabelError(
            f"probabilities {folder}", expected="labels that exclude one another",
            got="regions that overlap", cure="Leave --probabilities away.",
        )  # fmt: skip
    found = index_by_case(folder, "images")
    errors = {
        pair.case: _case_error(pair, rules, found[pair.case])
        for pair in pairs
        if pair.case in found
    }
    # Nothing is said of a case all of whose voxels are to be ignored.
    cases = {case: error for case, error in errors.items() if not np.isnan(error)}
    if not cases:
        raise InputError(
            f"probabilities {folder}", expected="files by the case ids, such as " + pairs[0].case,
            got=", ".join(list(found)[:3]) or "none",
        )  # fmt: skip
    values = list(cases.values())
    low, high = bootstrap_interval(values)
    ends = None if np.isnan(low) else [low, high]
    return {"ece": mean_over_cases(values), "ece_interval": ends, "cases": cases}


def _case_error(pair: MaskPair, rules: Rules, path: Path) -> float:
    truth = read_pair(MaskPair(pair.case, pair.reference, None), rules)
    reference, grid = truth.reference, truth.scan
    scan = read_scan(path)
    gap = scan.geometry.difference(grid.geometry)
    if gap is not None:
        raise GeometryError(f"grid of {path}", expected=f"that of {pair.reference}", got=gap)
    if isinstance(reference, np.ndarray):
        image = reference
    else:
        assert isinstance(reference, LayeredMasks)
        # Where layers overlap the later label counts.
        image = reference.painted(np.uint16)
    values = rules.labels.values if rules.labels else tuple(np.unique(image[image > 0]))
    voxels = scan.voxels()
    if len(voxels) != len(values) + 1 and not len(voxels) == len(values) == 1:
        raise LabelError(
            str(path), expected=f"{len(values) + 1} channels: background and each label",
            got=str(len(voxels)),
        )  # fmt: skip
    classes = np.zeros(image.shape, dtype=np.int32)
    for index, value in enumerate(values, start=1):
        classes[image == value] = index
    if truth.ignored is not None:
        voxels, classes = voxels[:, ~truth.ignored], classes[~truth.ignored]
    return expected_calibration_error(voxels, classes) if classes.size else float("nan")
