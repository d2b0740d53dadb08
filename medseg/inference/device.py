"""Which device to run on, and what to ask of it."""

from __future__ import annotations

import torch

from medseg.core.errors import ResourceError


def choose_device(name: str) -> torch.device:
    """Turn ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"`` into a device that is there.

    Raises:
        ResourceError: The name is unknown or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ResourceError("--device", expected="auto, cpu, cuda or cuda:N", got=name) from error
    if device.type == "cpu":
        return device
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type != "cuda" or (device.index or 0) >= present:
        raise ResourceError(
            "--device",
            expected=f"a device of this machine (CPU and {present} CUDA)",
            got=name,
            cure="Use --device auto, or see what 'medseg doctor' finds.",
        )
    return device


def tiles_at_once(device: torch.device) -> int:
    """How many windows to run as one batch.

    On a CPU a batch of one leaves cores idle: on two, a batch of two takes as long as one.
    """
    return 4 if device.type == "cuda" else max(1, min(4, torch.get_num_threads()))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Half precision where it pays: bf16 or fp16 on CUDA; None (fp32) on a CPU."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
