"""Changes of intensity: a whole batch at once, in place, on the device where it lies.

What is linear along an axis (blur, ghosts, motion, low resolution) is one small matrix per
axis: on a CPU and on a GPU nothing is quicker than a matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.polynomial.legendre import legvander
from numpy.typing import NDArray
from torch import Tensor

from medseg.transforms.augment import Lines, Spike, Variation, Vector
from medseg.transforms.resample import axis_weights, nearest_index

Matrices = dict[int, NDArray[np.float64]]
# Lines of k-space about the middle that no ghost weakens, as a share: they are the brightness.
_KEPT = 0.02


def vary_intensity(batch: Tensor, variations: Sequence[Variation]) -> Tensor:
    """Apply all steps but the spatial ones to a batch.

    Args:
        batch: (N, C, I, J, K) float32; it is changed in place and given back.
        variations: One per sample. Channels of a sample are varied alike, each with its own
            range and mean.
    """
    samples = list(zip(batch, variations, strict=True))
    for sample, variation in samples:
        _vary_as_the_scanner(sample, variation)
    _by_value(batch, [one.gain for one in variations], _scale)
    _by_value(batch, [one.contrast for one in variations], _stretch)
    for sample, variation in samples:
        if variation.coarseness > 1:
            _coarsen(sample, variation.coarseness)
    _by_value(batch, [one.gamma for one in variations], _bend)
    _by_value(batch, [one.inverse_gamma for one in variations], _bend_inverted)
    for sample, variation in samples:
        for centre, sides in variation.boxes:
            sample[:, *_box(tuple(sample.shape[1:]), centre, sides)] = 0
    return batch


def _vary_as_the_scanner(sample: Tensor, variation: Variation) -> None:
    """Bias field, k-space, sharpness and noise, in the order in which they come about."""
    if variation.bias is not None:
        _add_bias(sample, variation.bias)
    _along_axes(sample, _blur_and_lines(tuple(sample.shape[1:]), variation))
    if variation.spike is not None:
        _add_wave(sample, variation.spike)
    if variation.noise_std > 0:
        _add_noise(sample, variation)


def _by_value(
    batch: Tensor, values: Sequence[float], change: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Change the samples whose value is not 1; neighbours together, as a view without a copy."""
    start = 0
    while start < len(values):
        stop = start
        while stop < len(values) and values[stop] != 1:
            stop += 1
        if stop > start:
            own = torch.tensor(values[start:stop], dtype=batch.dtype, device=batch.device)
            change(batch[start:stop], own.view(-1, 1, 1, 1, 1))
        start = stop + 1


def _per_channel(reduce: Any, *others: Any) -> Tensor:
    result: Tensor = reduce((-3, -2, -1), *others, keepdim=True)
    return result


def _scale(x: Tensor, factor: Tensor) -> Tensor:
    return x.mul_(factor)


def _stretch(x: Tensor, factor: Tensor) -> Tensor:
    """About the mean of each channel, within its range."""
    mean = _per_channel(x.mean)
    low, high = _per_channel(x.amin), _per_channel(x.amax)
    return torch.clamp(x.mul_(factor).add_(mean * (1 - factor)), low, high, out=x)


def _bend(x: Tensor, gamma: Tensor) -> Tensor:
    """Bend the range, then give back the mean and standard deviation (as nnU-Net does)."""
    low, high = _per_channel(x.amin), _per_channel(x.amax)
    std, mean = _moments(x)
    span = (high - low).clamp_(min=1e-7)
    # A power by way of the logarithm: torch is several times as quick with it.
    x.sub_(low).div_(span).clamp_(min=0).log_().mul_(gamma).exp_()
    new_std, new_mean = _moments(x)
    ratio = std / new_std.clamp_(min=1e-8)
    return x.mul_(ratio).add_(mean - new_mean * ratio)


