"""One scan in 48 orientations, and turned in space: one mask, on each scan's own grid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from medseg.core.geometry import ALL_ORIENTATIONS, Geometry, Orientation
from medseg.core.scan import Scan
from medseg.inference.predictor import Predictor
from medseg.networks.build import build_network
from medseg.package.package import ModelFile, save_package
from medseg.transforms.preprocess import preprocess_scan
from medseg.workflows.api import Model, load_model
from medseg.workflows.predict import predict
from tests.models import small_plan
from tests.phantoms import blobs, oblique_affine, write_nifti

SHAPE = (25, 18, 13)
SPACING_MM = (1.2, 1.7, 2.6)  # the plan works at 1.5 x 2 x 3 mm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Random weights whose classes are equally likely on the scan, so that the mask is rich."""
    plan = small_plan()
    network = build_network(plan.network, seed=0)
    scan = Scan.from_array(blobs(SHAPE, noise=60.0)[0], Geometry(SHAPE, straight()))
    logits = Predictor([network], plan, torch.device("cpu")).logits(preprocess_scan(scan, plan)[0])
    weights = network.state_dict()
    weights["heads.0.bias"] -= logits.mean(dim=(1, 2, 3))
    folder = tmp_path_factory.mktemp("package") / "model"
    about = ModelFile(medseg_version="0", weights=("weights.safetensors",), plan=plan)
    save_package(folder, about, [weights])
    return load_model(folder, "cpu")


def straight() -> NDArray[np.float64]:
    return oblique_affine(SPACING_MM, angles_deg=(0.0, 0.0, 0.0))


def segmented(
    model: Model, folder: Path, name: str, voxels: NDArray[np.int16], affine: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Predict through files, and check what two readers say of the mask's geometry."""
    path = write_nifti(folder / f"{name}.nii", voxels, affine)
    done = predict(model, [path], folder / "out")["done"][name]
    given, mask = nib.load(path), nib.load(done)
    assert mask.shape == given.shape
    assert mask.affine.tobytes() == given.affine.tobytes()
    ours, theirs = sitk.ReadImage(done), sitk.ReadImage(str(path))
    assert ours.GetSize() == theirs.GetSize()
    assert ours.GetSpacing() == theirs.GetSpacing()
    assert ours.GetOrigin() == theirs.GetOrigin()
    assert ours.GetDirection() == theirs.GetDirection()
    return np.asarray(mask.dataobj)


def turned_scans() -> Iterator[tuple[Orientation, NDArray[np.int16], NDArray[np.float64]]]:
    image, _ = blobs(SHAPE, noise=60.0)
    grid = Geometry(SHAPE, straight())
    for orientation in ALL_ORIENTATIONS:
        yield orientation, orientation.apply(image), grid.reoriented(orientation).affine_ras


def test_48_orientations(model: Model, tmp_path: Path) -> None:
    image, _ = blobs(SHAPE, noise=60.0)
    expected = segmented(model, tmp_path, "straight", image, straight())
    shares = np.bincount(expected.ravel(), minlength=3) / expected.size
    assert shares.min() > 0.02, f"a mask that shows nothing: {shares}"
    codes = set()
    for number, (orientation, voxels, affine) in enumerate(turned_scans()):
        codes.add(nib.aff2axcodes(affine))
        mask = segmented(model, tmp_path, f"turned_{number}", voxels, affine)
        np.testing.assert_array_equal(orientation.inverse().apply(mask), expected)
    assert len(codes) == 48


@pytest.mark.parametrize("angles_deg", [(12.0, -9.0, 20.0), (-25.0, 14.0, 3.0)])
def test_turned_in_space(
    model: Model, tmp_path: Path, angles_deg: tuple[float, float, float]
) -> None:
    # The same voxels whose box lies askew: the axes are as close to RAS as before, so
    # nothing is exchanged and the mask is the same.
    image, _ = blobs(SHAPE, noise=60.0)
    expected = segmented(model, tmp_path, "straight", image, straight())
    askew = oblique_affine(SPACING_MM, angles_deg=angles_deg)
    mask = segmented(model, tmp_path, "askew", image, askew)
    np.testing.assert_array_equal(mask, expected)


def test_turned_in_space_and_exchanged(model: Model, tmp_path: Path) -> None:
    image, _ = blobs(SHAPE, noise=60.0)
    grid = Geometry(SHAPE, oblique_affine(SPACING_MM))
    expected = segmented(model, tmp_path, "straight", image, straight())
    for number in (5, 18, 31, 44):
        orientation = ALL_ORIENTATIONS[number]
        mask = segmented(
            model, tmp_path, f"askew_{number}",
            orientation.apply(image), grid.reoriented(orientation).affine_ras,
        )  # fmt: skip
        np.testing.assert_array_equal(orientation.inverse().apply(mask), expected)


def test_the_turn_matters(model: Model) -> None:
    # Where the affine is not heeded the masks differ: the tests above can fail.
    image, _ = blobs(SHAPE, noise=60.0)
    expected = model.predict((image, straight())).labels
    wrong = model.predict((image[::-1], straight())).labels[::-1]
    assert np.mean(expected != wrong) > 0.02
