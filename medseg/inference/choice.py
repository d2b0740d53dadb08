"""Which backend runs a model: as asked, or measured once per model and machine.

``auto`` on a CPU starts with torch, which costs nothing. Once there is work enough to pay for
it, the network is converted for OpenVINO, both are timed on one tile, and the quicker one is
recorded in the cache; from then on it runs that model on that machine, from the first scan on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from pathlib import Path

import torch
from torch import nn

from medseg.core.errors import MissingPackageError, OutputError, ResourceError
from medseg.core.plan import Plan
from medseg.core.settings import cache_folder
from medseg.inference.backends import (
    Backend,
    CompiledBackend,
    TorchBackend,
    check_backend,
)
from medseg.inference.machine import machine_facts
from medseg.inference.openvino_backend import (
    ConversionError,
    Source,
    import_openvino,
    is_cached,
    least_tile,
    open_backend,
    openvino_version,
)
from medseg.inference.tile import sample_tile
from medseg.inference.windows import window_starts
from medseg.io.atomic import write_text

# Seconds of torch from which a conversion (a few seconds) is paid back within about one scan.
PAYS_FROM_S = 10.0
# A tile timed to find out is no more than this share of the work.
_FEW_TILES = 8
# Less than this gain is within what timing is off by; torch is the reference.
_GAIN = 1.1
_log = logging.getLogger(__name__)


class Backends:
    """The backends of a model's members. Safe to use from several threads.

    Args:
        name: One of ``BACKENDS``.
        networks: One per member.
        plan: That the members share.
        device: Where they run.
        identity: Hash of weights and plan, as the package has it.

    Raises:
        SettingsError: There is no such backend.
        MissingPackageError: OpenVINO was asked for and is not installed.
        ResourceError: OpenVINO was asked for on a device that is no CPU.
    """

    def __init__(
        self,
        name: str,
        networks: Sequence[nn.Module],
        plan: Plan,
        device: torch.device,
        *,
        identity: str,
    ) -> None:
        check_backend(name)
        if name == "openvino":
            _check_openvino(device)
        kind = CompiledBackend if name == "compile" else TorchBackend
        self._torch = [kind(network, device) for network in networks]
        self._sources = [
            _source(backend, plan, f"{identity}/{member}")
            for member, backend in enumerate(self._torch)
        ]
        self._lock = threading.Lock()
        self._fixed: Sequence[Backend] | None = self._torch
        self._coming: Future[Sequence[Backend]] | None = None
        if name == "openvino":
            self._fixed = None
            self._choice: str | None = "openvino"
        elif name == "auto" and device.type == "cpu" and openvino_version() is not None:
            self._choice = _recorded(self._sources[0])
            self._fixed = self._torch if self._choice == "torch" else None
        if self._fixed is None and self._choice == "openvino":
            self._load_ahead()

    @property
    def reference(self) -> Sequence[Backend]:
        """Torch, one per member."""
        return self._torch

    def for_work(self, forwards: int) -> Sequence[Backend]:
        """The backends to run a scan with, one per member.

        Args:
            forwards: Tiles times mirrored views that each member will see.
        """
        with self._lock:
            if self._fixed is None and (self._choice is not None or self._pays(forwards)):
                self._fixed = self._opened() if self._choice else self._measured()
                if self._fixed is not self._torch:
                    # Its weights are held once, not twice.
                    self._torch, self._sources = [], []
            return self._torch if self._fixed is None else self._fixed

    def _load_ahead(self) -> None:
        """Load what is converted already while the first scan is read."""
        if all(is_cached(source) for source in self._sources):
            pool = ThreadPoolExecutor(1, thread_name_prefix="medseg-openvino")
            self._coming = pool.submit(self._open_all)
            pool.shutdown(wait=False)

    def _open_all(self) -> Sequence[Backend]:
        return [open_backend(source) for source in self._sources]

    def _opened(self) -> Sequence[Backend]:
        """OpenVINO for all members, or torch with a warning."""
        try:
            return self._coming.result() if self._coming else self._open_all()
        except (ConversionError, MissingPackageError) as error:
            _log.warning("torch is used instead of OpenVINO: %s", error)
            return self._torch

    def _pays(self, forwards: int) -> bool:
        """Whether torch would have enough to do for a conversion to be worth its time."""
        first = self._torch[0]
        if first.tiles == 0 and forwards < _FEW_TILES:
            return False
        if first.tiles == 0:
            first(sample_tile(self._sources[0].in_channels, self._sources[0].patch))
        per_tile_s = first.seconds / first.tiles
        return (first.seconds + forwards * per_tile_s) * len(self._torch) >= PAYS_FROM_S

    def _measured(self) -> Sequence[Backend]:
        """Time torch and OpenVINO on a tile, record the quicker one."""
        source = self._sources[0]
        try:
            candidate = open_backend(source)
        except ConversionError as error:
            _record(source, "torch", f"OpenVINO cannot run it: {error}", {})
            return self._torch
        except MissingPackageError as error:
            # An installation can be mended: not to be remembered.
            _log.warning("torch is used instead of OpenVINO: %s", error)
            return self._torch
        tile = sample_tile(source.in_channels, source.patch)
        # Both have run a tile before: the work so far and the comparison of a conversion.
        reference = self._torch[0]
        so_far_s = reference.seconds / max(1, reference.tiles)
        seconds = {
            "torch": min(so_far_s or float("inf"), _timed(lambda: reference(tile))),
            "openvino": min(_timed(lambda: candidate(tile)), _timed(lambda: candidate(tile))),
        }
        gain = seconds["torch"] / seconds["openvino"]
        name = "openvino" if gain >= _GAIN else "torch"
        _record(source, name, f"OpenVINO is {gain:.2f} times as fast as torch", seconds)
        if name == "torch":
            return self._torch
        try:
            return [candidate, *(open_backend(other) for other in self._sources[1:])]
        except (ConversionError, MissingPackageError) as error:
            _log.warning("torch is used instead of OpenVINO: %s", error)
            return self._torch


def forwards_of(plan: Plan, shape: Sequence[int]) -> int:
    """How many tiles, counted once per mirrored view, a volume of the plan's grid has."""
    sides = zip(shape, plan.patch_size, strict=True)
    step = plan.inference.step
    tiles = prod(len(window_starts(max(side, tile), tile, step)) for side, tile in sides)
    return int(tiles * 2 ** len(plan.inference.mirror_axes))


