"""A small plan of each network, in 2D and 3D, with lopsided patches."""

from __future__ import annotations

from typing import Any

from medseg.core.plan import NetworkPlan, Plan, edited
from tests.models import small_plan

Triple = tuple[int, int, int]


def small_network(name: str, dims: int, **changes: Any) -> tuple[NetworkPlan, Triple]:
    """A network of a few channels (2 in, 3 classes), and a patch that it takes."""
    step, kernel = ((2, 2, 2), (3, 3, 3)) if dims == 3 else ((2, 2, 1), (3, 3, 1))
    stages, width, patch = 3, 4, (20, 12, 28)
    options: dict[str, Any] = {}
    features: tuple[int, ...] = ()
    steps = (step, step)
    if name == "deeplab":
        steps = (step, (1, 1, 1))
        options = {"rates": (1, 2), "pyramid_features": 6, "low_features": 3}
    elif name in ("unet", "residual_unet", "fcn", "dynunet", "attention_unet") and dims == 3:
        # Flat steps and kernels first, as the planner makes them for thick slices.
        steps = ((2, 2, 1), (1, 2, 2))
    elif name == "segresnet":
        options = {"groups": 2}
    elif name == "swin_unetr":
        stages, width, patch, options = 6, 12, (64, 32, 32), {"window": 3}
        features, steps = (12, 12, 24, 48, 96, 192), (step,) * 5
    elif name == "unetr":
        stages, patch, steps = 5, (32, 16, 48), (step,) * 4
        features = (4, 8, 16, 32, 24)
        options = {"mlp_features": 32, "heads": 3}
    patch = patch if dims == 3 else (patch[0], patch[1], 1)
    if name == "unetr":
        options["image_size"] = patch
    data: dict[str, Any] = {
        "name": name,
        "spatial_dims": dims,
        "in_channels": 2,
        "classes": 3,
        "features": features or tuple(width * 2**level for level in range(stages)),
        "strides": ((1, 1, 1), *steps),
        "kernels": (kernel,) * stages,
        "deep_supervision": name in ("unet", "residual_unet", "mednext"),
        "options": options,
    }
    return NetworkPlan.model_validate(data | changes), patch


def small_plan_of(name: str, dims: int) -> Plan:
    """``small_plan`` with that network."""
    network, patch = small_network(name, dims)
    changes = {"network": network.model_dump(), "patch_size": patch}
    return edited(small_plan(dims=dims, channels=2), changes)
