"""Which machine this is, as far as speed and rounding depend on it."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def machine_facts() -> dict[str, str | int]:
    """CPU model and instructions, threads, and the versions that numbers depend on."""
    from medseg import __version__

    return {
        "cpu": cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "medseg": __version__,
    }


def cpu_model() -> str:
    """Name of the CPU; the architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