def _bend_inverted(x: Tensor, gamma: Tensor) -> Tensor:
    return _bend(x.neg_(), gamma).neg_()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of each channel."""
    std, mean = torch.std_mean(x, dim=(-3, -2, -1), keepdim=True)
    # A patch of one voxel has no spread.
    return std.nan_to_num_(0.0), mean


def _add_noise(sample: Tensor, variation: Variation) -> None:
    generator = torch.Generator(sample.device).manual_seed(variation.noise_seed)
    noise = torch.randn(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
    sample.add_(noise, alpha=variation.noise_std)


def _add_wave(sample: Tensor, spike: Spike) -> None:
    """A cosine over the patch; as an outer product of complex waves along the axes."""
    waves = [
        torch.from_numpy(np.exp(2j * np.pi * often * np.arange(side) / side)).to(
            sample.device, torch.complex64
        )
        for often, side in zip(spike.frequency, sample.shape[1:], strict=True)
    ]
    plane = waves[1][:, None] * waves[2]
    line = waves[0] * complex(np.exp(1j * spike.phase))
    height = _per_channel(sample.std).nan_to_num_(0.0) * spike.height
    sample.addcmul_(height * line.real[:, None, None], plane.real)
    sample.addcmul_(height * line.imag[:, None, None], plane.imag, value=-1)


def _add_bias(sample: Tensor, bias: NDArray[np.float64]) -> None:
    """Multiply what lies above the least value by a smooth field."""
    a, b, c = (
        torch.from_numpy(
            legvander(np.linspace(-1, 1, side) if side > 1 else np.zeros(1), 3).astype(np.float32)
        ).to(sample.device)
        for side in sample.shape[1:]
    )
    field = torch.from_numpy(bias.astype(np.float32)).to(sample.device) @ c.T
    field = (a @ (b @ field).flatten(1)).reshape(sample.shape[1:]).exp_()
    low = _per_channel(sample.amin)
    sample.sub_(low).mul_(field).add_(low)


def _along_axes(sample: Tensor, matrices: Matrices) -> None:
    """Multiply (C, I, J, K) by a matrix along some of its axes."""
    for axis, matrix in matrices.items():
        weights = torch.from_numpy(matrix.astype(np.float32)).to(sample.device)
        for channel in sample:
            if axis == 0:
                channel.copy_((weights @ channel.flatten(1)).view_as(channel))
            else:
                channel.copy_(weights @ channel if axis == 1 else channel @ weights.T)


def _blur_and_lines(shape: tuple[int, ...], variation: Variation) -> Matrices:
    found: Matrices = {}
    for lines in variation.lines:
        side = shape[lines.axis]
        if side > 1:
            found[lines.axis] = line_matrix(side, lines) @ found.get(lines.axis, np.eye(side))
    if variation.blur_sigma > 0:
        for axis, side in enumerate(shape):
            if side > 1:
                blur = blur_matrix(side, variation.blur_sigma)
                found[axis] = blur @ found.get(axis, np.eye(side))
    return found


def blur_matrix(side: int, sigma: float) -> NDArray[np.float64]:
    """(side, side): a Gaussian, cut off at three sigma; the edge is repeated."""
    reach = max(1, round(3 * sigma))
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    matrix = np.zeros((side, side))
    rows = np.arange(side)
    for offset, weight in zip(range(-reach, reach + 1), bell / bell.sum(), strict=True):
        np.add.at(matrix, (rows, np.clip(rows + offset, 0, side - 1)), weight)
    return matrix


def line_matrix(side: int, lines: Lines) -> NDArray[np.float64]:
    """(side, side): k-space along one axis with weakened lines and a shift of the outer ones.

    Both leave the image real: what befalls a line befalls the one opposite it.
    """
    number = np.rint(np.fft.fftfreq(side) * side)
    weights = np.ones(side, dtype=np.complex128)
    weak = (np.abs(number) % lines.every == 0) & (np.abs(number) > _KEPT * side)
    weights[weak] *= 1 - lines.strength
    outer = np.abs(number) > lines.inner * side / 2
    weights[outer] *= np.exp(-2j * np.pi * number[outer] * lines.shift / side)
    wave = np.fft.fft(np.eye(side), axis=0)
    return np.asarray(np.fft.ifft(weights[:, None] * wave, axis=0).real)


def _coarsen(sample: Tensor, factor: float) -> None:
    """Take the nearest of fewer voxels along each axis, and interpolate them linearly."""
    shape = tuple(sample.shape[1:])
    small = [max(1, round(side / factor)) for side in shape]
    index = [
        torch.from_numpy(nearest_index(side, few)).to(sample.device)
        for side, few in zip(shape, small, strict=True)
    ]
    a, b, c = (
        axis_weights(few, side, 1).to(sample.device) for side, few in zip(shape, small, strict=True)
    )
    for channel in sample:
        few = channel[index[0][:, None, None], index[1][:, None], index[2]]
        few = b @ (few @ c.T)
        channel.copy_((a @ few.flatten(1)).view_as(channel))


def _box(shape: tuple[int, ...], centre: Vector, sides: Vector) -> tuple[slice, ...]:
    found = []
    for size, middle, share in zip(shape, centre, sides, strict=True):
        start = round((middle - share / 2) * size)
        found.append(slice(max(0, start), max(0, start + max(1, round(share * size)))))
    return tuple(found)
