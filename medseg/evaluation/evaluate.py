"""Score masks against references, case by case, and sum up over cases.

What counts where a label is absent: :mod:`medseg.evaluation.scores`. ``mean`` is the mean
over labels of the mean over cases, with a bootstrap interval over cases.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.labels import LabelSet
from medseg.evaluation.masks import Box, Masks, as_masks, check_shapes, union_of
from medseg.evaluation.scores import LESION_METRICS, METRICS, LabelScores, Ruler, score_label
from medseg.evaluation.statistics import bootstrap_interval, mean_over_cases
from medseg.evaluation.surface import wide_axes

__all__ = ["METRICS", "CaseScores", "LabelScores", "ScoreOptions", "score_case", "summarise"]


@dataclass(frozen=True)
class CaseScores:
    """Scores of one case by label value."""

    labels: Mapping[int, LabelScores]

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the labels that are not left out; NaN when all are."""
        return self.mean("dice")

    def mean(self, metric: str) -> float:
        """Mean of a metric over the labels that have it; NaN when none has."""
        return mean_over_cases([getattr(scores, metric) for scores in self.labels.values()])


@dataclass(frozen=True)
class ScoreOptions:
    """What a case is scored with, besides.

    Attributes:
        lesions: Values of the labels whose single lesions are scored too.
        voxel_mm3: Volume of a voxel; None for the product of the spacing, which on a sheared
            grid is not the same.
        workers: Threads that labels are shared out to.
        ignored: Voxels, empty in both masks, that do not count (for kappa).
    """

    lesions: Collection[int] = ()
    voxel_mm3: float | None = None
    workers: int = 1
    ignored: int = 0


def score_case(
    prediction: NDArray[Any] | Masks,
    reference: NDArray[Any] | Masks,
    *,
    spacing_mm: Sequence[float],
    labels: LabelSet | None = None,
    tolerance_mm: float = 1.0,
    options: ScoreOptions | None = None,
) -> CaseScores:
    """Score one mask against its reference.

    Args:
        prediction: (I, J, K) integers, or layers that may overlap; a 2D mask has K = 1.
        reference: (I, J, K) integers, or layers.
        spacing_mm: Voxel size along I, J, K.
        labels: The labels to score; None for the values that occur in either mask.
        tolerance_mm: How far a border may be off for NSD.
        options: See :class:`ScoreOptions`.

    Returns:
        The scores of each label.

    Raises:
        GeometryError: The shapes differ.
        LabelError: No labels are given, and a value lies outside 1 to 65535.
    """
    both, options = (as_masks(prediction), as_masks(reference)), options or ScoreOptions()
    shape = both[1].shape
    check_shapes(both[0].shape, shape)
    values = labels.values if labels is not None else _values_in(*both)
    boxes = [masks.boxes(values) for masks in both]
    voxel_mm3 = options.voxel_mm3 or float(np.prod(spacing_mm))
    ruler = Ruler(
        tuple(float(step) for step in spacing_mm), voxel_mm3 / 1000,
        int(np.prod(shape)) - options.ignored, wide_axes(shape), tolerance_mm,
    )  # fmt: skip

    def score(value: int) -> LabelScores:
        found = [side.get(value) for side in boxes]
        there = [box for box in found if box is not None]
        if not there:
            return score_label(None, None, ruler)
        around = there[0] if len(there) == 1 else union_of(*there)
        first, second = (
            None if box is None else masks.crop(value, around)
            for masks, box in zip(both, found, strict=True)
        )
        return score_label(first, second, ruler, lesions=value in options.lesions)

    if options.workers < 2 or len(values) < 2:
        return CaseScores({value: score(value) for value in values})
    # The largest first, so that no thread is left alone with one at the end.
    order = sorted(values, key=lambda value: -max(_size(side.get(value)) for side in boxes))
    with ThreadPoolExecutor(options.workers) as pool:
        scores = dict(zip(order, pool.map(score, order), strict=True))
    return CaseScores({value: scores[value] for value in values})


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
        ``cases`` by name and value, and ``definitions``. The metrics of lesions are there
        only where they were asked for.
    """
    values = values_of(cases, labels)
    names = names_of(values, labels)
    rows = [[case.labels.get(value, LabelScores()) for value in values] for case in cases.values()]
    tables = score_tables(cases, values)
    return {
        "mean": _figures(tables),
        "labels": {
            str(value): {"name": names[value]}
            | _label_summary({metric: table[:, [column]] for metric, table in tables.items()})
            for column, value in enumerate(values)
        },
        "cases": {
            name: {
                str(value): {
                    metric: plain(figure)
                    for metric, figure in asdict(scores).items()
                    if metric in tables
                }
                for value, scores in zip(values, row, strict=True)
            }
            for name, row in zip(cases, rows, strict=True)
        },
        "definitions": _definitions(tolerance_mm),
    }


def score_tables(
    cases: Mapping[str, CaseScores], values: Sequence[int]
) -> dict[str, NDArray[np.float64]]:
    """Each metric as (cases, labels), NaN where undefined; without lesions' if nobody asked."""
    missing = LabelScores()
    tables = {
        metric: np.array(
            [
                [getattr(case.labels.get(value, missing), metric) for value in values]
                for case in cases.values()
            ],
            dtype=np.float64,
        ).reshape(len(cases), len(values))
        for metric in METRICS
    }
    return {
        metric: table
        for metric, table in tables.items()
        if metric not in LESION_METRICS or np.isfinite(table).any()
    }


def values_of(cases: Mapping[str, CaseScores], labels: LabelSet | None) -> tuple[int, ...]:
    """The label values that are scored."""
    if labels is not None:
        return labels.values
    return tuple(sorted({value for case in cases.values() for value in case.labels}))


def names_of(values: Sequence[int], labels: LabelSet | None) -> dict[int, str]:
    """What each value is called: "label 7" where nobody has said."""
    known = dict(zip(labels.values, labels.names, strict=True)) if labels is not None else {}
    return {value: known.get(value, f"label {value}") for value in values}


def plain(figure: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return float(figure) if np.isfinite(figure) else None


def _definitions(tolerance_mm: float) -> dict[str, Any]:
    pooled = "mean over both surfaces together"
    directed = "larger of the two directed 95th percentiles"
    return {
        "surface": "voxel-border where a name does not say otherwise; nsd and *_element_mm: "
        "surface-element",
        "hd_mm": "voxel-border, largest distance (MSSD)",
        "hd95_mm": f"voxel-border, {directed}",
        "assd_mm": f"voxel-border, {pooled}",
        "nsd": "surface-element, weighted by area",
        "nsd_voxel_border": "voxel-border",
        "hd95_element_mm": f"surface-element, weighted by area, {directed}",
        "assd_element_mm": f"surface-element, weighted by area, {pooled}",
        "volume_difference": "(prediction - reference) / reference",
        "tolerance_mm": tolerance_mm,
        "interval": "95 % percentile bootstrap over cases",
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
        figures[metric] = plain(mean_over_cases(table))
        figures[f"{metric}_interval"] = [plain(end) for end in bootstrap_interval(table)]
    return figures


def _values_in(*masks: Masks) -> tuple[int, ...]:
    return tuple(sorted({value for side in masks for value in side.values}))


def _size(box: Box | None) -> int:
    return 0 if box is None else int(np.prod([side.stop - side.start for side in box]))
