"""Changes of intensity: a whole batch at once, in place, on the device where it lies.

What is linear along an axis (blur, ghosts, motion, low resolution) is one small matrix per
axis. A matrix product is the quickest on a GPU, where each call counts. On a CPU few shifted
additions are quicker: a patch stays in its cache, and a pass over it costs next to nothing.
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
from medseg.transforms.resample import axis_weights, linear_taps, nearest_index

Matrices = dict[int, NDArray[np.float64]]
# Lines of k-space about the middle that no ghost weakens, as a share: they are the brightness.
_KEPT = 0.02
# Widest Gaussian that is added up tap by tap on a CPU, in voxels.
_MOST_SIGMA = 3.0


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
    # More taps than that cost more than a matrix product does.
    taps = sample.device.type == "cpu" and 0 < variation.blur_sigma < _MOST_SIGMA
    _along_axes(sample, _blur_and_lines(tuple(sample.shape[1:]), variation, taps))
    if taps:
        _blur_by_taps(sample, variation.blur_sigma)
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
    x.mul_(factor).add_(mean * (1 - factor))
    # torch.clamp with two tensors is several times as slow.
    return torch.minimum(torch.maximum(x, low, out=x), high, out=x)


def _bend(x: Tensor, gamma: Tensor) -> Tensor:
    """Bend the range, then give back the mean and standard deviation (as nnU-Net does)."""
    low, high = _per_channel(x.amin), _per_channel(x.amax)
    mean = _per_channel(x.mean)
    spread = _spread(x.sub_(mean))
    span = (high - low).clamp_(min=1e-7)
    # A power by way of the logarithm: torch is twice as quick with it.
    x.sub_(low - mean).div_(span).clamp_(min=0).log2_().mul_(gamma).exp2_()
    x.sub_(_per_channel(x.mean))
    return x.mul_(spread / _spread(x).clamp_(min=1e-8)).add_(mean)


def _bend_inverted(x: Tensor, gamma: Tensor) -> Tensor:
    return _bend(x.neg_(), gamma).neg_()


def _spread(x: Tensor) -> Tensor:
    """Root of the sum of squares of each channel; ten times as quick as torch's deviation."""
    # Rows first: a float that adds up millions of squares loses digits.
    rows = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    result: Tensor = torch.linalg.vector_norm(rows, dim=(-3, -2, -1), keepdim=True)
    return result


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


def _blur_and_lines(shape: tuple[int, ...], variation: Variation, taps: bool) -> Matrices:
    """What befalls each axis as a matrix; where the blur is by ``taps``, without it."""
    found: Matrices = {}
    for lines in variation.lines:
        side = shape[lines.axis]
        if side > 1:
            found[lines.axis] = line_matrix(side, lines) @ found.get(lines.axis, np.eye(side))
    if variation.blur_sigma > 0 and not taps:
        for axis, side in enumerate(shape):
            if side > 1:
                blur = blur_matrix(side, variation.blur_sigma)
                found[axis] = blur @ found.get(axis, np.eye(side))
    return found


def _blur_by_taps(sample: Tensor, sigma: float) -> None:
    """Multiply (C, I, J, K) by :func:`blur_matrix` along each axis."""
    middle, *taps = blur_taps(sigma).tolist()
    spare = torch.empty_like(sample[0])
    for channel in sample:
        old, new = channel, spare
        for axis, side in enumerate(channel.shape):
            if side > 1:
                _add_taps(old, new.copy_(old).mul_(middle), axis, taps)
                old, new = new, old
        if old is spare:
            channel.copy_(spare)


def _add_taps(x: Tensor, result: Tensor, axis: int, taps: Sequence[float]) -> None:
    side = x.shape[axis]
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, side - 1, 1)
    for shift, weight in enumerate(taps, start=1):
        edge = min(shift, side)
        inner = side - edge
        result.narrow(axis, edge, inner).add_(x.narrow(axis, 0, inner), alpha=weight)
        result.narrow(axis, 0, inner).add_(x.narrow(axis, edge, inner), alpha=weight)
        result.narrow(axis, 0, edge).add_(first, alpha=weight)
        result.narrow(axis, inner, edge).add_(last, alpha=weight)


def blur_taps(sigma: float) -> NDArray[np.float64]:
    """Weights of a Gaussian from its middle outwards, cut off at three sigma; twice all is 1."""
    reach = max(1, round(3 * sigma))
    bell = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    return np.asarray(bell / (bell[0] + 2 * bell[1:].sum()))


def blur_matrix(side: int, sigma: float) -> NDArray[np.float64]:
    """(side, side): a Gaussian, cut off at three sigma; the edge is repeated."""
    matrix = np.zeros((side, side))
    rows = np.arange(side)
    for offset, weight in enumerate(blur_taps(sigma)):
        for shift in {offset, -offset}:
            np.add.at(matrix, (rows, np.clip(rows + shift, 0, side - 1)), weight)
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
    few = sample
    for axis, (side, fewer) in enumerate(zip(shape, small, strict=True), start=1):
        index = torch.from_numpy(nearest_index(side, fewer)).to(sample.device)
        few = few.index_select(axis, index)
    few = few @ axis_weights(small[2], shape[2], 1).to(sample.device).T
    few = _between(few, 2, *linear_taps(small[1], shape[1]))
    sample.copy_(_between(few, 1, *linear_taps(small[0], shape[0])))


def _between(
    x: Tensor, axis: int, below: NDArray[Any], above: NDArray[Any], share: NDArray[Any]
) -> Tensor:
    """Interpolate (C, I, J, K) linearly along one axis."""
    low, high = (
        x.index_select(axis, torch.from_numpy(index).to(x.device)) for index in (below, above)
    )
    weight = torch.from_numpy(share.astype(np.float32)).to(x.device)
    return low.lerp_(high, weight.view([-1 if n == axis else 1 for n in range(4)]))


def _box(shape: tuple[int, ...], centre: Vector, sides: Vector) -> tuple[slice, ...]:
    found = []
    for size, middle, share in zip(shape, centre, sides, strict=True):
        start = round((middle - share / 2) * size)
        found.append(slice(max(0, start), max(0, start + max(1, round(share * size)))))
    return tuple(found)
