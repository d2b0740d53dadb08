"""Scans above memory: from the disk, through the network, to the disk, a few slices at a time.

The voxels that the network sees and the mask lie in scratch files beside the result while it
is made. In memory are slabs of a few slices and the planes of logits that overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import InputError, ResourceError
from medseg.core.labels import LabelSet
from medseg.core.plan import Plan
from medseg.core.results import Prediction
from medseg.core.scan import Scan
from medseg.inference.memory import free_bytes, preparing_bytes
from medseg.inference.predictor import Grid, Predictor
from medseg.inference.products import Products
from medseg.inference.volume import DiskVolume
from medseg.io.atomic import whole_file
from medseg.io.nifti_slabs import write_nifti_mask_slabs
from medseg.io.scratch import ScratchArray
from medseg.postprocess.streamed import apply_chain_by_slab, works_by_slab
from medseg.quality.sides import Sides
from medseg.transforms.preprocess import RestoreRecord
from medseg.transforms.preprocess_stream import stream_preprocessed, survey_scan, why_not_streamed
from medseg.workflows.maps import Maps
from medseg.workflows.qc import noted
from medseg.workflows.segment import expected_labels, sidecar, sidecar_of

Box = tuple[slice, slice, slice]
Fill = Callable[[ScratchArray, dict[str, float]], None]
# Slice after slice, as they are written.
MASK_ORDER = (2, 1, 0)
# Mask values that are held at a time when the mask is written.
_SLAB_VALUES = 1 << 23
_SHARE_OF_FREE = 0.8
# Slabs take this much whatever the scan; with less allowed, streaming is no way out.
_LEAST_BYTES = 300_000_000
# Per voxel of the mask, where it is post-processed as a whole: classes, values, regions.
_POSTPROCESS_BYTES = 8


@dataclass(frozen=True)
class StreamedPrediction(Prediction):
    """A mask that lies in its file alone: ``labels`` has its shape and type, not its voxels.

    Attributes:
        voxels: How many voxels each mask value has.
        seconds: Time of each phase: read and prepare, segment, finish, write.
        files: What was written besides mask and sidecar.
    """

    voxels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    seconds: dict[str, float] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    def volumes_ml(self) -> dict[str, float]:
        """Volume of each label in millilitres: voxels times the volume of one voxel."""
        size_mm3 = self.geometry.voxel_volume_mm3
        return {
            label.name: float(self.voxels[label.value] * size_mm3 / 1000.0)
            for label in self.label_set.labels
        }


def must_stream(scan: Scan, predictor: Predictor, *, beside_bytes: int = 0) -> bool:
    """Whether a scan is to be segmented from disk to disk, since memory does not hold it.

    Worked out from the header alone. The limit is ``predictor.limits.max_memory_bytes``, or
    80 % of what is free. False also where streaming would not help: where the scan cannot be
    streamed, or the limit is too low for slabs; then the plain way refuses.

    Args:
        scan: Not read yet.
        predictor: The model.
        beside_bytes: Of RAM that something else will hold meanwhile.
    """
    plan = predictor.plan
    limit = _limit_of(predictor) - beside_bytes
    voxels = prod(scan.geometry.shape)
    record = RestoreRecord.for_plan(scan.geometry, plan)
    # The file's number type is not known before it is read; four bytes hold most.
    preparing = 4 * len(scan.channels) * voxels + preparing_bytes(record, plan)
    finishing = (_POSTPROCESS_BYTES if plan.postprocess else 2) * voxels
    fits = max(preparing, finishing) <= limit
    if fits:
        try:
            limits = replace(predictor.limits, max_memory_bytes=limit)
            predictor.adjusted(limits=limits).check(scan.geometry)
        except ResourceError:
            fits = False
    return not fits and can_stream(scan, predictor)


def can_stream(scan: Scan, predictor: Predictor) -> bool:
    """Whether a scan can go from disk to disk, as far as its header and the limits tell.

    Args:
        scan: Not read yet.
        predictor: The model.
    """
    plan = predictor.plan
    by_slab = all(works_by_slab(step) for step in plan.postprocess)
    return _limit_of(predictor) >= _LEAST_BYTES and by_slab and not why_not_streamed(scan, plan)


def _limit_of(predictor: Predictor) -> int:
    return predictor.limits.max_memory_bytes or int(_SHARE_OF_FREE * free_bytes())


def segment_to_disk(
    scan: Scan,
    predictor: Predictor,
    path: Path,
    *,
    grid: Grid = "own",
    labels: str | Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    products: Products | None = None,
) -> StreamedPrediction:
    """Segment a scan and write its mask and sidecar, without ever holding either as a whole.

    The files are those that reading, segmenting, finishing and writing one after another give.

    Args:
        scan: Not read yet; of a format that is read by slab (``scan.load_slabs``), else it is
            read as a whole, several times.
        predictor: The model.
        path: Where the mask goes, ``.nii.gz`` or ``.nii``. Beside it lie scratch files meanwhile:
            4 bytes for each voxel on the model's grid and 1 or 2 for each of the mask.
        grid: Where it lies, from ``segment.wanted_grid``.
        labels: Names of the labels to keep; None keeps all.
        provenance: For the sidecar.
        products: What else to make; written beside the mask, before it.

    Returns:
        What stands in the sidecar; the voxels are in the file.

    Raises:
        InputError: The scan cannot be streamed (``preprocess_stream.why_not_streamed``), or the
            name of the mask ends otherwise.
        FileError: It cannot be read.
        ResourceError: The memory does not reach for the planes that overlap.
        OutputError: There is no room on the disk for the scratch files or the mask.
    """
    plan, files, facts = predictor.plan, list[Path](), dict(provenance or {})

    def fill(mask: ScratchArray, seconds: dict[str, float]) -> None:
        with timed(seconds, "prepare"):
            survey = survey_scan(scan, plan)
        with DiskVolume(path.parent, survey.shape, axis=survey.axis) as volume:
            with timed(seconds, "prepare"):
                stream_preprocessed(scan, plan, survey, volume)
            maps = Maps.empty(products or Products(), scan.geometry.shape, path.parent)
            with timed(seconds, "segment"):
                run = predictor.stream(
                    volume, survey.record, ValueSink(mask, plan.labels),
                    products=products, product_sinks=maps.arrays,
                )  # fmt: skip
        facts.update(run.facts)
        with timed(seconds, "write"):
            files.extend(maps.write(path, frame_of(scan, plan.labels)))

    done = filled_to_disk(scan, plan, path, fill=fill, grid=grid, labels=labels, provenance=facts)
    return replace(done, files=tuple(files))


def filled_to_disk(
    scan: Scan,
    plan: Plan,
    path: Path,
    *,
    fill: Fill,
    grid: Grid = "own",
    labels: str | Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> StreamedPrediction:
    """Post-process and write what fills a mask on the disk; the rest of :func:`segment_to_disk`.

    Args:
        scan: Not read yet.
        plan: Its labels, and the post-processing of the mask.
        path: As in :func:`segment_to_disk`, and so are those below.
        fill: Writes mask values into (I, J, K) on the scan's own grid; adds its times, and to
            ``provenance`` what is known only then.
        grid: Where the mask is wanted.
        labels: Names of the labels to keep.
        provenance: For the sidecar.
    """
    wanted, seconds = expected_labels(plan, labels), dict[str, float]()
    _refuse(scan, grid, path)
    target = scan.geometry
    with ScratchArray(path.parent, target.shape, plan.labels.dtype, order=MASK_ORDER) as mask:
        fill(mask, seconds)
        with timed(seconds, "finish"):
            apply_chain_by_slab(
                mask, plan.postprocess, plan.labels, voxel_mm3=target.voxel_volume_mm3
            )
            kept, sides = _Kept(mask, plan.labels, wanted), Sides(target, wanted)
            voxels = kept.count(sides)
            prediction = StreamedPrediction(
                np.broadcast_to(mask.dtype.type(0), target.shape),
                target,
                wanted,
                noted(provenance, sides.warnings(), scan.source),
                scan.forms,
                scan.slices if grid == "source" else None,
                voxels,
                seconds,
            )
        # The sidecar is complete on the disk before the mask takes its place.
        with timed(seconds, "write"), whole_file(sidecar_of(path)) as beside:
            beside.write_text(sidecar(prediction), encoding="utf-8")
            write_nifti_mask_slabs(path, prediction, kept)
    return prediction


def frame_of(scan: Scan, labels: LabelSet) -> Prediction:
    """A mask on the scan's own grid, but for its voxels."""
    nothing = np.broadcast_to(labels.dtype.type(0), scan.geometry.shape)
    return Prediction(nothing, scan.geometry, labels, forms=scan.forms)


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the time of a block to that of its phase."""
    started = perf_counter()
    yield
    seconds[phase] = round(seconds.get(phase, 0.0) + perf_counter() - started, 4)


class ValueSink:
    """Takes class indices and keeps mask values on the disk."""

    def __init__(self, mask: ScratchArray, labels: LabelSet) -> None:
        self._mask, self._labels = mask, labels

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Take the class indices of a box."""
        self._mask.write(box, self._labels.to_values(values))


