"""Read one case once: what is wrong with it alone, and what the cohort must know of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import FileError, GeometryError, LabelError, MedsegError
from medseg.core.geometry import FloatTriple, Geometry, Triple
from medseg.core.scan import Scan
from medseg.datasets.dataset import Case, Dataset, listing
from medseg.datasets.inspect import value_counts
from medseg.datasets.reading import HERE, Reader, read_case_image, read_case_mask
from medseg.quality.anatomy import LabelFacts, label_facts
from medseg.quality.finding import Finding
from medseg.quality.thumbnail import body_box, percentiles, thumbnail

# Values this close to whole numbers were whole before somebody computed with them.
NEARLY_WHOLE = 0.01
_QUANTILE_SAMPLES = 20_000
_MOST_IN_BYTE = 255


@dataclass(frozen=True)
class Observation:
    """What was seen in a case; what could not be seen is None or empty.

    Attributes:
        case: Its id.
        findings: What is wrong with the case alone.
        shape, spacing_mm: The scan's grid in the axis order closest to RAS+.
        quantiles: (C, 3) percentiles 1, 50 and 99 of each channel.
        lowest: The smallest voxel of all channels.
        scan_hash, mask_hash: Of the voxels in RAS+ order; "" where there are none.
        thumbnail: (n,) block means of the scan, mean 0 and length 1.
        body: Lower and upper end of the body along R, A and S, as shares of the field of view.
        labels: Facts of each label that the mask shows.
    """

    case: str
    findings: tuple[Finding, ...]
    shape: Triple | None = None
    spacing_mm: FloatTriple | None = None
    quantiles: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 3)), repr=False)
    lowest: float = 0.0
    scan_hash: str = ""
    mask_hash: str = ""
    thumbnail: NDArray[np.float32] | None = field(default=None, repr=False)
    body: NDArray[np.float64] | None = field(default=None, repr=False)
    labels: dict[int, LabelFacts] = field(default_factory=dict)


def observe_case(case: Case, dataset: Dataset, reader: Reader = HERE) -> Observation:
    """Look into one case; nothing that is wrong with it raises."""
    findings: list[Finding] = []
    missing = [path.name for path in case.files if not path.exists()]
    if missing:
        findings.append(
            Finding(
                "missing-file", "error", case.id, "the files that are listed",
                f"no {listing(missing)}", "Restore the file, or take the case out.",
            )
        )  # fmt: skip
    if not case.masks:
        findings.append(
            Finding(
                "no-mask", "error", case.id, "a mask", "none", "Add it, or take the case out."
            )
        )  # fmt: skip
    scan, voxels = _read_scan(case, dataset, findings, reader=reader)
    read = _read_mask(case, findings, reader=reader)
    facts: dict[str, Any] = {}
    if scan is not None and voxels is not None:
        voxels = _finite(voxels, case, findings)
        facts = _scan_facts(scan.geometry, voxels, case, findings)
    if read is not None:
        mask, grid = read
        shared = scan is not None and _same_grid(case, scan.geometry, grid, findings=findings)
        strange = _check_values(mask, case, dataset, findings=findings)
        facts["mask_hash"] = _hash(grid.orientation_to_ras().apply(mask)) if mask.any() else ""
        known = np.where(np.isin(mask, dataset.labels.values), mask, 0) if strange else mask
        facts["labels"] = label_facts(known, grid, voxels if shared else None)
    return Observation(case.id, tuple(findings), **facts)


def _read_scan(
    case: Case, dataset: Dataset, findings: list[Finding], *, reader: Reader
) -> tuple[Scan | None, NDArray[Any] | None]:
    if any(not path.exists() for path in case.images):
        return None, None
    try:
        scan = read_case_image(case, reader)
        voxels = scan.voxels()
    except GeometryError as error:
        kind = "channel-grids" if len(case.images) > 1 else "bad-header"
        findings.append(Finding.of_error(kind, case.id, error))
        return None, None
    except MedsegError as error:
        findings.append(Finding.of_error("unreadable", case.id, error))
        return None, None
    if len(voxels) != len(dataset.channels):
        findings.append(
            Finding(
                "channels", "error", case.id,
                f"{len(dataset.channels)} channels ({', '.join(dataset.channels)})",
                str(len(voxels)), "Correct the dataset's channels, or the image.",
            )
        )  # fmt: skip
        return scan, None
    return scan, voxels


def _finite(voxels: NDArray[Any], case: Case, findings: list[Finding]) -> NDArray[Any]:
    """The voxels with 0 for what is not finite."""
    if voxels.dtype.kind in "iub":
        return voxels
    bad = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
    if not bad:
        return voxels
    findings.append(
        Finding(
            "non-finite", "error", case.id, "finite voxels",
            f"{bad} of {voxels.size} that are NaN or infinite",
            "Replace them, for example by the value of air.",
        )
    )  # fmt: skip
    return np.asarray(np.nan_to_num(voxels, nan=0.0, posinf=0.0, neginf=0.0))


def _scan_facts(
    geometry: Geometry, voxels: NDArray[Any], case: Case, findings: list[Finding]
) -> dict[str, Any]:
    flat = [str(n) for n, channel in enumerate(voxels) if channel.min() == channel.max()]
    if flat:
        findings.append(
            Finding(
                "constant-image", "error", case.id, "an image with contrast",
                f"one value in all voxels (channel {', '.join(flat)})",
                "Export the scan again, or take the case out.",
            )
        )  # fmt: skip
    turn = geometry.orientation_to_ras()
    turned = geometry.reoriented(turn)
    ras = turn.apply(voxels)
    step = max(1, voxels[0].size // _QUANTILE_SAMPLES)
    picks = voxels.reshape(len(voxels), -1)[:, ::step]
    return {
        "shape": turned.shape,
        "spacing_mm": turned.spacing_mm,
        "quantiles": np.stack([percentiles(one, (1, 50, 99)) for one in picks]),
        "lowest": float(voxels.min()),
        "scan_hash": "" if flat else _hash(ras),
        "thumbnail": None if flat else thumbnail(ras),
        "body": body_box(ras),
    }


def _read_mask(
    case: Case, findings: list[Finding], *, reader: Reader
) -> tuple[NDArray[Any], Geometry] | None:
    if not case.masks or any(not path.exists() for path in case.masks):
        return None
    try:
        return _mask_values(case, findings, reader=reader)
    except LabelError as error:
        findings.append(Finding.of_error("negative-labels", case.id, error))
    except GeometryError as error:
        findings.append(Finding.of_error("bad-header", case.id, error))
    except FileError as error:
        kind = "mask-channels" if "channel" in error.expected else "unreadable"
        findings.append(Finding.of_error(kind, case.id, error))
    except MedsegError as error:
        findings.append(Finding.of_error("unreadable", case.id, error))
    return None


def _mask_values(
    case: Case, findings: list[Finding], *, reader: Reader
) -> tuple[NDArray[Any], Geometry] | None:
    # Outlines and segments (DICOM) are whole by their nature, and no scan.
    if case.label is not None and case.structures is None:
        stored = reader.scan(case.label)
        if len(stored.channels) == 1:
            values = stored.voxels()[0]
            if values.dtype.kind == "f":
                return _float_mask(values, stored, case, findings=findings)
            if stored.forms is not None and values.min() >= 0:
                return values, stored.geometry  # whole as it is: no second reading
    mask, grid = read_case_mask(case, reader)
    return mask, grid.geometry


def _float_mask(
    values: NDArray[Any], scan: Scan, case: Case, *, findings: list[Finding]
) -> tuple[NDArray[Any], Geometry] | None:
    """A mask of real numbers: fine when all are whole, mendable when they nearly are."""
    whole = np.rint(np.nan_to_num(values, nan=-1.0, posinf=-1.0, neginf=-1.0))
    away = np.abs(values - whole)
    worst = float(np.nan_to_num(away, nan=1.0, posinf=1.0).max(initial=0.0))
    if whole.min(initial=0) < 0 or whole.max(initial=0) > np.iinfo(np.uint16).max:
        findings.append(
            Finding(
                "negative-labels", "error", case.id, "label values from 0 to 65535",
                f"{float(values.min()):g} to {float(values.max()):g}", "Correct the mask.",
            )
        )  # fmt: skip
        return None
    if worst > NEARLY_WHOLE:
        example = float(values.ravel()[int(np.argmax(away))])
        findings.append(
            Finding(
                "fractional-labels", "error", case.id, "whole numbers", f"the value {example:.6g}",
                "A mask must not be interpolated or scaled: export it again.",
            )
        )  # fmt: skip
        return None
    mask = whole.astype(np.uint16)
    if worst > 0:
        example = float(values.ravel()[int(np.argmax(away))])
        findings.append(
            Finding(
                "float-labels", "warning", case.id, "whole numbers",
                f"real numbers like {example!r}", "Round them and store integers (--fix does).",
            )
        )  # fmt: skip
    return mask, scan.geometry


def _same_grid(
    case: Case, scan: Geometry, mask: Geometry, *, findings: list[Finding]
) -> bool:  # fmt: skip
    gap = scan.difference(mask)
    if gap is None:
        return True
    kind = "grid-shape" if scan.shape != mask.shape else "grid-position"
    findings.append(
        Finding(
            kind, "error", case.id, "image and mask on one grid", gap,
            "Resample the mask to the image, or correct the header that is wrong.",
        )
    )  # fmt: skip
    return False


def _check_values(
    mask: NDArray[Any], case: Case, dataset: Dataset, *, findings: list[Finding]
) -> bool:
    """Note what is wrong with the values; returns whether some are no labels."""
    found = value_counts(mask)
    found.pop(0, 0)
    ignored = set() if dataset.ignore is None else {dataset.ignore}
    strange = sorted(set(found) - set(dataset.labels.values) - ignored)
    if strange:
        voxels = sum(found[value] for value in strange)
        findings.append(
            Finding(
                "unknown-label", "error", case.id, "values that the dataset names",
                f"also {listing([str(v) for v in strange])} ({voxels} voxels)",
                "Name them in the dataset, or correct the mask.", tuple(strange),
            )
        )  # fmt: skip
    if not found and case.annotated is None:
        findings.append(
            Finding(
                "empty-mask", "error", case.id, "at least one voxel of a label",
                "background alone", "Take the case out, or correct the mask.",
            )
        )  # fmt: skip
    elif sum(found.values()) == mask.size:
        findings.append(
            Finding(
                "no-background", "warning", case.id, "some background", "none",
                "Look whether the values are shifted by one.",
            )
        )  # fmt: skip
    return bool(set(found) - set(dataset.labels.values))


def _hash(array: NDArray[Any]) -> str:
    """Equal for equal voxels, whatever their number type, order in memory or file."""
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    # Masks alone are (I, J, K), and hold no negative values.
    whole = array.ndim == 3 and array.dtype.kind in "iu"
    small = whole and array.max(initial=0) <= _MOST_IN_BYTE
    for part in array if array.ndim == 4 else array[None]:
        # NIfTI keeps the first axis fastest: so a large scan is copied in its own order.
        digest.update(np.asfortranarray(part, dtype=np.uint8 if small else np.float32).T.data)
    return digest.hexdigest()
