"""The pieces that networks are made of, in two and three dimensions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, interpolate

# By the number of axes of a tensor: of all its values, those of one voxel lie side by side.
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
Sides = tuple[int, ...]


def convolution(
    dims: int,
    channels_in: int,
    channels_out: int,
    *,
    kernel: Sides,
    stride: Sides | None = None,
    dilation: int = 1,
) -> nn.Module:
    """A convolution that keeps the size (but for its stride), with odd kernel sides."""
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    padding = tuple(side // 2 * dilation for side in kernel)
    step = stride or (1,) * dims
    return kind(channels_in, channels_out, kernel, step, padding, dilation)  # type: ignore[arg-type]


def upsampling(dims: int, channels_in: int, channels_out: int, *, stride: Sides) -> nn.Module:
    """A transposed convolution that enlarges each side by its stride, without overlap."""
    kind = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
    return kind(channels_in, channels_out, stride, stride)  # type: ignore[arg-type]


def normalisation(dims: int, channels: int) -> nn.Module:
    """Instance norm with a learned scale and shift."""
    kind = InstanceNorm2d if dims == 2 else InstanceNorm3d
    return kind(channels, affine=True)


class InstanceNorm2d(nn.InstanceNorm2d):
    """torch's own; it may train with channels last (see :func:`train_channels_last`)."""

    channels_last = False

    def forward(self, x: Tensor) -> Tensor:
        alike = self.channels_last and self.training
        return _norm_channels_last(x, self) if alike else super().forward(x)


class InstanceNorm3d(nn.InstanceNorm3d):
    """torch's own; it may train with channels last (see :func:`train_channels_last`)."""

    channels_last = False

    def forward(self, x: Tensor) -> Tensor:
        alike = self.channels_last and self.training
        return _norm_channels_last(x, self) if alike else super().forward(x)


def _norm_channels_last(x: Tensor, norm: InstanceNorm2d | InstanceNorm3d) -> Tensor:
    """Instance norm of (N, C, ...) that leaves channels last.

    torch's instance norm makes one axis of samples and channels, for which it copies such a
    tensor forth and back. Batch norm of one sample computes the same, on the values as they lie.
    """
    laid = x.contiguous(memory_format=_CHANNELS_LAST[x.dim()])
    found = [
        batch_norm(one, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        for one in laid.split(1)
    ]
    return torch.cat(found) if len(found) > 1 else found[0]


def train_channels_last(network: nn.Module) -> None:
    """Keep channels last in memory from the first norm on, while the network trains.

    Convolutions follow the order of their input, so that only norms need to know.

    Args:
        network: Changed in place; it computes the same as before.
    """
    for module in network.modules():
        if isinstance(module, InstanceNorm2d | InstanceNorm3d):
            module.channels_last = True


class ConvNormAct(nn.Module):
    """Convolution, instance norm, leaky ReLU: (N, C, ...) to (N, channels_out, ...).

    ``activated=False`` leaves out the last.

    Source: the block of nnU-Net (Isensee et al., Nature Methods 18, 2021).
    """

    def __init__(
        self,
        dims: int,
        channels_in: int,
        channels_out: int,
        *,
        kernel: Sides,
        stride: Sides | None = None,
        dilation: int = 1,
        activated: bool = True,
    ) -> None:
        super().__init__()
        self.convolution = convolution(
            dims, channels_in, channels_out, kernel=kernel, stride=stride, dilation=dilation
        )
        self.norm = normalisation(dims, channels_out)
        self.activation = nn.LeakyReLU(0.01, inplace=True) if activated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.activation(self.norm(self.convolution(x)))
        return result


def stage(
    dims: int, channels_in: int, channels_out: int, *, kernel: Sides, stride: Sides, count: int
) -> nn.Sequential:
    """``count`` blocks in a row, the first with the stride."""
    blocks = [ConvNormAct(dims, channels_in, channels_out, kernel=kernel, stride=stride)]
    blocks += [
        ConvNormAct(dims, channels_out, channels_out, kernel=kernel) for _ in range(count - 1)
    ]
    return nn.Sequential(*blocks)


def enlarged(x: Tensor, factors: Sides) -> Tensor:
    """(N, C, ...) with each side times its factor, by linear interpolation."""
    if all(factor == 1 for factor in factors):
        return x
    mode = "bilinear" if len(factors) == 2 else "trilinear"
    # A factor, not a size: what is traced with it holds for tiles of any size.
    scale = [float(factor) for factor in factors]
    return interpolate(x, scale_factor=scale, mode=mode, align_corners=False)


def initialise(module: nn.Module) -> None:
    """He initialisation for leaky ReLU (slope 0.01); biases 0 (He et al., ICCV 2015)."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
