"""Options of a prediction: one frozen object for the command, the batch and Python."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, get_args

from medseg.core.errors import SettingsError
from medseg.inference.memory import Limits, Ring
from medseg.workflows.segment import check_grid

Backend = str

_BYTES = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?P<binary>I?)B?", re.IGNORECASE)


class PredictKeywords(TypedDict, total=False):
    """What ``medseg.predict`` takes by keyword; see :class:`PredictOptions` for each."""

    labels: str | Sequence[str] | None
    grid: str
    series: str | None
    accept_gaps: bool
    save_scan: bool
    backend: Backend
    max_memory_bytes: int | None
    max_device_memory_bytes: int | None
    ring: Ring
    skip_air: bool


@dataclass(frozen=True)
class PredictOptions:
    """How scans are read, segmented and written.

    Attributes:
        labels: Names of the labels to keep, in a list or with commas; None keeps all.
        grid: Where the mask of a tilted, sheared or uneven scan lies, see ``Model.predict``.
        series: Which series of each DICOM study: its number, UID, a pattern for its
            description, or ``"auto"``; None where only one is usable.
        accept_gaps: Interpolate where DICOM slices lie at uneven distances.
        save_scan: Write ``<case>_scan.nii.gz`` beside each mask, on the mask's grid.
        backend: What runs the network; ``"auto"`` measures once and takes the quickest.
        max_memory_bytes: Refuse a scan that needs more RAM; None: 80 % of what is free.
        max_device_memory_bytes: The same for the memory of the device.
        ring: Precision of the logits that are carried: ``"fp32"``, ``"fp16"``, or ``"auto"``
            for fp32 where it fits into the memory.
        skip_air: Leave tiles of pure background out.

    Raises:
        SettingsError: A value is none of those above.
    """

    labels: str | Sequence[str] | None = None
    grid: str = "auto"
    series: str | None = None
    accept_gaps: bool = False
    save_scan: bool = False
    backend: Backend = "auto"
    max_memory_bytes: int | None = None
    max_device_memory_bytes: int | None = None
    ring: Ring = "auto"
    skip_air: bool = False

    def __post_init__(self) -> None:
        check_grid(self.grid)
        if self.ring not in get_args(Ring):
            raise SettingsError("--ring", expected=", ".join(get_args(Ring)), got=str(self.ring))
        for name in ("max_memory_bytes", "max_device_memory_bytes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                flag = f"--{name.removesuffix('_bytes').replace('_', '-')}"
                raise SettingsError(flag, expected="more than 0 bytes", got=str(value))

    @property
    def limits(self) -> Limits:
        """Of memory."""
        return Limits(self.max_memory_bytes, self.max_device_memory_bytes, self.ring)

    def of_result(self) -> dict[str, Any]:
        """The options that change what is written; plain JSON, equal for equal wishes."""
        labels = self.labels.split(",") if isinstance(self.labels, str) else self.labels
        names = None if labels is None else sorted({name.strip().lower() for name in labels} - {""})
        return {
            "labels": names,
            "grid": self.grid,
            "series": self.series,
            "accept_gaps": self.accept_gaps,
            "save_scan": self.save_scan,
            "ring": self.ring,
            "skip_air": self.skip_air,
        }


def parse_bytes(text: str, *, name: str) -> int:
    """Turn ``"4GB"``, ``"512 MiB"`` or ``"1000000"`` into a number of bytes.

    KB, MB, GB and TB count in 1000, KiB, MiB, GiB and TiB in 1024; K, M, G and T in 1000.

    Args:
        text: A number with or without a unit.
        name: The option, for the message.

    Raises:
        SettingsError: It is no size, or zero.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is not None:
        step = 1024 if match["binary"] else 1000
        power = " KMGT".index(match["unit"].upper() or " ")
        number = float(match["number"]) * step**power
        if math.isfinite(number) and number >= 1:
            return int(number)
    raise SettingsError(name, expected="a size such as 4GB, 512MB or 2GiB", got=f"'{text}'")
