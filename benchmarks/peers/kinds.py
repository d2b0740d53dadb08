"""The kinds of nnU-Net models that medseg is compared on, and the plans of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from phantoms import Look

CT = "CTNormalization"
Z_SCORE = "ZScoreNormalization"
ARCHITECTURES = "dynamic_network_architectures.architectures.unet"


@dataclass(frozen=True)
class Stage:
    """One configuration of a plan; sizes along nnU-Net's working axes, slowest first."""

    spacing_mm: tuple[float, ...]
    patch: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    batch: int = 2
    previous: str | None = None
    following: str | None = None


@dataclass(frozen=True)
class Kind:
    """A dataset and how nnU-Net is to learn it.

    Attributes:
        stages: Configuration name -> its settings, in the order of training.
        masked: use_mask_for_norm.
        residual: ResidualEncoderUNet instead of PlainConvUNet.
        old_format: Plans as nnU-Net 2.0 wrote them, without ``architecture``.
        torch_resampling: ``resample_torch_fornnunet`` instead of the default.
        folds: Models to train, each from other random numbers.
        timed_patch: Tile of the finished model, which is then used without mirroring.
        quick_checks: Training is checked without mirroring, which is 8 times as fast.
        mirror_axes: Only these are mirrored; None: all, as nnU-Net does.
    """

    look: Look
    labels: dict[str, int | list[int]]
    stages: dict[str, Stage]
    channels: tuple[str, ...] = ("CT",)
    normalisations: tuple[str, ...] = (CT,)
    masked: bool = False
    regions_order: list[int] | None = None
    reader: str = "SimpleITKIO"
    transpose: tuple[int, int, int] = (0, 1, 2)
    residual: bool = False
    old_format: bool = False
    torch_resampling: bool = False
    folds: int = 1
    mirror_axes: tuple[int, ...] | None = None
    features: tuple[int, ...] = (6, 12, 24)
    painted: int = 2
    quick_checks: bool = False
    timed_patch: tuple[int, int, int] | None = None


_TWO: dict[str, int | list[int]] = {"background": 0, "first": 1, "second": 2}
_S3 = ((1, 1, 1), (2, 2, 2), (2, 2, 2))
_K3 = ((3, 3, 3), (3, 3, 3), (3, 3, 3))
_FLAT_S3 = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
_FLAT_K3 = ((1, 3, 3), (3, 3, 3), (3, 3, 3))

