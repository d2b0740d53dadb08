from __future__ import annotations

import pickle

import pytest

from medseg.core import errors
from medseg.core.errors import DatasetError, InputError, MedsegError, MissingPackageError
from medseg.core.optional import require


def test_message_is_one_line_with_all_parts() -> None:
    error = DatasetError("a\nfile", expected="this", got="that\n  other", cure="Do it.")
    assert str(error) == "a file: expected this, got that other. Do it."


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({}, "x"),
        ({"got": "b"}, "x: got b"),
        ({"expected": "a"}, "x: expected a"),
        ({"cure": "Run it."}, "x. Run it."),
        ({"got": "b.", "cure": "Run it."}, "x: got b. Run it."),
    ],
)
def test_parts_may_be_absent(parts: dict[str, str], told: str) -> None:
    assert str(MedsegError("x", **parts)) == told


def test_errors_travel_between_processes() -> None:
    error = DatasetError("a", expected="b", got="c", cure="d.")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is DatasetError
    assert str(back) == str(error)
    assert (back.what, back.expected, back.got, back.cure) == ("a", "b", "c", "d.")


def test_the_tree_is_the_one_that_is_drawn() -> None:
    assert errors.__doc__ is not None
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    for name in kinds:
        assert f" {name} " in f"{errors.__doc__} ".replace("\n", " ")
        assert issubclass(getattr(errors, name), MedsegError)
    assert issubclass(DatasetError, InputError)


def test_optional_package() -> None:
    assert require("json", extra="none", feature="reading").loads("1") == 1
    with pytest.raises(MissingPackageError, match=r"pip install 'medseg\[dicom\]'"):
        require("no_such_package_here", extra="dicom", feature="DICOM")
