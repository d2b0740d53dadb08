"""Two sets of predictions for the same cases: which is better, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.labels import LabelSet
from medseg.evaluation.evaluate import CaseScores, names_of, plain, score_tables, values_of
from medseg.evaluation.statistics import PairedTest, mean_over_cases, paired_test

COMPARED = ("dice", "iou", "precision", "recall", "hd95_mm", "assd_mm", "nsd", "nsd_voxel_border")
# A change in mean Dice below this is not worth a line.
_CHANGED_DICE = 1e-4


def compare(
    first: Mapping[str, CaseScores],
    second: Mapping[str, CaseScores],
    labels: LabelSet | None = None,
) -> dict[str, Any]:
    """Compare two models, case by case, on the cases that both have; as plain data.

    A change is second - first: above 0 the second is higher (better for Dice, worse for a
    distance). P-values are not adjusted for the number of labels and metrics.

    Args:
        first: Scores of the predictions that are asked about.
        second: Scores of the others.
        labels: Names of the labels.

    Returns:
        ``cases`` (how many), ``mean`` (each metric: a :class:`PairedTest` over cases, of the
        mean over the labels that both score there), ``labels`` by value likewise, and
        ``changed``: the cases whose mean Dice differs, the largest change first, with
        ``dice``, ``dice_against`` and ``change``.
    """
    both = [case for case in first if case in second]
    sides = [{case: scores[case] for case in both} for scores in (first, second)]
    values = tuple(sorted({v for side in sides for v in values_of(side, labels)}))
    if labels is not None:
        values = labels.values
    names = names_of(values, labels)
    tables = [score_tables(side, values) for side in sides]
    pairs = {metric: _defined_in_both(tables[0][metric], tables[1][metric]) for metric in COMPARED}
    return {
        "cases": len(both),
        "mean": {
            metric: _plain(paired_test(_case_means(one), _case_means(two)))
            for metric, (one, two) in pairs.items()
        },
        "labels": {
            str(value): {"name": names[value]}
            | {
                metric: _plain(paired_test(one[:, column], two[:, column]))
                for metric, (one, two) in pairs.items()
            }
            for column, value in enumerate(values)
        },
        "changed": _changed(both, *pairs["dice"]),
    }


def _changed(
    cases: Sequence[str], first: NDArray[np.float64], second: NDArray[np.float64]
) -> list[dict[str, Any]]:
    rows = [
        {"case": case, "dice": plain(one), "dice_against": plain(two), "change": plain(two - one)}
        for case, one, two in zip(cases, _case_means(first), _case_means(second), strict=True)
        if abs(two - one) > _CHANGED_DICE
    ]
    return sorted(rows, key=lambda row: -abs(row["change"] or 0.0))


def _defined_in_both(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Without what only one model has, so that means are over the same labels."""
    defined = np.isfinite(first) & np.isfinite(second)
    return np.where(defined, first, np.nan), np.where(defined, second, np.nan)


def _case_means(table: NDArray[np.float64]) -> list[float]:
    return [mean_over_cases(row) for row in table]


def _plain(test: PairedTest) -> dict[str, Any]:
    facts = asdict(test)
    return {
        key: [plain(end) for end in value]
        if isinstance(value, tuple)
        else value
        if isinstance(value, int)
        else plain(value)
        for key, value in facts.items()
    }
