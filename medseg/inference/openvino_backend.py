"""Networks through OpenVINO on a CPU: converted once, kept in the user's cache, checked.

::

    CACHE/openvino/<key>/
      model.xml  model.bin     the network in OpenVINO's own format, which holds no code
      checked.json             SHA-256 of both, and how far they are from torch

The key is a hash of weights, plan, versions, CPU and shape. A folder whose checksums do not
hold is made anew. medseg talks to no network: OpenVINO's telemetry is replaced by a stub.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from medseg.core.errors import MissingPackageError
from medseg.core.optional import require
from medseg.core.settings import cache_folder
from medseg.inference.backends import Backend, TorchBackend
from medseg.inference.careful_norm import with_careful_norms
from medseg.inference.machine import machine_facts
from medseg.inference.tile import Agreement, agreement, sample_tile

FORMAT = 2
Triple = tuple[int, int, int]
_FILES = ("model.xml", "model.bin")
_UNUSED_DAYS, _LEFTOVER_DAYS = 90, 1
_log = logging.getLogger(__name__)


class ConversionError(Exception):
    """OpenVINO cannot run a network, or its logits are not those of torch; torch remains."""


@dataclass(frozen=True)
class Source:
    """What is converted.

    Attributes:
        reference: The network, run by torch on a CPU.
        in_channels: Channels of a tile.
        patch: Sides of a tile.
        least: A smaller tile that the network takes, for a quick look at what it does.
        identity: Hash of weights and plan.
        any_size: What it does does not depend on the size of a tile.
    """

    reference: TorchBackend
    in_channels: int
    patch: Triple
    least: Triple
    identity: str
    any_size: bool = True

    @cached_property
    def key(self) -> str:
        """Name of its folder in the cache."""
        facts: dict[str, object] = {
            "format": FORMAT, "identity": self.identity, "channels": self.in_channels,
            # Whatever the identity says: weights of another network must never be run.
            "weights": _weights_sha256(self.reference.network),
            "patch": self.patch, **machine_facts(), "openvino": openvino_version(),
        }  # fmt: skip
        # A network that was converted for two threads is the same for eight.
        facts.pop("threads")
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]


class OpenVINOBackend:
    """A converted network in fp32 on the cores that torch would use.

    Args:
        compiled: OpenVINO's model.
        one_by_one: It takes a single tile at a time.
    """

    name = "openvino"

    def __init__(self, compiled: Any, *, one_by_one: bool = False) -> None:
        self._request = compiled.create_infer_request()
        self._one_by_one = one_by_one
        self._lock = threading.Lock()

    def __call__(self, tiles: Tensor) -> Tensor:
        """Logits of a batch of tiles."""
        if self._one_by_one and len(tiles) > 1:
            return torch.cat([self._infer(tile[None]) for tile in tiles])
        return self._infer(tiles)

    def _infer(self, tiles: Tensor) -> Tensor:
        # One request at a time takes all cores; more at once would only hold more memory.
        with self._lock:
            try:
                outputs = self._request.infer([tiles.contiguous().numpy()], share_inputs=True)
            except RuntimeError as error:
                if "alloc" in str(error).lower():
                    raise MemoryError("OpenVINO found no room for its tiles") from error
                raise
            return torch.from_numpy(outputs[0])


def least_tile(patch: Triple, divisor: Triple) -> Triple:
    """A small tile that a network takes: two voxels are left at its coarsest stage.

    With one alone, instance norm would have nothing to norm.
    """
    sides = list(divisor)
    longest = max(range(3), key=lambda axis: patch[axis] / divisor[axis])
    sides[longest] = min(2 * divisor[longest], patch[longest])
    return sides[0], sides[1], sides[2]


def openvino_version() -> str | None:
    """Of the package that is installed, without importing it; None where there is none."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def open_backend(source: Source) -> Backend:
    """The network through OpenVINO: from the cache, else converted, checked and kept there.

    Raises:
        MissingPackageError: OpenVINO is not installed.
        ConversionError: It cannot run this network, or its logits are not those of torch.
    """
    ov = import_openvino()
    folder = _folder(source)
    backend = _from_cache(ov, folder, one_by_one=not source.any_size)
    return backend if backend is not None else _convert(ov, source, folder)


def is_cached(source: Source) -> bool:
    """Whether a converted network lies in the cache (nothing is verified)."""
    folder = _folder(source)
    return folder is not None and (folder / "checked.json").is_file()


def import_openvino() -> ModuleType:
    """OpenVINO, without its telemetry.

    Raises:
        MissingPackageError: It is not installed, or cannot be loaded.
    """
    _silence_telemetry()
    try:
        return require("openvino", extra="openvino", feature="--backend openvino")
    except ImportError as error:
        raise MissingPackageError(
            "--backend openvino",
            expected="an OpenVINO that can be loaded",
            got=str(error),
            cure="Run: pip install --force-reinstall openvino",
        ) from error


