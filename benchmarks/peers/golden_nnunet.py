"""Golden values of nnU-Net's own networks and preprocessing, for the tests of medseg.

Run it in an environment with nnunetv2: ``python benchmarks/peers/golden_nnunet.py``. It
writes ``tests/golden/nnunet_networks.npz`` and ``tests/golden/nnunet_preprocessing.npz``.
Weights, inputs and scans are made by formula, so that only results need to be kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

OUT = Path(__file__).resolve().parents[2] / "tests" / "golden"


def wave(shape: tuple[int, ...], phase: float) -> np.ndarray:
    """Numbers between -1 and 1 that any program can make again."""
    return np.sin(np.arange(np.prod(shape, dtype=int)) * 0.7 + phase).reshape(shape)


def networks() -> None:
    """Outputs of small networks whose weights are waves."""
    kept: dict[str, np.ndarray] = {}
    for kind in (PlainConvUNet, ResidualEncoderUNet):
        for dims in (2, 3):
            name = f"{kind.__name__}_{dims}d"
            strides = [[1] * dims, [2] * dims, [1] + [2] * (dims - 1)]
            kernels = [[1] + [3] * (dims - 1), [3] * dims, [3] * dims]
            blocks = "n_conv_per_stage" if kind is PlainConvUNet else "n_blocks_per_stage"
            arguments: dict[str, Any] = {
                "n_stages": 3,
                "features_per_stage": [4, 6, 8],
                "strides": strides,
                "kernel_sizes": kernels,
                blocks: [1, 2, 3],
                "n_conv_per_stage_decoder": [2, 1],
            }
            network = kind(
                input_channels=2,
                num_classes=3,
                conv_op=torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d,
                norm_op=torch.nn.InstanceNorm2d if dims == 2 else torch.nn.InstanceNorm3d,
                norm_op_kwargs={"eps": 1e-5, "affine": True},
                nonlin=torch.nn.LeakyReLU,
                nonlin_kwargs={"inplace": True},
                conv_bias=True,
                **arguments,
            ).eval()
            state = network.state_dict()
            shapes = {key: list(value.shape) for key, value in state.items()}
            # The same tensor stands under several names: its first in the alphabet decides.
            made: dict[int, torch.Tensor] = {}
            for key in sorted(state):
                place = state[key].data_ptr()
                if place not in made:
                    made[place] = torch.from_numpy(wave(tuple(shapes[key]), len(key)) * 0.3)
            phases = {}
            with torch.no_grad():
                for key in sorted(state):
                    state[key].copy_(made[state[key].data_ptr()])
                first: dict[int, str] = {}
                for key in sorted(state):
                    phases[key] = len(first.setdefault(state[key].data_ptr(), key))
                x = torch.from_numpy(wave((1, 2, *(8, 12, 4)[:dims]), 0.1)).float()
                kept[f"{name}_output"] = network(x)[0].numpy().astype(np.float32)
            facts = {"shapes": shapes, "phases": phases, "arguments": arguments}
            kept[f"{name}_facts"] = np.array(json.dumps(facts))
    np.savez_compressed(OUT / "nnunet_networks.npz", **kept)


def scan(channels: int) -> np.ndarray:
    """(C, 9, 14, 11) with a border of zeros and a hole of zeros inside."""
    voxels = (wave((channels, 9, 14, 11), 0.3) * 200 + 250).astype(np.float32)
    voxels[:, :2] = voxels[:, :, 12:] = voxels[..., :1] = 0
    voxels[:, 4:6, 5:8, 4:7] = 0
    return voxels


SPLINE = "resample_data_or_seg_to_shape"
TORCH = "resample_torch_fornnunet"
CASES: dict[str, dict[str, Any]] = {
    "isotropic": {"spacing": [1.0, 1.0, 1.0], "target": [1.3, 0.8, 0.7]},
    "separate_by_scan": {"spacing": [5.0, 1.0, 1.0], "target": [3.0, 0.8, 1.2]},
    "separate_by_target": {"spacing": [2.0, 1.0, 1.0], "target": [4.0, 0.8, 1.2]},
    "two_coarse": {"spacing": [5.0, 5.0, 1.0], "target": [3.0, 4.0, 1.2]},
    "forced": {"spacing": [2.0, 1.0, 1.0], "target": [1.5, 0.8, 1.2], "force": True},
    "never": {"spacing": [5.0, 1.0, 1.0], "target": [3.0, 0.8, 1.2], "force": False},
    "halves": {"spacing": [0.5, 0.5, 0.5], "target": [1.0, 1.0, 1.0]},
    "transposed": {"spacing": [1.0, 1.0, 4.0], "target": [3.0, 1.2, 0.8], "order": [2, 0, 1]},
    "torch": {"spacing": [1.0, 1.0, 1.0], "target": [1.3, 0.8, 0.7], "function": TORCH},
    "torch_separate": {"spacing": [5.0, 1.0, 1.0], "target": [3.0, 0.8, 1.2], "function": TORCH},
    "flat": {"spacing": [4.0, 1.0, 1.0], "target": [0.8, 1.2]},
    "flat_transposed": {"spacing": [1.0, 4.0, 1.0], "target": [0.8, 1.2], "order": [1, 2, 0]},
    "ct": {"spacing": [1.0] * 3, "target": [1.0] * 3, "scheme": "CTNormalization"},
    "masked": {"spacing": [1.0] * 3, "target": [1.1] * 3, "mask": True, "channels": 2},
    "none": {"spacing": [1.0] * 3, "target": [1.0] * 3, "scheme": "NoNormalization"},
    "unit": {"spacing": [1.0] * 3, "target": [1.0] * 3, "scheme": "RescaleTo01Normalization"},
}


def plans_of(case: dict[str, Any]) -> dict[str, Any]:
    """``plans.json`` of a case."""
    channels = case.get("channels", 1)
    flat = len(case["target"]) == 2
    options = {"force_separate_z": case.get("force")}
    function = case.get("function", SPLINE)
    spline = function == SPLINE
    forward = case.get("order", [0, 1, 2])
    setup: dict[str, Any] = {
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 8] if flat else [8, 8, 8],
        "spacing": case["target"],
        "normalization_schemes": [case.get("scheme", "ZScoreNormalization")] * channels,
        "use_mask_for_norm": [case.get("mask", False)] * channels,
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": [2, 2],
        "n_conv_per_stage_decoder": [2],
        "num_pool_per_axis": [1] * len(case["target"]),
        "pool_op_kernel_sizes": [[1] * len(case["target"]), [2] * len(case["target"])],
        "conv_kernel_sizes": [[3] * len(case["target"])] * 2,
    }
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        setup[f"resampling_fn_{what}"] = function
        setup[f"resampling_fn_{what}_kwargs"] = dict(options)
        setup[f"resampling_fn_{what}_kwargs"]["is_seg"] = what == "seg"
        if spline:
            setup[f"resampling_fn_{what}_kwargs"] |= {"order": order, "order_z": 0}
    figures = {"percentile_00_5": 60.0, "percentile_99_5": 440.0, "mean": 240.0, "std": 90.0}
    return {
        "dataset_name": "Dataset900_Phantoms",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": forward,
        "transpose_backward": [forward.index(axis) for axis in range(3)],
        "foreground_intensity_properties_per_channel": {
            str(place): figures for place in range(channels)
        },
        "configurations": {"tested": setup},
    }


def preprocessing() -> None:
    """What nnU-Net makes of one scan, by many plans."""
    kept: dict[str, np.ndarray] = {}
    for name, case in CASES.items():
        channels = case.get("channels", 1)
        plans = plans_of(case)
        dataset = {
            "channel_names": {str(n): f"channel {n}" for n in range(channels)},
            "labels": {"background": 0, "first": 1, "second": 2},
            "file_ending": ".nii.gz",
        }
        kept[f"{name}_plans"] = np.array(
            json.dumps({"plans": plans, "dataset": dataset, "spacing": case["spacing"]})
        )
        manager = PlansManager(json.loads(json.dumps(plans)))
        facts: dict[str, Any] = {"spacing": case["spacing"]}
        data, _, facts = DefaultPreprocessor(verbose=False).run_case_npy(
            scan(channels), None, facts, manager, manager.get_configuration("tested"), dataset
        )
        kept[f"{name}_data"] = data.astype(np.float32)
        kept[f"{name}_box"] = np.array(facts["bbox_used_for_cropping"])
    np.savez_compressed(OUT / "nnunet_preprocessing.npz", **kept)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    networks()
    preprocessing()