class _Kept:
    """Slabs (I, J, depth) of a mask on the disk, with the labels that are wanted."""

    def __init__(self, mask: ScratchArray, labels: LabelSet, wanted: LabelSet) -> None:
        self._mask = mask
        self._table = np.zeros(max(labels.values) + 1, dtype=mask.dtype)
        self._table[list(wanted.values)] = wanted.values
        self._all = len(wanted) == len(labels)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        across, down, count = self._mask.shape
        depth = max(1, _SLAB_VALUES // (across * down))
        for start in range(0, count, depth):
            stop = min(start + depth, count)
            slab = self._mask.read((slice(None), slice(None), slice(start, stop)))
            yield slab if self._all else self._table[slab]

    def count(self, sides: Sides) -> NDArray[np.int64]:
        """Voxels of each value; ``sides`` counts in the same pass."""
        counts, start = np.zeros(self._table.size, dtype=np.int64), 0
        for slab in self:
            counts += np.bincount(slab.ravel(order="K"), minlength=counts.size)
            sides.add(slab, start)
            start += slab.shape[2]
        return counts


def _refuse(scan: Scan, grid: Grid, path: Path) -> None:
    """Refuse names of other formats, and grids: streaming restores onto the scan's own alone."""
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(str(path), expected="a name ending in .nii.gz or .nii", got=path.name)
    uneven = grid == "source" and scan.slices is not None and not scan.slices.even
    if uneven or (grid == "regular" and not scan.geometry.is_regular):
        raise InputError(
            scan.source,
            expected="a scan that can be streamed from the disk",
            got=f"--grid {grid}, onto which it must be resampled",
            cure="Allow more memory, or use --grid own.",
        )
