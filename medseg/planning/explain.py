"""A plan as rows for people: what was chosen, and why."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.core.augmentation_plan import Chance
from medseg.core.plan import Plan


@dataclass(frozen=True)
class Row:
    """One choice.

    Attributes:
        choice: What was decided.
        value: What it came to; "" for what was not taken.
        reason: Why; "" where nobody noted one (a plan from elsewhere, or edited).
    """

    choice: str
    value: str
    reason: str


def explain(plan: Plan) -> list[Row]:
    """Each choice of a plan with its value and its reason, in the order of the work."""
    network, training = plan.network, plan.training
    spacing = " x ".join("own" if side is None else f"{side:.3g}" for side in plan.spacing_mm)
    last = training.memory_format == "channels_last"
    values = {
        "configuration": f"{network.spatial_dims}D",
        "not_2d": "", "not_3d": "", "not_3d-low": "", "not_cascade": "",
        "spacing_mm": f"{spacing} mm",
        "normalisation": ", ".join(f"{one.name}: {one.normalisation}" for one in plan.channels),
        "resampling": f"order {plan.resampling.image.order} (labels "
        f"{plan.resampling.labels.order})",
        "patch_size": _sides(plan.patch_size),
        "batch_size": str(training.batch_size),
        "network": network.name,
        "strides": f"{len(network.strides)} stages, coarsest step {_sides(network.divisor)}",
        "features": ", ".join(map(str, network.features)),
        "precision": "" if training.precision == "auto" else training.precision,
        "memory_format": _named(training.memory_format) if last else "",
        "optimiser": training.optimiser,
        "learning_rate": f"{training.learning_rate:g}",
        "augmentation": _steps(plan),
        "mirror_axes": ", ".join(map(str, training.augmentation.mirror_axes)) or "none",
        "left_right_pairs": str(len(plan.inference.left_right_pairs)),
    }  # fmt: skip
    told = [
        Row(_named(key), value, plan.reasons.get(key, ""))
        for key, value in values.items()
        if value or key in plan.reasons
    ]
    more = [key for key in plan.reasons if key not in values]
    return told + [Row(_named(key), "", plan.reasons[key]) for key in more]


def _named(key: str) -> str:
    return key.replace("not_", "not ").replace("_", " ")


def _sides(sides: tuple[int, int, int]) -> str:
    return " x ".join(map(str, sides))


def _steps(plan: Plan) -> str:
    """Steps that happen, with how often in per cent."""
    varied = plan.training.augmentation
    shares = {"affine": varied.affine_probability, "elastic": varied.elastic_probability}
    for name in type(varied).model_fields:
        chance = getattr(varied, name)
        if isinstance(chance, Chance):
            shares[name.replace("_", " ")] = chance.probability * varied.intensity_probability
    return ", ".join(f"{name} {100 * share:.2g} %" for name, share in shares.items() if share)
