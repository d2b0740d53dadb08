"""The sliding window against MONAI's, and its invariances."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from medseg.core.errors import ResourceError
from medseg.inference.device import choose_device
from medseg.inference.memory import Limits
from medseg.inference.predictor import Predictor
from medseg.inference.windows import Bell
from medseg.networks.build import build_network
from tests.models import small_plan

CPU = torch.device("cpu")


def network(seed: int = 0, dims: int = 3) -> nn.Module:
    return build_network(small_plan(dims=dims).network, seed=seed)


class PointWise(nn.Module):
    """Logits that depend on a voxel alone: any tiling must give the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), x, x * x - 1], dim=1)


@pytest.mark.parametrize("shape", [(16, 12, 8), (33, 20, 13), (7, 30, 5)])
def test_a_pointwise_network_is_reproduced_whatever_the_tiling(shape: tuple[int, ...]) -> None:
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    for batch in (1, 3):
        logits = Predictor([PointWise()], small_plan(), CPU, batch=batch).logits(x)
        torch.testing.assert_close(logits, PointWise()(x[None])[0], atol=1e-5, rtol=1e-5)


def test_agrees_with_monais_sliding_window() -> None:
    # Sizes at which both place their windows alike: every step is exactly half a patch.
    x = torch.randn(1, 32, 24, 16, generator=torch.Generator().manual_seed(0))
    model = network().eval()
    a, b, c = (torch.from_numpy(Bell(0.125, 1e-3).along(side)) for side in (16, 12, 8))
    importance = (a[:, None, None] * b[:, None] * c).float()
    with torch.inference_mode():
        theirs = sliding_window_inference(
            x[None], (16, 12, 8), 1, model, overlap=0.5, roi_weight_map=importance[None, None]
        )[0]
    ours = Predictor([copy.deepcopy(model)], small_plan(), CPU).logits(x)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_members_are_averaged() -> None:
    x = torch.randn(1, 16, 12, 8, generator=torch.Generator().manual_seed(0))
    one, two = network(1), network(2)
    both = Predictor([one, two], small_plan(), CPU).logits(x)
    mean = (Predictor([one], small_plan(), CPU).logits(x)
            + Predictor([two], small_plan(), CPU).logits(x)) / 2  # fmt: skip
    torch.testing.assert_close(both, mean, atol=1e-5, rtol=1e-5)


def test_mirrored_views_make_the_result_symmetric() -> None:
    plan = small_plan(**{"inference.mirror_axes": (0, 1)})
    predictor = Predictor([network()], plan, CPU)
    x = torch.randn(1, 16, 12, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        predictor.logits(x.flip([1])), predictor.logits(x).flip([1]), atol=1e-4, rtol=1e-4
    )


def test_two_dimensions_run_slice_by_slice() -> None:
    plan = small_plan(dims=2)
    predictor = Predictor([network(dims=2)], plan, CPU, batch=2)
    x = torch.randn(1, 20, 14, 3, generator=torch.Generator().manual_seed(0))
    whole = predictor.logits(x)
    for k in range(3):
        alone = predictor.logits(x[..., k : k + 1])
        torch.testing.assert_close(whole[..., k : k + 1], alone, atol=1e-5, rtol=1e-5)


def test_threads_do_not_disturb_each_other() -> None:
    predictor = Predictor([network()], small_plan(), CPU)
    scans = [
        torch.randn(1, 20, 14, 9, generator=torch.Generator().manual_seed(n)) for n in range(6)
    ]
    alone = [predictor.logits(scan) for scan in scans]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(predictor.logits, scans))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


def test_a_predictor_stays_as_it_is() -> None:
    plan = small_plan()
    predictor = Predictor([build_network(plan.network, seed=3)], plan, torch.device("cpu"))
    limits, networks = Limits(), [torch.nn.Identity()]
    other = predictor.adjusted(limits=limits, networks=networks, skip_air=True, confidence=True)
    assert (other.limits, other.networks, other.skip_air, other.confidence) == (
        limits, networks, True, True,
    )  # fmt: skip
    assert (predictor.skip_air, predictor.confidence) == (False, False)
    assert predictor.networks is not networks
    assert other.plan is predictor.plan
    for one in (predictor, other):
        with pytest.raises(AttributeError, match=r"confidence: a predictor stays as it is"):
            one.confidence = False


def test_unknown_devices_are_refused() -> None:
    for name in ("tpu9", "cuda:77", "mps"):
        with pytest.raises(ResourceError, match="--device"):
            choose_device(name)
    assert choose_device("cpu") == CPU


@pytest.mark.gpu
def test_gpu_agrees_with_cpu() -> None:
    x = torch.randn(1, 33, 20, 13, generator=torch.Generator().manual_seed(0))
    here = Predictor([network()], small_plan(), CPU).logits(x)
    there = Predictor([network()], small_plan(), torch.device("cuda"), batch=4).logits(x).cpu()
    assert float((here.argmax(0) == there.argmax(0)).float().mean()) > 0.99