KINDS: dict[str, Kind] = {
    # Thick slices: resampled in their plane alone (separate z), along k by nearest.
    "anisotropic": Kind(
        look=Look((66, 54, 15), (1.1, 1.3, 5.0), flips=(True, False, False), angles_deg=(8.0, 0.0)),
        labels=_TWO,
        stages={"3d_fullres": Stage((4.4, 1.5, 1.5), (12, 40, 40), _FLAT_S3, _FLAT_K3)},
    ),
    "regions": Kind(
        look=Look(
            (44, 40, 30), (1.6, 1.8, 2.2), nested=True, air=(0.0,),
            tissue=((100.0, 170.0, 240.0, 310.0),),
        ),
        labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": 3},
        stages={"3d_fullres": Stage((2.0, 2.0, 2.0), (24, 32, 32), _S3, _K3)},
        channels=("MR",), normalisations=(Z_SCORE,), regions_order=[1, 2, 3],
        reader="NibabelIO", painted=3,
    ),
    "plane": Kind(
        look=Look((60, 50, 12), (1.1, 1.4, 4.0), flips=(False, True, False)),
        labels=_TWO,
        stages={"2d": Stage((1.5, 1.5), (40, 48), ((1, 1), (2, 2), (2, 2)),
                            ((3, 3), (3, 3), (3, 3)), batch=8)},
        channels=("MR",), normalisations=(Z_SCORE,), folds=2, features=(8, 16, 32),
    ),
    "residual": Kind(
        look=Look((40, 46, 28), (2.2, 1.6, 2.4), flips=(True, True, False), order=(1, 2, 0),
                  angles_deg=(5.0, -7.0)),
        labels=_TWO,
        stages={"3d_fullres": Stage((2.0, 2.0, 2.0), (32, 32, 24), _S3, _K3)},
        reader="NibabelIOWithReorient", residual=True, features=(4, 8, 16), mirror_axes=(0, 1),
    ),
    "cascade": Kind(
        look=Look((48, 44, 32), (1.5, 1.7, 2.0), flips=(True, False, True)),
        labels=_TWO,
        stages={
            "3d_lowres": Stage((3.6, 3.2, 3.2), (16, 24, 24), _S3, _K3,
                               following="3d_cascade_fullres"),
            "3d_cascade_fullres": Stage((1.9, 1.6, 1.6), (24, 32, 32), _S3, _K3,
                                        previous="3d_lowres"),
        },
        features=(4, 8, 16),
    ),
    "channels": Kind(
        look=Look(
            (44, 48, 30), (1.5, 1.4, 2.1), angles_deg=(0.0, 6.0), zero_outside=True,
            air=(0.0, 0.0), tissue=((200.0, 260.0, 320.0, 380.0), (300.0, 240.0, 250.0, 150.0)),
        ),
        labels=_TWO,
        stages={"3d_fullres": Stage((2.0, 1.7, 1.7), (24, 32, 32), _S3, _K3)},
        channels=("T1", "T2"), normalisations=(Z_SCORE, Z_SCORE), masked=True,
        mirror_axes=(0, 2),
    ),
    "old_format": Kind(
        look=Look((46, 42, 28), (1.6, 1.8, 2.4), flips=(False, False, True)),
        labels={**_TWO, "third": 3},
        stages={"3d_fullres": Stage((2.4, 2.0, 2.0), (24, 32, 32), _S3, _K3)},
        old_format=True, painted=3,
    ),
    # An ignored label, working axes in another order, torch's resampling, two mirror axes.
    "transposed": Kind(
        look=Look((48, 16, 44), (1.5, 4.6, 1.7), flips=(True, True, False)),
        labels={**_TWO, "ignore": 3},
        stages={"3d_fullres": Stage((4.6, 1.8, 1.8), (12, 32, 32), _FLAT_S3, _FLAT_K3)},
        normalisations=("RescaleTo01Normalization",), channels=("MR",),
        transpose=(1, 0, 2), torch_resampling=True, mirror_axes=(0, 1),
        painted=3,
    ),
}  # fmt: skip

_S4 = (*_S3, (2, 2, 2))
_K4 = (*_K3, (3, 3, 3))

# Networks of realistic width, for timing; the tile of a timed run is larger than that of training.
WIDE: dict[str, Kind] = {
    "wide": Kind(
        look=Look((84, 84, 42), (1.2, 1.2, 2.4), pitch_mm=34.0, vary=0.05),
        labels=_TWO,
        stages={"3d_fullres": Stage((1.6, 1.6, 1.6), (48, 48, 48), _S4, _K4, batch=1)},
        features=(32, 64, 128, 256), quick_checks=True, timed_patch=(96, 96, 96),
    ),
    "organs": Kind(
        look=Look((100, 100, 100), (1.5, 1.5, 1.5), pitch_mm=30.0, vary=0.05,
                  tissue=((0.0, *(60.0 + 40.0 * n for n in range(26))),)),
        labels={"background": 0, **{f"organ_{n:02d}": n for n in range(1, 27)}},
        stages={"3d_fullres": Stage((3.0, 3.0, 3.0), (32, 32, 32), _S4, _K4, batch=2)},
        features=(32, 64, 128, 256), painted=26, quick_checks=True, timed_patch=(96, 96, 96),
    ),
}  # fmt: skip


