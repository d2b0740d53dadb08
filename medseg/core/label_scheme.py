"""How the values of a training mask become what a network learns.

Three schemes share one idea: a mask is kept as small indices, 0 for background, and tables say
what an index stands for.

plain labels    index n is the n-th label; the network ends in a softmax.
regions         labels overlap: an index stands for a set of labels; the network ends in one
                sigmoid per label.
ignore          the last index marks voxels that nobody has labelled; no loss looks at them.

A case may also say which labels were annotated in it: :meth:`LabelScheme.known`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.labels import LabelSet


@dataclass(frozen=True)
class LabelScheme:
    """Labels with how they are learned.

    Attributes:
        labels: In the order of the network's outputs; with regions the order of painting.
        regions: The labels overlap.
        ignore: The mask value of voxels to be ignored; None where there is none.
    """

    labels: LabelSet
    regions: bool = False
    ignore: int | None = None

    @cached_property
    def cells(self) -> tuple[tuple[int, ...], ...]:
        """The mask values that each index from 1 on stands for, without the ignored one."""
        if not self.regions:
            taken: set[int] = set()
            kept = []
            for label in reversed(self.labels.labels):
                kept.append(tuple(value for value in label.sources if value not in taken))
                taken.update(label.sources)
            return tuple(reversed(kept))
        together: dict[tuple[int, ...], list[int]] = {}
        for value in sorted({value for label in self.labels.labels for value in label.sources}):
            key = tuple(n for n, one in enumerate(self.labels.labels) if value in one.sources)
            together.setdefault(key, []).append(value)
        return tuple(tuple(values) for values in together.values())

    @property
    def ignored(self) -> int | None:
        """The index of voxels to be ignored; None where there are none."""
        return None if self.ignore is None else len(self.cells) + 1

    @property
    def indices(self) -> int:
        """How many indices there are, background and the ignored one included."""
        return len(self.cells) + 1 + (self.ignore is not None)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned type that holds the indices."""
        return np.dtype(np.uint8 if self.indices <= 256 else np.uint16)

    @cached_property
    def membership(self) -> NDArray[np.bool_]:
        """(indices, labels): whether a voxel of an index belongs to a label."""
        table = np.zeros((self.indices, len(self.labels)), dtype=bool)
        for index, values in enumerate(self.cells, start=1):
            for place, label in enumerate(self.labels.labels):
                owns = index == place + 1 if not self.regions else values[0] in label.sources
                table[index, place] = owns
        return table

    @cached_property
    def shown(self) -> NDArray[np.bool_]:
        """(labels + 1, labels): which labels a painted mask shows where it holds class n.

        A region shows also those that contain it, although one alone is painted.
        """
        table = np.zeros((len(self.labels) + 1, len(self.labels)), dtype=bool)
        for place, label in enumerate(self.labels.labels):
            for other, around in enumerate(self.labels.labels):
                inside = self.regions and set(label.sources) <= set(around.sources)
                table[place + 1, other] = inside or place == other
        return table

    def to_indices(self, mask: NDArray[Any]) -> NDArray[Any]:
        """Turn mask values (any shape) into indices; values that no label names become 0."""
        named = [value for values in self.cells for value in values]
        top = max(int(mask.max(initial=0)), *named, self.ignore or 0)
        table = np.zeros(top + 1, dtype=self.dtype)
        for index, values in enumerate(self.cells, start=1):
            table[list(values)] = index
        if self.ignore is not None:
            table[self.ignore] = self.ignored
        return np.asarray(table[mask])

    def painted(self, indices: NDArray[Any]) -> NDArray[Any]:
        """Class indices as a predicted mask shows them: a later region over an earlier one.

        What is to be ignored becomes background.
        """
        places = np.arange(1, len(self.labels) + 1)
        table = (self.membership * places).max(axis=1).astype(self.dtype)
        return np.asarray(table[indices])

    def layers_of(self, values: NDArray[Any], *, predicted: bool) -> NDArray[np.bool_]:
        """Which labels a voxel of each mask value belongs to: (values, labels) bool.

        Args:
            values: (n,) values of a mask.
            predicted: A value that paints a label stands for it and for what contains it; other
                values mean what they mean in the dataset.
        """
        table = self.membership[self.to_indices(values)]
        if predicted:
            for place, value in enumerate(self.labels.values):
                table[values == value] = self.shown[place + 1]
        return np.asarray(table)

    def mirrored(self, pairs: Collection[tuple[str, str]]) -> NDArray[np.int64]:
        """(indices,) what each index becomes where left and right are exchanged.

        -1 for an index whose counterpart no mask value stands for.

        Args:
            pairs: Names of the labels that are exchanged.
        """
        order = list(range(len(self.labels)))
        for left, right in pairs:
            a, b = self.labels.names.index(left), self.labels.names.index(right)
            order[a], order[b] = b, a
        table = np.full(self.indices, -1, dtype=np.int64)
        for index, row in enumerate(self.membership):
            same = np.flatnonzero((self.membership == row[order]).all(axis=1))
            table[index] = same[0] if len(same) else -1
        if self.ignored is not None:
            table[self.ignored] = self.ignored
        return table

    def known(self, annotated: Collection[int] | None) -> tuple[bool, ...] | None:
        """For each label whether a case knows it; None where it knows all.

        Args:
            annotated: The mask values that were annotated in the case; None for all.
        """
        if annotated is None:
            return None
        found = tuple(set(label.sources) <= set(annotated) for label in self.labels.labels)
        return None if all(found) else found
