"""Sets of packages as folders: written whole, verified whole, refused when they do not hold."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medseg.core.errors import OutputError, PackageError
from medseg.core.labels import LabelSet
from medseg.package import model_set
from medseg.package.model_set import (
    SetFile,
    SetMember,
    SharedGrid,
    is_set,
    load_set,
    read_set_info,
    save_set,
)
from medseg.package.package import load_package
from tests.models import small_plan, write_random_package

LABELS = LabelSet.from_names({1: "low", 2: "high"})
KEEP = {"low": "low", "high": "high"}


def set_file(**changes: Any) -> SetFile:
    members = tuple(SetMember(folder=f"members/{name}", labels=KEEP) for name in ("0_a", "1_b"))
    facts: dict[str, Any] = {"medseg_version": "0", "labels": LABELS, "members": members}
    return SetFile(**(facts | changes))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    home = tmp_path_factory.mktemp("packages")
    plans = [small_plan(), small_plan(spacing_mm=(2.0, 2.0, 2.0), crop="nonzero")]
    return [
        load_package(write_random_package(home / str(number), plan))
        for number, plan in enumerate(plans)
    ]


@pytest.fixture
def folder(packages: list[Any], tmp_path: Path) -> Path:
    save_set(tmp_path / "set", set_file(), packages)
    return tmp_path / "set"


def test_there_and_back(packages: list[Any], folder: Path) -> None:
    found = load_set(folder)
    assert is_set(folder)
    assert found.file == set_file()
    assert [member.sha256 for member in found.members] == [one.sha256 for one in packages]
    assert found.sha256 == hashlib.sha256((folder / "checksums").read_bytes()).hexdigest()
    assert read_set_info(folder)["sha256"] == found.sha256
    assert found.plan.labels == LABELS
    assert found.plan.channels == packages[0].plan.channels
    # ``sha256sum -c checksums`` would agree.
    for line in (folder / "checksums").read_text().splitlines():
        sha256, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    shared = SharedGrid(spacing_mm=(1.0, 2.0, 3.0))
    file = set_file(resampling=shared, restore="labels-nearest")
    save_set(folder, file, packages)
    assert load_set(folder).plan.spacing_mm == (1.0, 2.0, 3.0)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["set"]


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change ``set.json`` and set its checksum right."""
    facts = json.loads((folder / "set.json").read_text())
    change(facts)
    (folder / "set.json").write_text(json.dumps(facts))
    sha256 = hashlib.sha256((folder / "set.json").read_bytes()).hexdigest()
    _, *rest = (folder / "checksums").read_text().splitlines()
    (folder / "checksums").write_text("\n".join([f"{sha256}  set.json", *rest]) + "\n")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format_version": 2}, "set format 1 or older, got format 2"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"combine": "vote"}, "combine: 'paint' or 'mean'"),
        ({"members": []}, "members: "),
        ({"members": [{"folder": "../x", "labels": KEEP}]}, "members.0.folder"),
        ({"members": [{"folder": "members/0_a", "labels": {}}]}, "members.0.labels"),
        ({"members": [{"folder": "members/0_a", "labels": KEEP}] * 2}, "two members share"),
        ({"members": [{"folder": "members/9_x", "labels": KEEP}]}, "a line for members/9_x"),
        ({"members": [{"folder": "members/0_a", "labels": {"low": "liver"}}]}, "has not.*liver"),
        ({"members": [{"folder": "members/0_a", "labels": {"liver": "low"}}]}, "labels of low"),
        ({"resampling": {"spacing_mm": [1, 2]}}, "resampling.spacing_mm"),
        ({"resampling": {"spacing_mm": [1, 2, 3]}}, "no crop, where logits go"),
        ({"postprocess": [{"step": "largest", "label": "liver"}]}, "unknown labels"),
    ],
)
def test_fields_that_are_wrong(folder: Path, change: dict[str, Any], told: str) -> None:
    rewritten(folder, lambda facts: facts.update(change))
    with pytest.raises(PackageError, match=told):
        load_set(folder)


def test_damage_is_found(folder: Path) -> None:
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(whole) == 8
    for path, contents in whole.items():
        for damaged in (contents[:-1] + bytes([contents[-1] ^ 1]), contents[: len(contents) // 2]):
            path.write_bytes(damaged)
            with pytest.raises(PackageError):
                load_set(folder)
        path.unlink()
        with pytest.raises(PackageError):
            load_set(folder)
        path.write_bytes(contents)
    load_set(folder)


@pytest.mark.parametrize("name", ["../x/checksums", "/etc/passwd", "members/../set.json", ""])
def test_the_listing_names_files_of_the_set_alone(folder: Path, name: str) -> None:
    with (folder / "checksums").open("a") as listing:
        listing.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(PackageError, match="lines of a set"):
        load_set(folder)


def test_other_folders(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="checksums"):
        load_set(tmp_path)
    assert not is_set(tmp_path)


def test_a_set_is_replaced_whole_or_not_at_all(
    packages: list[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_set(folder).sha256

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_set, "save_package", fail)
    with pytest.raises(OutputError, match="No space left"):
        save_set(folder, set_file(combine="mean"), packages)
    assert load_set(folder).sha256 == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["set"]
    shutil.rmtree(folder)
    with pytest.raises(OutputError, match="No space left"):
        save_set(folder, set_file(), packages)
    assert list(folder.parent.iterdir()) == []
