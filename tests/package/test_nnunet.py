"""Models of nnU-Net v2, against values that nnU-Net itself gave (tests/golden)."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.core.errors import PackageError
from medseg.core.geometry import Geometry
from medseg.core.plan import AxisResampling
from medseg.core.scan import Scan
from medseg.networks.build import build_network
from medseg.package.nnunet import is_nnunet_folder, load_nnunet
from medseg.package.nnunet_plan import plan_of
from medseg.transforms.preprocess import preprocess_scan
from tests.nnunet_models import (
    GOLDEN,
    checkpoint,
    dataset,
    golden_network,
    plans,
    wave,
    write_nnunet_cascade,
    write_nnunet_model,
)

NETWORKS = [f"{kind}_{dims}d" for kind in ("PlainConvUNet", "ResidualEncoderUNet") for dims in "23"]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_give_what_nnunets_own_gave(name: str, tmp_path: Path) -> None:
    package = load_nnunet(write_nnunet_model(tmp_path / "model", name))
    (network,) = package.networks()
    flat = name.endswith("2d")
    x = torch.from_numpy(wave((1, 2, 8, 12) if flat else (1, 2, 8, 12, 4), 0.1)).float()
    with torch.inference_mode():
        ours = network(x.unsqueeze(-1))[0].squeeze(-1) if flat else network(x)[0]
    np.testing.assert_allclose(ours.numpy(), golden_network(name)[2], atol=2e-5)


def golden_cases() -> list[str]:
    with np.load(GOLDEN / "nnunet_preprocessing.npz") as kept:
        return sorted(key.removesuffix("_data") for key in kept if key.endswith("_data"))


@pytest.mark.parametrize("name", golden_cases())
def test_preprocessing_gives_what_nnunets_own_gave(name: str) -> None:
    with np.load(GOLDEN / "nnunet_preprocessing.npz") as kept:
        facts = json.loads(str(kept[f"{name}_plans"]))
        theirs, box = kept[f"{name}_data"], kept[f"{name}_box"]
    plan = plan_of(facts["plans"], facts["dataset"], "tested", mirror_axes=(), source="golden")
    channels = len(plan.channels)
    voxels = (wave((channels, 9, 14, 11), 0.3) * 200 + 250).astype(np.float32)
    voxels[:, :2] = voxels[:, :, 12:] = voxels[..., :1] = 0
    voxels[:, 4:6, 5:8, 4:7] = 0
    # nnU-Net's arrays are (k, j, i); this grid also has its axes flipped in the patient.
    spacing = facts["spacing"][::-1]
    affine = np.diag([-spacing[0], spacing[1], -spacing[2], 1.0])
    affine[:3, 3] = [5, -7, 11]
    scan = Scan.from_array(voxels.transpose(0, 3, 2, 1), Geometry((11, 14, 9), affine))
    ours, record = preprocess_scan(scan, plan)
    # Of a 2D model the axis that it runs through comes last with us.
    flat = plan.network.spatial_dims == 2
    array = np.moveaxis(ours.numpy(), -1, 1) if flat else ours.numpy()
    assert array.shape == theirs.shape
    np.testing.assert_allclose(array, theirs, atol=2e-5)
    crop = record.crop
    assert crop is not None
    ends = [[part.start, part.stop] for part in ((crop[2], *crop[:2]) if flat else crop)]
    assert ends == box.tolist()
    assert record.oriented.cut(crop).with_shape(record.working.shape) == record.working
    separate = {"separate_by_scan": 0, "separate_by_target": 0, "forced": 0, "never": None}
    if name in separate:
        axis = separate[name]
        assert record.nearest == tuple(place == axis for place in range(3))


def test_a_plan_says_all_that_matters(tmp_path: Path) -> None:
    folder = write_nnunet_model(
        tmp_path / "model",
        plan_changes={
            "transpose_forward": [1, 0, 2],
            "image_reader_writer": "NibabelIOWithReorient",
        },
    )
    plan = load_nnunet(folder).plan
    assert (plan.orientation, plan.axis_order, plan.crop) == ("ras", (1, 2, 0), "nonzero")
    assert (plan.spacing_mm, plan.patch_size) == ((2.0, 0.9, 1.1), (8, 12, 4))
    assert plan.inference.mirror_axes == (0, 1)
    assert plan.resampling.image == AxisResampling(order=3, coarse_order=0, separate="auto")
    assert plan.network.encoder_counts == (1, 2, 3)
    assert plan.network.decoder_counts == (1, 2)  # finest first
    assert [channel.name for channel in plan.channels] == ["T1", "T2"]
    flat = load_nnunet(write_nnunet_model(tmp_path / "flat", "PlainConvUNet_2d")).plan
    assert (flat.axis_order, flat.spacing_mm) == ((1, 0, 2), (0.9, 1.1, None))
    assert (flat.patch_size, flat.network.strides[1]) == ((8, 12, 1), (2, 2, 1))


def test_old_plans_give_the_same_network(tmp_path: Path) -> None:
    new = load_nnunet(write_nnunet_model(tmp_path / "new"))
    old = write_nnunet_model(tmp_path / "old")
    found_plans = json.loads((old / "plans.json").read_text())
    setup = found_plans["configurations"]["base"]
    sizes = setup.pop("architecture")["arch_kwargs"]
    setup |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": sizes["n_conv_per_stage"],
        "n_conv_per_stage_decoder": sizes["n_conv_per_stage_decoder"],
        "conv_kernel_sizes": sizes["kernel_sizes"],
        "pool_op_kernel_sizes": sizes["strides"],
    }
    (old / "plans.json").write_text(json.dumps(found_plans))
    # 4, 8 capped at 6, 16 capped at 6: not the golden 4, 6, 8.
    with pytest.raises(PackageError, match="parameters differ"):
        load_nnunet(old)
    setup["unet_max_num_features"] = 100
    assert new.plan.network.features == (4, 6, 8)
    found = plan_of(
        found_plans,
        json.loads((old / "dataset.json").read_text()),
        "tested",
        mirror_axes=(),
        source="x",
    )
    expected = new.plan.network.model_copy(update={"features": (4, 8, 16)})
    assert found.network == expected


def test_regions_are_painted_in_their_order(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "bright": 3, "ignore": 4}
    folder = write_nnunet_model(
        tmp_path / "model", dataset_changes={"labels": labels, "regions_class_order": [1, 2, 3]}
    )
    plan = load_nnunet(folder).plan
    assert plan.activation == "regions"
    assert (plan.labels.names, plan.labels.values) == (("whole", "core", "bright"), (1, 2, 3))
    assert plan.labels.labels[0].sources == (1, 2, 3)


def test_the_ignored_label_is_no_output(tmp_path: Path) -> None:
    labels = {"background": 0, "high": 2, "low": 1, "ignore": 3}
    plan = load_nnunet(write_nnunet_model(tmp_path / "m", dataset_changes={"labels": labels})).plan
    assert (plan.labels.names, plan.network.classes) == (("low", "high"), 3)


def test_folds_become_members(tmp_path: Path) -> None:
    licensed = {"licence": "CC-BY 4.0"}
    folder = write_nnunet_model(
        tmp_path / "model", folds=("0", "2", "all"), dataset_changes=licensed
    )
    assert is_nnunet_folder(folder)
    assert not is_nnunet_folder(tmp_path)
    both = load_nnunet(folder)
    assert both.model.training["folds"] == ["0", "2"]
    assert both.model.licence == "CC-BY 4.0"
    first = "down.0.0.convolution.weight"
    assert torch.allclose(both.members[0][first] + 0.01, both.members[1][first])
    assert load_nnunet(folder, folds="all").model.training["folds"] == ["all"]
    assert load_nnunet(folder, folds="2").sha256 != both.sha256
    with pytest.raises(PackageError, match="fold_4/checkpoint_final"):
        load_nnunet(folder, folds="0,4")
    with pytest.raises(PackageError, match="checkpoint_best"):
        load_nnunet(folder, checkpoint="best")


def test_a_cascade_brings_its_first_stage(tmp_path: Path) -> None:
    folder = write_nnunet_cascade(tmp_path)
    package = load_nnunet(folder)
    assert package.previous is not None
    assert (package.plan.cascade_labels, package.previous.plan.cascade_labels) == (1, 0)
    assert (package.plan.network.in_channels, package.previous.plan.network.in_channels) == (2, 1)
    elsewhere = tmp_path / "elsewhere"
    first = folder.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres").rename(elsewhere)
    with pytest.raises(PackageError, match=r"configuration '3d_lowres'.*--previous"):
        load_nnunet(folder)
    assert load_nnunet(folder, previous=first).sha256 == package.sha256


class Wicked:
    """Unpickled carelessly, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"mkdir {self.target}",)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    target = tmp_path / "made by the checkpoint".replace(" ", "-")
    folder = write_nnunet_model(tmp_path / "model", checkpoint_changes={"logging": Wicked(target)})
    file = folder / "fold_0" / "checkpoint_final.pth"
    with pytest.raises(PackageError, match=r"got the object '\w+\.system'"):
        load_nnunet(folder)
    # The same in the form that torch wrote before 1.6, and as a bare pickle.
    torch.save({"logging": Wicked(target)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(PackageError, match="system"):
        load_nnunet(folder)
    file.write_bytes(pickle.dumps(Wicked(target), protocol=2))
    with pytest.raises(PackageError):
        load_nnunet(folder)
    assert not target.exists()


@pytest.mark.parametrize("what", ["empty", "cut", "noise", "folder", "list"])
def test_damaged_checkpoints_are_told(what: str, tmp_path: Path) -> None:
    folder = write_nnunet_model(tmp_path / "model")
    file = folder / "fold_0" / "checkpoint_final.pth"
    whole = file.read_bytes()
    if what == "list":
        torch.save([1, 2], file)
    elif what == "folder":
        file.unlink()
        file.mkdir()
    else:
        damaged = {"empty": b"", "cut": whole[: len(whole) // 2], "noise": os.urandom(500)}
        file.write_bytes(damaged[what])
    with pytest.raises(PackageError, match="checkpoint"):
        load_nnunet(folder)


def test_plain_variants_of_the_trainer_are_known(tmp_path: Path) -> None:
    folder = write_nnunet_model(tmp_path / "model")
    file = folder / "fold_0" / "checkpoint_final.pth"
    weights = golden_network("PlainConvUNet_3d")[0]
    for name, known in {
        "nnUNetTrainer_250epochs": True,
        "nnUNetTrainer_2000epochs_NoMirroring": True,
        "nnUNetTrainerDA5Segord0": True,
        "nnUNetTrainerVanillaAdam3en4": True,
        "nnUNetTrainerDiceTopK10Loss": True,
        "nnUNetTrainer_onlyMirror01_DA5": True,
        "nnUNetTrainerNoDeepSupervision": True,
        "nnUNetTrainerMine": False,
        "nnUNet_Primus_M_Trainer": False,
        "nnUNetTrainer_250epochs.evil": False,
        "": False,
    }.items():
        torch.save(checkpoint(weights, trainer_name=name), file)
        if known:
            assert load_nnunet(folder).model.training["trainer"] == name
            continue
        with pytest.raises(PackageError, match="trainer"):
            load_nnunet(folder)


SPLINE = {"is_seg": False, "order": 5, "order_z": 0, "force_separate_z": None}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"plan_changes": {"image_reader_writer": "MyIO"}}, "image reader.*'MyIO'"),
        ({"plan_changes": {"label_manager": "MyLabels"}}, "label manager.*'MyLabels'"),
        ({"setup_changes": {"preprocessor_name": "Mine"}}, "preprocessor.*'Mine'"),
        ({"setup_changes": {"normalization_schemes": ["Z"] * 2}}, "normalisation.*'Z'"),
        ({"setup_changes": {"normalization_schemes": ["NoNormalization"]}}, "each of 2 channels"),
        ({"setup_changes": {"resampling_fn_data": "mine"}}, "resampler.*'mine'"),
        ({"setup_changes": {"resampling_fn_data_kwargs": SPLINE}}, "order.*'5'"),
        ({"setup_changes": {"architecture": {"network_class_name": "os.x", "arch_kwargs": {}}}},
         "network.*'os.x'"),
        ({"setup_changes": {"inherits_from": "tested"}}, "a circle"),
        ({"setup_changes": {"patch_size": [7, 12, 4]}}, "multiple of"),
        ({"plan_changes": {"configurations": None}}, "without 'configurations'"),
        ({"dataset_changes": {"labels": {"background": 0, "a": 1, "b": 3}}}, "without gaps"),
        ({"dataset_changes": {"labels": {"background": 0, "a": [1, 2], "b": 2}}}, "order of 2"),
        ({"checkpoint_changes": {"trainer_name": "nnUNetTrainerBN"}}, "trainer.*'nnUNetTrainerBN'"),
        ({"checkpoint_changes": {"init_args": {"configuration": "2d"}}}, "configuration '2d'"),
        ({"checkpoint_changes": {"network_weights": {"encoder.a": torch.ones(1)}}}, "'encoder.a'"),
        ({"checkpoint_changes": {"network_weights": {}}}, "parameters differ"),
        ({"checkpoint_changes": {"network_weights": None}}, "network_weights"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    folder = write_nnunet_model(tmp_path / "model", **changes)
    with pytest.raises(PackageError, match=told):
        load_nnunet(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"configurations": 3}', "\ud800"])
def test_foreign_plans(text: str, tmp_path: Path) -> None:
    folder = write_nnunet_model(tmp_path / "model")
    (folder / "plans.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(PackageError):
        load_nnunet(folder)


ODD = (None, True, -1, 0, 7, 10**30, float("nan"), "", "x", [], [[]], [1, 2], {}, {"0": []})


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a JSON tree, and to each object and list."""
    if path:
        yield path
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from leaves(tree[key], (*path, key))


@pytest.mark.parametrize("which", ["plans", "dataset"])
def test_any_odd_value_is_a_plan_or_one_error(which: str) -> None:
    whole = {"plans": plans("ResidualEncoderUNet_3d"), "dataset": dataset()}
    refused, chance = 0, random.Random(8)
    for path in leaves(whole[which]):
        for odd in chance.sample(ODD, 3):
            both = copy.deepcopy(whole)
            room: Any = both[which]
            for key in path[:-1]:
                room = room[key]
            room[path[-1]] = odd
            try:
                with torch.device("meta"):
                    plan = plan_of(**both, configuration="tested", mirror_axes=(0,), source="odd")
                    build_network(plan.network)
            except PackageError:
                refused += 1
    assert refused > 10


def test_flipped_bytes_of_a_checkpoint_run_nothing(tmp_path: Path) -> None:
    folder = write_nnunet_model(tmp_path / "model")
    file = folder / "fold_0" / "checkpoint_final.pth"
    whole = file.read_bytes()
    chance = random.Random(3)
    for _ in range(60):
        damaged = bytearray(whole)
        # The pickle lies at the beginning of the file, behind the zip's first header.
        for _ in range(3):
            damaged[chance.randrange(min(len(damaged), 4000))] = chance.randrange(256)
        file.write_bytes(damaged)
        try:
            load_nnunet(folder)
        except PackageError:
            continue


def test_networks_built_otherwise_are_refused(tmp_path: Path) -> None:
    for number, (key, value) in enumerate(
        [
            ("norm_op", "torch.nn.modules.batchnorm.BatchNorm3d"),
            ("nonlin", "torch.nn.ReLU"),
            ("nonlin_kwargs", {"negative_slope": 0.2}),
            ("norm_op_kwargs", {"eps": 1e-3, "affine": True}),
            ("conv_bias", False),
            ("dropout_op", "torch.nn.Dropout3d"),
            ("squeeze_excitation", True),
        ]
    ):
        folder = write_nnunet_model(tmp_path / str(number))
        changed = json.loads((folder / "plans.json").read_text())
        changed["configurations"]["base"]["architecture"]["arch_kwargs"][key] = value
        (folder / "plans.json").write_text(json.dumps(changed))
        with pytest.raises(PackageError, match=key):
            load_nnunet(folder)