class _Silence:
    """Stands for OpenVINO's ``Telemetry``: takes every call and does nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "backend":
            raise AttributeError(name)
        return lambda *_, **__: None


def _silence_telemetry() -> None:
    """OpenVINO reports to a server what it converts, unless it finds this in its place."""
    name = "openvino_telemetry"
    if name not in sys.modules:
        stub, backend = ModuleType(name), ModuleType(f"{name}.backend")
        stub.__path__ = []
        backend.backend_ga4 = None  # type: ignore[attr-defined]
        stub.backend = backend  # type: ignore[attr-defined]
        sys.modules |= {name: stub, backend.__name__: backend}
    # Also where another has imported the real one before: it is asked for the class each time.
    sys.modules[name].Telemetry = _Silence  # type: ignore[attr-defined]


def _folder(source: Source) -> Path | None:
    cache = cache_folder()
    return None if cache is None else cache / "openvino" / source.key


def _from_cache(ov: ModuleType, folder: Path | None, *, one_by_one: bool) -> Backend | None:
    """What lies in the cache, if all of it is as it was written."""
    if folder is None or not folder.is_dir():
        return None
    try:
        facts = json.loads((folder / "checked.json").read_bytes())
        whole = all(facts["sha256"][name] == _sha256(folder / name) for name in _FILES)
        if whole:
            with suppress(OSError):
                os.utime(folder)  # used: not to be tidied away
            compiled = _compile(ov, ov.Core().read_model(folder / _FILES[0]))
            return OpenVINOBackend(compiled, one_by_one=one_by_one)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError):
        whole = False
    _log.warning("a converted network in the cache is damaged; it is made anew")
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _convert(ov: ModuleType, source: Source, folder: Path | None) -> Backend:
    model = _traced(ov, source) if source.any_size else _exported(ov, source)
    try:
        backend = OpenVINOBackend(_compile(ov, model), one_by_one=not source.any_size)
        found = _compare(source, backend)
    except RuntimeError as error:
        raise ConversionError(f"{error!s:.300}") from error
    if not found.close:
        raise ConversionError(f"its logits are not those of torch: {found}")
    _log.info("converted for OpenVINO; against torch: %s", found)
    if folder is not None:
        _keep(ov, model, folder, found)
    return backend


def _traced(ov: ModuleType, source: Source) -> Any:
    tile = sample_tile(source.in_channels, source.least)
    try:
        with _quiet(), torch.no_grad():
            # The tracer's own check would run the network three times more than ours does.
            trace: Any = torch.jit.trace
            bare = _Bare(with_careful_norms(source.reference.network)).eval()
            traced = trace(bare, tile, check_trace=False, strict=False)
            model = ov.convert_model(traced, example_input=tile)
        model.reshape([-1, source.in_channels, *source.patch])
    # Converters fail in many ways; torch remains.
    except Exception as error:
        raise ConversionError(f"{error!s:.300}") from error
    return model


def _exported(ov: ModuleType, source: Source) -> Any:
    """For one tile of the true size: what is traced of such networks OpenVINO misreads."""
    tile = sample_tile(source.in_channels, source.patch)
    try:
        with _quiet(), torch.no_grad():
            bare = _Bare(with_careful_norms(source.reference.network)).eval()
            model = ov.convert_model(torch.export.export(bare, (tile,)))
        # The one size that it holds.
        model.reshape([1, source.in_channels, *source.patch])
    # As above.
    except Exception as error:
        raise ConversionError(f"{error!s:.300}") from error
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """The tracer warns developers, and the converter changes the root of all logs."""
    root = logging.getLogger()
    before = root.level, root.filters[:], root.handlers[:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(before[0])
        root.filters[:], root.handlers[:] = before[1:]


class _Bare(nn.Module):
    """The network in evaluation mode with its one output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.network(x)
        return result


def _compile(ov: ModuleType, model: Any) -> Any:
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # Two processes that pin their threads pin them to the same cores.
        "ENABLE_CPU_PINNING": False,
    }
    return ov.Core().compile_model(model, "CPU", options)


def _compare(source: Source, backend: Backend) -> Agreement:
    tile = sample_tile(source.in_channels, source.patch)
    return agreement(source.reference(tile), backend(tile))


def _keep(ov: ModuleType, model: Any, folder: Path, found: Agreement) -> None:
    """Into the cache, whole or not at all; a cache that cannot be written is no error."""
    staging: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        staging = Path(tempfile.mkdtemp(prefix=".medseg-", dir=folder.parent))
        ov.save_model(model, staging / _FILES[0], compress_to_fp16=False)
        facts = {
            "sha256": {name: _sha256(staging / name) for name in _FILES},
            "difference": found.difference,
            "equal": found.equal,
        }
        (staging / "checked.json").write_text(json.dumps(facts), encoding="utf-8")
        # Where another process was first, its folder is as good.
        if not folder.exists():
            staging.rename(folder)
        _tidy(folder.parent)
    except (OSError, RuntimeError) as error:
        _log.info("the converted network is not kept: %s", error)
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _tidy(cache: Path) -> None:
    """Remove what no version of medseg has asked for in a season, and what killed ones left."""
    for entry in cache.iterdir():
        days = _LEFTOVER_DAYS if entry.name.startswith(".") else _UNUSED_DAYS
        if time.time() - entry.stat().st_mtime > days * 86400:
            shutil.rmtree(entry, ignore_errors=True)


def _weights_sha256(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