def _check_openvino(device: torch.device) -> None:
    import_openvino()
    if device.type != "cpu":
        raise ResourceError(
            "--backend openvino",
            expected="--device cpu",
            got=str(device),
            cure="Use --backend torch on this device, or --device cpu.",
        )


def _source(reference: TorchBackend, plan: Plan, identity: str) -> Source:
    network, patch = plan.network, plan.patch_size
    return Source(
        reference, network.in_channels, patch, least_tile(patch, network.divisor), identity,
        any_size=network.kind.any_size,
    )  # fmt: skip


def _timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _record_path(source: Source) -> Path | None:
    cache = cache_folder()
    facts = json.dumps([source.identity, source.patch, machine_facts(), openvino_version()])
    name = hashlib.sha256(facts.encode()).hexdigest()[:40]
    return None if cache is None else cache / "choices" / f"{name}.json"


def _recorded(source: Source) -> str | None:
    """What was chosen for this model on this machine; None where nothing (readable) was."""
    path = _record_path(source)
    try:
        facts = json.loads(path.read_bytes()) if path else {}
        chosen = facts["backend"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if chosen not in ("torch", "openvino"):
        return None
    _log.debug("backend %s, as measured before: %s", chosen, facts.get("reason"))
    return str(chosen)


def _record(source: Source, name: str, reason: str, seconds: dict[str, float]) -> None:
    _log.info("backend %s from now on with this model on this machine: %s", name, reason)
    path = _record_path(source)
    if path is None:
        return
    facts = {
        "backend": name,
        "reason": reason,
        "seconds_per_tile": {key: round(value, 5) for key, value in seconds.items()},
        "machine": machine_facts(),
    }
    try:
        write_text(path, json.dumps(facts, indent=2) + "\n")
    except OutputError as error:
        _log.info("the choice is not kept: %s", error)
