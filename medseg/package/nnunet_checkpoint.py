"""Checkpoints of nnU-Net v2: read without running anything that they hold.

A checkpoint is a pickle inside a zip. torch reads it with ``weights_only``: a small machine
that makes tensors, plain containers and what stands in a list, and refuses every other
name. The list here adds numpy's scalars, which nnU-Net keeps for its log.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.core.errors import PackageError

_NUMBERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64")
_FORBIDDEN = re.compile(r"GLOBAL ([\w.]+)")


@dataclass(frozen=True)
class Checkpoint:
    """What of a checkpoint is of use.

    Attributes:
        trainer: Name of the trainer's class.
        configuration: Name of the configuration in ``plans.json``.
        mirror_axes: Axes along which views may be mirrored.
        weights: Parameters by their name in the foreign network, float32.
    """

    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]
    weights: Mapping[str, Tensor]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a ``checkpoint_*.pth``; no code of it runs.

    Raises:
        PackageError: It is missing, damaged, not of nnU-Net v2, or holds objects other than
            tensors, plain containers, numpy scalars and types.
    """
    raw = _load(path)
    try:
        settings = raw["init_args"]
        trainer, configuration = str(raw["trainer_name"]), str(settings["configuration"])
        axes = tuple(int(axis) for axis in raw.get("inference_allowed_mirroring_axes") or ())
        weights = {
            str(name).removeprefix("module."): tensor.detach().float().contiguous().clone()
            for name, tensor in raw["network_weights"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise PackageError(
            str(path),
            expected="trainer_name, init_args and network_weights of an nnU-Net v2 checkpoint",
            got=f"{type(error).__name__}: {error}",
        ) from error
    return Checkpoint(trainer, configuration, axes, weights)


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_harmless()):
            # Mapped, so that the optimiser's state, twice the weights, is never read.
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
            )
    except FileNotFoundError as error:
        raise PackageError(str(path), expected="a checkpoint", got="no such file") from error
    except MemoryError:
        raise
    except Exception as error:  # what a damaged file does to a reader has no one type
        found = _FORBIDDEN.search(str(error))
        if found is None:
            raise PackageError(
                str(path),
                expected="a torch checkpoint",
                got=f"{type(error).__name__}: {error}"[:200],
                cure="Copy it again.",
            ) from error
        raise PackageError(
            str(path),
            expected="tensors, plain containers, numpy scalars and types",
            got=f"the object '{found.group(1)}'",
            cure="A checkpoint that needs code to be read is refused; ask for a plain one.",
        ) from error


def _harmless() -> list[Any]:
    """Names that a checkpoint may use beside torch's own list."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(name)) for name in _NUMBERS}
    # numpy 1 and 2 call the same function by two names.
    both = [(scalar, f"numpy.{room}.multiarray.scalar") for room in ("core", "_core")]
    return [*both, np.dtype, *kinds]
