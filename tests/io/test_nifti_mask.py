"""Masks written as NIfTI: the scan's placement to the bit, names that come back."""

from __future__ import annotations

import errno
import gzip
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medseg.core.errors import OutputError
from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.labels import Label, LabelSet
from medseg.core.results import Prediction
from medseg.core.scan import Scan
from medseg.io import nifti_mask
from medseg.io.formats import read_label_names, read_mask, read_scan, write_mask
from medseg.io.label_table import from_caret_xml, to_caret_xml
from medseg.io.nifti_header import PLACEMENT_FIELDS
from medseg.io.nifti_mask import to_nibabel
from tests.phantoms import lopsided_geometry, lopsided_volume, oblique_affine

SHAPE = (11, 8, 6)
LABELS = LabelSet.from_names({1: "liver", 2: "spleen", 7: 'a <odd> & "quoted" näme ]]>'})


def _prediction(scan: Scan, *, labels: LabelSet = LABELS, dtype: Any = np.uint8) -> Prediction:
    rng = np.random.Generator(np.random.PCG64(0))
    mask = rng.choice([0, *labels.values], size=scan.geometry.shape).astype(dtype)
    return Prediction(mask, scan.geometry, labels, forms=scan.forms)


def _raw(path: Path, size: int = 348) -> Any:
    content = path.read_bytes()
    content = gzip.decompress(content) if path.name.endswith(".gz") else content
    kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
    return kind(content[:size], check=False)


def _itk(path: Path) -> tuple[Any, ...]:
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection()


@pytest.mark.parametrize("oblique", [False, True])
def test_the_mask_reports_the_input_geometry_in_every_orientation(
    tmp_path: Path, oblique: bool
) -> None:
    voxels, affine = lopsided_volume(SHAPE, oblique=oblique)
    scan_path, mask_path = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    for turn in ALL_ORIENTATIONS:
        geometry = Geometry(SHAPE, affine).reoriented(turn)
        nib.save(nib.Nifti1Image(turn.apply(voxels), geometry.affine_ras), scan_path)
        prediction = _prediction(read_scan(scan_path))
        write_mask(mask_path, prediction)
        scan, mask = nib.load(scan_path), nib.load(mask_path)
        assert np.array_equal(mask.affine, scan.affine)
        assert mask.shape == scan.shape
        assert np.array_equal(np.asarray(mask.dataobj), prediction.labels)
        assert _itk(mask_path) == _itk(scan_path)
        for name in PLACEMENT_FIELDS:
            assert _raw(mask_path)[name].tobytes() == _raw(scan_path)[name].tobytes()


