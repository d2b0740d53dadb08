"""A trained model of nnU-Net v2 as a model package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.core.errors import InputError, OutputError
from medseg.package.nnunet import Which, load_nnunet
from medseg.package.package import is_package, save_package


def import_nnunet(
    folder: str | Path,
    out: str | Path,
    *,
    folds: str | Sequence[str] | None = None,
    checkpoint: Which = "final",
    previous: str | Path | None = None,
) -> dict[str, Any]:
    """Write a trained model of nnU-Net v2 as a package that gives the same masks.

    Args:
        folder: It holds ``plans.json``, ``dataset.json`` and ``fold_*``.
        out: A new folder, an empty one, or a package to replace.
        folds: ``"0,1,2"``, ``["0", "1"]`` or ``"all"``; None takes every numbered fold that is
            there, else ``all``. Each becomes a member, and their mean counts.
        checkpoint: ``"final"`` or ``"best"``.
        previous: Of a cascade, the folder of its first stage; None looks beside ``folder``.

    Returns:
        ``{"out": path, "sha256": hash, "configuration": name, "network": name, "members": n,
        "labels": names, "channels": names}``.

    Raises:
        PackageError: The model is damaged, holds more than data, or is not one of unmodified
            nnU-Net v2.
        InputError: ``out`` holds something else.
        OutputError: ``out`` cannot be written.
    """
    target = Path(out)
    _check_target(target)
    package = load_nnunet(folder, folds=folds, checkpoint=checkpoint, previous=previous)
    sha256 = save_package(target, package.model, package.members, previous=package.previous)
    plan = package.plan
    return {
        "out": str(target),
        "sha256": sha256,
        "configuration": package.model.training["configuration"],
        "network": plan.network.name,
        "members": len(package.members),
        "labels": list(plan.labels.names),
        "channels": [channel.name for channel in plan.channels],
    }


def _check_target(target: Path) -> None:
    try:
        taken = target.exists() and not is_package(target) and any(target.iterdir())
    except OSError as error:
        got = error.strerror or str(error)
        raise OutputError(str(target), expected="a folder that can be written", got=got) from error
    if taken:
        raise InputError(
            str(target),
            expected="a new folder or a model package to replace",
            got="a folder with other files",
            cure="Choose another --out.",
        )
