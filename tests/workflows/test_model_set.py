"""Sets of models against each model run alone, and their masks joined by hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

import medseg
from medseg.cli.app import run
from medseg.core.errors import FileError, InputError, PackageError, ResourceError, SettingsError
from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.labels import LabelSet
from medseg.core.plan import Plan
from medseg.inference.memory import Limits
from medseg.inference.products import Products
from medseg.io.formats import read_scan
from medseg.networks.build import build_network
from medseg.package.package import ModelFile, save_package
from medseg.workflows import model_set
from medseg.workflows.make_set import make_set
from medseg.workflows.model_set import ModelSet
from medseg.workflows.predict import predict
from tests.models import small_plan, write_random_package
from tests.nnunet_models import write_nnunet_model
from tests.phantoms import blobs, oblique_affine

SHAPE = (25, 19, 14)
TURN = ALL_ORIENTATIONS[17]
CHAIN = [{"step": "largest", "label": "high"}]


def package(folder: Path, seed: int, **changes: Any) -> Path:
    plan = small_plan(**changes)
    weights = build_network(plan.network, seed=seed).state_dict()
    file = ModelFile(medseg_version="0", weights=("weights.safetensors",), plan=plan)
    save_package(folder, file, [weights])
    return folder


def other_labels() -> dict[str, Any]:
    return LabelSet.from_names({1: "left", 7: "right"}).model_dump()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three packages, a scan, and sets of them."""
    home = tmp_path_factory.mktemp("sets")
    coarse = {"spacing_mm": (2.5, 2.2, 4.0), "patch_size": (12, 8, 6)}
    package(home / "a", 3, postprocess=CHAIN)
    package(home / "b", 11, labels=other_labels(), **coarse)
    package(home / "c", 5, labels=other_labels())
    package(home / "d", 8, **coarse)
    voxels, _ = blobs(SHAPE, noise=120.0)
    geometry = Geometry(SHAPE, oblique_affine()).reoriented(TURN)
    (home / "scans").mkdir()
    image = nib.Nifti1Image(TURN.apply(voxels), geometry.affine_ras)
    nib.save(image, home / "scans" / "scan.nii.gz")
    return home


@pytest.fixture(scope="module")
def scan(folder: Path) -> Path:
    return folder / "scans" / "scan.nii.gz"


def load(path: Path) -> medseg.Model:
    return medseg.load_model(path, "cpu", backend="torch")


def alone(folder: Path, name: str, scan: Path) -> NDArray[Any]:
    found = load(folder / name).predict(scan).labels
    assert len(np.unique(found)) == 3, name
    return found


def painted(first: NDArray[Any], second: NDArray[Any], table: dict[int, int]) -> NDArray[Any]:
    """The second over the first, with the values of the table."""
    total = first.copy()
    for value, wanted in table.items():
        total[second == value] = wanted
    return total


def test_masks_are_painted_in_order(folder: Path, scan: Path, tmp_path: Path) -> None:
    made = make_set(tmp_path / "set", [folder / "a", folder / "b"])
    # Both use the value 1, so that all are numbered anew.
    assert made["labels"] == {"1": "low", "2": "high", "3": "left", "4": "right"}
    model = load(tmp_path / "set")
    result = model.predict(scan)
    a, b = alone(folder, "a", scan), alone(folder, "b", scan)
    expected = painted(a, b, {1: 3, 7: 4})
    np.testing.assert_array_equal(result.labels, expected)
    assert set(np.unique(expected)) >= {0, 2, 3, 4}
    other = make_set(tmp_path / "other", [folder / "b", folder / "a"])
    assert other["sha256"] != made["sha256"]
    reverse = load(tmp_path / "other").predict(scan)
    by_hand = painted(np.where(b == 7, 2, b), a, {1: 3, 2: 4})
    np.testing.assert_array_equal(reverse.labels, by_hand)
    some = model.predict(scan, labels="left,high")
    np.testing.assert_array_equal(some.labels, np.where(np.isin(expected, (2, 3)), expected, 0))
    facts = result.provenance
    assert facts["package_sha256"] == made["sha256"] == model.sha256
    assert facts["members"] == 2
    assert facts["backend"] == "torch"
    singles = [load(folder / name) for name in "ab"]
    assert [one["package_sha256"] for one in facts["options"]["models"]] == [
        single.sha256 for single in singles
    ]
    assert facts["options"]["models"][0]["postprocess"] == ["largest:high"]


