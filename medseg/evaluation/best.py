"""Which of several models to keep: the best, or a cheaper one that is as good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.statistics import (
    PairedTest,
    bootstrap_interval,
    mean_over_cases,
    paired_test,
)


@dataclass(frozen=True)
class Judged:
    """A model with the Dice of cases that it never saw.

    Attributes:
        name: What it is called.
        dice: By case and label value; None where it is not defined.
        cost_s: Seconds that it takes for a scan, or anything that grows with them.
    """

    name: str
    dice: Mapping[str, Mapping[str, float | None]]
    cost_s: float

    def table(self, cases: Sequence[str], values: Sequence[str]) -> NDArray[np.float64]:
        """(cases, labels), NaN where there is no value."""
        rows = [[self.dice[case].get(value) for value in values] for case in cases]
        return np.array(
            [[np.nan if figure is None else figure for figure in row] for row in rows], np.float64
        )


def dice_of(metrics: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """By case and label value, from what ``metrics.json`` holds."""
    return {
        case: {value: row["dice"] for value, row in labels.items()}
        for case, labels in metrics["cases"].items()
    }


@dataclass(frozen=True)
class Standing:
    """How a model did among the others.

    Attributes:
        name: Of the model.
        dice: Mean over labels of the mean over cases; NaN where nothing is defined.
        interval: 95 % bootstrap interval of it over cases.
        behind: The paired test of the best model against this one, a difference above 0 where
            the best is better; None for the best itself.
        cost_s: As it was given.
    """

    name: str
    dice: float
    interval: tuple[float, float]
    behind: PairedTest | None
    cost_s: float

    @property
    def as_good(self) -> bool:
        """Whether the cases do not tell it from the best."""
        # One case alone says nothing of how cases vary: then the higher mean counts.
        test = self.behind
        return test is None or (test.cases > 1 and test.interval[0] <= 0)


def choose_best(models: Sequence[Judged]) -> tuple[str, list[Standing]]:
    """Choose the model with the highest mean Dice, or the cheapest that is as good.

    As good is one where the bootstrap interval over cases of the paired difference to the best
    holds 0. nnU-Net takes the highest mean, however small the difference.

    Args:
        models: At least one; only cases that all have count.

    Returns:
        The name of the model to keep, and how all did, in the order given.
    """
    cases = [case for case in models[0].dice if all(case in one.dice for one in models)]
    values = sorted({value for one in models for case in cases for value in one.dice[case]})
    tables = [one.table(cases, values) for one in models]
    means = [mean_over_cases(table) if table.size else float("nan") for table in tables]
    best = int(np.argmax(np.nan_to_num(means, nan=-1.0)))
    standings = [
        Standing(
            one.name, means[number], bootstrap_interval(tables[number]),
            None if number == best else _test(tables[number], tables[best]), one.cost_s,
        )
        for number, one in enumerate(models)
    ]  # fmt: skip
    kept = min((one for one in standings if one.as_good), key=lambda one: one.cost_s)
    return kept.name, standings


def _test(one: NDArray[np.float64], best: NDArray[np.float64]) -> PairedTest:
    """Case means over the labels that both score."""
    both = np.isfinite(one) & np.isfinite(best)
    means: list[Any] = [
        [mean_over_cases(row) for row in np.where(both, table, np.nan)] for table in (one, best)
    ]
    return paired_test(*means)
