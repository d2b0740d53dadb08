"""Options of a prediction: one frozen object for the command, the batch and Python."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast, get_args

from medseg.core.errors import SettingsError
from medseg.core.labels import LabelSet
from medseg.inference.memory import Limits, Ring
from medseg.inference.products import Products
from medseg.workflows.output_options import Outputs
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
    probabilities: str | Sequence[str] | None
    entropy: bool
    disagreement: bool
    maps_as: str
    per_label: bool
    contours: str
    meshes: str
    measure: bool
    preview: bool
    qc: bool


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
        probabilities: Names of labels, in a list or with commas: write the probability of each
            as ``<case>_probability_<label>.nii.gz``.
        entropy: Write ``<case>_entropy.nii.gz``: 0 where the model is sure, 1 where all
            classes are alike.
        disagreement: Write ``<case>_disagreement.nii.gz``: how much members and mirrored
            views differ.
        maps_as: Numbers in those files: ``"uint8"``, in steps of 1/255, or ``"float16"``, in a
            float32 file, since NIfTI has none.
        skip_air: Leave tiles of pure background out.
        per_label: With ``contours``, ``meshes``, ``measure`` and ``preview``: files to be
            written beside the mask, see :class:`~medseg.workflows.output_options.Outputs`.
        qc: Judge each mask; trust and reasons go into sidecar and summary.

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
    probabilities: str | Sequence[str] | None = None
    entropy: bool = False
    disagreement: bool = False
    maps_as: str = "uint8"
    per_label: bool = False
    contours: str = ""
    meshes: str = ""
    measure: bool = False
    preview: bool = False
    qc: bool = False

    def __post_init__(self) -> None:
        check_grid(self.grid)
        _ = self.outputs  # tells of formats that there are not
        if self.ring not in get_args(Ring):
            raise SettingsError("--ring", expected=", ".join(get_args(Ring)), got=str(self.ring))
        if self.maps_as not in ("uint8", "float16"):
            raise SettingsError("--maps-as", expected="uint8 or float16", got=repr(self.maps_as))
        for name in ("max_memory_bytes", "max_device_memory_bytes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                flag = f"--{name.removesuffix('_bytes').replace('_', '-')}"
                raise SettingsError(flag, expected="more than 0 bytes", got=str(value))

    @property
    def limits(self) -> Limits:
        """Of memory."""
        return Limits(self.max_memory_bytes, self.max_device_memory_bytes, self.ring)

    @property
    def outputs(self) -> Outputs:
        """What is written beside the mask."""
        return Outputs(self.per_label, self.contours, self.meshes, self.measure, self.preview)

    @property
    def need_scan(self) -> bool:
        """Whether the intensities of the scan are needed once its mask is there."""
        return self.outputs.need_scan or self.qc

    def products(self, labels: LabelSet) -> Products:
        """What is to be made beside labels.

        Args:
            labels: Of the model.

        Raises:
            LabelError: The model has no label of that name.
        """
        names = [labels.named(name).name for name in _names(self.probabilities)]
        return Products(
            tuple(dict.fromkeys(names)),
            entropy=self.entropy,
            disagreement=self.disagreement,
            dtype=cast(Literal["uint8", "float16"], self.maps_as),
        )

    def of_result(self) -> dict[str, Any]:
        """The options that change what is written; plain JSON, equal for equal wishes."""
        maps = {
            "probabilities": sorted({name.lower() for name in _names(self.probabilities)}),
            "entropy": self.entropy,
            "disagreement": self.disagreement,
            "maps_as": self.maps_as,
        }
        names = None if self.labels is None else _names(self.labels)
        return {
            "labels": None if names is None else sorted({name.lower() for name in names}),
            "grid": self.grid,
            "series": self.series,
            "accept_gaps": self.accept_gaps,
            "save_scan": self.save_scan,
            "ring": self.ring,
            "skip_air": self.skip_air,
            **({"outputs": self.outputs.of_result()} if self.outputs.any else {}),
            **({"qc": True} if self.qc else {}),
            **(maps if self.probabilities or self.entropy or self.disagreement else {}),
        }


def _names(names: str | Sequence[str] | None) -> list[str]:
    parts = names.split(",") if isinstance(names, str) else names or ()
    return [part.strip() for part in parts if part.strip()]


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
