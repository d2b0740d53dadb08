"""How far a run is, by steps or by the clock, and the learning rate that follows."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.core.plan import TrainingPlan


@dataclass(frozen=True)
class Schedule:
    """When a run ends: after a number of steps, or after some seconds of training.

    Attributes:
        steps: Used when ``seconds`` is None.
        seconds: Wall time from the first step to the last.
    """

    steps: int
    seconds: float | None = None

    def progress(self, step: int, elapsed_s: float) -> float:
        """Share that is done before ``step`` runs, 0 to 1."""
        if self.seconds is not None:
            return min(1.0, elapsed_s / max(self.seconds, 1e-9))
        return min(1.0, step / max(self.steps, 1))


def learning_rate(plan: TrainingPlan, progress: float) -> float:
    """Linear warm-up, then polynomial decay to 0.

    Source: the "poly" rule of DeepLab (Chen et al., TPAMI 40, 2018).
    """
    if progress < plan.warmup_share:
        return plan.learning_rate * (0.1 + 0.9 * progress / plan.warmup_share)
    left = (1 - progress) / (1 - plan.warmup_share)
    return float(plan.learning_rate * max(left, 0.0) ** plan.polynomial_power)
