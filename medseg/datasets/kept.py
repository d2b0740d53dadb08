"""Small cases stay in memory from the check of a dataset until they are preprocessed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from medseg.core.scan import Scan
from medseg.datasets.dataset import Case
from medseg.datasets.files import stamps

# A thousand small scans, or no body CT at all: of these reading is the smaller part.
_MOST_BYTES = 256_000_000


@dataclass(frozen=True)
class KeptCase:
    """A case as it was read.

    Attributes:
        scan: Its voxels are in memory, and its own to change.
        mask: (I, J, K) values, on the scan's grid.
        nbytes: Of both.
        stamps: Of the files that it was read from.
    """

    scan: Scan
    mask: NDArray[Any]
    nbytes: int
    stamps: tuple[tuple[str, int, int], ...]


class KeptCases:
    """Cases that were read once and are wanted once more, as many as fit.

    Several threads may use it. A case whose files have changed since counts as not kept.

    Args:
        most_bytes: What all of them may take.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self.nbytes = 0
        self._most_bytes = most_bytes
        self._cases: dict[str, KeptCase] = {}
        self._turns = Lock()

    def keep(self, case: Case, scan: Scan, voxels: NDArray[Any], mask: NDArray[Any]) -> None:
        """Keep a case, if it fits: its scan, voxels (C, I, J, K) and mask (I, J, K)."""
        nbytes, seen = voxels.nbytes + mask.nbytes, _stamps(case)
        if seen is None:
            return
        read = replace(scan, load=lambda: voxels, load_slabs=None)
        with self._turns:
            if self.nbytes + nbytes <= self._most_bytes:
                self._cases[case.id] = KeptCase(read, mask, nbytes, seen)
                self.nbytes += nbytes

    def look_up(self, case: Case) -> KeptCase | None:
        """The case, which stays; None where it was not kept, or its files have changed."""
        kept = self._cases.get(case.id)
        return None if kept is None or kept.stamps != _stamps(case) else kept

    def take(self, case: Case) -> KeptCase | None:
        """The case, which goes; None as of :meth:`look_up`."""
        kept = self.look_up(case)
        with self._turns:
            gone = self._cases.pop(case.id, None)
            self.nbytes -= 0 if gone is None else gone.nbytes
        return kept

    def clear(self) -> None:
        """Let go of all that was not taken."""
        with self._turns:
            self._cases.clear()
            self.nbytes = 0


def _stamps(case: Case) -> tuple[tuple[str, int, int], ...] | None:
    """None where a file is gone."""
    try:
        return stamps(case.files)
    except OSError:
        return None
