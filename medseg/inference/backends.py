"""What runs a network: torch as it is (the reference), torch compiled, OpenVINO on CPUs.

All stand behind one protocol, so that the predictor does not know which it has.
``medseg.inference.choice`` picks one.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medseg.core.errors import SettingsError
from medseg.inference.device import autocast_dtype

BACKENDS = ("auto", "torch", "compile", "openvino")
_log = logging.getLogger(__name__)


class Backend(Protocol):
    """One network, ready to run.

    Contract: tiles (N, C, I, J, K) float32 on the device give logits (N, classes, I, J, K)
    float32 on the same device, in memory that no later call writes to. N may differ from call
    to call; I, J, K are the plan's patch. Calls may come from several threads.
    """

    @property
    def name(self) -> str:
        """As provenance and ``--backend`` call it."""
        ...

    def __call__(self, tiles: Tensor) -> Tensor:
        """Logits of a batch of tiles."""
        ...


def check_backend(name: str) -> None:
    """Refuse a backend that there is not.

    Raises:
        SettingsError: With those that there are.
    """
    if name not in BACKENDS:
        raise SettingsError("--backend", expected=" or ".join(BACKENDS), got=repr(name))


def backend_name(networks: Sequence[object]) -> str:
    """What runs them; a plain network is run by torch as it is."""
    return str(getattr(networks[0], "name", TorchBackend.name))


class TorchBackend:
    """The network as it is: the reference. On CUDA in half precision (autocast).

    Args:
        network: Moved to the device and set to evaluation.
        device: Where it runs.

    Attributes:
        seconds: What the calls took so far, each thread's added up (on a CPU only).
    """

    name = "torch"

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network.to(device).eval(), device
        self.seconds, self.tiles = 0.0, 0
        self._half = autocast_dtype(device)

    @torch.inference_mode()
    def __call__(self, tiles: Tensor) -> Tensor:
        """Logits of a batch of tiles."""
        started = time.perf_counter()
        result = self._run(self.network, tiles)
        if self.device.type == "cpu":
            self.seconds += time.perf_counter() - started
            self.tiles += int(tiles.shape[0])
        return result

    def _run(self, network: Callable[[Tensor], Any], tiles: Tensor) -> Tensor:
        half = torch.autocast(self.device.type, self._half) if self._half else nullcontext()
        with half:
            logits: Tensor = network(tiles)
        return logits.float()


class CompiledBackend(TorchBackend):
    """The network through ``torch.compile``; on CUDA as one CUDA graph a batch size.

    Compiling takes from seconds to minutes at the first call. Where it fails, the network
    runs as it is, with one warning.
    """

    name = "compile"

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__(network, device)
        self._lock = threading.Lock()
        self._batch = 0
        self._compiled: Callable[[Tensor], Any] | None = None
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        try:
            with _quiet():
                self._compiled = torch.compile(self.network, mode=mode, dynamic=False)
        except Exception as error:  # noqa: BLE001 - not with this Python, not on this system ...
            self._give_up(error)

    @torch.inference_mode()
    def __call__(self, tiles: Tensor) -> Tensor:
        """Logits of a batch of tiles."""
        # CUDA graphs write into memory of their own: one call at a time, and a copy leaves.
        with self._lock:
            if self._compiled is not None:
                try:
                    return self._run_compiled(self._compiled, tiles)
                except torch.OutOfMemoryError:
                    self._batch = 0
                    raise
                except Exception as error:  # noqa: BLE001 - any fault of a compiler; torch remains
                    self._give_up(error)
        return super().__call__(tiles)

    def _run_compiled(self, network: Callable[[Tensor], Any], tiles: Tensor) -> Tensor:
        known, filled = self._batch, self._filled(tiles)
        # A batch of a new size is compiled first.
        with nullcontext() if self._batch == known else _quiet():
            return self._run(network, filled)[: len(tiles)].clone()

    def _filled(self, tiles: Tensor) -> Tensor:
        """The last, smaller batch filled up, for a new size would be compiled anew."""
        self._batch = max(self._batch, len(tiles))
        missing = self._batch - len(tiles)
        return torch.cat([tiles, tiles[:1].expand(missing, *tiles.shape[1:])]) if missing else tiles

    def _give_up(self, error: Exception) -> None:
        self._compiled, self.name = None, TorchBackend.name
        reason = str(error).strip().splitlines() or [type(error).__name__]
        _log.warning("torch.compile failed, so the network runs as it is: %.200s", reason[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """While a compiler warns developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
