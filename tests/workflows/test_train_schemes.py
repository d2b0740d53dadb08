"""Training as a whole on regions, ignored voxels, partly annotated cases and missing channels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import medseg
from medseg.core.errors import MedsegError
from medseg.core.plan import Plan, edited
from medseg.datasets.dataset import Case
from medseg.evaluation.evaluate import CaseScores
from medseg.workflows.scheme_scores import score_against_case
from medseg.workflows.segment import read
from tests.phantoms import write_msd_dataset, write_nifti
from tests.training.test_label_schemes import REGIONS, dataset_of, only, rewritten
from tests.training.test_losses import plan_of, region_plan

SMALL: dict[str, Any] = {
    "epochs": 2, "base_features": 4, "inner_share": 0.3, "seed": 1,
    "plan": {
        "patch_size": [8, 8, 4],
        "training": {"steps_per_epoch": 2},
        "network": {
            "features": [4, 8], "strides": [[1, 1, 1], [2, 2, 2]],
            "kernels": [[3, 3, 3], [3, 3, 3]],
        },
    },
}  # fmt: skip


def split(folder: Path) -> Path:
    fold = [{"train": ["case_000", "case_001", "case_002"], "val": ["case_003"]}]
    (folder / "splits.json").write_text(json.dumps(fold))
    return folder


def test_regions_and_ignore_from_dataset_to_mask(tmp_path: Path) -> None:
    data = split(dataset_of(tmp_path / "data", "regions with ignore"))
    result = medseg.train(data, tmp_path / "run", **SMALL)
    model = medseg.load_model(tmp_path / "run")
    assert (model.plan.activation, model.plan.ignore) == ("regions", 3)
    assert (model.plan.network.classes, model.labels.names) == (2, ("whole", "core"))
    fingerprint = json.loads((tmp_path / "run" / "fingerprint.json").read_text())
    # What is core is whole, too.
    shares = fingerprint["label_voxel_share"]
    assert shares["whole"] > shares["core"] > 0
    mask = model.predict(data / "imagesTr" / "case_003.nii.gz").labels
    assert set(np.unique(mask).tolist()) <= {0, 1, 2}
    # The figures of the run, from its masks by hand.
    said = np.asarray(nib.load(tmp_path / "run" / "validation" / "case_003.nii.gz").dataobj)
    truth = np.asarray(nib.load(data / "labelsTr" / "case_003.nii.gz").dataobj)
    told = truth != 3
    for value, least in ((1, 1), (2, 2)):
        a, b = (said >= least) & told, (truth >= least) & told
        dice = 2 * (a & b).sum() / (a.sum() + b.sum())
        assert result["metrics"]["labels"][str(value)]["dice"] == pytest.approx(dice)


def test_labels_selects_regions(tmp_path: Path) -> None:
    data = split(dataset_of(tmp_path / "data", "regions"))
    medseg.train(data, tmp_path / "run", labels="core", **SMALL)
    plan = medseg.load_model(tmp_path / "run").plan
    assert [(label.name, label.sources) for label in plan.labels.labels] == [("core", (2,))]
    assert (plan.activation, plan.network.classes) == ("regions", 1)


def test_partly_annotated_cases(tmp_path: Path) -> None:
    data = split(dataset_of(tmp_path / "data", "partial"))
    about = json.loads((data / "dataset.json").read_text())
    about["training"][3]["annotated"] = "high"
    (data / "dataset.json").write_text(json.dumps(about))
    result = medseg.train(data, tmp_path / "run", **SMALL)
    labels = result["metrics"]["labels"]
    assert (labels["1"]["cases"], labels["2"]["cases"]) == (0, 1)
    about["training"] = [entry | {"annotated": ["high"]} for entry in about["training"]]
    (data / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(MedsegError, match="annotated in at least one case, got none with low"):
        medseg.train(data, tmp_path / "other", **SMALL)


def test_cases_without_a_channel(tmp_path: Path) -> None:
    data = write_msd_dataset(tmp_path / "data", cases=4, shape=(18, 14, 9), splits=False)
    rows = ["case,image_CT,image_T1,label,split"]
    for number in range(4):
        name = f"case_{number:03d}.nii.gz"
        image = nib.load(data / "imagesTr" / name)
        write_nifti(data / "t1" / name, np.asarray(image.dataobj) // 2, image.affine)
        there = [f"imagesTr/{name}" * (number != 1), f"t1/{name}" * (number not in (2, 3))]
        side = "val" if number == 3 else "train"
        rows.append(f"{number},{there[0]},{there[1]},labelsTr/{name},{side}")
    table = data / "cases.csv"
    table.write_text("\n".join(rows))
    plan = {**SMALL["plan"], "training": {"steps_per_epoch": 2, "channel_dropout": 0.3}}
    result = medseg.train(table, tmp_path / "run", **{**SMALL, "plan": plan})
    assert result["metrics"]["mean"]["dice"] is not None
    fingerprint = json.loads((tmp_path / "run" / "fingerprint.json").read_text())
    # Who learned without a channel predicts without it, by name, in a table, and by file names.
    model = medseg.load_model(tmp_path / "run")
    t1 = data / "t1" / "case_001.nii.gz"
    alone = model.predict({"T1": t1})
    asked = tmp_path / "asked.csv"
    asked.write_text(f"case,CT,T1\na,,{t1}\n")
    medseg.predict(tmp_path / "run" / "model", [], tmp_path / "masks", cases=asked)
    numbered = tmp_path / "scans" / "a_0001.nii.gz"
    numbered.parent.mkdir()
    numbered.write_bytes(t1.read_bytes())
    medseg.predict(tmp_path / "run" / "model", numbered.parent, tmp_path / "again")
    for folder in ("masks", "again"):
        mask = np.asarray(nib.load(tmp_path / folder / "a.nii.gz").dataobj)
        np.testing.assert_array_equal(mask, alone.labels)
    # Whatever CT is normalised by: what stands for it reaches the network as 0.
    prepared = model.prepare({"T1": t1}).voxels
    assert float(prepared[0].abs().max()) == 0
    assert float(prepared[1].abs().max()) > 0
    with pytest.raises(MedsegError, match="expected CT, T1, got T9"):
        model.predict({"T9": t1})
    # Zeros that stand for no image do not count as intensities.
    assert fingerprint["channels"][0]["percentile_00_5"] > 100
    assert fingerprint["channels"][1]["percentile_00_5"] > 50
    strict = edited(model.plan, {"training.channel_dropout": 0.0})
    with pytest.raises(MedsegError, match=r"got T1.*only a model trained with channel_dropout"):
        read({"T1": t1}, strict)


def scores(said: np.ndarray, mask: np.ndarray, plan: Plan, case: Case) -> CaseScores:
    return score_against_case(said, mask, case=case, plan=plan, spacing_mm=(1.5, 2.0, 3.0))


def test_scores_follow_the_scheme_by_hand() -> None:
    mask = np.array([0, 1, 1, 2, 2, 9, 9]).reshape(7, 1, 1)
    said = np.array([1, 1, 2, 2, 0, 2, 1], dtype=np.uint8).reshape(7, 1, 1)
    case = Case("c", (Path("i"),), Path("m"))
    regions = scores(said, mask, region_plan("dice", ignore=9), case).labels
    assert {value: one.dice for value, one in regions.items()} == {1: 6 / 8, 2: 2 / 4}
    plain = scores(said, mask, plan_of("dice", ignore=9), case).labels
    assert {value: one.dice for value, one in plain.items()} == {1: 2 / 4, 2: 2 / 4}
    known = Case("c", (Path("i"),), Path("m"), annotated=(2,))
    assert scores(said, mask, plan_of("dice", ignore=9), known).labels.keys() == {2}
    nothing = Case("c", (Path("i"),), Path("m"), annotated=(7,))
    assert scores(said, mask, plan_of("dice"), nothing).labels == {}


def test_a_wrong_scheme_is_told_before_work_starts(tmp_path: Path) -> None:
    data = split(dataset_of(tmp_path / "data", "plain"))
    path = data / "dataset.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"labels": REGIONS["labels"]}))
    with pytest.raises(MedsegError, match=r"regions_class_order.*\[1, 2\]"):
        medseg.train(data, tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()
    for mask in (data / "labelsTr").glob("*.nii.gz"):
        rewritten(mask, only(1))
    path.write_text(json.dumps(about | {"labels": {"a": 1, "ignore": 2, "b": 3}}))
    with pytest.raises(MedsegError, match="a value above all others"):
        medseg.train(data, tmp_path / "run", **SMALL)
