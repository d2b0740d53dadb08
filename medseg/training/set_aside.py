"""How much of a budget is set aside for what is no step."""

from __future__ import annotations

# What remains beside the cases: the last picture, the package, closing files.
_CLOSING_S = 8.0


def closing_seconds(case_s: float, *, judged_s: float, inner: int, validation: int) -> float:
    """Time to set aside for what follows the last step.

    Args:
        case_s: From ``measure_case``.
        judged_s: To read a case, make its mask, write and score it.
        inner: Cases kept back, looked at after the last step and for the post-processing.
        validation: Cases of the fold.
    """
    return _CLOSING_S + 2.6 * case_s * inner + validation * (judged_s + 0.1)


def affordable_looks(case_s: float, *, inner: int, looks: int, training_s: float | None) -> int:
    """How many inner cases can be looked at each time within a twentieth of the training."""
    if training_s is None:
        return inner
    return int(max(1, min(inner, 0.05 * training_s / max(looks * case_s, 1e-9))))
