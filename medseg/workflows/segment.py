"""The four steps that a scan takes: read, segment, finish, write. Each runs alone."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from medseg import __version__
from medseg.core.errors import InputError, LabelError, SettingsError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.plan import Plan
from medseg.core.results import Prediction
from medseg.core.scan import Scan
from medseg.core.slices import SlicePlaces
from medseg.inference.backends import backend_name
from medseg.inference.predictor import Grid, Predictor
from medseg.io.atomic import whole_file
from medseg.io.dicom_series import SeriesInfo, read_slices
from medseg.io.dicom_studies import Study
from medseg.io.formats import is_dicom_source, read_scan, write_mask
from medseg.io.nifti_scan import write_nifti_scan
from medseg.postprocess.chain import apply_chain
from medseg.quality.sides import side_warnings
from medseg.transforms.preprocess import (
    RestoreRecord,
    finite_voxels,
    made_regular,
    preprocess_scan,
)
from medseg.workflows.channels import check_channels
from medseg.workflows.maps import Maps
from medseg.workflows.memory_scans import scan_from_memory
from medseg.workflows.qc import noted
from medseg.workflows.slice_table import slice_table

if TYPE_CHECKING:
    from torch import Tensor

    from medseg.inference.volume import Volume

GRIDS = ("auto", "own", "regular", "source")
_log = logging.getLogger(__name__)

# What ``Model.predict`` takes: a path, a nibabel or SimpleITK image, (array, affine), or
# several of them by channel name.
ScanLike = Any


def read(source: ScanLike, plan: Plan) -> Scan:
    """Step 1: one scan in memory's reach, its channels in the plan's order.

    Args:
        source: A path; a nibabel image; a SimpleITK image; ``(array, affine)`` with
            (I, J, K) or (C, I, J, K) voxels and a 4x4 RAS+ affine in mm; a :class:`Scan`; a
            DICOM :class:`Study`; or a mapping from channel names of the plan to one of these.
        plan: Says which channels are wanted.

    Raises:
        InputError: The channels are not those of the plan, or the source is of no known kind.
        FileError: A file cannot be read.
        GeometryError: Channels lie on different grids.
    """
    names = [channel.name for channel in plan.channels]
    if isinstance(source, Mapping):
        check_channels([str(name) for name in source], plan, what="channels")
        parts = {n: _read_one(source[n], plan) if n in source else None for n in names}
        scan = Scan.from_channels(parts, source=next(p.source for p in parts.values() if p))
    else:
        scan = _read_one(source, plan)
    if len(scan.channels) != len(names):
        raise InputError(
            scan.source,
            expected=f"{len(names)} channel{'s' * (len(names) > 1)} ({', '.join(names)})",
            got=str(len(scan.channels)),
            cure="Give the scan that this model was trained for.",
        )
    return scan


@dataclass(frozen=True)
class Prepared:
    """A scan as the network takes it.

    Attributes:
        scan: From step 1; its voxels may be gone.
        voxels: (C, I, J, K) float32 on the plan's grid.
        record: The way back to the grid of the result.
        grid: Which grid that is, from :func:`wanted_grid`.
        facts: What running the network adds to the provenance.
        maps: What it gives beside labels, once it has run, where that was asked for.
    """

    scan: Scan
    voxels: Tensor | Volume
    record: RestoreRecord
    grid: Grid = "own"
    facts: dict[str, Any] = field(default_factory=dict)
    maps: list[Maps] = field(default_factory=list)


def prepare(scan: Scan, plan: Plan, *, grid: Grid = "own") -> Prepared:
    """Step 2, first half: what needs no network.

    Args:
        scan: From step 1.
        plan: Of the model.
        grid: From :func:`wanted_grid`. ``"regular"``: of a scan whose axes are not at right
            angles (gantry tilt), the grid that covers it at right angles; ``"source"``: of one
            whose slices lie at uneven distances, a plane per original slice; else all lie on
            the scan's own.

    Raises:
        InputError: The model is 3D and the scan is a single slice.
    """
    flat_model = plan.network.spatial_dims == 2
    if not flat_model and scan.geometry.shape[2] == 1 and min(plan.patch_size) > 1:
        raise InputError(
            scan.source,
            expected="a volume (the model is 3D)",
            got=f"one slice, {scan.geometry.shape}",
            cure="Give the whole volume.",
        )
    if grid != "regular" and not scan.geometry.is_regular:
        _log.warning(
            "%s: its axes are not at right angles, so that ITK-based tools cannot open the mask; "
            "--grid regular gives one that they can", scan.source,
        )  # fmt: skip
    if grid == "source" and scan.slices is not None and not scan.slices.even:
        _log.warning(
            "%s: its slices lie at uneven distances, and the mask's header is off by up to "
            "%.1f mm; the JSON file beside it tells the place of each", scan.source,
            scan.slices.header_error_mm,
        )  # fmt: skip
    voxels, record = preprocess_scan(scan, plan)
    if grid == "regular" and not scan.geometry.is_regular:
        record = record.onto_cover()
    elif grid == "source" and scan.slices is not None:
        record = record.onto_slices(scan.slices)
    return Prepared(scan, voxels, record, grid)


def infer(prepared: Prepared, predictor: Predictor) -> NDArray[Any]:
    """Step 2, second half: class indices (I, J, K) on ``prepared.record.target``."""
    classes, facts = predictor.infer_with_facts(prepared.voxels, prepared.record)
    prepared.facts.update(facts)
    prepared.facts["backend"] = backend_name(predictor.networks)
    return classes


def segment(
    scan: Scan, predictor: Predictor, *, grid: Grid = "own"
) -> tuple[NDArray[Any], Geometry]:
    """Step 2 as a whole: class indices (I, J, K), and the grid that they lie on.

    Raises:
        InputError: As :func:`prepare`.
    """
    prepared = prepare(scan, predictor.plan, grid=grid)
    return infer(prepared, predictor), prepared.record.target


def finish(
    classes: NDArray[Any],
    scan: Scan,
    plan: Plan,
    *,
    geometry: Geometry | None = None,
    slices: SlicePlaces | None = None,
    labels: str | Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Prediction:
    """Step 3: mask values, post-processing, the labels that were asked for.

    Args:
        classes: (I, J, K) class indices from step 2.
        scan: From step 1.
        plan: Of the model.
        geometry: What the classes lie on; None for the scan's own grid.
        slices: Where their planes lie, for ``--grid source``.
        labels: Names of the labels to keep; None keeps all.
        provenance: To be kept with the mask.
    """
    grid = scan.geometry if geometry is None else geometry
    mask = apply_chain(plan.labels.to_values(classes), plan.postprocess, plan.labels, geometry=grid)
    wanted = expected_labels(plan, labels)
    if len(wanted) < len(plan.labels):
        kept = np.zeros(max(plan.labels.values) + 1, dtype=mask.dtype)
        kept[list(wanted.values)] = wanted.values
        mask = kept[mask]
    own = geometry is None or geometry == scan.geometry
    return Prediction(
        mask,
        grid,
        wanted,
        noted(provenance, side_warnings(mask, grid, wanted), scan.source),
        scan.forms if own else None,
        slices,
    )


def check_grid(grid: str) -> None:
    """Refuse a choice of grid that there is not.

    Raises:
        SettingsError: With the choices.
    """
    if grid not in GRIDS:
        raise SettingsError("--grid", expected=" or ".join(GRIDS), got=repr(grid))


def wanted_grid(source: ScanLike, grid: str) -> Grid:
    """On which grid a mask is written, for ``--grid auto|own|regular|source``.

    ``auto``: at right angles for DICOM, whose tilted slices no mask file can repeat; its own
    for all else, so that a mask lies on its input's own header.

    Raises:
        SettingsError: There is no such choice.
    """
    check_grid(grid)
    if grid != "auto":
        return cast(Grid, grid)
    if isinstance(source, Mapping):
        return "own"
    if isinstance(source, Study):
        return "regular"
    paths = paths_of(source)
    dicom = bool(paths) and (paths[0].is_dir() or is_dicom_source(paths[0]))
    return "regular" if dicom else "own"


def save_scan(source: ScanLike, plan: Plan, prediction: Prediction, path: Path) -> None:
    """Write the scan as NIfTI on the grid of its mask.

    Raises:
        OutputError: It cannot be written.
    """
    write_nifti_scan(path, voxels_of(source, plan, prediction), prediction.geometry)


def voxels_of(source: ScanLike, plan: Plan, prediction: Prediction) -> NDArray[Any]:
    """The voxels (C, I, J, K) of a scan on the grid of its mask."""
    if prediction.slices is not None and not prediction.slices.even and isinstance(source, Study):
        return read_slices(wanted_series(source, plan))
    scan = read(source, plan)
    voxels = scan.voxels()
    if scan.geometry != prediction.geometry:
        voxels = made_regular(finite_voxels(scan), scan.geometry)[0].numpy()
    return voxels


def write(prediction: Prediction, path: Path) -> None:
    """Step 4: the mask as NIfTI, and beside it a JSON file that says how it was made.

    Raises:
        OutputError: They cannot be written; then what stood there before is kept.
    """
    # The sidecar lies complete on the disk before the mask takes its place, so that a disk
    # that fills leaves the pair of an earlier run as it was.
    with whole_file(sidecar_of(path)) as beside:
        beside.write_text(sidecar(prediction), encoding="utf-8")
        write_mask(path, prediction)


def sidecar_of(path: Path) -> Path:
    """``DIR/case.nii.gz`` to ``DIR/case.json``."""
    name = path.name
    for suffix in (".nii.gz", ".nii"):
        name = name.removesuffix(suffix)
    return path.with_name(f"{name}.json")


def sidecar(prediction: Prediction) -> str:
    """Provenance, labels and volumes as JSON."""
    facts = {
        **prediction.provenance,
        "labels": {str(label.value): label.name for label in prediction.label_set.labels},
        "volumes_ml": {n: round(v, 4) for n, v in prediction.volumes_ml().items()},
    }
    if prediction.slices is not None:
        facts["slices"] = slice_table(prediction.slices)
    return json.dumps(facts, indent=2) + "\n"


def provenance_of(
    predictor: Predictor, package_sha256: str, *, input_sha256: Sequence[str] = ()
) -> dict[str, Any]:
    """Which package, version, backend and options made a mask, and from what bytes."""
    plan = predictor.plan
    return {
        "medseg_version": __version__,
        "package_sha256": package_sha256,
        "input_sha256": list(input_sha256),
        "backend": backend_name(predictor.networks),
        "device": predictor.device.type,
        "members": len(predictor.networks),
        "options": {
            "step": plan.inference.step,
            "mirror_axes": list(plan.inference.mirror_axes),
            "postprocess": [step.text for step in plan.postprocess],
        },
        "use": "research only",
    }


def wanted_series(study: Study, plan: Plan) -> SeriesInfo:
    """The series of a study that is asked for; for ``auto`` the one nearest to the plan.

    Raises:
        InputError: None fits, or several fit equally well.
    """
    a, b, c = plan.spacing_mm
    spacing_mm = None if a is None or b is None or c is None else (a, b, c)
    return study.choose(modality=plan.modality, spacing_mm=spacing_mm, words=plan.series_words)


def settled(source: ScanLike, plan: Plan) -> ScanLike:
    """A study with its series chosen, once, so that the choice is told once; else the source.

    Raises:
        InputError: None fits, or several fit equally well.
    """
    if not isinstance(source, Study):
        return source
    return source.wanting(wanted_series(source, plan).id, accept_gaps=source.accept_gaps)


def input_hashes(source: ScanLike, plan: Plan) -> list[str]:
    """SHA-256 of what a scan is read from: of each file, one for all slices of a series."""
    if isinstance(source, Study):
        files = [part.path for part in wanted_series(source, plan).parts]
        return [_joint_sha256(files)]
    return [
        _joint_sha256(sorted(path.rglob("*"))) if path.is_dir() else file_sha256(path)
        for path in paths_of(source)
    ]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _joint_sha256(paths: Sequence[Path]) -> str:
    """One hash for several files in their order: of their own hashes, one after another."""
    files = [path for path in dict.fromkeys(paths) if path.is_file()]
    if len(files) == 1:
        return file_sha256(files[0])
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()


def paths_of(source: ScanLike) -> list[Path]:
    """The files that a scan comes from, as far as it comes from files."""
    if isinstance(source, Mapping):
        return [path for part in source.values() for path in paths_of(part)]
    return [Path(source)] if isinstance(source, str | Path) else []


def expected_labels(plan: Plan, labels: str | Sequence[str] | None) -> LabelSet:
    """The labels that a mask will hold.

    Args:
        plan: Of the model.
        labels: Names, in a list or with commas between them; None keeps all.

    Raises:
        LabelError: A name is unknown, or there is none.
    """
    if labels is None:
        return plan.labels
    names = [name.strip() for name in (labels.split(",") if isinstance(labels, str) else labels)]
    if not any(names):
        known = ", ".join(plan.labels.names)
        raise LabelError("labels", expected=f"some of {known}", got="none")
    return plan.labels.select(name for name in names if name)


def _read_one(source: ScanLike, plan: Plan) -> Scan:
    if isinstance(source, Scan):
        return source
    if isinstance(source, Study):
        return source.read(wanted_series(source, plan))
    if isinstance(source, str | Path):
        return read_scan(source)
    return scan_from_memory(source)
