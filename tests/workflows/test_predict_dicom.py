"""DICOM studies in, masks on the grid of the chosen series out."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.cli.app import run
from medseg.core.errors import GeometryError, InputError
from medseg.io.formats import read_scan
from medseg.workflows.api import Model, load_model
from medseg.workflows.predict import find_cases, predict
from tests.dicom_phantoms import STUDY, Series, random_voxels
from tests.models import small_plan, write_random_package
from tests.phantoms import lopsided_volume, write_nifti


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = small_plan(modality="CT")
    return write_random_package(tmp_path_factory.mktemp("one") / "model", plan)


@pytest.fixture(scope="module")
def model(package: Path) -> Model:
    return load_model(package, "cpu")


def write_study(folder: Path, uid: str, *slices_of_series: int) -> Path:
    """A study folder with a folder for each series."""
    for number, slices in enumerate(slices_of_series, start=1):
        series = Series(
            random_voxels((13, 9, slices), seed=number),
            uid=f"{STUDY}.{uid}.{number}",
            number=number,
            tags={"StudyInstanceUID": f"{STUDY}.{uid}"},
        )
        series.write(folder / f"series {number}")
    return folder


def test_mask_lies_on_the_grid_of_the_series(model: Model, tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", "1", 6, 12)
    summary = predict(model, folder, tmp_path / "out", series="auto")
    (case,) = summary["done"]
    assert case == "study"
    mask = nib.load(summary["done"][case])
    geometry = read_scan(folder, series="2").geometry
    assert mask.shape == geometry.shape == (13, 9, 12)
    np.testing.assert_allclose(mask.affine, geometry.affine_ras, atol=1e-4)
    facts = json.loads((tmp_path / "out" / "study.json").read_text())
    files = sorted((folder / "series 2").iterdir(), key=lambda path: int(path.stem.split("_")[1]))
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert facts["input_sha256"] == [hashlib.sha256("".join(hashes).encode()).hexdigest()]


def test_folder_zip_and_python_give_the_same_mask(model: Model, tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", "1", 6)
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.rglob("*.dcm"):
            archive.write(path, path.relative_to(tmp_path))
    done = predict(model, [folder, tmp_path / "z.zip"], tmp_path / "out")["done"]
    assert set(done) == {"study/series 1", "z"}
    masks = [np.asarray(nib.load(path).dataobj) for path in done.values()]
    np.testing.assert_array_equal(*masks)
    np.testing.assert_array_equal(model.predict(folder).labels, masks[0])
    result = model.predict(read_scan(folder, series="1"))
    np.testing.assert_array_equal(result.labels, masks[0])


def test_one_case_per_study_and_only_the_tie_fails(model: Model, tmp_path: Path) -> None:
    write_study(tmp_path / "in" / "P1" / "S1", "1", 6, 12)
    write_study(tmp_path / "in" / "P1" / "S2", "2", 7, 7)
    write_study(tmp_path / "in" / "P2" / "S1", "3", 8, 4)
    voxels, affine = lopsided_volume((11, 8, 6))
    write_nifti(tmp_path / "in" / "extra.nii.gz", voxels, affine)
    summary = predict(model, tmp_path / "in", tmp_path / "out", series="auto")
    assert set(summary["done"]) == {"P1/S1", "P2/S1", "extra"}
    assert set(summary["failed"]) == {"P1/S2"}
    assert "series 1" in summary["failed"]["P1/S2"]
    assert "series 2" in summary["failed"]["P1/S2"]


def test_auto_follows_the_words_of_the_plan(tmp_path: Path) -> None:
    for number, name in enumerate(("Abdomen arterial", "Abdomen portal"), start=1):
        Series(
            random_voxels((13, 9, 5 + number), seed=number),
            uid=f"{STUDY}.{number}", number=number, tags={"SeriesDescription": name},
            spacing_mm=(0.7, 1.1, 12 / (5 + number)),
        ).write(tmp_path / "study" / name)  # fmt: skip
    for word, slices in (("arterial", 6), ("portal", 7)):
        plan = small_plan(modality="CT", series_words=[word])
        package = write_random_package(tmp_path / word / "model", plan)
        done = predict(package, tmp_path / "study", tmp_path / word / "out", series="auto")["done"]
        assert nib.load(done["study"]).shape == (13, 9, slices)


def test_two_studies_in_one_folder(model: Model, tmp_path: Path) -> None:
    for uid in ("1", "2"):
        write_study(tmp_path / uid, uid, 6)
        for path in (tmp_path / uid / "series 1").iterdir():
            (tmp_path / "in").mkdir(exist_ok=True)
            shutil.move(path, tmp_path / "in" / f"{uid}_{path.name}")
    jobs = find_cases([tmp_path / "in"], model.plan)
    assert [case for case, _ in jobs] == ["in_1", "in_2"]


def test_gaps_need_to_be_accepted(model: Model, tmp_path: Path) -> None:
    series = Series(random_voxels((13, 9, 5)), places=[0, 1, 2, 4, 5])
    folder = series.write(tmp_path / "s")
    with pytest.raises(GeometryError, match="accept-gaps"):
        predict(model, folder, tmp_path / "out")
    done = predict(model, folder, tmp_path / "out", accept_gaps=True)["done"]
    assert nib.load(done["s"]).shape == (13, 9, 6)


def test_a_plane_per_original_slice(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Series(random_voxels((13, 9, 5)), places=[0, 1, 2, 4, 5]).write(tmp_path / "s")
    asked = ["predict", str(package), str(folder), "--out", str(tmp_path / "out"), "--grid"]
    assert run([*asked, "source"]) == 2
    assert "--accept-gaps" in capsys.readouterr().err
    assert run([*asked, "source", "--accept-gaps", "--device", "cpu"]) == 0
    assert nib.load(tmp_path / "out" / "s.nii.gz").shape == (13, 9, 5)


def test_a_table_of_studies(model: Model, tmp_path: Path) -> None:
    write_study(tmp_path / "study", "1", 6, 12)
    uneven = Series(random_voxels((13, 9, 5)), places=[0, 1, 2, 4, 5], number=2)
    uneven.write(tmp_path / "gaps")
    table = tmp_path / "cases.csv"
    table.write_text("case,image\na,study\nb,gaps\nc,nowhere\n")
    summary = predict(
        model, [], tmp_path / "out", cases=table, series="2", accept_gaps=True, grid="source"
    )
    shapes = {case: nib.load(path).shape for case, path in summary["done"].items()}
    assert shapes == {"a": (13, 9, 12), "b": (13, 9, 5)}
    assert "no such file" in summary["failed"]["c"]


def test_unknown_ways_to_read_are_refused(model: Model, tmp_path: Path) -> None:
    folder = Series(random_voxels()).write(tmp_path / "s")
    with pytest.raises(TypeError):
        predict(model, folder, tmp_path / "out", serie="auto")  # type: ignore[call-arg]
    with pytest.raises(InputError, match="none of series 4"):
        predict(model, folder, tmp_path / "out", series="venous")


def test_command_line(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path / "study", "1", 6, 12)
    out = tmp_path / "out"
    assert run(["predict", str(package), str(folder), "--out", str(out)]) == 2
    assert "--series" in capsys.readouterr().err
    chosen = ["predict", str(package), str(folder), "--out", str(out), "--series", "1"]
    assert run([*chosen, "--device", "cpu", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["done"]) == ["study"]
    assert nib.load(out / "study.nii.gz").shape == (13, 9, 6)
