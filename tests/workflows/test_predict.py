"""Files and folders in, masks out: names, channels, faults, geometry, sidecars."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

import medseg
from medseg.core.errors import FileError, InputError, LabelError, MedsegError, OutputError
from medseg.core.labels import LabelSet
from medseg.io.formats import read_label_names
from medseg.workflows import segment
from medseg.workflows.api import Model, load_model
from medseg.workflows.predict import find_cases, predict, read_case_table
from tests.models import small_plan, write_random_package
from tests.phantoms import blobs, oblique_affine, write_nifti

SHAPE = (11, 8, 6)
PLACEMENT = (
    "dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_package(tmp_path_factory.mktemp("one") / "model", small_plan())


@pytest.fixture(scope="module")
def model(package: Path) -> Model:
    return load_model(package, "cpu")


@pytest.fixture(scope="module")
def model_of_two(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("two") / "model"
    return load_model(write_random_package(folder, small_plan(channels=2)), "cpu")


@pytest.fixture(scope="module")
def flat_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("flat") / "model"
    return load_model(write_random_package(folder, small_plan(dims=2)), "cpu")


def scan(path: Path, *, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Path:
    return write_nifti(path, blobs(shape, seed=seed)[0], oblique_affine())


def files_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# Names of cases


def test_ids_are_paths_below_the_common_folder(model: Model, tmp_path: Path) -> None:
    for name in ("a/x.nii.gz", "a/deep/y.nii", "b/x.nii.gz"):
        scan(tmp_path / "in" / name)
    summary = predict(model, [tmp_path / "in" / "a", tmp_path / "in" / "b"], tmp_path / "out")
    assert sorted(summary["done"]) == ["a/deep/y", "a/x", "b/x"]
    assert summary["failed"] == {}
    assert files_in(tmp_path / "out") == [
        "a/deep/y.json", "a/deep/y.nii.gz", "a/x.json", "a/x.nii.gz", "b/x.json", "b/x.nii.gz",
    ]  # fmt: skip
    assert summary["done"]["a/x"] == str(tmp_path / "out" / "a" / "x.nii.gz")


def ids(model: Model, inputs: list[Path], out: Path | None = None) -> list[str]:
    return sorted(case for case, _ in find_cases(inputs, model.plan, out=out))


def test_ids_of_files_and_mixtures(model: Model, tmp_path: Path) -> None:
    one, two = scan(tmp_path / "a" / "x.nii.gz"), scan(tmp_path / "b" / "y.nii.gz")
    assert ids(model, [one]) == ["x"]
    assert ids(model, [tmp_path / "a"]) == ["x"]
    assert ids(model, [one, two]) == ["a/x", "b/y"]
    # The same scan twice, by file and by folder, is one case.
    assert ids(model, [one, tmp_path / "a"]) == ["x"]


def test_ids_stay_below_out_however_inputs_are_spelled(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(tmp_path / "in" / "a" / "x.nii.gz")
    scan(tmp_path / "in" / "b" / "y.nii.gz")
    monkeypatch.chdir(tmp_path / "in" / "a")
    assert ids(model, [Path("../b"), Path()]) == ["a/x", "b/y"]
    assert ids(model, [Path("../a/../b/y.nii.gz")]) == ["y"]
    (tmp_path / "link").symlink_to(tmp_path / "in" / "b")
    assert ids(model, [tmp_path / "link", tmp_path / "in" / "a"]) == ["a/x", "b/y"]


def test_two_inputs_with_one_id(model: Model, tmp_path: Path) -> None:
    scan(tmp_path / "in" / "x.nii.gz")
    scan(tmp_path / "in" / "x.nii")
    with pytest.raises(InputError, match=r"case id 'x': expected one scan, got .*x\.nii.*x\.nii"):
        predict(model, [tmp_path / "in"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_second_run_does_not_read_its_own_masks(model: Model, tmp_path: Path) -> None:
    scan(tmp_path / "in" / "x.nii.gz")
    out = tmp_path / "in" / "masks"
    first = predict(model, [tmp_path / "in"], out)
    assert predict(model, tmp_path / "in", out)["done"] == first["done"]
    # A folder above the scans hides none of them.
    assert ids(model, [tmp_path / "in"], tmp_path) == ["masks/x", "x"]


@pytest.mark.parametrize("spelling", ["in", "in/../in", "link"])
def test_a_mask_never_replaces_a_scan(model: Model, tmp_path: Path, spelling: str) -> None:
    path = scan(tmp_path / "in" / "x.nii.gz")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "t.csv").write_text("case,image\nx,in/x.nii.gz\n")
    before = path.read_bytes()
    for inputs in ({"inputs": [path]}, {"inputs": [], "cases": tmp_path / "t.csv"}):
        with pytest.raises(InputError, match=r"masks replace no scan.*Choose another --out"):
            predict(model, out=tmp_path / spelling, **inputs)
    assert path.read_bytes() == before
    assert files_in(tmp_path / "in") == ["x.nii.gz"]


@pytest.mark.parametrize("inputs", [[], ["empty"], ["empty", "empty"]])
def test_nothing_to_segment(model: Model, tmp_path: Path, inputs: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").touch()
    with pytest.raises(InputError, match="at least one scan"):
        predict(model, [tmp_path / name for name in inputs], tmp_path / "out")
    with pytest.raises(FileError, match="no such path"):
        predict(model, [tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Several channels


def two_channels(folder: Path, case: str) -> tuple[Path, Path]:
    return (
        scan(folder / f"{case}_0000.nii.gz", seed=1),
        scan(folder / f"{case}_0001.nii.gz", seed=2),
    )


def test_three_ways_to_give_channels(model_of_two: Model, tmp_path: Path) -> None:
    first, second = two_channels(tmp_path / "files", "sub/x")
    scan(tmp_path / "files" / "y_0000.nii.gz")
    scan(tmp_path / "files" / "y_0001.nii.gz")
    by_name = predict(model_of_two, [tmp_path / "files"], tmp_path / "a")
    assert sorted(by_name["done"]) == ["sub/x", "y"]
    # The table's columns stand in another order than the plan's channels.
    (tmp_path / "t.csv").write_text(
        f"second,case,first\nfiles/sub/{second.name},sub/x,files/sub/{first.name}\n"
    )
    by_table = predict(model_of_two, [], tmp_path / "b", cases=tmp_path / "t.csv")
    voxels = np.stack([np.asarray(nib.load(p).dataobj) for p in (first, second)], axis=-1)
    write_nifti(tmp_path / "whole" / "x.nii.gz", voxels, oblique_affine())
    whole = predict(model_of_two, [tmp_path / "whole" / "x.nii.gz"], tmp_path / "c")
    masks = [
        nib.load(summary["done"][case]).get_fdata()
        for summary, case in ((by_name, "sub/x"), (by_table, "sub/x"), (whole, "x"))
    ]
    assert masks[0].shape == SHAPE
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])
    sidecar = json.loads((tmp_path / "b" / "sub" / "x.json").read_text())
    assert sidecar["input_sha256"] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)
    ]


def test_a_missing_channel(model_of_two: Model, tmp_path: Path) -> None:
    two_channels(tmp_path / "in", "x")[1].unlink()
    with pytest.raises(InputError, match=r"case 'x': .*first, second, got none for second"):
        predict(model_of_two, [tmp_path / "in"], tmp_path / "out")


def test_a_channel_too_many(model_of_two: Model, tmp_path: Path) -> None:
    two_channels(tmp_path / "in", "x")
    scan(tmp_path / "in" / "x_0002.nii.gz")
    with pytest.raises(InputError, match=r"channels _0000 to _0001 \(first, second\), got _0002"):
        predict(model_of_two, [tmp_path / "in"], tmp_path / "out")


def test_one_id_by_file_and_by_channels(model_of_two: Model, tmp_path: Path) -> None:
    two_channels(tmp_path / "in", "x")
    scan(tmp_path / "in" / "x.nii.gz")
    with pytest.raises(InputError, match="case id 'x'"):
        predict(model_of_two, [tmp_path / "in"], tmp_path / "out")


def test_one_channel_where_two_are_wanted(model_of_two: Model, tmp_path: Path) -> None:
    path = scan(tmp_path / "x.nii.gz")
    with pytest.raises(InputError, match=r"x\.nii\.gz: expected 2 channels \(first, second\)"):
        predict(model_of_two, [path], tmp_path / "out")


def test_channels_on_different_grids(model_of_two: Model, tmp_path: Path) -> None:
    scan(tmp_path / "in" / "x_0000.nii.gz")
    scan(tmp_path / "in" / "x_0001.nii.gz", shape=(11, 8, 7))
    with pytest.raises(MedsegError, match=r"channel 'second' on the grid of 'first'"):
        predict(model_of_two, [tmp_path / "in"], tmp_path / "out")
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "columns none"),
        ("case,first\nx,a.nii\n", "case, first, second"),
        ("case,first,second\nx,a.nii,\n", "line 2: expected a value in each column"),
        ("case,first,second\nx,a,b\nx,a,b\n", "line 3: expected a new case id"),
        ("case,first,second\nx,a,b\n./x,a,b\n", "line 3: expected a new case id"),
        ("case,first,second\n../x,a,b\n", "below --out"),
        ("case,first,second\n/x,a,b\n", "below --out"),
        ("case,first,second\nx,a,b".encode("utf-16").decode("latin-1"), "UTF-8"),
    ],
)
def test_tables_that_are_wrong(model_of_two: Model, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises((InputError, FileError), match=told):
        read_case_table(tmp_path / "t.csv", model_of_two.plan)
    with pytest.raises(FileError, match="CSV table"):
        read_case_table(tmp_path / "none.csv", model_of_two.plan)


def test_a_table_and_scans_are_too_much(model: Model, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("case,image\nx,x.nii\n")
    with pytest.raises(InputError, match="not both"):
        predict(model, [scan(tmp_path / "x.nii")], tmp_path / "out", cases=tmp_path / "t.csv")


# Faults


def test_a_bad_scan_does_not_stop_the_rest(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c", "d"):
        scan(tmp_path / "in" / f"{name}.nii.gz")
    bad = tmp_path / "in" / "b.nii.gz"
    bad.write_bytes(bad.read_bytes()[:-30])
    voxels = blobs(SHAPE)[0].astype(np.float32)
    voxels[1, 2, 3] = np.nan
    write_nifti(tmp_path / "in" / "c.nii.gz", voxels, oblique_affine())
    told: list[tuple[int, int, str]] = []
    with caplog.at_level(logging.WARNING, logger="medseg"):
        summary = predict(
            model, [tmp_path / "in"], tmp_path / "out",
            progress=lambda *facts: told.append(facts),
        )  # fmt: skip
    assert sorted(summary["done"]) == ["a", "d"]
    assert sorted(summary["failed"]) == ["b", "c"]
    assert "finite voxels, got 1 that are NaN" in summary["failed"]["c"]
    assert all("\n" not in reason for reason in summary["failed"].values())
    assert files_in(tmp_path / "out") == ["a.json", "a.nii.gz", "d.json", "d.nii.gz"]
    assert [done for done, _, _ in told] == [1, 2, 3, 4]
    assert sorted(case for _, _, case in told) == ["a", "b", "c", "d"]
    assert sorted(r.getMessage()[:3] for r in caplog.records) == ["b: ", "c: "]


def test_all_bad_is_an_error(model: Model, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.nii.gz").write_bytes(b"no scan")
    with pytest.raises(FileError, match=r"All 2 cases failed; this is the first"):
        predict(model, [tmp_path / "in"], tmp_path / "out")


def test_a_fault_of_ours_is_told_as_such(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(tmp_path / "in" / "a.nii.gz")
    scan(tmp_path / "in" / "b.nii.gz", shape=(11, 8, 7))
    inferred = Model.infer

    def fail_for_b(self: Model, prepared: segment.Prepared, **options: Any) -> Any:
        if Path(prepared.scan.source).name.startswith("b"):
            raise ZeroDivisionError("by\nzero")
        return inferred(self, prepared, **options)

    monkeypatch.setattr(Model, "infer", fail_for_b)
    summary = predict(model, [tmp_path / "in"], tmp_path / "out")
    assert summary["failed"] == {"b": "fault of medseg: ZeroDivisionError: by zero"}
    assert list(summary["done"]) == ["a"]


def test_an_out_that_is_a_file(model: Model, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="--out"):
        predict(model, [scan(tmp_path / "x.nii.gz")], tmp_path / "out")


# Labels


def test_some_labels(model: Model, tmp_path: Path) -> None:
    path = scan(tmp_path / "x.nii.gz", shape=(22, 16, 12))
    whole = nib.load(predict(model, [path], tmp_path / "a")["done"]["x"]).get_fdata()
    assert set(np.unique(whole)) == {0, 1, 2}
    for spelling in ("HIGH", ["high"], " high ,", ("high",)):
        done = predict(model, [path], tmp_path / "b", labels=spelling)["done"]["x"]
        part = nib.load(done).get_fdata()
        np.testing.assert_array_equal(part, np.where(whole == 2, 2, 0))
        assert json.loads((tmp_path / "b" / "x.json").read_text())["labels"] == {"2": "high"}
        names = read_label_names(done)
        assert names is not None
        assert names.names == ("high",)


@pytest.mark.parametrize("labels", ["lung", "high,lung", "", ",", []])
def test_labels_that_are_not_there(model: Model, tmp_path: Path, labels: Any) -> None:
    with pytest.raises(LabelError, match="low, high"):
        predict(model, [scan(tmp_path / "x.nii.gz")], tmp_path / "out", labels=labels)
    assert not (tmp_path / "out").exists()


def test_large_values_make_a_wide_mask(tmp_path: Path) -> None:
    plan = small_plan().model_copy(update={"labels": LabelSet.from_names({3: "low", 300: "high"})})
    model = load_model(write_random_package(tmp_path / "model", plan), "cpu")
    path = scan(tmp_path / "x.nii.gz", shape=(22, 16, 12))
    mask = nib.load(predict(model, [path], tmp_path / "out")["done"]["x"])
    assert mask.get_data_dtype() == np.uint16
    assert set(np.unique(np.asarray(mask.dataobj))) == {0, 3, 300}


# What is written


def test_the_sidecar(model: Model, package: Path, tmp_path: Path) -> None:
    path = scan(tmp_path / "x.nii.gz", shape=(22, 16, 12))
    predict(model, [path], tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "x.json").read_text())
    mask = np.asarray(nib.load(tmp_path / "out" / "x.nii.gz").dataobj)
    assert facts["input_sha256"] == [hashlib.sha256(path.read_bytes()).hexdigest()]
    listing = (package / "checksums").read_bytes()
    assert facts["package_sha256"] == hashlib.sha256(listing).hexdigest()
    assert facts["medseg_version"] == medseg.__version__
    assert (facts["backend"], facts["device"], facts["members"]) == ("torch", "cpu", 1)
    assert facts["options"] == {"step": 0.5, "mirror_axes": [], "postprocess": []}
    assert facts["labels"] == {"1": "low", "2": "high"}
    voxel_ml = 1.5 * 2.0 * 3.5 / 1000
    for value, name in ((1, "low"), (2, "high")):
        counted = np.count_nonzero(mask == value) * voxel_ml
        assert facts["volumes_ml"][name] == pytest.approx(counted, abs=1e-4)
    assert str(tmp_path) not in json.dumps(facts)


def nifti(kind: str) -> nib.Nifti1Image:
    image, affine = blobs(SHAPE)[0], oblique_affine()
    if kind == "nifti-2":
        made = nib.Nifti2Image(image, affine)
    elif kind == "two axes":
        made = nib.Nifti1Image(image[:, :, 3], affine)
    else:
        made = nib.Nifti1Image(image, affine)
    made.set_sform(affine, code=0 if kind == "qform only" else 2)
    # Another place than the sform's: whichever wins, both must come back.
    made.set_qform(oblique_affine(origin_mm=(1.0, 2.0, 3.0)), code=0 if "sform" in kind else 3)
    made.header.set_xyzt_units("mm", "sec")
    return made


@pytest.mark.parametrize("kind", ["nifti-1", "nifti-2", "two axes", "sform only", "qform only"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_placement_is_repeated_to_the_bit(
    model: Model, flat_model: Model, tmp_path: Path, kind: str, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    nib.save(nifti(kind), path)
    chosen = flat_model if kind == "two axes" else model
    done = predict(chosen, [path], tmp_path / "out")["done"]["x"]
    given, mask = nib.load(path), nib.load(done)
    assert type(given) is type(mask)
    assert given.shape == mask.shape
    np.testing.assert_array_equal(given.affine, mask.affine)
    for name in PLACEMENT:
        assert given.header[name].tobytes() == mask.header[name].tobytes(), name
    if kind not in ("two axes", "nifti-2"):  # which SimpleITK does not read
        ours, theirs = sitk.ReadImage(done), sitk.ReadImage(str(path))
        assert ours.GetSize() == theirs.GetSize()
        assert ours.GetOrigin() == theirs.GetOrigin()
        assert ours.GetSpacing() == theirs.GetSpacing()
        assert ours.GetDirection() == theirs.GetDirection()


@pytest.mark.parametrize(
    "name", ["monai/anatomical.nii", "sct/label_int64.nii.gz", "itksnap/t1_chunk.nii.gz"]
)
def test_placement_of_real_scans(
    shared_data: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    path = shared_data("nifti_awkward") / name
    plan = small_plan(spacing_mm=(8.0, 8.0, 8.0))
    model = load_model(write_random_package(tmp_path / "model", plan), "cpu")
    (done,) = predict(model, [path], tmp_path / "out")["done"].values()
    given, mask = nib.load(path), nib.load(done)
    assert given.shape == mask.shape
    for field in PLACEMENT:
        placed = given.header[field].astype(mask.header[field].dtype)
        assert placed.tobytes() == mask.header[field].tobytes(), field
    ours, theirs = sitk.ReadImage(done), sitk.ReadImage(str(path))
    for getter in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(ours, getter)() == getattr(theirs, getter)(), getter


def test_names_and_colours_stand_in_the_mask(model: Model, tmp_path: Path) -> None:
    done = predict(model, [scan(tmp_path / "x.nii.gz")], tmp_path / "out")["done"]["x"]
    names = read_label_names(done)
    assert names is not None
    assert names.names == model.labels.names
    assert [label.colour for label in names.labels] == [
        label.colour for label in model.labels.labels
    ]
    (extension,) = nib.load(done).header.extensions
    assert extension.get_code() == 30


def test_equal_input_gives_equal_files(model: Model, tmp_path: Path) -> None:
    path = scan(tmp_path / "x.nii.gz")
    for out in ("a", "b"):
        predict(model, [path], tmp_path / out)
    for name in ("x.nii.gz", "x.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_other_formats(model: Model, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(blobs(SHAPE)[0].transpose())
    image.SetSpacing((1.5, 2.0, 3.5))
    image.SetOrigin((-31.0, 17.5, 42.25))
    (tmp_path / "in").mkdir()
    for suffix in (".mha", ".nrrd"):
        sitk.WriteImage(image, tmp_path / "in" / f"x{suffix}")
    done = predict(model, [tmp_path / "in" / "x.mha"], tmp_path / "a")["done"]["x"]
    mask = sitk.ReadImage(done)
    assert mask.GetSize() == SHAPE
    assert mask.GetSpacing() == pytest.approx(image.GetSpacing(), rel=1e-6)
    assert mask.GetOrigin() == pytest.approx(image.GetOrigin(), rel=1e-6)
    assert mask.GetDirection() == pytest.approx(image.GetDirection(), abs=1e-6)
    again = predict(model, [tmp_path / "in" / "x.nrrd"], tmp_path / "b")["done"]["x"]
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(sitk.ReadImage(again))
    )


# Pictures


def test_pictures_and_a_flat_model(flat_model: Model, tmp_path: Path) -> None:
    pixels = np.clip(blobs((30, 22, 1))[0][:, :, 0] // 3, 0, 255).astype(np.uint8)
    Image.fromarray(pixels.T).save(tmp_path / "x.png")
    done = predict(flat_model, [tmp_path / "x.png"], tmp_path / "out")["done"]["x"]
    mask = nib.load(done)
    assert mask.shape == (30, 22, 1)
    np.testing.assert_allclose(mask.affine, np.diag([-1, -1, 1, 1]), atol=1e-6)
    assert len(np.unique(np.asarray(mask.dataobj))) > 1


def test_a_flat_model_takes_a_volume_slice_by_slice(flat_model: Model) -> None:
    # Normalisation looks at the whole scan; all slices are made equal, so that the
    # statistics of one are those of all.
    image = np.repeat(blobs((30, 22, 1))[0], 3, axis=2)
    whole = flat_model.predict((image, np.diag([1.5, 2.0, 4.0, 1.0]))).labels
    alone = flat_model.predict((image[:, :, :1], np.diag([1.5, 2.0, 4.0, 1.0]))).labels
    for k in range(3):
        np.testing.assert_array_equal(whole[:, :, k], alone[:, :, 0])


def test_a_picture_and_a_solid_model(model: Model, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.png: expected a volume \(the model is 3D\), got one"):
        predict(model, [tmp_path / "x.png"], tmp_path / "out")
    assert files_in(tmp_path / "out") == []


# A disk that fills


_TWICE_WITH_LITTLE_ROOM = """
import resource, sys
from pathlib import Path
from medseg import predict

