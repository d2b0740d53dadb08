"""What is done to each case of a batch: read, prepare, segment, finish, write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from medseg.core.errors import MedsegError, ResourceError
from medseg.core.scan import Scan
from medseg.inference.windows import window_starts
from medseg.workflows.api import Model, Result
from medseg.workflows.cases import Job, Source
from medseg.workflows.options import PredictOptions
from medseg.workflows.reading import ScanReader
from medseg.workflows.segment import Prepared, input_hashes, save_scan, settled, sidecar_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Cases of so few windows leave cores idle, so that several of them share a device.
_SMALL_WINDOWS = 2


@dataclass(frozen=True)
class Ready:
    """A case that waits for the network, or has passed it.

    Attributes:
        source: The scan itself where it is to be written too, else what it is read from.
        prepared: What the network takes.
        input_sha256: Hashes of the files that it was read from.
    """

    source: Source | Scan
    prepared: Prepared
    input_sha256: tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """The steps of a case. Each may run in a thread of its own.

    Attributes:
        models: The same model, once on each device.
        out: Folder of the masks.
        options: How scans are read, segmented and written.
    """

    models: Sequence[Model]
    out: Path
    options: PredictOptions

    def read(self, reader: ScanReader, job: Job) -> tuple[Source, Scan, tuple[str, ...]]:
        """The source with its DICOM series chosen, the scan in memory, hashes of its files.

        Raises:
            MedsegError: It cannot be read, or its channels are not the plan's.
        """
        plan = self.models[0].plan
        source = settled(job[1], plan)
        scan = reader.read(source, plan)
        return source, scan, tuple(input_hashes(source, plan))

    def prepare(self, source: Source, scan: Scan, hashes: tuple[str, ...]) -> Ready:
        """Bring the scan to the network's grid; its own voxels are let go."""
        prepared = self.models[0].prepare(source, grid=self.options.grid, scan=scan)
        prepared = replace(prepared, scan=replace(scan, load=_gone, load_slabs=None))
        # Slices that were bridged are written as they are, so read once more; else the scan
        # is at hand.
        bridged = prepared.record.slices is not None
        kept = self.options.save_scan and not bridged
        return Ready(scan if kept else source, prepared, hashes)

    def is_small(self, ready: Ready) -> bool:
        """Whether a device has room for another such case beside it."""
        plan = self.models[0].plan
        sides = zip(ready.prepared.record.working.shape, plan.patch_size, strict=True)
        step = plan.inference.step
        counts = [len(window_starts(max(side, tile), tile, step)) for side, tile in sides]
        return prod(counts) <= _SMALL_WINDOWS

    def infer(self, ready: Ready, *, device: int, before_tiles: Callable[[], None]) -> NDArray[Any]:
        """Class indices (I, J, K) by the model on one of the devices.

        Raises:
            ResourceError: The memory does not reach.
        """
        return self.models[device].infer(ready.prepared, before_tiles=before_tiles)

    def finish(self, ready: Ready, classes: NDArray[Any]) -> Result:
        """Mask values, post-processing, provenance."""
        return self.models[0].finish(
            classes, ready.prepared, labels=self.options.labels, input_sha256=ready.input_sha256
        )

    def write(self, case: str, ready: Ready, result: Result) -> list[Path]:
        """Write the mask, its sidecar, and the scan where it is wanted; the mask comes first.

        Raises:
            OutputError: They cannot be written.
        """
        mask = mask_path(self.out, case)
        written = [mask, sidecar_of(mask)]
        if self.options.save_scan:
            scan = scan_path(self.out, case)
            save_scan(ready.source, self.models[0].plan, result.prediction, scan)
            written.append(scan)
        result.save(mask)
        return written


def mask_path(out: Path, case: str) -> Path:
    """Where the mask of a case goes."""
    return out / f"{case}.nii.gz"


def scan_path(out: Path, case: str) -> Path:
    """Where its scan goes, with ``--save-scan``."""
    return out / f"{case}_scan.nii.gz"


def explained(error: Exception) -> MedsegError | Exception:
    """The error as it is told: memory that is not there is no fault of medseg."""
    if isinstance(error, MedsegError):
        return error
    # torch.OutOfMemoryError is a RuntimeError; its name is stable and needs no import.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ResourceError(
            "memory",
            expected="enough for this scan",
            got=str(error).partition("\n")[0] or "none left",
            cure="Crop the scan, or use a machine with more memory.",
        )
    return error


def told(error: Exception) -> str:
    """One line for the user."""
    if isinstance(error, MedsegError):
        return str(error)
    return " ".join(f"fault of medseg: {type(error).__name__}: {error}".split())


def _gone() -> NoReturn:
    raise RuntimeError("the voxels of this scan were let go")