def _architecture(kind: Kind, stage: Stage) -> dict[str, Any]:
    dims, depth = len(stage.patch), len(kind.features)
    blocks = (
        {"n_blocks_per_stage": [1, 2, 2]} if kind.residual else {"n_conv_per_stage": [2] * depth}
    )
    name = "ResidualEncoderUNet" if kind.residual else "PlainConvUNet"
    return {
        "network_class_name": f"{ARCHITECTURES}.{name}",
        "arch_kwargs": {
            "n_stages": depth,
            "features_per_stage": list(kind.features),
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [list(size) for size in stage.kernels],
            "strides": [list(size) for size in stage.strides],
            **blocks,
            "n_conv_per_stage_decoder": [1 if kind.residual else 2] * (depth - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _old_architecture(kind: Kind, stage: Stage) -> dict[str, Any]:
    depth = len(kind.features)
    return {
        "UNet_class_name": "ResidualEncoderUNet" if kind.residual else "PlainConvUNet",
        "UNet_base_num_features": kind.features[0],
        "n_conv_per_stage_encoder": [2] * depth,
        "n_conv_per_stage_decoder": [2] * (depth - 1),
        "num_pool_per_axis": [depth - 1] * len(stage.patch),
        "pool_op_kernel_sizes": [list(size) for size in stage.strides],
        "conv_kernel_sizes": [list(size) for size in stage.kernels],
        "unet_max_num_features": kind.features[-1],
    }


def _resampling(kind: Kind) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for part, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        labels = part == "seg"
        settings[f"resampling_fn_{part}"] = "resample_data_or_seg_to_shape"
        settings[f"resampling_fn_{part}_kwargs"] = {
            "is_seg": labels, "order": order, "order_z": 0, "force_separate_z": None,
        }  # fmt: skip
        if kind.torch_resampling:
            settings[f"resampling_fn_{part}"] = "resample_torch_fornnunet"
            settings[f"resampling_fn_{part}_kwargs"] = {
                "is_seg": labels, "force_separate_z": None, "memefficient_seg_resampling": False,
            }  # fmt: skip
    return settings


def _configuration(kind: Kind, name: str, stage: Stage, plans_name: str) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "data_identifier": f"{plans_name}_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": stage.batch,
        "patch_size": list(stage.patch),
        "median_image_size_in_voxels": [float(n) for n in stage.patch],
        "spacing": list(stage.spacing_mm),
        "normalization_schemes": list(kind.normalisations),
        "use_mask_for_norm": [kind.masked] * len(kind.channels),
        **_resampling(kind),
        "batch_dice": False,
    }
    if kind.old_format:
        configuration.update(_old_architecture(kind, stage))
    else:
        configuration["architecture"] = _architecture(kind, stage)
    if stage.previous:
        configuration["previous_stage"] = stage.previous
    if stage.following:
        configuration["next_stage"] = stage.following
    return configuration


def plans_of(kind: Kind, dataset: str, intensities: dict[str, dict[str, float]]) -> dict[str, Any]:
    """plans.json as nnU-Net's planner lays it out, with small networks."""
    name = "nnUNetPlans"
    key = "by_modality" if kind.old_format else "per_channel"
    backward = [kind.transpose.index(axis) for axis in range(3)]
    return {
        "dataset_name": dataset,
        "plans_name": name,
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [1, 1, 1],
        "image_reader_writer": kind.reader,
        "transpose_forward": list(kind.transpose),
        "transpose_backward": backward,
        "configurations": {
            stage: _configuration(kind, stage, settings, name)
            for stage, settings in kind.stages.items()
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        f"foreground_intensity_properties_{key}": intensities,
    }


def dataset_of(kind: Kind, cases: int) -> dict[str, Any]:
    """dataset.json."""
    description: dict[str, Any] = {
        "channel_names": {str(n): name for n, name in enumerate(kind.channels)},
        "labels": kind.labels,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    if kind.regions_order:
        description["regions_class_order"] = kind.regions_order
    return description
