"""The state of a run in one file that appears whole or not at all.

Tensors lie in safetensors; everything else is JSON in the same file's header, so that the
two can never come from different moments. Reading one runs no code.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from medseg.core.errors import FileError, InputError
from medseg.io.atomic import write_bytes

CHECKPOINT_FORMAT = 2
_FACTS = ("step", "elapsed_s", "best_score", "highest_look", "looked", "rate_scale")


@dataclass
class TrainState:
    """All that changes while a network learns.

    Attributes:
        network, average: The weights, and their exponential moving average.
        optimiser: With its moments.
        scaler: Of the loss, for half precision.
        step: Steps that are done.
        elapsed_s: Wall time of training that is spent.
        best: The weights to use, as the inner cases chose them; None before the first look.
        best_score: Their mean Dice.
        highest_look: Dice of each inner case at the look where their mean was highest.
        looked: Share of the run at the last look at the inner cases.
        history: One entry per epoch, as written to ``log.jsonl``.
        rate_scale: The learning rate of the plan is multiplied by it: less than 1 after a loss
            that was not finite.
        processes: That train together.
    """

    network: nn.Module
    average: nn.Module
    optimiser: Optimizer
    scaler: GradScaler
    step: int = 0
    elapsed_s: float = 0.0
    best: dict[str, Tensor] | None = None
    best_score: float = -1.0
    highest_look: list[float] = field(default_factory=list)
    looked: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    rate_scale: float = 1.0
    processes: int = 1


@dataclass(frozen=True)
class Snapshot:
    """A state as tensors by name, and facts that JSON can hold."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def environment(device: torch.device) -> dict[str, str]:
    """What bit-equal results depend on: processor type, threads, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "processor": name,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }


def take_snapshot(state: TrainState) -> Snapshot:
    """A copy of the state on the host, which further steps do not change."""
    tensors: dict[str, Tensor] = {}
    for part, module in (("network", state.network), ("average", state.average)):
        tensors |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in (state.best or {}).items()}
    for index, moments in state.optimiser.state_dict()["state"].items():
        tensors |= {
            f"optimiser.{index}.{name}": value
            for name, value in moments.items()
            if isinstance(value, Tensor)
        }
    facts = {name: getattr(state, name) for name in _FACTS}
    facts["history"] = list(state.history)
    facts["scaler"] = state.scaler.state_dict()
    copies = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
    return Snapshot(copies, facts)


def restore_snapshot(state: TrainState, snapshot: Snapshot, device: torch.device) -> None:
    """Bring ``state`` to where the snapshot was taken.

    Raises:
        RuntimeError, ValueError: It is of another network.
    """
    tensors, facts = snapshot.tensors, snapshot.facts
    state.network.load_state_dict(_part(tensors, "network."))
    state.average.load_state_dict(_part(tensors, "average."))
    _load_optimiser(state.optimiser, _part(tensors, "optimiser."))
    if state.scaler.is_enabled() and facts["scaler"]:
        state.scaler.load_state_dict(facts["scaler"])
    best = _part(tensors, "best.")
    state.best = {name: value.to(device, copy=True) for name, value in best.items()} or None
    state.step, state.elapsed_s = int(facts["step"]), float(facts["elapsed_s"])
    state.best_score, state.history = float(facts["best_score"]), list(facts["history"])
    state.highest_look = list(facts.get("highest_look", []))  # of older runs it is not known
    state.looked, state.rate_scale = float(facts["looked"]), float(facts["rate_scale"])


def save_checkpoint(path: Path, state: TrainState, device: torch.device) -> None:
    """Write the state.

    Raises:
        OutputError: The disk is full; the former checkpoint is still there.
    """
    snapshot = take_snapshot(state)
    facts = {
        "format": CHECKPOINT_FORMAT,
        **snapshot.facts,
        "environment": environment(device) | {"processes": str(state.processes)},
    }
    plain = {name: value.contiguous() for name, value in snapshot.tensors.items()}
    write_bytes(path, save(plain, metadata={"medseg": json.dumps(facts)}))


def load_checkpoint(path: Path, state: TrainState, device: torch.device, *, exact: bool) -> None:
    """Bring ``state`` to where the file says.

    Args:
        path: A checkpoint.
        state: Freshly built from the same plan; it is changed.
        device: Where the run goes on.
        exact: Refuse when the environment differs, since results would not be bit-equal.

    Raises:
        FileError: The file is damaged or belongs to another plan.
        InputError: ``exact``, and the processor, threads or versions are not the same.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["medseg"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(
            str(path),
            expected="a medseg checkpoint",
            got=str(error),
            cure="Start again without --resume.",
        ) from error
    if facts.get("format") != CHECKPOINT_FORMAT:
        raise FileError(
            str(path),
            expected=f"checkpoint format {CHECKPOINT_FORMAT}",
            got=f"format {facts.get('format')}",
            cure="Go on with the medseg that wrote it, or start again in another folder.",
        )
    now = environment(device) | {"processes": str(state.processes)}
    _check_environment(facts.get("environment", {}), now, exact=exact)
    try:
        restore_snapshot(state, Snapshot(tensors, facts), device)
    except (RuntimeError, ValueError, KeyError) as error:
        raise FileError(
            str(path), expected="the network of this run's plan", got=str(error).split("\n")[0]
        ) from error


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def _load_optimiser(optimiser: Optimizer, tensors: dict[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        # A copy: the optimiser changes in place what it is given.
        moments.setdefault(int(index), {})[key] = value.clone()
    layout = optimiser.state_dict()
    optimiser.load_state_dict({"state": moments, "param_groups": layout["param_groups"]})


def _check_environment(then: dict[str, str], now: dict[str, str], *, exact: bool) -> None:
    changed = [
        f"{key} {then.get(key)} then, {value} now"
        for key, value in now.items()
        if then.get(key) != value
    ]
    if exact and changed:
        raise InputError(
            "--resume --deterministic",
            expected="the same processor, threads, processes and versions",
            got="; ".join(changed),
            cure="Resume without --deterministic, or on the same machine.",
        )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("vendor_id", "cpu family", "model")
    found = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    return " ".join(found.get(key, "") for key in wanted).strip() or platform.machine()
