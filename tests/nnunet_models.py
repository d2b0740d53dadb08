"""Folders as nnU-Net v2 leaves them after training, with weights made by formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


def wave(shape: tuple[int, ...], phase: float) -> np.ndarray:
    """Numbers between -1 and 1, the same as in benchmarks/peers/golden_nnunet.py."""
    return np.sin(np.arange(np.prod(shape, dtype=int)) * 0.7 + phase).reshape(shape)


def golden_network(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], np.ndarray]:
    """Weights by nnU-Net's names, its arguments, and what its own network gave."""
    with np.load(GOLDEN / "nnunet_networks.npz") as kept:
        facts = json.loads(str(kept[f"{name}_facts"]))
        output = kept[f"{name}_output"]
    weights = {
        key: torch.from_numpy(wave(tuple(shape), facts["phases"][key]) * 0.3).float()
        for key, shape in facts["shapes"].items()
    }
    return weights, facts["arguments"], output


def plans(name: str, **changes: Any) -> dict[str, Any]:
    """``plans.json`` for a golden network, with one configuration ``tested``."""
    kind, dims = name.removesuffix("d").rsplit("_", 1)
    flat = dims == "2"
    _, arguments, _ = golden_network(name)
    resampler = {"order": 1, "order_z": 0, "force_separate_z": None}
    setup: dict[str, Any] = {
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 12] if flat else [8, 12, 4],
        "spacing": [0.9, 1.1] if flat else [2.0, 0.9, 1.1],
        "normalization_schemes": ["ZScoreNormalization"] * 2,
        "use_mask_for_norm": [False, False],
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
            "arch_kwargs": {
                **arguments,
                "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "conv_bias": True,
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    for what in ("data", "seg", "probabilities"):
        setup[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        setup[f"resampling_fn_{what}_kwargs"] = {"is_seg": what == "seg", **resampler}
    setup["resampling_fn_data_kwargs"]["order"] = 3
    return {
        "dataset_name": "Dataset900_Phantoms",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {},
        "configurations": {"base": setup, "tested": {"inherits_from": "base", **changes}},
    }


def dataset(**changes: Any) -> dict[str, Any]:
    """``dataset.json`` of two channels and two labels."""
    return {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "low": 1, "high": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
        **changes,
    }


def checkpoint(weights: dict[str, torch.Tensor], **changes: Any) -> dict[str, Any]:
    """What ``checkpoint_final.pth`` holds, with numpy scalars in its log as nnU-Net's has."""
    return {
        "network_weights": weights,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": np.float64(0.01)}]},
        "grad_scaler_state": None,
        "logging": {"train_losses": [np.float32(0.5)], "lrs": [0.01], "epochs": [np.int64(3)]},
        "_best_ema": np.float32(0.7),
        "current_epoch": 5,
        "init_args": {"configuration": "tested", "fold": 0, "device": torch.device("cuda:0")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
        **changes,
    }


def write_nnunet_cascade(root: Path) -> Path:
    """Two folders as nnU-Net names them; the second stage's is returned.

    The second stage has two channels: the scan, and where the first stage found label 1. So
    its golden network has the inputs that it was made for.
    """
    one = {"labels": {"background": 0, "organ": 1}, "channel_names": {"0": "CT"}}
    single = {"normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False]}
    first_layer = tuple(f"stages.0.0.convs.0.{name}.weight" for name in ("conv", "all_modules.0"))
    folders = []
    for stage, more in (("lowres", {}), ("cascade_fullres", {"previous_stage": "3d_lowres"})):
        folder = root / f"nnUNetTrainer__nnUNetPlans__3d_{stage}"
        write_nnunet_model(folder, dataset_changes=one, setup_changes=single | more, balanced=True)
        weights = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
        state = weights["network_weights"]
        for key, value in state.items():
            if "seg_layers" in key:
                state[key] = value[:2].clone()
            elif not more and key.endswith(first_layer):
                state[key] = value[:, :1].clone()
        torch.save(weights, folder / "fold_0" / "checkpoint_final.pth")
        folders.append(folder)
    return folders[1]


def write_nnunet_model(
    folder: Path,
    name: str = "PlainConvUNet_3d",
    *,
    folds: tuple[str, ...] = ("0",),
    plan_changes: dict[str, Any] | None = None,
    setup_changes: dict[str, Any] | None = None,
    dataset_changes: dict[str, Any] | None = None,
    checkpoint_changes: dict[str, Any] | None = None,
    balanced: bool = False,
) -> Path:
    """A trained model; its weights are those of the golden network of that name.

    ``balanced`` shifts its outputs, so that every class wins somewhere.
    """
    folder.mkdir(parents=True)
    made = plans(name, **(setup_changes or {})) | (plan_changes or {})
    (folder / "plans.json").write_text(json.dumps(made))
    (folder / "dataset.json").write_text(json.dumps(dataset(**(dataset_changes or {}))))
    weights, _, output = golden_network(name)
    if balanced:
        means = torch.from_numpy(output.reshape(len(output), -1).mean(axis=1))
        weights["decoder.seg_layers.1.bias"] -= means
    for place, fold in enumerate(folds):
        (folder / f"fold_{fold}").mkdir()
        shifted = {key: value + 0.01 * place for key, value in weights.items()}
        torch.save(
            checkpoint(shifted, **(checkpoint_changes or {})),
            folder / f"fold_{fold}" / "checkpoint_final.pth",
        )
    return folder
