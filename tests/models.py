"""Small plans, models and packages for tests of all rooms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg.core.labels import LabelSet
from medseg.core.plan import (
    AugmentationPlan,
    ChannelPlan,
    NetworkPlan,
    Plan,
    TrainingPlan,
    edited,
)
from medseg.networks.build import build_network
from medseg.package.package import ModelFile, save_package


def small_plan(*, dims: int = 3, channels: int = 1, **changes: Any) -> Plan:
    """A two-stage U-Net of a few channels, with labels 1 ``low`` and 2 ``high``.

    ``changes`` replaces dotted keys: ``small_plan(**{"training.batch_size": 1})``.
    """
    names = ("first", "second", "third")[:channels]
    stride, kernel = ((2, 2, 2), (3, 3, 3)) if dims == 3 else ((2, 2, 1), (3, 3, 1))
    plan = Plan(
        labels=LabelSet.from_names({1: "low", 2: "high"}),
        channels=tuple(ChannelPlan(name=name, normalisation="zscore") for name in names),
        spacing_mm=(1.5, 2.0, 3.0) if dims == 3 else (1.5, 2.0, None),
        patch_size=(16, 12, 8) if dims == 3 else (16, 12, 1),
        network=NetworkPlan(
            spatial_dims=2 if dims == 2 else 3,
            in_channels=channels,
            classes=3,
            features=(4, 8),
            strides=((1, 1, 1), stride),
            kernels=(kernel, kernel),
        ),
        training=TrainingPlan(
            batch_size=2,
            learning_rate=0.01,
            steps_per_epoch=4,
            augmentation=AugmentationPlan(),
        ),
    )
    return edited(plan, changes) if changes else plan


def write_random_package(folder: Path, plan: Plan, *, members: int = 1) -> Path:
    """A package whose weights are random: enough where only geometry or plumbing is tested."""
    weights = [build_network(plan.network, seed=n).state_dict() for n in range(members)]
    names = tuple(f"weights_{n}.safetensors" for n in range(members))
    save_package(folder, ModelFile(medseg_version="0", weights=names, plan=plan), weights)
    return folder
