"""Score masks against references, case by case, and sum up over cases.

Rules: a label in neither mask of a case is left out there, and counted. A label in one
mask only scores Dice, IoU and NSD 0; its HD95 is undefined, and counted. ``mean`` is the
mean over labels of the mean over cases, with a bootstrap interval over cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import LabelError
from medseg.core.labels import LabelSet
from medseg.evaluation.overlap import dice, iou, overlap_counts
from medseg.evaluation.statistics import bootstrap_interval, mean_over_cases
from medseg.evaluation.surface import DEFINITION, hd95, label_surface_distances, nsd

METRICS = ("dice", "iou", "hd95_mm", "nsd")
_NAN = float("nan")
_LARGEST_VALUE = 65535


@dataclass(frozen=True)
class LabelScores:
    """Scores of one label in one case; NaN where undefined."""

    dice: float = _NAN
    iou: float = _NAN
    hd95_mm: float = _NAN
    nsd: float = _NAN

    @property
    def left_out(self) -> bool:
        """Whether the label is in neither mask."""
        return bool(np.isnan(self.dice))


@dataclass(frozen=True)
class CaseScores:
    """Scores of one case by label value."""

    labels: Mapping[int, LabelScores]

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the labels that are not left out; NaN when all are."""
        return mean_over_cases([scores.dice for scores in self.labels.values()])


def score_case(
    prediction: NDArray[Any],
    reference: NDArray[Any],
    *,
    spacing_mm: Sequence[float],
    labels: LabelSet | None = None,
    tolerance_mm: float = 1.0,
) -> CaseScores:
    """Score one mask against its reference.

    Args:
        prediction: (I, J, K) integers; a 2D mask has K = 1.
        reference: (I, J, K) integers.
        spacing_mm: Voxel size along I, J, K.
        labels: The labels to score; None for the values that occur in either mask.
        tolerance_mm: How far a border may be off for NSD.

    Returns:
        The scores of each label.

    Raises:
        GeometryError: The shapes differ.
        LabelError: No labels are given, and a value lies outside 1 to 65535.
    """
    values = labels.values if labels is not None else _values_in(prediction, reference)
    counts = overlap_counts(prediction, reference, values)
    scores = {}
    for value, distances in label_surface_distances(
        prediction, reference, values, spacing_mm=spacing_mm
    ):
        overlap = counts[value]
        if not any(overlap):
            scores[value] = LabelScores()
        elif distances is None:
            scores[value] = LabelScores(dice=0.0, iou=0.0, nsd=0.0)
        else:
            scores[value] = LabelScores(
                dice=dice(overlap), iou=iou(overlap), hd95_mm=hd95(distances),
                nsd=nsd(distances, tolerance_mm),
            )  # fmt: skip
    return CaseScores(scores)


def summarise(
    cases: Mapping[str, CaseScores], labels: LabelSet | None = None, *, tolerance_mm: float = 1.0
) -> dict[str, Any]:
    """Sum up over cases, as plain data for ``metrics.json``; undefined figures are None.

    Args:
        cases: Scores by case.
        labels: Names of the labels; without, they are called "label 1" and so on. A value
            that a case does not score counts as left out there.
        tolerance_mm: The tolerance that NSD was measured with, to be repeated.

    Returns:
        ``mean`` (each metric with ``*_interval``), ``labels`` by value (``name``, the
        metrics with their intervals, ``cases`` scored, ``left_out``, ``undefined``),
        ``cases`` by name and value, and ``definitions``.
    """
    values = labels.values if labels is not None else tuple(
        sorted({value for case in cases.values() for value in case.labels})
    )  # fmt: skip
    names = dict(zip(labels.values, labels.names, strict=True)) if labels is not None else {}
    rows = [[case.labels.get(value, LabelScores()) for value in values] for case in cases.values()]
    tables = {
        metric: np.array([[getattr(scores, metric) for scores in row] for row in rows]).reshape(
            len(rows), len(values)
        )
        for metric in METRICS
    }
    return {
        "mean": _figures(tables),
        "labels": {
            str(value): {"name": names.get(value, f"label {value}")}
            | _label_summary({metric: table[:, [column]] for metric, table in tables.items()})
            for column, value in enumerate(values)
        },
        "cases": {
            name: {
                str(value): {metric: _plain(figure) for metric, figure in asdict(scores).items()}
                for value, scores in zip(values, row, strict=True)
            }
            for name, row in zip(cases, rows, strict=True)
        },
        "definitions": {
            "surface": DEFINITION,
            "hd95_mm": "larger of the two directed 95th percentiles",
            "tolerance_mm": tolerance_mm,
            "interval": "95 % percentile bootstrap over cases",
        },
    }


def _label_summary(tables: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    scored = np.isfinite(tables["dice"])
    return _figures(tables) | {
        "cases": int(scored.sum()),
        "left_out": int((~scored).sum()),
        "undefined": int((scored & ~np.isfinite(tables["hd95_mm"])).sum()),
    }


def _figures(tables: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for metric, table in tables.items():
        figures[metric] = _plain(mean_over_cases(table))
        figures[f"{metric}_interval"] = [_plain(end) for end in bootstrap_interval(table)]
    return figures


def _plain(figure: float) -> float | None:
    """JSON has no NaN."""
    return float(figure) if np.isfinite(figure) else None


def _values_in(*masks: NDArray[Any]) -> tuple[int, ...]:
    values = sorted({int(value) for mask in masks for value in np.unique(mask)} - {0})
    if values and not 0 < values[0] <= values[-1] <= _LARGEST_VALUE:
        raise LabelError(
            "label values", expected=f"1 to {_LARGEST_VALUE}", got=f"{values[0]} to {values[-1]}",
            cure="Renumber the labels, or name those to be scored.",
        )  # fmt: skip
    return tuple(values)
