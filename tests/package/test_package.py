"""Packages: what is saved comes back to the bit, and nothing that was touched is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import medseg
from medseg.core.errors import OutputError, PackageError
from medseg.networks.build import build_network
from medseg.package import package as package_room
from medseg.package.package import (
    is_package,
    load_package,
    read_package_info,
    save_package,
)
from tests.models import small_plan, write_random_package
from tests.phantoms import write_msd_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_random_package(tmp_path / "model", small_plan(), members=2)


def list_again(folder: Path) -> None:
    """Write ``checksums`` for the files as they are: what someone who means harm would do."""
    names = sorted(path.name for path in folder.iterdir() if path.name != "checksums")
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "checksums").write_text("".join(lines))


def change_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / "model.json").read_text())
    change(data)
    (folder / "model.json").write_text(json.dumps(data))
    list_again(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_comes_back_to_the_bit(folder: Path) -> None:
    package = load_package(folder)
    assert package.plan == small_plan()
    for seed, (network, weights) in enumerate(
        zip(package.networks(), package.members, strict=True)
    ):
        saved = build_network(small_plan().network, seed=seed).state_dict()
        assert weights.keys() == saved.keys()
        assert not network.training
        for name, value in saved.items():
            assert torch.equal(value, weights[name])
            assert torch.equal(value, network.state_dict()[name])
            assert value.dtype == weights[name].dtype
    assert package.sha256 == hashlib.sha256((folder / "checksums").read_bytes()).hexdigest()


def test_the_same_model_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = load_package(folder)
    assert save_package(tmp_path / "copy", again.model, again.members) == again.sha256
    assert files_of(folder) == files_of(tmp_path / "copy")


def test_checksums_are_those_of_sha256sum(folder: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not here")
    subprocess.run(
        ["sha256sum", "--check", "--strict", "checksums"],
        cwd=folder, capture_output=True, check=True,
    )  # fmt: skip


def test_model_json_can_be_read_by_people(folder: Path) -> None:
    text = (folder / "model.json").read_text()
    assert len(text.splitlines()) > 50
    data = json.loads(text)
    assert data["format_version"] == 1
    assert data["plan"]["spacing_mm"] == [1.5, 2.0, 3.0]
    assert [label["name"] for label in data["plan"]["labels"]["labels"]] == ["low", "high"]
    assert is_package(folder)
    facts = read_package_info(folder)
    assert facts == {"sha256": load_package(folder).sha256, **data, "profile": None}


@pytest.mark.parametrize("name", ["model.json", "weights_0.safetensors", "weights_1.safetensors"])
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_flipped_bit(folder: Path, name: str, place: float) -> None:
    data = bytearray((folder / name).read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(PackageError, match=rf"{name}: expected SHA-256 .* got .*copy the package"):
        load_package(folder)
    with pytest.raises(PackageError, match=name):
        read_package_info(folder)


def test_a_flipped_bit_in_the_list(folder: Path) -> None:
    text = bytearray((folder / "checksums").read_bytes())
    for place in range(0, len(text), 7):
        damaged = bytearray(text)
        damaged[place] ^= 1
        (folder / "checksums").write_bytes(damaged)
        with pytest.raises(PackageError):
            load_package(folder)


@pytest.mark.parametrize("name", ["model.json", "weights_1.safetensors", "checksums"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(PackageError, match=name):
        load_package(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"got no such folder. Give RUN/model"):
        load_package(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(PackageError, match="no such folder"):
        load_package(tmp_path / "file")


def test_weights_that_are_not_listed(folder: Path) -> None:
    lines = (folder / "checksums").read_text().splitlines(keepends=True)
    (folder / "checksums").write_text("".join(line for line in lines if "weights_1" not in line))
    with pytest.raises(PackageError, match=r"weights 'weights_1\.safetensors'"):
        load_package(folder)
    (folder / "checksums").write_text("".join(line for line in lines if "model" not in line))
    with pytest.raises(PackageError, match=r"a line for model\.json"):
        load_package(folder)


@pytest.mark.parametrize("part", ["package", "plan"])
def test_a_newer_format_says_what_to_do(folder: Path, part: str) -> None:
    change_json(
        folder, lambda data: (data if part == "package" else data["plan"]).update(format_version=2)
    )
    for read in (load_package, read_package_info):
        with pytest.raises(
            PackageError, match=rf"{part} format 1 or older, got format 2. .*update"
        ):
            read(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data.update(surprise=1), "surprise"),
        (lambda data: data["plan"].update(surprise=1), r"plan\.surprise"),
        (lambda data: data.update(format_version=0), "format_version"),
        (lambda data: data.update(weights=[]), "weights"),
        (lambda data: data.pop("plan"), "plan"),
        (lambda data: data["plan"].update(patch_size=[16, 12, 7]), "multiple of"),
        (lambda data: data["plan"]["network"].update(classes=4), r"network\.classes"),
    ],
)
def test_a_model_json_that_does_not_hold_together(
    folder: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    change_json(folder, change)
    with pytest.raises(PackageError, match=told):
        load_package(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\xff"])
def test_a_model_json_that_is_none(folder: Path, text: str) -> None:
    (folder / "model.json").write_bytes(text.encode("latin-1"))
    list_again(folder)
    with pytest.raises(PackageError, match=r"model\.json"):
        load_package(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"features": (4, 6)}, "parameters differ"),
        ({"features": (4, 8, 8), "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 1)),
          "kernels": ((3, 3, 3),) * 3}, "parameters differ"),
        ({"convolutions": 1}, "absent"),
    ],
)  # fmt: skip
def test_weights_of_another_plan(folder: Path, change: dict[str, Any], told: str) -> None:
    change_json(folder, lambda data: data["plan"]["network"].update(change))
    with pytest.raises(PackageError, match=rf"weights: expected .*{told}.*another plan"):
        load_package(folder).networks()


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "..", ".", "/etc/hostname", "sub/weights", "sub\\weights", "a\0b"],
)
def test_names_that_lead_out_of_the_folder(folder: Path, name: str) -> None:
    data = b"outside"
    (folder.parent / "outside.safetensors").write_bytes(data)
    with (folder / "checksums").open("a") as stream:
        stream.write(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
    with pytest.raises(PackageError, match="<sha256> <file>"):
        load_package(folder)


def test_weights_named_by_path_in_model_json(folder: Path) -> None:
    (folder / "weights_0.safetensors").rename(folder.parent / "elsewhere.safetensors")
    change_json(folder, lambda data: data.update(weights=["../elsewhere.safetensors"]))
    with pytest.raises(PackageError, match="no such file in it"):
        load_package(folder)


def test_a_link_to_a_file_counts_and_a_pipe_does_not(folder: Path) -> None:
    weights = folder / "weights_0.safetensors"
    weights.rename(folder.parent / "stored")
    weights.symlink_to(folder.parent / "stored")
    assert len(load_package(folder).members) == 2
    weights.unlink()
    os.mkfifo(weights)  # reading it would wait for ever
    with pytest.raises(PackageError, match=r"weights_0\.safetensors: expected a file"):
        load_package(folder)


class Harm:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("writer", [torch.save, lambda o, path: path.write_bytes(pickle.dumps(o))])
def test_pickled_weights_under_the_right_name(folder: Path, writer: Any, tmp_path: Path) -> None:
    writer(Harm(tmp_path / "harm"), folder / "weights_0.safetensors")
    list_again(folder)
    with pytest.raises(PackageError, match=r"weights_0\.safetensors: expected safetensors"):
        load_package(folder)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,999]}}',
        '{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F4","shape":[16],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F8_E8M0","shape":[8],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"object","shape":[1],"data_offsets":[0,8]}}',
        "no JSON",
    ],
)
def test_safetensors_that_are_wrong_inside(folder: Path, header: str) -> None:
    raw = header.encode()
    raw += b" " * (-len(raw) % 8)
    (folder / "weights_0.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
    list_again(folder)
    with pytest.raises(PackageError, match="weights"):
        load_package(folder).networks()


def other_package(folder: Path) -> Callable[[], object]:
    model = load_package(folder).model.model_copy(update={"licence": "another"})
    weights = [build_network(small_plan().network, seed=9).state_dict()] * 2
    return lambda: save_package(folder, model, weights)


def test_a_package_is_replaced(folder: Path) -> None:
    other_package(folder)()
    assert load_package(folder).model.licence == "another"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("failing", ["save_tensors", "swap"])
def test_a_failure_in_the_middle_keeps_the_old_one(
    folder: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, before = other_package(folder), files_of(folder)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package_room, failing, fail)
    with pytest.raises(OutputError, match=r"writing .*model: got No space left .*Free some space"):
        save()
    assert files_of(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_failure_while_it_takes_its_place_keeps_the_old_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, before = other_package(folder), files_of(folder)
    rename = Path.rename

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if self.name.startswith(".medseg-model-"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OutputError):
        save()
    assert files_of(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_disk_that_fills_leaves_no_half_package(folder: Path, repository: Path) -> None:
    before = files_of(folder)
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from medseg.core.errors import OutputError\n"
        "from medseg.package.package import load_package, save_package\n"
        "old = load_package(sys.argv[1])\n"
        "weights = [{'a': torch.zeros(50_000)}] * 2\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "for place in sys.argv[1:]:\n"
        "    try:\n"
        "        save_package(Path(place), old.model, weights)\n"
        "    except OutputError as error:\n"
        "        print(error)\n"
    )
    new = folder.parent / "new"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(new)],
        env={**os.environ, "PYTHONPATH": str(repository)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert [line.split(": got ")[1][:14] for line in done.stdout.splitlines()] == [
        "File too large"
    ] * 2
    assert files_of(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_nothing_of_a_patient_is_in_a_trained_package(tmp_path: Path) -> None:
    data = write_msd_dataset(tmp_path / "somewhere", cases=4, shape=(18, 14, 10))
    medseg.train(
        data, tmp_path / "run", epochs=1, base_features=4, device="cpu",
        plan={"training": {"steps_per_epoch": 1}, "patch_size": [16, 8, 8]},
    )  # fmt: skip
    model = tmp_path / "run" / "model"
    names = ["checksums", "model.json", "profile.json", "weights.safetensors"]
    assert sorted(files_of(model)) == names
    found = {name for path in data.rglob("*.nii.gz") for name in (path.name.split(".")[0],)}
    assert len(found) == 4
    for content in files_of(model).values():
        for secret in (*found, "somewhere", tmp_path.name, "imagesTr", "labelsTr"):
            assert secret.encode() not in content
    text = (model / "model.json").read_text()
    assert "validation" in json.loads(text)["metrics"]
    assert re.search(r"(19|20)\d\d[-/.:]?[01]\d[-/.:]?[0-3]\d\b(?!\d)", text) is None


def test_building_a_network_brings_no_compiler(tmp_path: Path) -> None:
    """torch's compiler takes seconds to import; drawing weights without memory would do so."""
    folder = write_random_package(tmp_path / "model", small_plan())
    script = (
        "import sys; from pathlib import Path; from medseg.package.package import load_package; "
        f"load_package(Path({str(folder)!r})).networks(); "
        "print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", script]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", "False"]
