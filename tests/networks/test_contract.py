"""What every network must do, whatever its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.core.network_options import NETWORK_KINDS
from medseg.core.plan import NetworkPlan, edited
from medseg.inference.backends import TorchBackend
from medseg.inference.choice import Backends
from medseg.inference.openvino_backend import OpenVINOBackend
from medseg.inference.predictor import Predictor
from medseg.networks.build import NETWORKS, build_network
from medseg.package.package import load_package
from medseg.workflows.export import export
from tests.models import write_random_package
from tests.network_plans import Triple, small_network, small_plan_of

pytest.importorskip("einops")
CPU = torch.device("cpu")
everyone = pytest.mark.parametrize("name", list(NETWORK_KINDS))
both = pytest.mark.parametrize("dims", [2, 3])


def seldom(slow: set[tuple[str, int]]) -> list[Any]:
    """Each name in 2D and 3D; those that take long with ``make acceptance`` alone."""
    pairs = [(name, dims) for name in NETWORK_KINDS for dims in (2, 3)]
    marks = [pytest.mark.acceptance]
    return [pytest.param(*pair, marks=marks if pair in slow else []) for pair in pairs]


def outputs_of(network: nn.Module, tiles: Tensor) -> list[Tensor]:
    found = network(tiles)
    return found if isinstance(found, list) else [found]


def noise(plan: NetworkPlan, patch: Triple, *, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, plan.in_channels, *patch, generator=generator)


def test_each_kind_has_a_builder() -> None:
    assert list(NETWORK_KINDS) == list(NETWORKS)


@both
@everyone
def test_shapes_gradients_and_repeatability(name: str, dims: int) -> None:
    plan, patch = small_network(name, dims)
    network = build_network(plan, seed=1).train()
    tiles = noise(plan, patch)
    outputs = outputs_of(network, tiles)
    assert tuple(outputs[0].shape) == (2, 3, *patch)
    for output in outputs[1:]:
        factors = [a / b for a, b in zip(patch, output.shape[2:], strict=True)]
        assert all(factor == int(factor) >= 1 for factor in factors)
        assert max(factors) > 1
    assert (len(outputs) > 1) == (name == "mednext")  # the U-Nets: with four stages
    sum(output.square().mean() for output in outputs).backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        # A bias before a norm changes nothing, so that its gradient may be 0.
        assert parameter.dim() == 1 or parameter.grad.abs().sum() > 0
    network.eval()
    with torch.inference_mode():
        assert torch.equal(network(tiles), network(tiles))
        assert tuple(network(tiles[:1]).shape) == (1, 3, *patch)


@both
@everyone
def test_any_multiple_of_the_divisor(name: str, dims: int) -> None:
    plan, patch = small_network(name, dims)
    if plan.fixed_size is not None:
        assert plan.fixed_size == patch
        with pytest.raises(Exception, match=r"image_size"):
            edited(small_plan_of(name, dims), {"patch_size": [2 * side for side in patch]})
        return
    odd = (1, 3, 2) if name != "swin_unetr" else (1, 2, 1)
    a, b, c = (step * (n if step > 1 else 1) for step, n in zip(plan.divisor, odd, strict=True))
    network = build_network(plan, seed=1).eval()
    with torch.inference_mode():
        assert tuple(network(noise(plan, (a, b, c))).shape) == (2, 3, a, b, c)


@both
@everyone
def test_a_package_gives_the_same_network_again(name: str, dims: int, tmp_path: Path) -> None:
    plan = small_plan_of(name, dims)
    (network,) = load_package(write_random_package(tmp_path / "model", plan)).networks()
    assert all(not value.is_meta for value in network.state_dict().values())
    first = build_network(plan.network, seed=0).eval()
    tiles = noise(plan.network, plan.patch_size)
    with torch.inference_mode():
        assert torch.equal(network(tiles), first(tiles))
    kinds = {key: value.dtype for key, value in first.state_dict().items()}
    assert kinds == {key: value.dtype for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "dims"), seldom({("swin_unetr", 2), ("swin_unetr", 3), ("unetr", 3)})
)
def test_export_to_onnx(name: str, dims: int, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    plan = small_plan_of(name, dims)
    folder = write_random_package(tmp_path / "model", plan)
    told = export(folder, tmp_path / "m.onnx")
    assert told["difference"] < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (network,) = load_package(folder).networks()
    tiles = noise(plan.network, plan.patch_size, count=3)
    with torch.inference_mode():
        reference = network(tiles).numpy()
    (logits,) = session.run(["logits"], {"tiles": tiles.numpy()})
    np.testing.assert_allclose(logits, reference, atol=1e-4 * np.ptp(reference))


# The U-Nets are tried by tests/inference/test_backends.py.
@pytest.mark.parametrize(
    ("name", "dims"),
    seldom(
        {(name, 2) for name in NETWORK_KINDS}
        | {(name, 3) for name in ("unet", "residual_unet", "dynunet", "unetr", "swin_unetr")}
    ),
)
def test_openvino_gives_what_torch_gives(name: str, dims: int) -> None:
    pytest.importorskip("openvino")
    plan = small_plan_of(name, dims)
    network = build_network(plan.network, seed=0)
    made = Backends("openvino", [network], plan, CPU, identity=f"{name} {dims}")
    (backend,) = made.for_work(1)
    assert isinstance(backend, OpenVINOBackend)
    # What was kept in the cache takes the same batches.
    (kept,) = Backends("openvino", [network], plan, CPU, identity=f"{name} {dims}").for_work(1)
    for count in (1, 3):
        tiles = noise(plan.network, plan.patch_size, count=count)
        reference = TorchBackend(network, CPU)(tiles)
        span = float(reference.max() - reference.min())
        assert float((backend(tiles) - reference).abs().max()) < 1e-4 * span
        assert torch.equal(kept(tiles), backend(tiles))


@everyone
def test_a_scan_larger_than_a_patch(name: str) -> None:
    plan = small_plan_of(name, 3)
    predictor = Predictor([build_network(plan.network, seed=0)], plan, CPU)
    i, j, k = plan.patch_size
    shape = (i + 5, j - 3, k + 1)
    logits = predictor.logits(torch.randn(2, *shape))
    assert tuple(logits.shape) == (3, *shape)
    assert bool(torch.isfinite(torch.as_tensor(logits)).all())
