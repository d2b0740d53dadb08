"""Say whether this machine can run medseg, and what would make it run better."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

import medseg

# Distribution names with the pip requirement that brings them.
_NEEDED = (
    "torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom",
    "python-gdcm", "pydantic", "PyYAML", "typer",
    "rich", "safetensors", "connected-components-3d", "matplotlib", "pillow", "tensorboard",
)  # fmt: skip
_GIB = 2**30


def doctor() -> dict[str, Any]:
    """Collect versions, devices, memory and what is missing, as JSON could hold it.

    Returns:
        ``versions``, ``devices``, ``backends``, ``memory_gib``, ``disk_gib`` and ``missing``:
        for each package that is not there, what it is for, whether medseg needs it, and the
        command that installs it.
    """
    versions = {name: _version(name) for name in _NEEDED}
    missing = {
        name: {"needed": True, "for": "medseg itself", "cure": f"pip install {name}"}
        for name, found in versions.items()
        if found is None
    }
    cuda = _cuda_devices() if versions["torch"] else []
    if versions["torch"]:
        missing |= _missing_for_speed(cuda)
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    return {
        "versions": {
            "medseg": medseg.__version__, "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}", **versions,
        },
        "devices": {"cpu": _cpu(with_torch=versions["torch"] is not None), "cuda": cuda},
        "backends": {
            "torch eager": "ready" if versions["torch"] else "torch is missing",
            "torch.compile": _compile_state(cuda),
            "OpenVINO": _version("openvino") or "not used: pip install 'medseg[openvino]'",
        },
        "memory_gib": {"free": _gib(memory.available), "total": _gib(memory.total)},
        "disk_gib": {"free": _gib(disk.free), "total": _gib(disk.total)},
        "missing": missing,
    }  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu(*, with_torch: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {"cores": os.cpu_count()}
    if with_torch:
        import torch

        facts["threads_of_torch"] = torch.get_num_threads()
        facts["instructions"] = torch.backends.cpu.get_cpu_capability()
    return facts


def _cuda_devices() -> list[dict[str, Any]]:
    import torch

    found = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        found.append(
            {
                "name": torch.cuda.get_device_name(number),
                "free_gib": _gib(free),
                "total_gib": _gib(total),
                "bf16": torch.cuda.get_device_capability(number)[0] >= 8,
            }
        )
    return found


def _missing_for_speed(cuda: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    import torch

    if not cuda:
        cure = "medseg runs on the CPU, and there a small network within --budget"
        if torch.version.cuda is None:
            cure = "with an NVIDIA GPU, install a CUDA build: https://pytorch.org/get-started"
        return {"CUDA": {"needed": False, "for": "training and predicting fast", "cure": cure}}
    if find_spec("triton") is None:
        return {"triton": {"needed": False, "for": "torch.compile", "cure": "pip install triton"}}
    return {}


def _compile_state(cuda: list[dict[str, Any]]) -> str:
    if not cuda:
        return "not used: no CUDA device"
    return "ready" if find_spec("triton") else "needs triton"


def _gib(count: int) -> float:
    return round(count / _GIB, 1)
