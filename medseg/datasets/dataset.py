"""What a dataset is: cases, channels, labels and the splits that came with it. No voxels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medseg.core.errors import DatasetError
from medseg.core.labels import LabelSet


@dataclass(frozen=True)
class Case:
    """One scan with its mask.

    Attributes:
        id: Name of the case, unique in the dataset.
        image: The scan; all channels are in this file.
        label: The mask on the same grid; None where there is none.
        group: Cases of one group (one patient) never stand on both sides of a split; "" is
            a group of its own.
    """

    id: str
    image: Path
    label: Path | None
    group: str = ""


@dataclass(frozen=True)
class Split:
    """Ids of the cases to learn from and of those to be judged by."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """Cases that share channels and labels.

    Attributes:
        name: As ``dataset.json`` states it, else the folder's name.
        folder: Where ``dataset.json`` lies.
        channels: A name per channel, unique.
        modalities: ``"CT"``, ``"MR"`` or the text as given, one per channel.
        labels: What the mask values mean.
        cases: All cases, in the order of ``dataset.json``.
        splits: The folds that came with the dataset; None where there are none.
        licence: Under which terms the data may be used; "" where nothing is stated.
    """

    name: str
    folder: Path
    channels: tuple[str, ...]
    modalities: tuple[str, ...]
    labels: LabelSet
    cases: tuple[Case, ...]
    splits: tuple[Split, ...] | None
    licence: str

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


def listing(names: list[str], *, most: int = 5) -> str:
    """The first few of many names, for a message of one line."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
