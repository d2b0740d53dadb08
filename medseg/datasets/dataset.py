"""What a dataset is: cases, channels, labels and the splits that came with it. No voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.core.errors import DatasetError
from medseg.core.labels import LabelSet


@dataclass(frozen=True)
class OrganMask:
    """A file that shows one structure alone: whatever is not 0 belongs to it."""

    value: int
    path: Path


@dataclass(frozen=True)
class Case:
    """One scan with its mask. :mod:`medseg.datasets.reading` reads both.

    Attributes:
        id: Name of the case, unique in the dataset.
        images: The scan: one file with all channels, or a file per channel in their order,
            without those that are missing.
        label: The mask on the same grid; None where there is none, or one file per organ.
        group: Cases of one group (one patient) never stand on both sides of a split; "" is
            a group of its own.
        organs: Masks of single organs, in the order in which they are painted: where two
            overlap, the later one stays.
        structures: For a mask that names its structures (DICOM-SEG, RTSTRUCT): those that
            count, in painting order, and the values they get.
        series: For each image which DICOM series it is, as for ``read_scan``; "" or nothing
            where only one is usable.
        annotated: The mask values that were looked for in this case; None for all of them.
        missing: Channels that the case has no image of, by their number from 0.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    group: str = ""
    organs: tuple[OrganMask, ...] = ()
    structures: LabelSet | None = None
    series: tuple[str, ...] = ()
    annotated: tuple[int, ...] | None = None
    missing: tuple[int, ...] = ()

    @property
    def masks(self) -> tuple[Path, ...]:
        """The files of the mask; none where the case has no mask."""
        if self.label is not None:
            return (self.label,)
        return tuple(organ.path for organ in self.organs)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the case."""
        return (*self.images, *self.masks)


@dataclass(frozen=True)
class Split:
    """Ids of the cases to learn from and of those to be judged by."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True)
class Region:
    """A structure that unites several mask values and may overlap others (nnU-Net).

    Attributes:
        name: Of the structure.
        values: Its mask values.
        value: What it is painted with in a predicted mask, later regions over earlier ones;
            None where the dataset does not say it.
    """

    name: str
    values: tuple[int, ...]
    value: int | None = None


@dataclass(frozen=True)
class Dataset:
    """Cases that share channels and labels.

    Attributes:
        name: As the dataset states it, else the folder's name.
        folder: Where the dataset lies.
        channels: A name per channel, unique.
        modalities: ``"CT"``, ``"MR"`` or the text as given, one per channel.
        labels: What the mask values mean.
        cases: All cases, in the order of the dataset's own list, else by name.
        splits: The folds that came with the dataset; None where there are none.
        licence: Under which terms the data may be used; "" where nothing is stated.
        layout: ``"MSD"``, ``"nnU-Net"``, ``"table"``, ``"folders"``, ``"BIDS"`` or ``"organs"``.
        regions: Structures made of several values, where the dataset names such.
        ignore: The mask value of voxels that nobody has labelled; None where there is none.
        strays: Images and masks in the folder that belong to no case.
    """

    name: str
    folder: Path
    channels: tuple[str, ...]
    modalities: tuple[str, ...]
    labels: LabelSet
    cases: tuple[Case, ...]
    splits: tuple[Split, ...] | None
    licence: str
    layout: str = "MSD"
    regions: tuple[Region, ...] = ()
    ignore: int | None = None
    strays: tuple[Path, ...] = ()

    @property
    def groups(self) -> dict[str, str]:
        """Group of each case that has one, by case id."""
        return {case.id: case.group for case in self.cases if case.group}

    def select(self, case_ids: tuple[str, ...]) -> tuple[Case, ...]:
        """The cases of these ids, in the order given.

        Raises:
            DatasetError: An id is not in the dataset.
        """
        by_id = {case.id: case for case in self.cases}
        unknown = [case_id for case_id in case_ids if case_id not in by_id]
        if unknown:
            raise DatasetError(
                f"dataset '{self.name}'", expected="known case ids", got=listing(unknown)
            )
        return tuple(by_id[case_id] for case_id in case_ids)


def listing(names: Sequence[str], *, most: int = 5) -> str:
    """The first few of many names, for a message of one line."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