def test_maps_choose_rename_and_unite(folder: Path, scan: Path, tmp_path: Path) -> None:
    maps = [{"low": "organ", "high": "organ"}, {"right": "vessel"}]
    (tmp_path / "maps.json").write_text(json.dumps(maps))
    made = make_set(tmp_path / "set", [folder / "a", folder / "b"], maps=tmp_path / "maps.json")
    assert made["labels"] == {"1": "organ", "7": "vessel"}
    found = load(tmp_path / "set").predict(scan).labels
    a, b = alone(folder, "a", scan), alone(folder, "b", scan)
    np.testing.assert_array_equal(found, painted((a > 0).astype(np.uint8), b, {7: 7}))


def test_members_that_cannot_matter_do_not_run(folder: Path, scan: Path, tmp_path: Path) -> None:
    make_set(tmp_path / "set", [folder / name for name in ("a", "b", "d")])
    whole = load(tmp_path / "set").predict(scan).labels
    # Low and high are of the first member and the last, left and right of the second.
    for labels, members, values in (("left", 2, [3]), ("high", 3, [2]), (None, 3, [1, 2, 3, 4])):
        done = predict(tmp_path / "set", scan, tmp_path / "out", labels=labels)["done"]["scan"]
        found = np.asarray(nib.load(done).dataobj)
        np.testing.assert_array_equal(found, np.where(np.isin(whole, values), whole, 0))
        facts = json.loads((tmp_path / "out" / "scan.json").read_text())
        assert len(facts["options"]["models"]) == members


