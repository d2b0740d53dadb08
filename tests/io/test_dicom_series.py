"""Which series there are, what speaks against each, and which one is chosen."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.core.errors import FileError, GeometryError, InputError
from medseg.io.dicom import choose_series, find_series, read_series
from medseg.io.dicom_studies import find_studies
from medseg.io.formats import read_scan
from tests.dicom_phantoms import Series, random_voxels

UID = "1.2.826.0.1.3680043.8.498.1"


def study(folder: Path, *rows: dict[str, Any]) -> Path:
    """A folder of several series, one for each row of changes."""
    for number, row in enumerate(rows, start=1):
        tags = {key: row.pop(key) for key in list(row) if key[0].isupper()}
        voxels = row.pop("voxels", random_voxels(seed=number))
        series = Series(voxels, uid=f"{UID}.{number}", number=number, tags=tags, **row)
        series.write(folder / f"series {number}")
    return folder


def test_what_speaks_against_a_series(tmp_path: Path) -> None:
    study(
        tmp_path,
        {},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"SeriesDescription": "Scout view"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"voxels": random_voxels((5, 4, 2))},
        {"places": [0, 1, 1, 2, 3, 4]},
        {"places": [0, 1, 2, 4, 5, 6]},
        {"ImageOrientationPatient": ([1, 0, 0, 0, 1, 0],) * 3 + ([0, 1, 0, 0, 0, -1],) * 3},
        {"PixelSpacing": ([1.0, 1.0],) * 5 + ([1.5, 1.5],)},
        {"Modality": "US"},
        {"ImagePositionPatient": None},
    )
    against = [info.reasons_against for info in find_series(tmp_path)]
    assert against == [
        (),
        ("a localiser",),
        ("a localiser",),
        ("a secondary capture",),
        ("only 2 slices",),
        ("6 slices at 5 positions",),
        ("uneven gaps (2.5 mm x4, 5 mm x1)",),
        ("mixed orientations",),
        ("unequal pixel spacing",),
        ("modality US is no scan",),
        ("no position in the patient",),
    ]


def test_a_series_is_described(tmp_path: Path) -> None:
    study(tmp_path, {"SeriesDescription": "Portal  venous"})
    (info,) = find_series(tmp_path)
    assert (info.id, info.modality, info.description) == ("1", "CT", "Portal venous")
    assert (info.slices, info.shape, info.axis_codes) == (6, (13, 9, 6), "LPS")
    assert info.spacing_mm == pytest.approx((0.7, 1.1, 2.5), abs=1e-5)
    assert info.uid == f"{UID}.1"


def test_series_by_number_uid_and_pattern(tmp_path: Path) -> None:
    study(
        tmp_path,
        {"SeriesDescription": "Arterial 1.0"},
        {"SeriesDescription": "Portal 1.0"},
        {"SeriesDescription": "Portal 5.0"},
    )
    found = find_series(tmp_path)
    for selector, number in (("2", "2"), (f"{UID}.3", "3"), ("ARTERIAL", "1"), ("por*5*", "3")):
        assert choose_series(found, selector).id == number
    with pytest.raises(InputError, match=r"Portal 1\.0.*Portal 5\.0"):
        choose_series(found, "portal")
    with pytest.raises(InputError, match="none of series 1"):
        choose_series(found, "venous")
    # Not the one that has a 5 in its name.
    with pytest.raises(InputError, match="none of series 1"):
        choose_series(found, "5")
    with pytest.raises(InputError, match=r"3 of 3.*--series"):
        read_scan(tmp_path)
    np.testing.assert_array_equal(
        read_scan(tmp_path, series="2").voxels()[0], random_voxels(seed=2)
    )


def test_the_only_usable_series_needs_no_name(tmp_path: Path) -> None:
    study(tmp_path, {}, {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})
    np.testing.assert_array_equal(read_scan(tmp_path).voxels()[0], random_voxels(seed=1))
    # What was asked for by name is read, whatever speaks against it.
    np.testing.assert_array_equal(
        read_scan(tmp_path, series="2").voxels()[0], random_voxels(seed=2)
    )


def test_a_localiser_alone_is_not_taken_for_a_scan(tmp_path: Path) -> None:
    study(tmp_path, {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})
    with pytest.raises(InputError, match="a localiser"):
        read_scan(tmp_path)


def test_auto_prefers_modality_length_original_spacing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = {"voxels": random_voxels((5, 4, 12))}
    study(
        tmp_path,
        {"Modality": "MR", "voxels": random_voxels((5, 4, 40))},
        {"voxels": random_voxels((5, 4, 4))},
        {**long, "ImageType": ["DERIVED", "SECONDARY"]},
        {**long, "spacing_mm": (0.7, 1.1, 2.4)},
        {**long, "spacing_mm": (1.4, 2.2, 2.5)},
    )
    found = find_series(tmp_path)
    caplog.set_level(logging.INFO)
    assert choose_series(found, "auto", modality="CT").id == "4"
    assert choose_series(found, "auto", modality="CT", spacing_mm=(2.5, 1.4, 2.2)).id == "5"
    assert choose_series(found, "auto", modality="MR").id == "1"
    assert choose_series(found, "auto", modality="T1").id == "1"
    assert "chose series 4" in caplog.text
    assert "runners-up: series 5" in caplog.text
    with pytest.raises(InputError, match="usable series of PT"):
        choose_series(found, "auto", modality="PT")


def test_auto_prefers_the_words_of_the_plan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = {"voxels": random_voxels((5, 4, 12))}
    study(
        tmp_path,
        {"voxels": random_voxels((5, 4, 4)), "SeriesDescription": "Portal B30f"},
        {**long, "SeriesDescription": "Abdomen PORTALVENOUS 2.5", "ConvolutionKernel": "B70f"},
        {**long, "SeriesDescription": "Abdomen portal", "ConvolutionKernel": ["B30f", "3"]},
        {**long, "SeriesDescription": "Heart B301", "spacing_mm": (0.7, 1.1, 2.4)},
    )
    found = find_series(tmp_path)
    caplog.set_level(logging.INFO)

    def chosen(*words: str) -> str:
        return choose_series(found, "auto", modality="CT", words=words).id

    # Without words the finest wins; short series stay behind whatever they are called.
    assert chosen() == "4"
    assert chosen("portal", "B30f") == "3"
    assert "by 'portal, B30f'" in caplog.text
    assert chosen("portalvenous") == chosen("b70F") == "2"
    # The beginning of a word counts, and a number only as a whole.
    assert chosen("art", "B30", "eart") == "3"
    assert chosen("heart") == "4"
    with pytest.raises(InputError, match=r"PORTALVENOUS.* and .*portal.*equally"):
        chosen("portal")


def test_auto_names_both_where_two_tie(tmp_path: Path) -> None:
    study(
        tmp_path, {"SeriesDescription": "soft"}, {"SeriesDescription": "bone"}, {"Modality": "MR"}
    )
    with pytest.raises(InputError, match=r"soft.* and .*bone.*equally"):
        choose_series(find_series(tmp_path), "auto", modality="CT")


def test_echoes_of_one_series_come_apart(tmp_path: Path) -> None:
    first, second = random_voxels(seed=1), random_voxels(seed=2)
    both = np.concatenate([first, second], axis=2)
    places = [float(k) for k in range(6)] * 2
    echoes = ("2.3",) * 6 + ("4.6",) * 6
    Series(both, places=places, tags={"EchoTime": echoes, "Modality": "MR"}).write(tmp_path / "s")
    found = find_series(tmp_path)
    assert [info.id for info in found] == ["4.1", "4.2"]
    assert "echo time 4.6" in found[1].description
    with pytest.raises(InputError, match=r"series 4\.1 .*series 4\.2"):
        choose_series(found, found[0].uid)
    np.testing.assert_array_equal(read_series(found[0]).voxels()[0], first)
    np.testing.assert_array_equal(read_series(found[1]).voxels()[0], second)


def test_slices_out_of_line(tmp_path: Path) -> None:
    series = Series(random_voxels())
    places = [series.position(k) for k in range(6)]
    places[2] = [float(x) for x in places[2] + 5.0 * series.axes[:, 0]]
    Series(random_voxels(), tags={"ImagePositionPatient": tuple(places)}).write(tmp_path / "s")
    with pytest.raises(GeometryError, match="5 mm out of line"):
        read_scan(tmp_path / "s")


def test_one_case_per_study(tmp_path: Path) -> None:
    for patient, uid in (("P1", "7"), ("P2", "8")):
        for number in (1, 2):
            tags = {"StudyInstanceUID": f"{UID}.{uid}"}
            series = Series(random_voxels(), uid=f"{UID}.{uid}.{number}", number=number, tags=tags)
            series.write(tmp_path / patient / "study" / f"series {number}")
    studies = find_studies(tmp_path)
    assert [found.path.relative_to(tmp_path).as_posix() for found in studies] == [
        "P1/study",
        "P2/study",
    ]
    assert [[info.id for info in found.series] for found in studies] == [["1", "2"]] * 2


def test_a_damaged_file_among_good_ones_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Series(random_voxels()).write(tmp_path / "s")
    whole = next(folder.iterdir()).read_bytes()
    broken = bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\xff\xff" + whole[144:200]
    (folder / "broken.dcm").write_bytes(broken)
    assert read_scan(folder).geometry.shape == (13, 9, 6)
    (tmp_path / "alone.dcm").write_bytes(broken)
    with pytest.raises(FileError):
        read_scan(tmp_path / "alone.dcm")


def test_files_that_are_no_images(tmp_path: Path) -> None:
    series = Series(random_voxels())
    ds = series.dataset(0)
    del ds.PixelData
    ds.Modality = "SR"
    ds.save_as(tmp_path / "report.dcm", implicit_vr=False, little_endian=True)
    with pytest.raises(FileError, match="no images"):
        read_scan(tmp_path / "report.dcm")
    assert find_studies(tmp_path / "report.dcm") == []
