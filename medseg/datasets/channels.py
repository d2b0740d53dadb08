"""What the channels of a scan are, where nobody has stated it: a look into the first case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medseg.core.errors import MedsegError
from medseg.datasets.dataset import Case
from medseg.datasets.description import distinct, modality_of
from medseg.datasets.reading import read_case_image

# Air is at -1000 HU, and no other modality is stored with such values.
_BELOW_ALL_BUT_CT = -500.0
_COLOURS = ("red", "green", "blue")


def guess_channels(cases: Sequence[Case]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and modalities of the channels, by the first case that can be read.

    DICOM states its modality. Else voxels that reach below -500 are taken for CT; three
    channels of bytes for colours.
    """
    for case in cases:
        try:
            scan = read_case_image(case)
            if scan.modality and len(scan.channels) == 1:
                return (scan.modality,), (modality_of(scan.modality),)
            voxels = scan.voxels()
        except MedsegError:
            continue
        if len(voxels) == len(_COLOURS) and voxels.dtype == np.uint8:
            return _COLOURS, ("RGB",) * len(_COLOURS)
        names = ["CT" if channel.min() < _BELOW_ALL_BUT_CT else "image" for channel in voxels]
        return distinct(tuple(names)), tuple(modality_of(name) for name in names)
    return ("image",), ("image",)
