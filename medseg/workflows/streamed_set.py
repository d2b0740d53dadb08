"""Sets of models on scans above memory: from disk to disk, one member after another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg.core.labels import LabelSet
from medseg.core.scan import Scan
from medseg.inference.predictor import Predictor
from medseg.inference.products import Products
from medseg.inference.volume import DiskVolume
from medseg.io.scratch import ScratchArray
from medseg.package.model_set import SetFile, SetMember
from medseg.postprocess.streamed import apply_chain_by_slab
from medseg.transforms.preprocess import RestoreRecord
from medseg.transforms.preprocess_stream import stream_preprocessed, survey_scan
from medseg.workflows.joining import label_places, mean_of, paint, painting_table, preparing_key
from medseg.workflows.maps import Maps
from medseg.workflows.model import Model
from medseg.workflows.streamed import MASK_ORDER, ValueSink, frame_of, timed

_SLAB_VALUES = 1 << 23
Seconds = dict[str, float]


@dataclass(frozen=True)
class StreamedSet:
    """One scan on its way through a set.

    Attributes:
        scan: Not read yet.
        file: The set.
        members: Its models.
        predictors: What runs each of them.
        path: Where the mask goes; scratch files lie beside it.
        products: Of a mean: what else to write, before the mask.
        files: What was written so.
    """

    scan: Scan
    file: SetFile
    members: Sequence[Model]
    predictors: Sequence[Predictor]
    path: Path
    products: Products
    files: list[Path] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """For scratch files."""
        return self.path.parent

    def fill(self, mask: ScratchArray, seconds: Seconds) -> None:
        """Write the mask values of the set, (I, J, K) on the scan's own grid."""
        with ExitStack() as stack:
            if self.file.combine == "mean":
                self._average(mask, seconds, stack)
            else:
                self._paint(mask, seconds, stack)

    def _paint(self, mask: ScratchArray, seconds: Seconds, stack: ExitStack) -> None:
        volumes = _Volumes(self, stack, seconds)
        for number, place in enumerate(self.file.members):
            predictor, labels = self.predictors[number], self.members[number].labels
            volume, record = volumes.of(number)
            with ScratchArray(self.folder, mask.shape, labels.dtype, order=MASK_ORDER) as own:
                with timed(seconds, "segment"):
                    predictor.stream(volume, record, ValueSink(own, labels))
                with timed(seconds, "finish"):
                    apply_chain_by_slab(
                        own, predictor.plan.postprocess, labels,
                        voxel_mm3=self.scan.geometry.voxel_volume_mm3,
                    )  # fmt: skip
                    _paint_by_slab(mask, own, place, labels=labels, whole=self.file.labels)

    def _average(self, mask: ScratchArray, seconds: Seconds, stack: ExitStack) -> None:
        volumes = _Volumes(self, stack, seconds)
        shape = self.scan.geometry.shape
        mean = stack.enter_context(mean_of(self.file, self.members, shape, self.folder))
        for number, place in enumerate(self.file.members):
            volume, record = volumes.of(number)
            with timed(seconds, "segment"):
                predictor = self.predictors[number]
                mean.add(predictor, volume, record, label_places(place, self.file.labels))
        with timed(seconds, "segment"):
            for box, classes in mean.classes():
                mask.write(box, self.file.labels.to_values(classes))
            maps = Maps.empty(self.products, shape, self.folder)
            if self.products.names:
                mean.give(self.products, self.file.labels.names, maps.arrays)
        with timed(seconds, "write"):
            self.files.extend(maps.write(self.path, frame_of(self.scan, self.file.labels)))


class _Volumes:
    """The scan on each member's grid, on the disk; those that agree share one."""

    def __init__(self, run: StreamedSet, stack: ExitStack, seconds: Seconds) -> None:
        self._run, self._stack, self._seconds = run, stack, seconds
        self._known: dict[str, tuple[DiskVolume, RestoreRecord]] = {}

    def of(self, number: int) -> tuple[DiskVolume, RestoreRecord]:
        """The volume of a member, and its way back."""
        run, model = self._run, self._run.members[number]
        key = preparing_key(model)
        if key not in self._known:
            with timed(self._seconds, "prepare"):
                survey = survey_scan(run.scan, model.plan)
                volume = DiskVolume(run.folder, survey.shape, axis=survey.axis)
                self._known[key] = self._stack.enter_context(volume), survey.record
                stream_preprocessed(run.scan, model.plan, survey, volume)
        volume, record = self._known[key]
        if run.file.restore == "labels-nearest":
            record = replace(record, nearest=(True, True, True))
        return volume, record


def _paint_by_slab(
    mask: ScratchArray, own: ScratchArray, place: SetMember, *, labels: LabelSet, whole: LabelSet
) -> None:
    table = whole.to_values(painting_table(place, labels, whole))
    across, down, count = mask.shape
    depth = max(1, _SLAB_VALUES // (across * down))
    for start in range(0, count, depth):
        box = slice(0, across), slice(0, down), slice(start, min(start + depth, count))
        total = mask.read(box)
        paint(total, own.read(box), table)
        mask.write(box, total)
