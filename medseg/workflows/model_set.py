"""Several models that segment one scan together: read once, prepared once where they agree."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import InputError, ResourceError, SettingsError
from medseg.core.geometry import Geometry
from medseg.core.plan import Plan
from medseg.core.scan import Scan
from medseg.inference.backends import backend_name
from medseg.inference.memory import Limits, check_shared_grid
from medseg.inference.predictor import Grid, Predictor, onto_grid
from medseg.inference.products import Products
from medseg.package.model_set import SetFile, plan_of_set
from medseg.postprocess.chain import apply_chain
from medseg.transforms.preprocess import RestoreRecord
from medseg.transforms.shared_grid import labels_from_shared_grid, onto_shared_grid
from medseg.transforms.winners import class_dtype
from medseg.workflows import segment
from medseg.workflows.joining import (
    label_places,
    mean_of,
    paint,
    painting_table,
    preparing_key,
    with_less,
)
from medseg.workflows.maps import Maps, check_names
from medseg.workflows.model import Model
from medseg.workflows.segment import Prepared, ScanLike
from medseg.workflows.streamed import StreamedPrediction, filled_to_disk
from medseg.workflows.streamed_set import StreamedSet

if TYPE_CHECKING:
    import torch

_SLAB_VALUES = 1 << 23


@dataclass(frozen=True)
class PreparedSet(Prepared):
    """A scan as each member takes it.

    Attributes:
        parts: One for each member; those that agree share their voxels.
    """

    parts: tuple[Prepared, ...] = ()


class ModelSet(Model):
    """A set of models, used as one.

    Args:
        members: In the order of ``file.members``.
        file: How they are joined.
        sha256: The identity of the set.
        device: Where they run.
    """

    def __init__(
        self, members: Sequence[Model], file: SetFile, *, sha256: str, device: torch.device
    ) -> None:
        plan = plan_of_set(file, [member.plan for member in members])
        # It stands for all: plan, device and limits; its members have the networks.
        super().__init__(Predictor([], plan, device), sha256=sha256)
        self._members, self._file = tuple(members), file

    def within(self, limits: Limits, *, skip_air: bool = False) -> ModelSet:
        """The same set, each member held to limits of memory."""
        limited = copy.copy(self)
        limited._predictor = self._predictor.adjusted(limits=limits, skip_air=skip_air)
        limited._members = tuple(one.within(limits, skip_air=skip_air) for one in self._members)
        return limited

    def wanting(self, labels: str | Sequence[str] | None) -> ModelSet:
        """The same set without members that cannot change these labels.

        Those are the first ones in the order of painting, up to the first that paints a wanted
        label; later ones may paint over it.
        """
        names = set(segment.expected_labels(self.plan, labels).names)
        places = self._file.members
        own = [n for n, place in enumerate(places) if names & set(place.labels.values())]
        if self._file.combine == "mean" or not own:
            return self
        fewer = copy.copy(self)
        fewer._members = self._members[own[0] :]
        fewer._file = self._file.model_copy(update={"members": places[own[0] :]})
        return fewer

    def judging(self) -> ModelSet:
        """Refused: masks of several models are not judged.

        Raises:
            SettingsError: Always.
        """
        raise SettingsError(
            "--qc", expected="a single model", got="a set of models",
            cure="Give one of the packages in its folder 'members'.",
        )  # fmt: skip

    def giving(self, products: Products) -> ModelSet:
        """The same set, which also gives probabilities and entropy of a mean.

        Raises:
            LabelError: The set has no such label.
            SettingsError: The set is no mean on the scan's own grid, or more is wanted.
        """
        file = self._file
        shared = file.resampling is not None and file.restore == "labels-nearest"
        if products.disagreement or (products.names and (file.combine != "mean" or shared)):
            raise SettingsError(
                "--probabilities, --entropy, --disagreement",
                expected="a single model (the first two also of a mean on the scan's grid)",
                got="a set of models",
                cure="Give one of the packages in its folder 'members'.",
            )
        for name in products.probabilities:
            self.labels.named(name)
        check_names(products)
        more = copy.copy(self)
        more._products = products
        return more

    # In memory

    def check(self, geometry: Geometry) -> None:
        """Refuse a scan of this grid where memory does not reach for all members at once.

        Raises:
            ResourceError: With the figure of the member that needs most.
        """
        shared = self._file.resampling
        if shared is not None:
            record = RestoreRecord.of(geometry, shared.spacing_mm)
            check_shared_grid(record, self.plan, self.limits)
            geometry = record.working
        records = [RestoreRecord.for_plan(geometry, member.plan) for member in self._members]
        for member, others in zip(self._members, self._beside(records), strict=True):
            try:
                with_less(member, others, planned=True).check(geometry)
            except ResourceError as error:
                raise ResourceError(
                    error.what,
                    expected=error.expected,
                    got=f"{error.got} beside {others / 1e9:.2g} GB for the rest of the set",
                    cure=error.cure,
                ) from error

    def prepare(
        self, source: ScanLike, *, grid: str = "auto", scan: Scan | None = None
    ) -> Prepared:
        """All that comes before the networks; once for members that agree on it.

        Raises:
            MedsegError: The scan cannot be read, or does not fit the models or the memory.
        """
        wanted = segment.wanted_grid(source, grid)
        scan = scan or segment.read(source, self.plan)
        self.check(scan.geometry)
        shared, back = self._file.resampling, None
        there, on = scan, wanted
        if shared is not None:
            there, back = onto_shared_grid(scan, shared.spacing_mm, order=shared.order)
            back, on = onto_grid(back, scan, wanted), "own"
        parts = [
            replace(part, record=self._way_back(part.record, scan, member.plan, grid=wanted))
            for part, member in zip(self._parts(there, on), self._members, strict=True)
        ]
        nearest = back is not None and self._file.restore == "labels-nearest"
        record = back if nearest and back is not None else parts[0].record
        return PreparedSet(scan, parts[0].voxels, record, wanted, parts=tuple(parts))

    def _parts(self, scan: Scan, grid: Grid) -> Iterator[Prepared]:
        """The scan for each member, without its own voxels."""
        known: dict[str, Prepared] = {}
        for member in self._members:
            key = preparing_key(member)
            if key not in known:
                part = member.prepare(scan, grid=grid, scan=scan)
                known[key] = replace(part, scan=replace(scan, load=_gone, load_slabs=None))
            yield replace(known[key], facts={})

    def _way_back(
        self, record: RestoreRecord, scan: Scan, plan: Plan, *, grid: Grid
    ) -> RestoreRecord:
        """From a member's working grid to where its result is joined with the others'."""
        if self._file.restore == "logits" and self._file.resampling is not None:
            direct = onto_grid(RestoreRecord.for_plan(scan.geometry, plan), scan, grid)
            return replace(direct, working=record.working)
        if self._file.restore == "labels-nearest" and self._file.resampling is None:
            return replace(record, nearest=(True, True, True))
        return record

    def _beside(self, records: Sequence[RestoreRecord]) -> list[int]:
        """For each member, bytes that are held for the others and the joined mask meanwhile."""
        volumes = {
            preparing_key(member): 4 * len(member.plan.channels) * prod(record.working.shape)
            for member, record in zip(self._members, records, strict=True)
        }
        # The joined mask, and the values of one member's.
        masks = 2 * self.plan.labels.dtype.itemsize * prod(records[0].target.shape)
        return [
            sum(volumes.values()) - volumes[preparing_key(member)] + masks
            for member in self._members
        ]

    def infer(
        self,
        prepared: Prepared,
        *,
        before_tiles: Callable[[], None] | None = None,
        scratch: Path | None = None,
    ) -> NDArray[Any]:
        """Class indices (I, J, K) of the set's labels by all members.

        Raises:
            ResourceError: The memory does not reach.
            OutputError: The disk has no room for the mean of probabilities.
        """
        assert isinstance(prepared, PreparedSet)
        folder = Path(tempfile.gettempdir()) if scratch is None else scratch
        beside = self._beside([part.record for part in prepared.parts])
        members = [
            with_less(member, others, planned=False)
            for member, others in zip(self._members, beside, strict=True)
        ]
        if self._file.combine == "mean":
            joined = self._mean(members, prepared, before_tiles, folder)
        else:
            joined = self._painted(members, prepared.parts, before_tiles)
        names = [str(part.facts.get("backend", "")) for part in prepared.parts]
        prepared.facts["backend"] = ", ".join(dict.fromkeys(name for name in names if name))
        if self._file.resampling is not None and self._file.restore == "labels-nearest":
            return labels_from_shared_grid(joined, prepared.record)
        return joined

    def _painted(
        self,
        members: Sequence[Model],
        parts: Sequence[Prepared],
        before_tiles: Callable[[], None] | None,
    ) -> NDArray[Any]:
        total = self._blank(parts[0])
        for member, place, part in zip(members, self._file.members, parts, strict=True):
            labels = member.labels
            found = labels.to_values(member.infer(part, before_tiles=before_tiles))
            chain, grid = member.plan.postprocess, part.record.target
            mask = apply_chain(found, chain, labels, geometry=grid)
            table = painting_table(place, labels, self.labels)
            depth = max(1, _SLAB_VALUES // prod(mask.shape[1:]))
            for start in range(0, len(mask), depth):
                paint(total[start : start + depth], mask[start : start + depth], table)
        return total

    def _mean(
        self,
        members: Sequence[Model],
        prepared: PreparedSet,
        before_tiles: Callable[[], None] | None,
        folder: Path,
    ) -> NDArray[Any]:
        parts = prepared.parts
        total = self._blank(parts[0])
        with mean_of(self._file, members, parts[0].record.target.shape, folder) as mean:
            for member, place, part in zip(members, self._file.members, parts, strict=True):
                ready = member.after_earlier(part, before_tiles)
                predictor = member.predictor_for(ready.voxels.shape[1:], before_tiles)
                mean.add(predictor, ready.voxels, ready.record, label_places(place, self.labels))
                part.facts["backend"] = backend_name(predictor.networks)
            for box, found in mean.classes():
                total[box] = found
            if self._products.names:
                maps = Maps.empty(self._products, total.shape, folder)
                prepared.maps.append(maps)
                mean.give(self._products, self.labels.names, maps.arrays)
        return total

    def _blank(self, part: Prepared) -> NDArray[Any]:
        return np.zeros(part.record.target.shape, class_dtype(len(self.labels) + 1))

    # From disk to disk

    def can_stream(self, scan: Scan) -> bool:
        """Whether all members can go from disk to disk."""
        one_by_one = self._file.resampling is None
        return one_by_one and all(member.can_stream(scan) for member in self._members)

    def must_stream(self, scan: Scan, *, beside_bytes: int = 0) -> bool:
        """Whether memory does not hold a scan for all members at once."""
        if not self.can_stream(scan):
            return False
        records = [RestoreRecord.for_plan(scan.geometry, one.plan) for one in self._members]
        return any(
            member.must_stream(scan, beside_bytes=beside_bytes + others)
            for member, others in zip(self._members, self._beside(records), strict=True)
        )

    def predict_to_file(
        self,
        source: ScanLike,
        path: str | Path,
        *,
        labels: str | Sequence[str] | None = None,
        grid: str = "auto",
        scan: Scan | None = None,
        input_sha256: Sequence[str] | None = None,
        before_tiles: Callable[[], None] | None = None,
    ) -> StreamedPrediction:
        """Segment a scan above memory from disk to disk, see :meth:`Model.predict_to_file`.

        Beside the path the disk must have room for the scan on each of the members' grids, for
        two masks, and for the mean of probabilities (4 bytes a voxel and label).
        """
        wanted = segment.wanted_grid(source, grid)
        scan = scan or segment.read(source, self.plan)
        hashes = segment.input_hashes(source, self.plan) if input_sha256 is None else input_sha256
        if not self.can_stream(scan):
            raise InputError(
                scan.source,
                expected="a scan and a set that can be streamed from the disk",
                got="a shared grid, a cascade, or a scan that must be held as a whole",
                cure="Allow more memory.",
            )
        predictors = [
            member.predictor_for(
                RestoreRecord.for_plan(scan.geometry, member.plan).working.shape, before_tiles
            )
            for member in self._members
        ]
        run = StreamedSet(
            scan, self._file, self._members, predictors, path=Path(path), products=self._products
        )
        names = dict.fromkeys(backend_name(one.networks) for one in predictors)
        done = filled_to_disk(
            scan, self.plan, Path(path), fill=run.fill, grid=wanted, labels=labels,
            provenance=self._provenance(hashes) | {"backend": ", ".join(names)},
        )  # fmt: skip
        return replace(done, files=tuple(run.files))

    def _provenance(self, input_sha256: Sequence[str]) -> dict[str, Any]:
        facts = [member._provenance(input_sha256) for member in self._members]
        file = self._file.model_dump(mode="json", include={"combine", "restore", "resampling"})
        models = [{"package_sha256": one["package_sha256"], **one["options"]} for one in facts]
        chain = [step.text for step in self._file.postprocess]
        return facts[0] | {
            "package_sha256": self.sha256,
            "members": sum(one["members"] for one in facts),
            "options": {**file, "postprocess": chain, "models": models},
        }


def _gone() -> NoReturn:
    raise RuntimeError("the voxels of this scan were let go")
