"""What is done to each case of a batch: read, prepare, segment, finish, write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from medseg.core.errors import MedsegError, ResourceError
from medseg.core.results import Prediction
from medseg.core.scan import Scan
from medseg.inference.windows import window_starts
from medseg.io.guarded import needs_worker
from medseg.workflows.api import Model, Result
from medseg.workflows.cases import Job, Source
from medseg.workflows.options import PredictOptions
from medseg.workflows.qc import judged
from medseg.workflows.reading import ScanReader
from medseg.workflows.segment import (
    Prepared,
    input_hashes,
    paths_of,
    read,
    save_scan,
    settled,
    sidecar_of,
    voxels_of,
)

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
class Opened:
    """A case that is read.

    Attributes:
        case: Its id.
        source: With its DICOM series chosen.
        scan: Its voxels are in memory, but for ``above_memory``.
        input_sha256: Hashes of the files that it is read from.
        above_memory: The case goes from disk to disk.
    """

    case: str
    source: Source
    scan: Scan
    input_sha256: tuple[str, ...]
    above_memory: bool = False


@dataclass(frozen=True)
class Written:
    """A case that is done: its files, the mask first.

    Attributes:
        files: The mask, its sidecar, the scan, maps, and what is made of the mask.
        provenance: As in the sidecar.
        seconds: Of phases that ran as one.
    """

    files: list[Path]
    provenance: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)


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

    def read(self, reader: ScanReader, job: Job) -> Opened:
        """Read a scan, or its header alone where memory does not hold it.

        Raises:
            MedsegError: It cannot be read, or its channels are not the plan's.
        """
        model, case = self.models[0], job[0]
        source = settled(job[1], model.plan)
        scan = self._with_header(source)
        # A scan that is to be written too must be held anyway, and so must a mask of which
        # more is made.
        held = self.options.save_scan or self.options.outputs.any or self.options.qc
        large = scan is not None and not held and model.must_stream(scan)
        if scan is None or not large:
            scan = reader.read(scan or source, model.plan)
        return Opened(case, source, scan, tuple(input_hashes(source, model.plan)), large)

    def _with_header(self, source: Source) -> Scan | None:
        """The scan with its header read alone, where Python reads its format."""
        paths = paths_of(source)
        if not paths or any(needs_worker(path) for path in paths):
            return None
        return read(source, self.models[0].plan)

    def prepare(self, opened: Opened) -> Ready | Opened:
        """Bring the scan to the network's grid, where memory holds it; its own voxels are let go.

        Raises:
            MedsegError: It does not fit the model, or not into memory.
        """
        if opened.above_memory:
            return opened
        source, scan = opened.source, opened.scan
        self.options.outputs.check(scan.geometry, opened.case)
        prepared = self.models[0].prepare(source, grid=self.options.grid, scan=scan)
        prepared = replace(prepared, scan=replace(scan, load=_gone, load_slabs=None))
        # Slices that were bridged are written as they are, so read once more; else the scan
        # is at hand.
        bridged = prepared.record.slices is not None
        wanted = self.options.save_scan or self.options.need_scan
        return Ready(scan if wanted and not bridged else source, prepared, opened.input_sha256)

    def is_small(self, ready: Ready | Opened) -> bool:
        """Whether a device has room for another such case beside it."""
        if isinstance(ready, Opened):
            return False
        plan = self.models[0].plan
        sides = zip(ready.prepared.record.working.shape, plan.patch_size, strict=True)
        step = plan.inference.step
        counts = [len(window_starts(max(side, tile), tile, step)) for side, tile in sides]
        return prod(counts) <= _SMALL_WINDOWS

    def infer(
        self, ready: Ready | Opened, *, device: int, before_tiles: Callable[[], None]
    ) -> NDArray[Any] | Written:
        """Class indices (I, J, K) by the model on one of the devices; above memory the mask.

        Raises:
            ResourceError: The memory does not reach.
        """
        model = self.models[device]
        if isinstance(ready, Ready):
            return model.infer(ready.prepared, before_tiles=before_tiles, scratch=self.out)
        mask = mask_path(self.out, ready.case)
        made = model.predict_to_file(
            ready.source, mask, labels=self.options.labels, grid=self.options.grid,
            scan=ready.scan, input_sha256=ready.input_sha256, before_tiles=before_tiles,
        )  # fmt: skip
        return Written([mask, sidecar_of(mask), *made.files], made.provenance, made.seconds)

    def finish(self, ready: Ready, classes: NDArray[Any]) -> Result:
        """Mask values, post-processing, provenance."""
        return self.models[0].finish(
            classes, ready.prepared, labels=self.options.labels, input_sha256=ready.input_sha256
        )

    def write(self, case: str, ready: Ready, result: Result) -> Written:
        """Write the mask, its sidecar, and what else is wanted.

        Raises:
            OutputError: They cannot be written.
        """
        mask = mask_path(self.out, case)
        files = [mask, sidecar_of(mask)]
        if self.options.save_scan:
            files.append(scan_path(self.out, case))
            save_scan(ready.source, self.models[0].plan, result.prediction, files[-1])
        for maps in ready.prepared.maps:
            files += maps.write(mask, result.prediction)
        plan, prediction = self.models[0].plan, result.prediction
        voxels = voxels_of(ready.source, plan, prediction) if self.options.need_scan else None
        if self.options.qc:
            prediction = judged(prediction, self.models[0].profile, voxels)
            result = Result(prediction)
        files += self._besides(mask, prediction, voxels)
        result.save(mask)
        return Written(files, result.provenance)

    def _besides(
        self, mask: Path, prediction: Prediction, voxels: NDArray[Any] | None
    ) -> list[Path]:
        """What is made of the mask."""
        wanted, plan = self.options.outputs, self.models[0].plan
        if not wanted.any:
            return []
        # Contours, meshes and pictures take a while to load.
        from medseg.workflows.outputs import write_outputs

        return write_outputs(
            prediction, mask, wanted, voxels=voxels, modality=plan.modality,
            channels=[channel.name for channel in plan.channels],
        )  # fmt: skip


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
