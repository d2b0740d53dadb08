"""DICOM as it comes from a hospital: the door that the rest of the house uses."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from medseg.core.errors import InputError
from medseg.core.geometry import FloatTriple
from medseg.core.scan import Scan
from medseg.io.dicom_series import SeriesInfo, find_series, read_series

__all__ = ["SeriesInfo", "choose_series", "find_series", "read_dicom", "read_series"]

_LOG = logging.getLogger(__name__)
_MODALITIES = ("CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "OPT")
_NUMBER = re.compile(r"\d+(\.\d+)*")
# Volumes that cover nearly as much as the longest are as good.
_NEARLY_AS_LONG = 0.9


def read_dicom(
    source: str | Path | Sequence[str | Path],
    *,
    series: str | None = None,
    accept_gaps: bool = False,
) -> Scan:
    """Read one series of a DICOM file, folder, zip or DICOMDIR, or from a list of files.

    Args:
        source: Where it lies.
        series: Which one, as for :func:`choose_series`; None takes the only usable one.
        accept_gaps: Bridge uneven gaps by interpolation onto an even grid.

    Raises:
        FileError: There is no DICOM, or pixels cannot be read.
        GeometryError: The slices make no grid, or their gaps are uneven.
        InputError: Several series could be meant, or none fits.
    """
    info = choose_series(find_series(source), series)
    return read_series(info, accept_gaps=accept_gaps)


def choose_series(
    series: Sequence[SeriesInfo],
    selector: str | None,
    *,
    modality: str = "",
    spacing_mm: FloatTriple | None = None,
    words: Sequence[str] = (),
) -> SeriesInfo:
    """Choose one of several series.

    Args:
        series: Of one study.
        selector: The number or the UID of a series; a pattern for its description (part of
            it, or with ``*`` and ``?``, case does not matter); ``"auto"`` for the one that
            fits best; None for the only one that is usable.
        modality: For ``auto``: what is wanted, such as ``"CT"``; "" takes any.
        spacing_mm: For ``auto``: the nearest to this is wanted; None takes the finest.
        words: For ``auto``: of contrast or kernel (``"portal"``, ``"B30f"``); the more of them
            begin a word of the description or kernel, the better. Case does not matter.

    Returns:
        The series. ``auto`` and patterns tell their choice and the runners-up through
        ``logging``.

    Raises:
        InputError: None fits, or several fit equally well; they are named.
    """
    if selector is None:
        return _only(series)
    if selector == "auto":
        return _best(series, modality=modality, spacing_mm=spacing_mm, words=words)
    matching = [info for info in series if selector in (info.id, info.uid)]
    # A number that is not there must not find another series by the numbers in its name.
    if not matching and not _NUMBER.fullmatch(selector):
        pattern = selector.lower() if set(selector) & set("*?[") else f"*{selector.lower()}*"
        matching = [info for info in series if fnmatchcase(info.description.lower(), pattern)]
        matching = [info for info in matching if not info.reasons_against] or matching
    if len(matching) == 1:
        _LOG.info("series '%s' is %s", selector, matching[0].name)
        return matching[0]
    raise InputError(
        f"series '{selector}'",
        expected="one series",
        got=_listed(matching) if matching else f"none of {_listed(series)}",
        cure="Give the number of one series; `medseg info` lists them.",
    )


def _only(series: Sequence[SeriesInfo]) -> SeriesInfo:
    usable = [info for info in series if not info.reasons_against]
    if len(usable) == 1:
        return usable[0]
    # A short series is better than none; and of one alone the reader says best what is wrong.
    short = [info for info in series if not info.faults and _only_short(info)]
    if not usable and len(short) == 1:
        if short[0].doubts:
            _LOG.warning("%s: taken although it has %s", short[0].name, short[0].doubts[0])
        return short[0]
    if len(series) == 1 and series[0].faults:
        return series[0]
    raise InputError(
        str(series[0].source) if series else "DICOM",
        expected="one usable series",
        got=f"{len(usable)} of {len(series)}: {_listed(usable or series)}",
        cure="Say which: --series N (series='N' in Python), or 'auto'.",
    )


def _only_short(info: SeriesInfo) -> bool:
    """Whether nothing worse speaks against a series than gaps and few slices."""
    return all(doubt.startswith("only ") for doubt in info.doubts)


def _best(
    series: Sequence[SeriesInfo],
    *,
    modality: str,
    spacing_mm: FloatTriple | None,
    words: Sequence[str],
) -> SeriesInfo:
    readable = [info for info in series if not info.faults and not info.doubts]
    # What people call a channel ("T1") is no modality of DICOM, and rules nothing out.
    wanted = modality.upper() if modality.upper() in _MODALITIES else ""
    fitting = [info for info in readable if not wanted or info.modality.upper() == wanted]
    if not fitting:
        raise InputError(
            str(series[0].source) if series else "DICOM",
            expected=f"a usable series{' of ' + wanted if wanted else ''}",
            got=f"none of {_listed(series)}",
            cure="Name one with --series N.",
        )
    longest = max(_length_mm(info) for info in fitting)

    def rank(info: SeriesInfo) -> tuple[bool, bool, int, bool, float]:
        long = _length_mm(info) >= _NEARLY_AS_LONG * longest
        found = len(_words_in(info, words))
        return (not info.gaps, long, found, info.original, -_distance(info, spacing_mm))

    order = sorted(fitting, key=rank, reverse=True)
    if len(order) > 1 and rank(order[0]) == rank(order[1]):
        raise InputError(
            str(order[0].source),
            expected="one series that fits best",
            got=f"{order[0].name} and {order[1].name} equally",
            cure="Name one with --series N.",
        )
    others = _listed(order[1:]) if order[1:] else "none"
    shown = ", ".join(_words_in(order[0], words))
    by = f" by '{shown}'" if shown else ""
    _LOG.info("auto: chose %s%s; runners-up: %s", order[0].name, by, others)
    return order[0]


def _words_in(info: SeriesInfo, words: Sequence[str]) -> list[str]:
    """Those of the words that begin a word of the description or the kernel."""
    text = f"{info.description} {info.kernel}".casefold()
    # Behind a number no other digit may follow: "T1" is not in "T10".
    patterns = {word: rf"(?<![^\W_]){re.escape(word.casefold())}(?!(?<=\d)\d)" for word in words}
    return [word for word, pattern in patterns.items() if re.search(pattern, text)]


def _length_mm(info: SeriesInfo) -> float:
    return (
        0.0
        if info.shape is None or info.spacing_mm is None
        else (info.shape[2] * info.spacing_mm[2])
    )


def _distance(info: SeriesInfo, wanted_mm: FloatTriple | None) -> float:
    """How far the voxel size is from what is wanted, in steps of about 5 %."""
    sides = info.spacing_mm or (1.0, 1.0, 1.0)
    if wanted_mm is None:
        return round(sum(20 * math.log(side) for side in sides))
    # Sorted: what is "through the slices" may be another axis in training.
    pairs = zip(sorted(sides), sorted(wanted_mm), strict=True)
    return round(sum(20 * abs(math.log(side / other)) for side, other in pairs))


def _listed(series: Sequence[SeriesInfo]) -> str:
    texts = []
    for info in series[:8]:
        against = ", ".join(info.reasons_against)
        texts.append(f"{info.name}{': ' + against if against else ''}")
    more = f" and {len(series) - 8} more" if len(series) > 8 else ""
    return "; ".join(texts) + more
