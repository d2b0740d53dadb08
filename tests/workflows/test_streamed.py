"""From disk to disk: the files that the four steps in memory give."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.core.errors import FileError, InputError, OutputError
from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.plan import PostprocessStep
from medseg.core.scan import Scan
from medseg.inference.memory import Limits
from medseg.inference.predictor import Predictor
from medseg.io.formats import read_scan
from medseg.networks.build import build_network
from medseg.transforms import preprocess_stream
from medseg.workflows import segment, streamed
from medseg.workflows.api import load_model
from medseg.workflows.streamed import must_stream, segment_to_disk
from tests.models import small_plan, write_random_package
from tests.phantoms import blobs, oblique_affine

SHAPE = (26, 21, 17)
CHAIN = tuple(PostprocessStep(step="largest", label=name) for name in ("low", "high"))


def predictor(*, limits: Limits | None = None, **changes: Any) -> Predictor:
    plan = small_plan(**{"postprocess": [step.model_dump() for step in CHAIN], **changes})
    network = build_network(plan.network, seed=3)
    return Predictor([network], plan, torch.device("cpu"), limits=limits)


def write_scan(path: Path, turn: Any = ALL_ORIENTATIONS[0]) -> Scan:
    voxels, _ = blobs(SHAPE, noise=80.0)
    geometry = Geometry(SHAPE, oblique_affine()).reoriented(turn)
    nib.save(nib.Nifti1Image(turn.apply(voxels), geometry.affine_ras), path)
    return read_scan(path)


def in_memory(scan: Scan, model: Predictor, path: Path, labels: Any = None) -> None:
    classes, geometry = segment.segment(scan, model)
    prediction = segment.finish(
        classes, scan, model.plan, geometry=geometry, labels=labels, provenance={"of": "test"}
    )
    segment.write(prediction, path)


@pytest.mark.parametrize("turn", ALL_ORIENTATIONS[::11])
@pytest.mark.parametrize("labels", [None, "high"])
def test_the_files_are_the_same(
    tmp_path: Path, turn: Any, labels: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess_stream, "_SLAB_VOXELS", 3000)
    monkeypatch.setattr(streamed, "_SLAB_VALUES", 3000)
    scan, model = write_scan(tmp_path / "scan.nii.gz", turn), predictor()
    ours, plain = tmp_path / "ours.nii.gz", tmp_path / "plain.nii.gz"
    done = segment_to_disk(scan, model, ours, labels=labels, provenance={"of": "test"})
    in_memory(scan, model, plain, labels)
    mask = np.asarray(nib.load(plain).dataobj)
    assert set(np.unique(mask)) >= ({0, 2} if labels else {0, 1, 2})
    assert gzip.decompress(ours.read_bytes()) == gzip.decompress(plain.read_bytes())
    sidecar = json.loads((tmp_path / "ours.json").read_text())
    assert sidecar == {"logits": "fp32"} | json.loads((tmp_path / "plain.json").read_text())
    assert done.volumes_ml()["high"] == pytest.approx(
        (mask == 2).sum() * scan.geometry.voxel_volume_mm3 / 1000
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "ours.json", "ours.nii.gz", "plain.json", "plain.nii.gz", "scan.nii.gz",
    ]  # fmt: skip


def test_a_damaged_scan_leaves_nothing(tmp_path: Path) -> None:
    scan, model = write_scan(tmp_path / "scan.nii.gz"), predictor()
    whole = (tmp_path / "scan.nii.gz").read_bytes()
    (tmp_path / "scan.nii.gz").write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(FileError, match=r"scan\.nii\.gz"):
        segment_to_disk(scan, model, tmp_path / "mask.nii.gz")
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_a_full_disk_is_told_and_leaves_the_old_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, model = write_scan(tmp_path / "scan.nii.gz"), predictor()
    (tmp_path / "mask.nii.gz").write_bytes(b"old")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5000))
    with pytest.raises(OutputError, match="scratch"):
        segment_to_disk(scan, model, tmp_path / "mask.nii.gz")
    assert (tmp_path / "mask.nii.gz").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_streaming_is_chosen_where_it_helps(tmp_path: Path) -> None:
    geometry = Geometry((512, 512, 2000), oblique_affine((0.8, 0.8, 1.0)))
    scan = Scan(geometry, ("first",), lambda: pytest.fail("the scan was read"))
    assert must_stream(scan, predictor(limits=Limits(max_memory_bytes=3 * 10**9)))
    assert not must_stream(scan, predictor(limits=Limits(max_memory_bytes=10**12)))
    assert not must_stream(scan, predictor(limits=Limits(max_memory_bytes=10**8)))
    # Nothing helps a scan that cannot be streamed; the plain way then tells the figure.
    sheared = np.array(oblique_affine())
    sheared[:3, 2] += 0.6 * sheared[:3, 0]
    bent = Scan(Geometry((512, 512, 2000), sheared), ("first",), scan.load)
    assert not must_stream(bent, predictor(limits=Limits(max_memory_bytes=3 * 10**9)))


def test_uneven_slices_are_refused() -> None:
    slices = SimpleNamespace(even=False)
    geometry = Geometry(SHAPE, oblique_affine())
    scan = Scan(geometry, ("first",), lambda: np.zeros((1, *SHAPE)), slices=slices)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--grid own"):
        segment_to_disk(scan, predictor(), Path("mask.nii.gz"), grid="source")
    with pytest.raises(InputError, match=r"ending in \.nii"):
        segment_to_disk(scan, predictor(), Path("mask.nrrd"))


def test_a_model_writes_what_it_would_save(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan.nii.gz")
    write_random_package(tmp_path / "model", small_plan())
    model = load_model(tmp_path / "model", "cpu", backend="torch")
    calls: list[int] = []
    done = model.predict_to_file(
        str(tmp_path / "scan.nii.gz"),
        str(tmp_path / "disk.nii.gz"),
        labels="low",
        before_tiles=lambda: calls.append(1),
    )
    result = model.predict(tmp_path / "scan.nii.gz", labels="low")
    result.save(tmp_path / "plain.nii.gz")
    for kind, read in (("nii.gz", gzip.decompress), ("json", json.loads)):
        ours, plain = (tmp_path / f"{name}.{kind}" for name in ("disk", "plain"))
        assert read(ours.read_bytes()) == read(plain.read_bytes())
    assert calls
    assert done.provenance == result.provenance
    assert not model.must_stream(read_scan(tmp_path / "scan.nii.gz"))