def test_members_that_agree_share_what_they_are_given(
    folder: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_set(tmp_path / "set", [folder / name for name in "acb"])
    calls: list[Plan] = []
    prepared = model_set.segment.prepare

    def counted(scan: Any, plan: Plan, **options: Any) -> Any:
        calls.append(plan)
        return prepared(scan, plan, **options)

    monkeypatch.setattr(model_set.segment, "prepare", counted)
    model = load(tmp_path / "set")
    parts = model.prepare(scan).parts  # type: ignore[attr-defined]
    assert len(calls) == 2
    assert parts[0].voxels is parts[1].voxels
    assert parts[0].voxels is not parts[2].voxels
    assert all(part.scan.geometry.shape == TURN_SHAPE for part in parts)
    with pytest.raises(RuntimeError, match="let go"):
        parts[0].scan.voxels()


TURN_SHAPE = Geometry(SHAPE, np.eye(4)).reoriented(TURN).shape


def softmax_alone(folder: Path, name: str, scan: Path) -> tuple[torch.Tensor, Any]:
    """Probabilities on the scan's own grid, from the whole volume's logits."""
    model = load(folder / name)
    ready = model.prepare(scan)
    logits = model.predictor_for(ready.voxels.shape[1:]).logits(ready.voxels)
    size = ready.record.oriented.shape
    for axis in range(3):
        target = list(logits.shape[1:])
        target[axis] = size[axis]
        logits = interpolate(logits[None], size=target, mode="trilinear")[0]
    return logits.softmax(dim=0), ready.record


@pytest.mark.parametrize("ring", ["auto", "fp16"])
def test_the_mean_of_models_with_plans_of_their_own(
    folder: Path, scan: Path, tmp_path: Path, ring: Any
) -> None:
    make_set(tmp_path / "set", [folder / "a", folder / "d"], combine="mean")
    model = load(tmp_path / "set").within(Limits(ring=ring))
    assert model.plan.postprocess == ()
    found = model.predict(scan).labels
    (a, record), (d, _) = softmax_alone(folder, "a", scan), softmax_alone(folder, "d", scan)
    mean = (a + d) / 2
    best = mean.topk(2, dim=0)
    margin = 1e-5 if ring == "auto" else 5e-3
    back = record.orientation.inverse()
    clear = back.apply((best.values[0] - best.values[1] > margin).numpy())
    expected = back.apply(best.indices[0].numpy())
    assert clear.mean() > 0.9
    assert len(np.unique(expected[clear])) == 3
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert np.any(found != load(folder / "a").predict(scan).labels)


def test_maps_of_a_mean(folder: Path, scan: Path, tmp_path: Path) -> None:
    make_set(tmp_path / "set", [folder / "a", folder / "d"], combine="mean")
    wanted: dict[str, Any] = {"probabilities": "high", "entropy": True, "maps_as": "float16"}
    predict(tmp_path / "set", scan, tmp_path / "out", **wanted)
    (a, record), (d, _) = softmax_alone(folder, "a", scan), softmax_alone(folder, "d", scan)
    mean = ((a + d) / 2).numpy()
    spread = -(mean * np.log(np.maximum(mean, 1e-30))).sum(axis=0) / np.log(3)
    back = record.orientation.inverse()
    for name, expected in (("probability_high", mean[2]), ("entropy", spread)):
        found = nib.load(tmp_path / "out" / f"scan_{name}.nii.gz").get_fdata()
        np.testing.assert_allclose(found, back.apply(expected), atol=1e-3)
    model = load(tmp_path / "set").giving(Products(("high",), entropy=True))
    done = model.predict_to_file(scan, tmp_path / "disk" / "scan.nii.gz")
    assert len(done.files) == 2
    for file in done.files:
        ours, plain = (
            nib.load(path / file.name).get_fdata() for path in (file.parent, tmp_path / "out")
        )
        np.testing.assert_allclose(ours, plain, atol=1e-3)
    with pytest.raises(SettingsError, match="of a mean on the scan's grid"):
        model.giving(Products(disagreement=True))


def test_the_mean_needs_the_same_labels(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'mean' needs each label of the set once"):
        make_set(tmp_path / "set", [folder / "a", folder / "b"], combine="mean")
    assert not (tmp_path / "set").exists()
    names = [{"low": "x", "high": "y"}, {"right": "x", "left": "y"}]
    made = make_set(tmp_path / "set", [folder / "a", folder / "c"], combine="mean", maps=names)
    assert made["labels"] == {"1": "x", "2": "y"}


def test_labels_by_the_nearest(folder: Path, scan: Path, tmp_path: Path) -> None:
    make_set(tmp_path / "set", [folder / "a", folder / "b"], restore="labels-nearest")
    found = load(tmp_path / "set").predict(scan).labels
    total = None
    for name in "ab":
        model = load(folder / name)
        ready = model.prepare(scan)
        predictor = model.predictor_for(ready.voxels.shape[1:])
        small = predictor.classes(ready.voxels)
        near = [
            ((np.arange(side) + 0.5) * (size / side)).astype(int)
            for side, size in zip(ready.record.oriented.shape, small.shape, strict=True)
        ]
        own = ready.record.orientation.inverse().apply(small[np.ix_(*near)])
        if total is None:
            # Post-processing comes before painting, on the scan's grid.
            total = medseg.load_model(folder / name, "cpu").finish(own, ready).labels
        else:
            total = painted(total, own, {1: 3, 2: 4})
    np.testing.assert_array_equal(found, total)


@pytest.mark.parametrize("restore", ["labels-nearest", "logits"])
def test_a_grid_that_all_share(folder: Path, scan: Path, tmp_path: Path, restore: Any) -> None:
    spacing = (2.0, 2.4, 3.0)
    make_set(
        tmp_path / "set", [folder / "a", folder / "b"], restore=restore, spacing_mm=spacing, order=1
    )
    found = load(tmp_path / "set").predict(scan)
    source = read_scan(scan)
    turn = source.geometry.orientation_to_ras()
    voxels = torch.from_numpy(turn.apply(source.voxels()[0]).astype(np.float32))
    oriented = source.geometry.reoriented(turn)
    shape = oriented.shape_at(spacing)
    small = interpolate(voxels[None, None], size=shape, mode="trilinear")[0, 0].numpy()
    grid = oriented.with_shape(shape)
    a, b = (load(folder / name).predict((small, grid.affine_ras)).labels for name in "ab")
    joined = painted(a, b, {1: 3, 7: 4})
    near = [
        ((np.arange(side) + 0.5) * (size / side)).astype(int)
        for side, size in zip(oriented.shape, shape, strict=True)
    ]
    expected = turn.inverse().apply(joined[np.ix_(*near)])
    assert found.labels.shape == source.geometry.shape
    if restore == "labels-nearest":
        np.testing.assert_array_equal(found.labels, expected)
    else:
        # Interpolated logits: alike inside, smoother at borders.
        assert 0.75 < (found.labels == expected).mean() < 1
    np.testing.assert_allclose(found.affine, source.geometry.affine_ras, atol=1e-5)


@pytest.mark.parametrize("combine", ["paint", "mean"])
def test_disk_to_disk_gives_the_same_files(
    folder: Path, scan: Path, tmp_path: Path, combine: Any
) -> None:
    second = "b" if combine == "paint" else "d"
    make_set(tmp_path / "set", [folder / "a", folder / second], combine=combine)
    model = load(tmp_path / "set")
    model.predict(scan).save(tmp_path / "plain.nii.gz")
    done = model.predict_to_file(scan, tmp_path / "disk.nii.gz")
    for kind, read in (("nii.gz", gzip.decompress), ("json", json.loads)):
        ours, plain = (tmp_path / f"{name}.{kind}" for name in ("disk", "plain"))
        assert read(ours.read_bytes()) == read(plain.read_bytes())
    assert {"prepare", "segment", "finish", "write"} <= set(done.seconds)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "disk.json", "disk.nii.gz", "plain.json", "plain.nii.gz", "set",
    ]  # fmt: skip


def test_memory_counts_all_members(folder: Path, tmp_path: Path) -> None:
    make_set(tmp_path / "set", [folder / "a", folder / "b"])
    models, single = load(tmp_path / "set"), load(folder / "a")
    assert isinstance(models, ModelSet)
    shape = (512, 512, 2000)
    large = medseg.Scan.from_array(
        np.broadcast_to(np.int16(0), (1, *shape)), Geometry(shape, np.diag([0.8, 0.8, 1.0, 1.0]))
    )
    need = least(lambda limits: not single.within(limits).must_stream(large))
    assert models.within(Limits(need)).must_stream(large)
    assert not models.within(Limits(2 * need)).must_stream(large)
    need = least(lambda limits: fits(single.within(limits), large))
    with pytest.raises(
        ResourceError, match=r"--max-memory: .* beside 1.* GB for the rest of the set"
    ):
        models.within(Limits(need)).prepare(large)
    grid = {"restore": "labels-nearest", "spacing_mm": (1.0, 1.0, 1.0)}
    make_set(tmp_path / "shared", [folder / "a"], **grid)  # type: ignore[arg-type]
    shared = load(tmp_path / "shared").within(Limits(4 * 10**9))
    with pytest.raises(ResourceError, match=r"takes \d\.\d GB to resample the scan"):
        shared.prepare(large)


def fits(model: medseg.Model, scan: medseg.Scan) -> bool:
    try:
        model.check(scan.geometry)
    except ResourceError:
        return False
    return True


def least(enough: Callable[[Limits], bool]) -> int:
    """Bytes, to a megabyte."""
    low, high = 10**9, 10**12
    while high - low > 10**6:
        half = (low + high) // 2
        low, high = (low, half) if enough(Limits(half)) else (half, high)
    return high


def test_a_batch_takes_a_set(folder: Path, scan: Path, tmp_path: Path) -> None:
    from medseg.batch.local import predict_batch

    make_set(tmp_path / "set", [folder / "a", folder / "d"], combine="mean")
    (one,) = predict(tmp_path / "set", [scan.parent], tmp_path / "one")["done"].values()
    expected = load(tmp_path / "set").predict(scan).labels
    np.testing.assert_array_equal(np.asarray(nib.load(one).dataobj), expected)
    for kept in (0, 1):
        summary = predict_batch(tmp_path / "set", [scan.parent], tmp_path / "two", device="cpu")
        assert summary["kept"] == kept
    make_set(tmp_path / "set", [folder / "d", folder / "c"])
    summary = predict_batch(tmp_path / "set", [scan.parent], tmp_path / "two", device="cpu")
    assert summary["kept"] == 0
    files = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert files == [".medseg", "scan.json", "scan.nii.gz"]


def test_a_set_is_one_model_elsewhere(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one model"):
        make_set(tmp_path / "set", [])
    with pytest.raises(SettingsError, match="paint or mean"):
        make_set(tmp_path / "set", [folder / "a"], combine="vote")  # type: ignore[arg-type]
    with pytest.raises(FileError, match="JSON"):
        make_set(tmp_path / "set", [folder / "a"], maps=tmp_path / "none.json")
    with pytest.raises(InputError, match="a list of 1 objects"):
        make_set(tmp_path / "set", [folder / "a"], maps=[])
    with pytest.raises(InputError, match="a folder with other files"):
        make_set(folder / "a", [folder / "b"])
    make_set(tmp_path / "set", [folder / "a"])
    with pytest.raises(PackageError, match="a set of models"):
        medseg.workflows.api.package_of(tmp_path / "set")  # type: ignore[attr-defined]
    two = write_random_package(tmp_path / "two", small_plan(channels=2))
    with pytest.raises(PackageError, match=r"expected channels \['first'\]"):
        make_set(tmp_path / "other", [folder / "a", two])
    assert not (tmp_path / "other").exists()


def test_cascades_and_regions_are_members_as_well(folder: Path, scan: Path, tmp_path: Path) -> None:
    plan = small_plan(**{"cascade_labels": 2, "network.in_channels": 3})
    weights = build_network(plan.network, seed=4).state_dict()
    file = ModelFile(medseg_version="0", weights=("weights.safetensors",), plan=plan)
    first = medseg.workflows.api.package_of(folder / "a")  # type: ignore[attr-defined]
    save_package(tmp_path / "two", file, [weights], previous=first)
    regions = {"activation": "regions", "network.classes": 2, "labels": other_labels()}
    package(tmp_path / "regions", 6, **regions)
    found = {name: load(tmp_path / name).predict(scan).labels for name in ("two", "regions")}
    make_set(tmp_path / "set", [tmp_path / "two", folder / "a", tmp_path / "regions"])
    model = load(tmp_path / "set")
    a = alone(folder, "a", scan)
    expected = painted(painted(found["two"], a, {1: 1, 2: 2}), found["regions"], {1: 3, 7: 4})
    np.testing.assert_array_equal(model.predict(scan).labels, expected)
    assert len(np.unique(found["two"])) > 1
    assert not model.can_stream(read_scan(scan))
    with pytest.raises(InputError, match="a cascade"):
        model.predict_to_file(scan, tmp_path / "disk.nii.gz")
    # The first model leads, so that a set of a region model first has classes of its own.
    made = make_set(tmp_path / "other", [tmp_path / "regions", folder / "a"])
    reverse = load(tmp_path / "other").predict(scan).labels
    assert made["labels"] == {"1": "left", "2": "right", "3": "low", "4": "high"}
    first_painted = np.where(found["regions"] == 7, 2, found["regions"])
    np.testing.assert_array_equal(reverse, painted(first_painted, a, {1: 3, 2: 4}))


@pytest.mark.parametrize("grid", ["own", "regular"])
@pytest.mark.parametrize("restore", ["logits", "labels-nearest"])
def test_sheared_scans(folder: Path, tmp_path: Path, grid: str, restore: Any) -> None:
    affine = oblique_affine()
    affine[:3, 2] += 0.4 * affine[:3, 0]
    source = (blobs(SHAPE, noise=120.0)[0], affine)
    make_set(tmp_path / "set", [folder / "c", folder / "b"])
    joined = load(tmp_path / "set").predict(source, grid=grid)
    c, b = (load(folder / name).predict(source, grid=grid) for name in "cb")
    np.testing.assert_array_equal(joined.labels, painted(c.labels, b.labels, {1: 1, 7: 7}))
    make_set(tmp_path / "near", [folder / "c"], restore=restore, spacing_mm=(2.0, 2.0, 3.0))
    near = load(tmp_path / "near").predict(source, grid=grid)
    assert near.prediction.geometry.difference(c.prediction.geometry) is None
    assert (near.labels == c.labels).mean() > 0.5


def test_the_command_line(
    folder: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "set")
    assert run(["make-set", str(folder / "a"), str(folder / "b"), "--out", out]) == 0
    assert capsys.readouterr().out == f"{out}: 2 models, labels low, high, left, right\n"
    assert run(["info", out, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["combine"], len(facts["members"])) == ("set", "paint", 2)
    assert run(["info", out]) == 0
    assert "combine" in capsys.readouterr().out
    assert run(["predict", out, str(scan), "--out", str(tmp_path / "masks"), "--json"]) == 0
    (mask,) = json.loads(capsys.readouterr().out)["done"].values()
    expected = load(tmp_path / "set").predict(scan).labels
    np.testing.assert_array_equal(np.asarray(nib.load(mask).dataobj), expected)
    assert run(["predict", out, str(scan), "--out", str(tmp_path / "masks"), "--entropy"]) == 2
    assert "expected a single model (the first" in capsys.readouterr().err
    shared = ["--restore", "labels-nearest", "--spacing", "2,2,3", "--order", "1", "--json"]
    assert run(["make-set", str(folder / "a"), "--out", out, *shared]) == 0
    assert json.loads(capsys.readouterr().out)["members"] == 1
    for wrong in (["--spacing", "2,x"], ["--order", "2"], ["--combine", "vote"]):
        assert run(["make-set", str(folder / "a"), "--out", out, *wrong]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")


def test_models_of_nnunet_are_members(scan: Path, tmp_path: Path) -> None:
    folders = [
        write_nnunet_model(
            tmp_path / name,
            balanced=True,
            folds=folds,
            checkpoint_changes={"inference_allowed_mirroring_axes": None},
        )
        for name, folds in (("one", ("0",)), ("two", ("0", "1")))
    ]
    source = {"T1": scan, "T2": scan}
    names = load(folders[0]).labels.names
    maps = [{name: name for name in names}, {names[-1]: "other"}]
    make_set(tmp_path / "set", folders, maps=maps)
    model = load(tmp_path / "set")
    one, two = (load(folder) for folder in folders)
    first, second = one.predict(source).labels, two.predict(source).labels
    found = model.predict(source)
    value = found.label_set.named("other").value
    numbers = {one.labels.named(n).value: model.labels.named(n).value for n in names}
    expected = painted(np.zeros_like(first), first, numbers)
    expected = painted(expected, second, {two.labels.named(names[-1]).value: value})
    np.testing.assert_array_equal(found.labels, expected)
    assert (found.labels == value).any()
