"""Probabilities, entropy and disagreement as files, against the products in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

import medseg
from medseg.batch.local import predict_batch
from medseg.core.errors import InputError, LabelError, SettingsError
from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.labels import LabelSet
from medseg.inference.products import Products
from medseg.transforms.restore import ArraySink
from medseg.workflows.maps import map_path
from medseg.workflows.predict import predict
from tests.models import small_plan, write_random_package
from tests.phantoms import blobs, oblique_affine

SHAPE = (25, 19, 14)
TURN = ALL_ORIENTATIONS[29]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps") / "model"
    return write_random_package(folder, small_plan(), members=2)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    voxels, _ = blobs(SHAPE, noise=120.0)
    geometry = Geometry(SHAPE, oblique_affine()).reoriented(TURN)
    path = tmp_path / "in" / "x.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(TURN.apply(voxels), geometry.affine_ras), path)
    return path


def in_memory(package: Path, scan: Path) -> dict[str, NDArray[Any]]:
    """Each product in float32, by its name."""
    model = medseg.load_model(package, "cpu", backend="torch")
    ready = model.prepare(scan)
    products = Products(("low", "high"), entropy=True, disagreement=True, dtype="float32")
    shape = ready.record.target.shape
    sinks = {name: ArraySink(shape, "float32") for name in products.names}
    predictor = model.predictor_for(ready.voxels.shape[1:])
    predictor.stream(
        ready.voxels, ready.record, ArraySink(shape, "uint8"),
        products=products, product_sinks=sinks,
    )  # fmt: skip
    return {name: sink.array for name, sink in sinks.items()}


FILES = {
    "probability low": "x_probability_low.nii.gz",
    "probability high": "x_probability_high.nii.gz",
    "entropy": "x_entropy.nii.gz",
    "disagreement": "x_disagreement.nii.gz",
}


@pytest.mark.parametrize(("kind", "step"), [("uint8", 0.51 / 255), ("float16", 1e-3)])
def test_maps_lie_beside_the_mask(
    package: Path, scan: Path, tmp_path: Path, kind: str, step: float
) -> None:
    plain = predict(package, scan, tmp_path / "plain", backend="torch")
    done = predict(
        package, scan, tmp_path / "out", backend="torch",
        probabilities="LOW, high", entropy=True, disagreement=True, maps_as=kind,
    )  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(["x.json", "x.nii.gz", *FILES.values()])
    expected = in_memory(package, scan)
    for name, file in FILES.items():
        image, given = nib.load(tmp_path / "out" / file), nib.load(scan)
        np.testing.assert_array_equal(image.affine, given.affine)
        assert image.get_data_dtype() == (np.uint8 if kind == "uint8" else np.float32)
        np.testing.assert_allclose(image.get_fdata(), expected[name], atol=step)
        assert image.get_fdata().max() > 10 * step
    a, b = (nib.load(one["done"]["x"]).get_fdata() for one in (plain, done))
    np.testing.assert_array_equal(a, b)


def test_disk_to_disk_writes_the_same_maps(package: Path, scan: Path, tmp_path: Path) -> None:
    predict(package, scan, tmp_path / "out", backend="torch", probabilities=["high"], entropy=True)
    model = medseg.load_model(package, "cpu", backend="torch")
    giving = model.giving(Products(("high",), entropy=True, dtype="uint8"))
    done = giving.predict_to_file(scan, tmp_path / "disk" / "x.nii.gz")
    assert [path.name for path in done.files] == [FILES["probability high"], FILES["entropy"]]
    for file in (*done.files, tmp_path / "disk" / "x.nii.gz"):
        ours, plain = (nib.load(folder / file.name) for folder in (file.parent, tmp_path / "out"))
        assert ours.header == plain.header
        # Normalised slab by slab, values may be rounded the other way.
        step = 0 if file.name == "x.nii.gz" else 1.01 / 255
        np.testing.assert_allclose(ours.get_fdata(), plain.get_fdata(), atol=step)
    assert len(list((tmp_path / "disk").iterdir())) == 4


def test_the_ledger_knows_what_was_asked(package: Path, scan: Path, tmp_path: Path) -> None:
    def run(**options: Any) -> int:
        done = predict_batch(package, scan.parent, tmp_path / "out", backend="torch", **options)
        return int(done["kept"])

    assert [run(), run()] == [0, 1]
    assert [run(entropy=True), run(entropy=True)] == [0, 1]
    assert run(entropy=True, maps_as="float16") == 0
    (tmp_path / "out" / FILES["entropy"]).unlink()
    assert [run(entropy=True, maps_as="float16"), run(probabilities="low")] == [0, 0]
    summary = json.loads((tmp_path / "out" / ".medseg" / "summary.json").read_text())
    assert summary["failed"] == {}


def test_what_is_refused(package: Path, scan: Path, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="low, high"):
        predict(package, scan, tmp_path / "out", probabilities="liver")
    with pytest.raises(SettingsError, match="uint8 or float16"):
        predict(package, scan, tmp_path / "out", entropy=True, maps_as="float64")
    single = write_random_package(tmp_path / "single", small_plan())
    with pytest.raises(SettingsError, match="mirrored views"):
        predict(single, scan, tmp_path / "out", disagreement=True)
    # A map takes the place of no scan.
    other = scan.with_name(FILES["entropy"])
    other.write_bytes(scan.read_bytes())
    with pytest.raises(InputError, match="which is a scan"):
        predict(package, [scan, other], scan.parent, entropy=True)
    assert not (tmp_path / "out").exists()
    twins = LabelSet.from_names({1: "a b", 2: "A/b"})
    plan = small_plan(labels=twins.model_dump())
    odd = write_random_package(tmp_path / "odd", plan)
    with pytest.raises(LabelError, match="names that files can have"):
        predict(odd, scan, tmp_path / "out", probabilities="a b,A/b")
    mask = Path("out/case.nii.gz")
    assert map_path(mask, "probability A/b") == Path("out/case_probability_A_b.nii.gz")
