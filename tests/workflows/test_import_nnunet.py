"""Trained nnU-Net v2 models: imported, and run as they are; the same masks as nnU-Net's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

import medseg
from medseg.core.errors import InputError, PackageError
from medseg.core.geometry import Geometry
from medseg.core.scan import Scan
from medseg.inference.predictor import Predictor
from medseg.io.formats import read_mask
from medseg.package.package import load_package, read_package_info
from medseg.transforms.preprocess import preprocess_scan
from medseg.transforms.resample import resample_image
from medseg.workflows.cases import find_cases
from medseg.workflows.export import export
from medseg.workflows.import_nnunet import import_nnunet
from tests.nnunet_models import write_nnunet_cascade, write_nnunet_model
from tests.phantoms import lopsided_geometry, write_nifti


@pytest.fixture
def shared_peers(shared_data: Callable[[str], Path]) -> Path:
    """Models and predictions of other tools, beside the real scans."""
    peers = shared_data("hippocampus").parents[1] / "peers"
    if not (peers / "nnunet_hippocampus").is_dir():
        pytest.skip("no models of other tools are here")
    return peers


def dice(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> float:
    return 2 * float((ours & theirs).sum()) / float(ours.sum() + theirs.sum())


def agree(peers: Path, images: Path, count: int) -> None:
    """Dice of each label and the voxels around both masks, against what nnU-Net predicted."""
    model = medseg.load_model(peers / "nnunet_hippocampus", "cpu", backend="torch")
    dices, shares = [], []
    for stored in sorted((peers / "nnunet_hippocampus_predictions").glob("*.nii.gz"))[:count]:
        theirs, _ = read_mask(stored)
        ours = model.predict(images / stored.name).labels
        dices.append([dice(ours == value, theirs == value) for value in (1, 2)])
        near = binary_dilation((ours > 0) | (theirs > 0), iterations=3)
        shares.append(float((ours == theirs)[near].mean()))
    assert len(dices) == count
    assert np.mean(dices, axis=0).min() >= 0.999
    assert np.min(dices) >= 0.99
    assert min(shares) >= 0.995


def test_three_hippocampi_as_nnunet_segments_them(
    shared_peers: Path, shared_data: Callable[[str], Path]
) -> None:
    agree(shared_peers, shared_data("hippocampus") / "imagesTr", 3)


@pytest.mark.acceptance
def test_all_hippocampi_as_nnunet_segments_them(
    shared_peers: Path, shared_data: Callable[[str], Path]
) -> None:
    agree(shared_peers, shared_data("hippocampus") / "imagesTr", 16)


@pytest.mark.parametrize("name", ["PlainConvUNet_2d", "ResidualEncoderUNet_3d"])
def test_an_imported_model_gives_the_masks_of_the_folder(name: str, tmp_path: Path) -> None:
    folder = write_nnunet_model(tmp_path / "model", name, folds=("0", "1"), balanced=True)
    made = import_nnunet(folder, tmp_path / "package")
    assert made["members"] == 2
    assert read_package_info(tmp_path / "package")["training"]["trainer"] == "nnUNetTrainer"
    assert load_package(tmp_path / "package").sha256 == made["sha256"]
    geometry = lopsided_geometry((17, 13, 9))
    voxels = np.random.default_rng(2).normal(size=(2, 17, 13, 9)).astype(np.float32)
    voxels[:, :3] = 0
    source = (voxels, geometry.affine_ras)
    masks = [
        medseg.load_model(path, "cpu", backend="torch").predict(source).labels
        for path in (folder, tmp_path / "package")
    ]
    np.testing.assert_array_equal(*masks)
    assert set(np.unique(masks[0])) == {0, 1, 2}
    # Where every channel is 0 along a whole side nothing was looked at.
    assert not masks[0][:3].any()


def test_a_turned_scan_is_taken_as_it_is_stored(tmp_path: Path) -> None:
    model = medseg.load_model(
        write_nnunet_model(tmp_path / "model", balanced=True), "cpu", backend="torch"
    )
    voxels = np.random.default_rng(3).normal(size=(2, 12, 13, 9)).astype(np.float32)
    plain = model.predict((voxels, np.diag([1.1, 0.9, 2.0, 1.0]))).labels
    turned = Geometry((12, 13, 9), np.array([[0, 0, 2.0, 1], [-1.1, 0, 0, 2], [0, 0.9, 0, 3],
                                             [0, 0, 0, 1]]))  # fmt: skip
    np.testing.assert_array_equal(model.predict((voxels, turned.affine_ras)).labels, plain)


def test_a_cascade_is_one_package_and_its_second_stage_sees_the_first(tmp_path: Path) -> None:
    folder = write_nnunet_cascade(tmp_path / "trained")
    import_nnunet(folder, tmp_path / "package")
    voxels = np.random.default_rng(4).normal(size=(15, 13, 9)).astype(np.float32)
    voxels[:2] = 0
    affine = np.diag([-1.3, 0.8, 2.1, 1.0])
    source = Scan.from_array(voxels, Geometry(voxels.shape, affine))
    models = [
        medseg.load_model(path, "cpu", backend="torch") for path in (folder, tmp_path / "package")
    ]
    masks = [model.predict(source).labels for model in models]
    np.testing.assert_array_equal(*masks)
    first = medseg.load_model(
        folder.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres"), "cpu", backend="torch"
    )

    # The same by hand: the first mask turned, cropped and resampled as an image would be.
    package = load_package(tmp_path / "package")
    plan = package.plan
    working, record = preprocess_scan(source, plan)
    mask = first.predict(source).labels
    assert record.crop is not None
    turned = record.orientation.apply(mask)[record.crop]
    hot = torch.from_numpy((turned == 1).astype(np.float32))[None]
    share = resample_image(hot, record.working.shape)
    tile = torch.cat([working, (share > 0.5).float()])
    predictor = Predictor(package.networks(), plan, torch.device("cpu"))
    expected = predictor.infer(tile, record)
    assert 0.05 < (expected > 0).mean() < 0.95
    assert (masks[0] == expected).mean() > 0.99
    blind = predictor.infer(torch.cat([working, torch.zeros_like(working)]), record)
    assert (blind != expected).mean() > 0.01


def test_masks_are_named_as_nnunet_names_them(tmp_path: Path) -> None:
    """``case_0000`` is channel 0 of ``case``; a number that is not a channel's stays."""
    cascade = write_nnunet_cascade(tmp_path / "trained")
    of_one_channel = cascade.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres")
    model = medseg.load_model(of_one_channel, "cpu", backend="torch")
    for name in ("a_0000", "b", "c_0003", "both_0000", "both"):
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", np.zeros((9, 8, 7), np.float32), np.eye(4))
    found = {case: Path(str(path)).name for case, path in find_cases([tmp_path / "in"], model.plan)}
    assert found == {
        "a": "a_0000.nii.gz", "b": "b.nii.gz", "c_0003": "c_0003.nii.gz",
        "both_0000": "both_0000.nii.gz", "both": "both.nii.gz",
    }  # fmt: skip
    medseg.predict(model, tmp_path / "in" / "a_0000.nii.gz", tmp_path / "out")
    assert (tmp_path / "out" / "a.nii.gz").is_file()
    # A model of ours takes names as they are: a number may be part of them.
    plain = model.plan.model_copy(update={"scan_names": "plain"})
    assert "a_0000" in dict(find_cases([tmp_path / "in"], plain))


