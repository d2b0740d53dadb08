"""The network of an nnU-Net v2 configuration as a network plan of ours.

Class names are looked up in tables, never imported. Both forms of plans are known: since
2.4 ``architecture`` holds a class and its arguments, before that ``UNet_class_name``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medseg.core.errors import PackageError
from medseg.core.plan import MOST_STAGES, NetworkPlan

Json = Mapping[str, Any]
_UNETS = "dynamic_network_architectures.architectures"
_NETWORKS = {
    "PlainConvUNet": "unet",
    "ResidualEncoderUNet": "residual_unet",
    f"{_UNETS}.unet.PlainConvUNet": "unet",
    f"{_UNETS}.unet.ResidualEncoderUNet": "residual_unet",
    f"{_UNETS}.residual_unet.ResidualEncoderUNet": "residual_unet",
}
# What our networks are built with; anything else would need another network.
_ONLY: dict[str, tuple[Any, ...]] = {
    "conv_op": ("Conv2d", "Conv3d"),
    "norm_op": ("InstanceNorm2d", "InstanceNorm3d"),
    "nonlin": ("LeakyReLU",),
    "dropout_op": (None,),
    "conv_bias": (True,),
    "nonlin_first": (False,),
    "bottleneck_channels": (None,),
    "stem_channels": (None,),
}
_SIZES = (
    "n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage",
    "n_blocks_per_stage", "n_conv_per_stage_decoder",
)  # fmt: skip
_OPTIONS: dict[str, dict[str, Any]] = {
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin_kwargs": {"inplace": True, "negative_slope": 0.01},
}


def refuse(what: str, name: object, known: Sequence[str], source: str) -> PackageError:
    """The error for a name that stands in no table."""
    return PackageError(
        source,
        expected=f"{what}: one of {', '.join(known)}" if known else f"no {what}",
        got=f"'{name}'",
        cure="medseg runs models of unmodified nnU-Net v2 only, so that masks stay the same.",
    )


def network_plan(setup: Json, *, channels: int, classes: int, source: str) -> NetworkPlan:
    """Sizes of the network.

    Args:
        setup: A configuration with what it inherits.
        channels: Input channels.
        classes: Output channels.
        source: What to call the folder in a message.

    Raises:
        PackageError: The network, or something that it is built with, is not known here.
    """
    found, sizes = _architecture(setup, source)
    if found not in _NETWORKS:
        raise refuse("network", found, ("PlainConvUNet", "ResidualEncoderUNet"), source)
    name = _NETWORKS[found]
    dims = len(setup["patch_size"])
    stages = int(sizes["n_stages"])
    if not 2 <= stages <= MOST_STAGES:
        raise refuse("n_stages", stages, (f"2 to {MOST_STAGES}",), source)
    counts = sizes["n_conv_per_stage" if name == "unet" else "n_blocks_per_stage"]
    decoder = _per_stage(sizes["n_conv_per_stage_decoder"], stages - 1)
    return NetworkPlan(
        name=name,
        spatial_dims=2 if dims == 2 else 3,
        in_channels=channels,
        classes=classes,
        features=tuple(_per_stage(sizes["features_per_stage"], stages)),
        strides=tuple(_sides(one, dims) for one in _per_stage(sizes["strides"], stages)),
        kernels=tuple(_sides(one, dims) for one in _per_stage(sizes["kernel_sizes"], stages)),
        encoder_convolutions=tuple(_per_stage(counts, stages)),
        # There the coarsest stage comes first.
        decoder_convolutions=tuple(reversed(decoder)),
    )


def _architecture(setup: Json, source: str) -> tuple[str, Json]:
    if "architecture" in setup:
        arguments = setup["architecture"]["arch_kwargs"]
        _check(arguments, source)
        return str(setup["architecture"]["network_class_name"]), arguments
    if "UNet_class_name" not in setup:
        raise PackageError(source, expected="a configuration with a network", got="none")
    counts = setup["n_conv_per_stage_encoder"]
    widest = setup["unet_max_num_features"]
    base = setup["UNet_base_num_features"]
    return str(setup["UNet_class_name"]), {
        "n_stages": len(counts),
        "features_per_stage": [min(base * 2**level, widest) for level in range(len(counts))],
        "kernel_sizes": setup["conv_kernel_sizes"],
        "strides": setup["pool_op_kernel_sizes"],
        "n_conv_per_stage": counts,
        "n_blocks_per_stage": counts,
        "n_conv_per_stage_decoder": setup["n_conv_per_stage_decoder"],
    }


def _check(arguments: Json, source: str) -> None:
    for key, value in arguments.items():
        if key in _SIZES or key in ("dropout_op_kwargs", "deep_supervision"):
            continue
        if key in _OPTIONS:
            for option, chosen in (value or {}).items():
                if _OPTIONS[key].get(option) != chosen:
                    raise refuse(f"other {key}", f"{option}={chosen}", (), source)
        elif key not in _ONLY:
            raise refuse("other argument of the network", key, (), source)
        else:
            plain = value.rsplit(".", 1)[-1] if isinstance(value, str) else value
            if plain not in _ONLY[key]:
                raise refuse(key, value, [str(one) for one in _ONLY[key]], source)


def _per_stage(value: Any, stages: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * stages


def _sides(value: Any, dims: int) -> tuple[int, int, int]:
    sides = [int(side) for side in _per_stage(value, dims)]
    a, b, c = sides + [1] * (3 - dims)
    return a, b, c
