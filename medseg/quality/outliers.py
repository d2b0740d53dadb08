"""Cases that differ from the cohort: spacing, size, intensity, volume of structures, modality."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.datasets.dataset import Dataset
from medseg.quality.finding import Finding
from medseg.quality.observe import Observation

FEWEST = 5
_FAR = 6.0
# Air in CT is at -1000 HU; no other modality is stored with values this low.
_CT_BELOW = -500.0
_MINORITY = 0.25


def robust_z(values: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """Distance from the median in robust standard deviations, by column.

    Args:
        values: (cases, n); NaN where a case has no value.
        floor: The least standard deviation, so that equal values do not make any other an
            outlier.

    Returns:
        (cases, n), NaN where fewer than five cases have a value.

    Source: Iglewicz, Hoaglin, "How to detect and handle outliers", 1993 (1.4826 times the
    median absolute deviation).
    """
    known = np.isfinite(values).sum(axis=0)
    result = np.full(values.shape, np.nan)
    for column in np.flatnonzero(known >= FEWEST):
        own = values[:, column]
        middle = np.nanmedian(own)
        spread = max(1.4826 * float(np.nanmedian(np.abs(own - middle))), floor)
        result[:, column] = (own - middle) / spread
    return result


def find_outliers(dataset: Dataset, seen: Sequence[Observation]) -> list[Finding]:
    """Outliers in spacing, size, intensity and volume, and cases of another modality."""
    whole = [one for one in seen if one.shape is not None and one.spacing_mm is not None]
    strangers = _mixed_modalities(dataset, whole)
    others = {finding.case for finding in strangers}
    alike = [one for one in whole if one.case not in others]
    return [
        *strangers,
        *_spacing(whole),
        *_size(whole),
        *_intensity(dataset, alike),
        *_volumes(dataset, seen),
        *_contrasts(dataset, seen),
    ]


def _spacing(seen: Sequence[Observation]) -> list[Finding]:
    values = np.array([one.spacing_mm for one in seen], dtype=np.float64).reshape(-1, 3)
    z = robust_z(np.log(values), 0.03)
    middle = np.median(values, axis=0) if len(values) else values
    return [
        Finding(
            "spacing-outlier", "warning", one.case,
            f"voxels of about {_mm(middle)}, as in the other cases", _mm(own),
            "Look whether the header states the right spacing.",
        )
        for one, own, far in zip(seen, values, z, strict=True)
        if np.nanmax(np.abs(far), initial=0.0) > _FAR
    ]  # fmt: skip


def _size(seen: Sequence[Observation]) -> list[Finding]:
    shapes = np.array([one.shape for one in seen], dtype=np.float64).reshape(-1, 3)
    z = robust_z(np.log(shapes), 0.1)
    flat = shapes[:, 2] == 1
    found = []
    for one, far, is_flat in zip(seen, z, flat, strict=True):
        mixed = 0 < flat.mean() < 1 and is_flat == (flat.mean() < 0.5)
        if not mixed and np.nanmax(np.abs(far), initial=0.0) <= _FAR:
            continue
        middle = " x ".join(f"{side:.0f}" for side in np.median(shapes, axis=0))
        found.append(
            Finding(
                "size-outlier", "warning", one.case, f"about {middle} voxels (RAS order)",
                " x ".join(map(str, one.shape or ())),
                "Look whether it is the same kind of scan.",
            )
        )  # fmt: skip
    return found


def _intensity(dataset: Dataset, seen: Sequence[Observation]) -> list[Finding]:
    found = []
    for number, (name, modality) in enumerate(
        zip(dataset.channels, dataset.modalities, strict=True)
    ):
        own = [one for one in seen if len(one.quantiles) > number]
        levels = np.array([one.quantiles[number] for one in own]).reshape(-1, 3)
        if modality == "CT":
            z = robust_z(levels, 60.0)  # HU: soft tissue, air and bone lie this far apart
        else:
            span = np.log(np.maximum(levels[:, 2:] - levels[:, :1], 1e-6))
            place = levels[:, 1:2] - levels[:, :1]
            share = place / np.maximum(levels[:, 2:] - levels[:, :1], 1e-6)
            z = np.concatenate([robust_z(span, 0.4), robust_z(share, 0.08)], axis=1)
        usual = np.median(levels, axis=0) if len(levels) else levels
        found += [
            Finding(
                "intensity-outlier", "warning", one.case,
                f"channel {name}: about {_levels(usual)}", _levels(own_level),
                "Look whether it is scaled, inverted, or of another kind.",
            )
            for one, own_level, far in zip(own, levels, z, strict=True)
            if np.nanmax(np.abs(far), initial=0.0) > _FAR
        ]  # fmt: skip
    return found


def _mixed_modalities(dataset: Dataset, seen: Sequence[Observation]) -> list[Finding]:
    like_ct = {one.case: one.lowest < _CT_BELOW for one in seen}
    stated_ct = "CT" in dataset.modalities
    if not like_ct:
        return []
    share = sum(like_ct.values()) / len(like_ct)
    if 0 < min(share, 1 - share) <= _MINORITY:
        odd = share < 0.5
        return [
            Finding(
                "mixed-modality", "warning", case,
                f"{'no ' if odd else ''}values below {_CT_BELOW:.0f}, as in the other cases",
                "values like CT" if odd else "values unlike CT (another modality, or an offset)",
                "Look whether it belongs here, and whether it holds Hounsfield units.",
            )
            for case, is_ct in like_ct.items()
            if is_ct == odd
        ]  # fmt: skip
    if stated_ct and all(one.lowest >= 0 for one in seen):
        return [
            Finding(
                "stated-modality", "warning", "", "Hounsfield units, since the dataset says CT",
                "no voxel below 0 in any case",
                "Subtract the offset (1024 as a rule), or state the right modality.",
            )
        ]  # fmt: skip
    if share > 0.5 and not stated_ct:
        return [
            Finding(
                "stated-modality", "warning", "", f"values of {', '.join(dataset.modalities)}",
                "values down to air in Hounsfield units", "State CT as the modality.",
            )
        ]  # fmt: skip
    return []


def _volumes(dataset: Dataset, seen: Sequence[Observation]) -> list[Finding]:
    table = _label_table(dataset, seen, "volume_ml")
    z = robust_z(np.log(table), 0.25)
    found = []
    for row, one in enumerate(seen):
        for column, label in enumerate(dataset.labels.labels):
            if abs(z[row, column]) <= _FAR:
                continue
            if not np.isfinite(z[row, column]):
                continue
            usual = float(np.nanmedian(table[:, column]))
            found.append(
                Finding(
                    "volume-outlier", "warning", one.case,
                    f"{label.name} of about {usual:.3g} mL",
                    f"{table[row, column]:.3g} mL", "Look whether the mask is complete.",
                    (label.value,),
                )
            )  # fmt: skip
    return found


def _contrasts(dataset: Dataset, seen: Sequence[Observation]) -> list[Finding]:
    """A mask that lies on something else than the other masks do."""
    table = _label_table(dataset, seen, "contrast")
    z = robust_z(table, 0.2)
    found = []
    for row, one in enumerate(seen):
        far = [
            (label.value, label.name)
            for column, label in enumerate(dataset.labels.labels)
            if abs(z[row, column]) > _FAR
        ]
        if far:
            found.append(
                Finding(
                    "intensity-in-mask", "warning", one.case,
                    "structures as bright as in the other cases",
                    f"{', '.join(name for _, name in far[:5])} much brighter or darker",
                    "Look whether the mask lies on its structure.", tuple(v for v, _ in far),
                )
            )  # fmt: skip
    return found


def _label_table(dataset: Dataset, seen: Sequence[Observation], fact: str) -> NDArray[np.float64]:
    """(cases, labels) of one fact; NaN where a case does not show a label."""
    rows = [
        [getattr(one.labels[v], fact) if v in one.labels else np.nan for v in dataset.labels.values]
        for one in seen
    ]
    return np.array(rows, dtype=np.float64).reshape(len(seen), len(dataset.labels))


def _levels(levels: NDArray[np.float64]) -> str:
    return f"{levels[0]:.4g} to {levels[2]:.4g}, median {levels[1]:.4g}"


def _mm(spacing: Sequence[float] | NDArray[np.float64]) -> str:
    return " x ".join(f"{side:.3g}" for side in spacing) + " mm"