def test_odd_placement_fields_are_repeated_to_the_bit(tmp_path: Path) -> None:
    """Different qform and sform, odd codes, a qfac of 0, metres, and repetition time."""
    image = nib.Nifti1Image(np.zeros((*SHAPE, 3), np.int16), oblique_affine())
    image.set_qform(oblique_affine(origin_mm=(1.0, 2.0, 3.3)), code=3)
    image.set_sform(oblique_affine(), code=4)
    image.header["pixdim"][4] = 2.125
    image.header["xyzt_units"] = 1 + 8
    nib.save(image, tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    content[76:80] = bytes(4)  # pixdim[0], which nibabel would repair on saving
    (tmp_path / "scan.nii").write_bytes(content)
    scan = read_scan(tmp_path / "scan.nii")
    write_mask(tmp_path / "mask.nii.gz", _prediction(scan))
    ours, theirs = _raw(tmp_path / "mask.nii.gz"), _raw(tmp_path / "scan.nii")
    assert theirs["pixdim"][0] == 0.0
    for name in PLACEMENT_FIELDS:
        assert ours[name].tobytes() == theirs[name].tobytes(), name
    assert tuple(ours["dim"][:4]) == (3, *SHAPE)
    assert read_scan(tmp_path / "mask.nii.gz").geometry == scan.geometry
    in_memory = to_nibabel(_prediction(scan))
    assert np.array_equal(in_memory.affine, nib.load(tmp_path / "scan.nii").affine)


def test_big_endian_and_version_2_in_give_version_2_out(tmp_path: Path) -> None:
    header = nib.Nifti2Header(endianness=">")
    image = nib.Nifti2Image(lopsided_volume(SHAPE)[0].astype(">i2"), oblique_affine(), header)
    nib.save(image, tmp_path / "scan.nii")
    write_mask(tmp_path / "mask.nii.gz", _prediction(read_scan(tmp_path / "scan.nii")))
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert isinstance(mask, nib.Nifti2Image)
    assert np.array_equal(mask.affine, nib.load(tmp_path / "scan.nii").affine)
    ours, theirs = _raw(tmp_path / "mask.nii.gz", 540), _raw(tmp_path / "scan.nii", 540)
    for name in PLACEMENT_FIELDS:
        assert np.array_equal(ours[name], theirs[name])


def test_a_2d_scan_gives_a_2d_mask(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((9, 7), np.int16), oblique_affine(angles_deg=(0, 0, 0)))
    nib.save(image, tmp_path / "scan.nii.gz")
    prediction = _prediction(read_scan(tmp_path / "scan.nii.gz"))
    write_mask(tmp_path / "mask.nii.gz", prediction)
    assert nib.load(tmp_path / "mask.nii.gz").shape == (9, 7)
    assert _itk(tmp_path / "mask.nii.gz") == _itk(tmp_path / "scan.nii.gz")
    assert np.array_equal(read_mask(tmp_path / "mask.nii.gz")[0], prediction.labels)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_without_forms_both_forms_come_from_the_geometry(tmp_path: Path, suffix: str) -> None:
    for turn in ALL_ORIENTATIONS[::5]:
        geometry = lopsided_geometry(SHAPE).reoriented(turn)
        scan = Scan.from_array(np.zeros(geometry.shape), geometry)
        path = tmp_path / f"mask{suffix}"
        write_mask(path, _prediction(scan))
        header = nib.load(path).header
        assert int(header["qform_code"]) == int(header["sform_code"]) == 1
        assert header.get_xyzt_units()[0] == "mm"
        assert np.allclose(header.get_sform(), geometry.affine_ras, atol=1e-5)
        assert np.allclose(header.get_qform(), geometry.affine_ras, atol=1e-4)
        size, origin, spacing, direction = _itk(path)
        seen = Geometry.from_lps(size, origin, spacing, direction)
        assert seen.difference(geometry) is None


def test_values_above_255_and_scaling_fields(tmp_path: Path) -> None:
    many = LabelSet.from_names({1: "a", 40000: "b"})
    scan = Scan.from_array(np.zeros(SHAPE), lopsided_geometry(SHAPE))
    write_mask(tmp_path / "mask.nii.gz", _prediction(scan, labels=many, dtype=np.uint16))
    raw = _raw(tmp_path / "mask.nii.gz")
    assert raw.get_data_dtype() == np.uint16
    assert (float(raw["scl_slope"]), float(raw["scl_inter"])) == (1.0, 0.0)
    assert (float(raw["cal_min"]), float(raw["cal_max"])) == (0.0, 40000.0)
    assert set(np.unique(read_mask(tmp_path / "mask.nii.gz")[0])) == {0, 1, 40000}


def test_equal_masks_are_equal_files(tmp_path: Path) -> None:
    scan = Scan.from_array(np.zeros(SHAPE), lopsided_geometry(SHAPE))
    write_mask(tmp_path / "one.nii.gz", _prediction(scan))
    write_mask(tmp_path / "two.nii.gz", _prediction(scan))
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


def test_names_and_colours_come_back(tmp_path: Path) -> None:
    scan = Scan.from_array(np.zeros(SHAPE), lopsided_geometry(SHAPE))
    write_mask(tmp_path / "mask.nii.gz", _prediction(scan))
    assert read_label_names(tmp_path / "mask.nii.gz") == LABELS
    # nibabel finds the same extension where we put it.
    (extension,) = nib.load(tmp_path / "mask.nii.gz").header.extensions
    assert extension.get_code() == 30
    table = ElementTree.fromstring(extension.content.rstrip(b"\0")).find(".//LabelTable")
    assert table is not None
    assert [row.text for row in table] == ["???", *LABELS.names]
    assert [row.attrib["Key"] for row in table] == ["0", "1", "2", "7"]
    assert table[1].attrib["Red"] == f"{238 / 255:.6f}"


def test_names_survive_a_round_through_nibabel(tmp_path: Path) -> None:
    scan = Scan.from_array(np.zeros(SHAPE), lopsided_geometry(SHAPE))
    nib.save(to_nibabel(_prediction(scan)), tmp_path / "mask.nii.gz")
    assert read_label_names(tmp_path / "mask.nii.gz") == LABELS


def test_a_table_as_workbench_writes_it() -> None:
    text = b"""<?xml version="1.0" encoding="UTF-8"?>
    <CaretExtension><Date><![CDATA[2014-01-01]]></Date><VolumeInformation Index="0"><LabelTable>
    <Label Key="0" Red="1" Green="1" Blue="1" Alpha="0"><![CDATA[???]]></Label>
    <Label Key="3" Red="0.2" Green="0.4" Blue="1" Alpha="1"><![CDATA[left & <right>]]></Label>
    </LabelTable></VolumeInformation></CaretExtension>\n\0\0"""
    expected = Label(value=3, name="left & <right>", colour=(51, 102, 255), sources=(3,))
    assert from_caret_xml(text) == LabelSet(labels=(expected,))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"<no", b"<CaretExtension/>", b"<CaretExtension><LabelTable/></CaretExtension>",
        b"<CaretExtension><LabelTable><Label Key='x'>a</Label></LabelTable></CaretExtension>",
        b"<CaretExtension><LabelTable><Label Key='-4' Red='0' Green='0' Blue='0'>a</Label>"
        b"</LabelTable></CaretExtension>",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]><CaretExtension/>",
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_gives_no_names(text: bytes) -> None:
    assert from_caret_xml(text) is None


def test_characters_that_xml_forbids_do_not_break_the_table() -> None:
    odd = LabelSet.from_names({1: "bell\x07 and \uffff"})
    read = from_caret_xml(to_caret_xml(odd))
    assert read is not None
    assert read.names == ("bell\ufffd and \ufffd",)


def test_a_mask_of_others_has_no_names(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    assert read_label_names(tmp_path / "a.nii.gz") is None


def test_a_full_disk_leaves_the_old_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = Scan.from_array(np.zeros(SHAPE), lopsided_geometry(SHAPE))
    path = tmp_path / "mask.nii.gz"
    write_mask(path, _prediction(scan))
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nifti_mask, "write_gzip", full)
    with pytest.raises(OutputError, match="No space left"):
        write_mask(path, _prediction(scan))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["mask.nii.gz"]


def test_large_2d_shapes_need_version_2(tmp_path: Path) -> None:
    geometry = Geometry((40000, 2, 1), oblique_affine())
    scan = Scan.from_array(np.zeros(geometry.shape), geometry)
    write_mask(tmp_path / "m.nii.gz", _prediction(scan))
    assert isinstance(nib.load(tmp_path / "m.nii.gz"), nib.Nifti2Image)
    assert read_scan(tmp_path / "m.nii.gz").geometry.shape == (40000, 2, 1)
