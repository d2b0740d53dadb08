"""``predict --qc``: trust in sidecar, ledger and summary; sides of organs are always looked at."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.batch.local import predict_batch
from medseg.cli.app import run
from medseg.core.errors import PackageError, SettingsError
from medseg.core.labels import LabelSet
from medseg.core.profile import Profile
from medseg.datasets.open import open_dataset
from medseg.datasets.reading import read_case_image, read_case_mask
from medseg.networks.build import build_network
from medseg.package.package import ModelFile, load_package, save_package
from medseg.quality.features import Scale, look_at_case
from medseg.quality.profile import learn_profile
from medseg.workflows.api import load_model
from medseg.workflows.judge_masks import judge_masks
from medseg.workflows.make_set import make_set
from medseg.workflows.model import Model
from medseg.workflows.predict import predict
from tests.models import small_plan, write_random_package
from tests.phantoms import write_msd_dataset

SHAPE = (24, 20, 16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_msd_dataset(tmp_path_factory.mktemp("data"), cases=8, shape=SHAPE)


@pytest.fixture(scope="module")
def profile(data: Path) -> Profile:
    dataset = open_dataset(data)
    looks = []
    for case in dataset.cases:
        mask, grid = read_case_mask(case)
        voxels = read_case_image(case).voxels()
        looks.append(look_at_case(mask, grid.geometry, dataset.labels, voxels=voxels))
    return learn_profile(looks, dataset.labels, Scale((False,)))


def write_package(folder: Path, profile: Profile | None, **names: str) -> Path:
    plan = small_plan(spacing_mm=(1.5, 2.0, 3.0))
    if names:
        labels = LabelSet.from_names({n: names[f"label_{n}"] for n in (1, 2)})
        plan = plan.model_copy(update={"labels": labels})
    weights = build_network(plan.network, seed=0).state_dict()
    model = ModelFile(medseg_version="0", weights=("weights.safetensors",), plan=plan)
    save_package(folder, model, [weights], profile=profile)
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, profile: Profile) -> Path:
    return write_package(tmp_path_factory.mktemp("model") / "model", profile)


@pytest.fixture
def knowing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network knows the truth, but of one case, where it loses a part."""

    def infer(model: Model, prepared: Any, **options: Any) -> Any:
        name = Path(prepared.scan.source).name
        mask = np.asarray(nib.load(data / "labelsTr" / name).dataobj).astype(np.uint8)
        if name.startswith("case_003"):
            mask[:, :9] = 0
        sure = {"dice": 0.9, "inside": 0.9, "found": 0.9}
        prepared.facts.update(backend="torch", confidence={"low": sure, "high": sure})
        return mask

    monkeypatch.setattr(Model, "infer", infer)