model, scans, out = map(Path, sys.argv[1:])
for room in (1500, 100):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        said = predict(model, scans, out, backend="torch")["failed"]
    except Exception as error:
        said = type(error).__name__, str(error)
    files = {path.name: path.read_bytes() for path in out.rglob("*")}
    print(said)
    print(sorted(files), hash(frozenset(files.items())))
"""


def test_a_disk_that_fills(package: Path, tmp_path: Path, repository: Path) -> None:
    noise = np.random.Generator(np.random.PCG64(0)).normal(0, 99, (40, 30, 20)).astype(np.int16)
    write_nifti(tmp_path / "in" / "large.nii", noise, oblique_affine())
    scan(tmp_path / "in" / "small.nii.gz")
    arguments = [str(package), str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", _TWICE_WITH_LITTLE_ROOM, *arguments],
        env={**os.environ, "PYTHONPATH": str(repository)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    failed, first, error, second = done.stdout.splitlines()
    assert failed.startswith("{'large': 'writing")
    assert first.startswith("['small.json', 'small.nii.gz']")
    # The second run can write nothing: what the first left is kept as it was.
    assert error.startswith("('OutputError', 'writing")
    assert second == first


@pytest.mark.parametrize("failing", ["sidecar", "write_mask"])
def test_mask_and_sidecar_are_replaced_together(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = scan(tmp_path / "x.nii.gz")
    predict(model, [path], tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files_in(tmp_path / "out")}
    scan(path, seed=5)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segment, failing, fail)
    with pytest.raises(OutputError, match="No space left"):
        predict(model, [path], tmp_path / "out")
    assert before == {n: (tmp_path / "out" / n).read_bytes() for n in files_in(tmp_path / "out")}
