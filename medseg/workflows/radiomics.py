"""Radiomic features of labels, computed by the package pyradiomics where it is installed."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from medseg.core.optional import require
from medseg.core.results import Figure, Measurements, Prediction
from medseg.core.scan import Scan
from medseg.io.exchange import scan_to_sitk

_LOG = logging.getLogger(__name__)
# Of the package and the images, no features.
_NOTES = "diagnostics_"


def extractor() -> Any:
    """pyradiomics' extractor with its own settings.

    Raises:
        MissingPackageError: It is not installed.
    """
    require("radiomics", extra="radiomics", feature="--radiomics")
    return import_module("radiomics.featureextractor").RadiomicsFeatureExtractor()


def with_radiomics(
    table: Measurements, prediction: Prediction, scan: Scan, extract: Any
) -> Measurements:
    """The table with a column for each feature of the first channel.

    Args:
        table: Rows of the labels.
        prediction: The mask.
        scan: On the same grid.
        extract: From :func:`extractor`.

    Returns:
        A new table; a label that is absent, or that pyradiomics refuses, has no features.
    """
    first = replace(
        scan, channels=scan.channels[:1], load=lambda: scan.voxels()[:1], load_slabs=None
    )
    labels = Scan.from_array(prediction.labels, prediction.geometry)
    image, mask = scan_to_sitk(first), scan_to_sitk(labels)
    columns: dict[str, None] = dict.fromkeys(table.columns)
    rows: list[dict[str, Figure]] = []
    for row in table.rows:
        found = _features(extract, image, mask, row)
        columns |= dict.fromkeys(found)
        rows.append({**row, **found})
    return Measurements(tuple(columns), tuple(rows))


def _features(extract: Any, image: Any, mask: Any, row: dict[str, Figure]) -> dict[str, Figure]:
    if not row["voxels"]:
        return {}
    try:
        found = extract.execute(image, mask, label=int(row["value"] or 0))
    except ValueError as error:
        # It refuses regions of one voxel or of one dimension.
        _LOG.warning("label %s has no radiomic features: %s", row["label"], error)
        return {}
    return {
        name: float(np.asarray(value).ravel()[0])
        for name, value in found.items()
        if not name.startswith(_NOTES)
    }