@pytest.mark.usefixtures("knowing")
def test_trust_stands_in_sidecar_ledger_and_summary(
    package: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    summary = predict_batch(package, data / "imagesTr", out, qc=True)
    assert len(summary["trust"]) == 8
    trusts = [one["trust"] for one in summary["trust"].values()]
    assert trusts == sorted(trusts)
    assert trusts[0] < 0.6 * trusts[1]
    worst, facts = next(iter(summary["trust"].items()))
    assert worst == "case_003"
    assert any("below training" in reason for reason in facts["reasons"])
    assert json.loads((out / ".medseg" / "summary.json").read_text())["trust"] == summary["trust"]
    sidecar = json.loads((out / "case_003.json").read_text())["qc"]
    assert {key: sidecar[key] for key in facts} == facts
    assert set(sidecar["labels"]) == {"low", "high"}
    with sqlite3.connect(out / ".medseg" / "ledger.sqlite") as base:
        rows = dict(base.execute("select case_id, facts from cases"))
    base.close()
    assert json.loads(rows["case_003"])["provenance"]["qc"] == sidecar
    # What was done before is in the summary, too; without --qc masks are made anew.
    again = predict_batch(package, data / "imagesTr", out, qc=True)
    assert (again["kept"], again["trust"]) == (8, summary["trust"])
    plain = predict_batch(package, data / "imagesTr", out)
    assert (plain["kept"], "trust" in plain) == (0, False)


@pytest.mark.usefixtures("knowing")
def test_sides_are_looked_at_without_being_asked(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = {"label_1": "kidney_right", "label_2": "kidney_left"}  # "low" lies to the left
    model = write_package(tmp_path / "model", None, **names)
    with caplog.at_level(logging.WARNING, logger="medseg"):
        summary = predict_batch(model, data / "imagesTr", tmp_path / "out")
    warning = "kidney_left lies to the right of kidney_right: sides may be swapped"
    assert len(summary["done"]) == 8
    sidecar = json.loads((tmp_path / "out" / "case_001.json").read_text())
    assert sidecar["warnings"] == [warning]
    with sqlite3.connect(tmp_path / "out" / ".medseg" / "ledger.sqlite") as base:
        rows = dict(base.execute("select case_id, facts from cases"))
    base.close()
    for facts in map(json.loads, rows.values()):
        assert warning in facts["warnings"][0]
        assert facts["provenance"]["warnings"] == [warning]
    assert caplog.messages[0].endswith(warning)


def test_the_network_itself_is_asked(package: Path, data: Path, tmp_path: Path) -> None:
    scan = data / "imagesTr" / "case_000.nii.gz"
    summary = predict(package, scan, tmp_path, qc=True, backend="torch")
    sidecar = json.loads((tmp_path / "case_000.json").read_text())
    assert 0 < sidecar["confidence"]["low"]["dice"] < 1
    assert summary["trust"]["case_000"]["trust"] == sidecar["qc"]["trust"]
    plain = predict(package, scan, tmp_path / "plain", backend="torch")
    assert "trust" not in plain
    assert "confidence" not in json.loads((tmp_path / "plain" / "case_000.json").read_text())
    one = np.asarray(nib.load(tmp_path / "case_000.nii.gz").dataobj)
    assert np.array_equal(one, np.asarray(nib.load(tmp_path / "plain/case_000.nii.gz").dataobj))


def test_wanted_labels_alone_are_judged(package: Path, data: Path, tmp_path: Path) -> None:
    scan = data / "imagesTr" / "case_000.nii.gz"
    predict(package, scan, tmp_path, qc=True, labels="high", backend="torch")
    assert set(json.loads((tmp_path / "case_000.json").read_text())["qc"]["labels"]) == {"high"}


def test_without_a_profile_confidence_alone_counts(data: Path, tmp_path: Path) -> None:
    model = write_random_package(tmp_path / "model", small_plan())
    scan = data / "imagesTr" / "case_000.nii.gz"
    predict(model, scan, tmp_path, qc=True, backend="torch")
    sidecar = json.loads((tmp_path / "case_000.json").read_text())
    least = min(one["dice"] for one in sidecar["confidence"].values())
    assert sidecar["qc"]["trust"] == least


def test_sets_are_not_judged(package: Path, data: Path, tmp_path: Path) -> None:
    make_set(tmp_path / "set", [package, package], combine="mean")
    with pytest.raises(SettingsError, match="--qc"):
        predict(tmp_path / "set", data / "imagesTr" / "case_000.nii.gz", tmp_path, qc=True)


@pytest.mark.usefixtures("knowing")
def test_the_command_tells_the_worst_first(
    package: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(package), str(data / "imagesTr"), "--out", str(tmp_path), "--qc"]
    assert run(command) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trust")]
    assert "case_003: " in lines[0]


def test_masks_from_elsewhere(
    package: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    shutil.copytree(data / "labelsTr", masks)
    image = nib.load(data / "labelsTr" / "case_005.nii.gz")
    faulty = np.asarray(image.dataobj).copy()
    faulty[faulty == 2] = 0
    nib.save(nib.Nifti1Image(faulty, image.affine), masks / "case_005.nii.gz")
    result = judge_masks(package, data / "imagesTr", masks, tmp_path / "trust.csv")
    worst, facts = next(iter(result["cases"].items()))
    assert (worst, facts["trust"]) == ("case_005", 0.0)
    assert "high: absent, though 100 % of training masks show it" in facts["reasons"]
    rows = list(csv.DictReader((tmp_path / "trust.csv").read_text().splitlines()))
    assert len(rows) == 16
    assert (rows[0]["case"], rows[0]["case_trust"]) == ("case_005", "0")
    command = ["qc", str(package), str(data / "imagesTr"), str(masks)]
    assert run(command) == 0
    assert capsys.readouterr().out.startswith("trust 0.00: case_005: high: absent")
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result
    assert run([*command, "--out", str(tmp_path / "trust.xml")]) == 2
    bare = write_package(tmp_path / "bare", None)
    assert run(["qc", str(bare), str(data / "imagesTr"), str(masks)]) == 2
    assert "profile" in capsys.readouterr().err
    other = write_package(tmp_path / "other", None, label_1="liver", label_2="spleen")
    load = load_package(other)
    save_package(other, load.model, load.members, profile=load_package(package).profile)
    own = data / "labelsTr"  # beside a dataset.json, which names its labels
    assert run(["qc", str(other), str(data / "imagesTr"), str(own)]) == 2
    assert "some of liver, spleen" in capsys.readouterr().err


def test_packages_keep_profiles(
    package: Path, profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_package(package).profile == profile
    assert load_model(package).profile == profile
    assert "profile.json" in (package / "checksums").read_text()
    assert run(["info", str(package), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["profile"] == {"cases": 8, "masks": 0}
    bare = write_package(tmp_path / "bare", None)
    assert load_package(bare).profile is None
    assert run(["info", str(bare), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["profile"] is None
    changed = write_package(tmp_path / "changed", profile)
    (changed / "profile.json").write_text(profile.to_json())
    with pytest.raises(PackageError, match=r"profile\.json"):
        load_package(changed)
