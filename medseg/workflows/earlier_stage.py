"""What a cascade's second stage learns from: masks of a first stage that never saw the case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from medseg.core.labels import LabelSet
from medseg.core.plan import Plan
from medseg.core.scan import Scan
from medseg.datasets.dataset import Case
from medseg.datasets.reading import read_case_image
from medseg.inference.cascade import OneHotVolume
from medseg.inference.volume import TensorVolume
from medseg.io.atomic import whole_file
from medseg.io.formats import read_mask
from medseg.package.package import ModelPackage, load_package
from medseg.training.cache import CachedCase
from medseg.training.cache_store import StoredArray, write_array
from medseg.transforms.earlier import onto_working_grid, outside_of
from medseg.transforms.preprocess import RestoreRecord
from medseg.workflows import segment

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EarlierStage:
    """The first stage of a cascade, trained, with its masks.

    Attributes:
        packages: The network of each fold of the second stage; ``""`` for the joined package.
        masks: Of each case, on the scan's own grid, by networks that never saw the case.
        labels: What the values of the masks mean.
    """

    packages: Mapping[str, Path]
    masks: Mapping[str, Path]
    labels: LabelSet

    def package(self, fold: str = "") -> ModelPackage:
        """What runs before the second stage. Its labels count from 1, as the channels do.

        Args:
            fold: Of the second stage; "" for the package of all.
        """
        found = load_package(self.packages.get(fold) or self.packages[""])
        numbered = LabelSet.from_names(dict(enumerate(self.labels.names, start=1)))
        plan = found.plan.model_copy(update={"labels": numbered, "postprocess": ()})
        # What masks of its training look like says nothing of those of the second stage.
        return replace(found, model=found.model.model_copy(update={"plan": plan}), profile=None)

    def changes(self, channels: int) -> dict[str, object]:
        """What a plan needs to take the labels, by dotted keys.

        Args:
            channels: Of a scan.
        """
        count = len(self.labels)
        return {"cascade_labels": count, "network.in_channels": channels + count}

    def prepared(self, case: Case, scan: Scan, plan: Plan) -> segment.Prepared:
        """A case as the second stage's network takes it."""
        ready = segment.prepare(scan, plan)
        labels = self._on_grid(case, scan, plan, ready.record)
        volume = TensorVolume(cast("Tensor", ready.voxels))
        return replace(ready, voxels=OneHotVolume(volume, labels, plan.cascade_labels))

    def attach(
        self,
        cached: Sequence[CachedCase],
        cases: Sequence[Case],
        plan: Plan,
        *,
        folder: Path,
        progress: Callable[[int, int, str], None],
    ) -> list[CachedCase]:
        """Give preprocessed cases the labels of the first stage.

        Args:
            cached: The scans.
            cases: The same in the dataset.
            plan: Of the second stage.
            folder: Where they are kept; what is there of this first stage is not made again.
            progress: Called with (done, total, case id).
        """
        # A first stage that was trained on has other masks.
        folder = folder / segment.file_sha256(self.packages[""] / "checksums")[:12]
        attached = []
        for number, (one, case) in enumerate(zip(cached, cases, strict=True), start=1):
            path = folder / f"{case.id}.b2nd"
            kind = np.dtype(np.uint8 if plan.cascade_labels < 255 else np.uint16)
            if not path.is_file():
                scan = read_case_image(case)
                labels = self._on_grid(case, scan, plan, None).numpy().astype(kind)
                with whole_file(path) as temporary:
                    write_array(temporary, labels, thin=plan.patch_size[2] == 1)
            earlier = StoredArray(path, one.label.shape, kind)
            attached.append(replace(one, earlier=earlier))
            progress(number, len(cases), f"{case.id}, its coarse labels")
        return attached

    def _on_grid(self, case: Case, scan: Scan, plan: Plan, record: RestoreRecord | None) -> Tensor:
        outside = None
        if plan.crop != "none":
            record = record or segment.prepare(scan, plan).record
            outside = outside_of(scan, plan, record)
        record = record or RestoreRecord.for_plan(scan.geometry, plan)
        mask = _numbered(read_mask(self.masks[case.id])[0], self.labels)
        return onto_working_grid(mask, scan, plan, record=record, outside=outside)


def _numbered(mask: NDArray[Any], labels: LabelSet) -> NDArray[Any]:
    """Mask values as the places of their labels, from 1."""
    table = np.zeros(max(labels.values) + 1, np.uint8 if len(labels) <= 255 else np.uint16)
    table[list(labels.values)] = np.arange(1, len(labels) + 1)
    numbered: NDArray[Any] = table[mask]
    return numbered