def test_a_cascade_is_not_exported_as_its_second_stage_alone(tmp_path: Path) -> None:
    import_nnunet(write_nnunet_cascade(tmp_path / "trained"), tmp_path / "package")
    with pytest.raises(InputError, match="a cascade"):
        export(tmp_path / "package", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_a_cascade_without_its_first_stage_is_refused(tmp_path: Path) -> None:
    import_nnunet(write_nnunet_cascade(tmp_path / "trained"), tmp_path / "package")
    inner = tmp_path / "package" / "previous" / "weights.safetensors"
    whole = inner.read_bytes()
    inner.write_bytes(whole[:-1] + b"?")
    with pytest.raises(PackageError, match="SHA-256"):
        load_package(tmp_path / "package")
    inner.write_bytes(whole)
    other = tmp_path / "package" / "previous" / "checksums"
    other.write_text(other.read_text() + "\n")
    with pytest.raises(PackageError, match="SHA-256"):
        load_package(tmp_path / "package")


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    folder = write_nnunet_model(tmp_path / "model")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("you")
    for out in (tmp_path / "letters", folder):
        with pytest.raises(InputError, match="a folder with other files"):
            import_nnunet(folder, out)
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        import_nnunet(folder, tmp_path / "empty")
    assert (tmp_path / "letters" / "dear.txt").read_text() == "you"
