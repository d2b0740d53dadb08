"""The pieces that networks are made of, in two and three dimensions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import interpolate

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
    kind = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
    return kind(channels, affine=True)


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
