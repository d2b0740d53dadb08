"""Networks at the sizes of their authors, and every network on grids of all kinds."""

from __future__ import annotations

import sys
from math import prod

import pytest

from medseg.core.errors import MissingPackageError, SettingsError
from medseg.core.network_options import NETWORK_KINDS
from medseg.core.plan import NetworkPlan
from medseg.planning.networks import Frame
from medseg.planning.planner import make_plan, means_for
from medseg.planning.presets import PRESETS, Fitted, Ground, check_network, feature_values, fit
from tests.planning_facts import LABELS, fingerprint

HALVES = ((1, 1, 1), *((2, 2, 2),) * 5)


pytest.importorskip("einops")


def fitted(name: str, shape: tuple[int, int, int], *, width: int = 16, cases: int = 200) -> Fitted:
    flat = shape[2] == 1
    ground = Ground(shape, (0.8, 0.8, 3.0), 192 * 192 if flat else 56 * 56 * 40, cases)
    return fit(name, ground, Frame(2 if flat else 3, 2, 4, width=width, widest=256))


def test_features_are_counted_as_nnunet_counts_them() -> None:
    # nnU-Net's planner prints this figure for the network below at 128^3 (version 2.8.1).
    plan = NetworkPlan(
        name="residual_unet",
        spatial_dims=3,
        in_channels=1,
        classes=3,
        features=(32, 64, 128, 256, 320, 320),
        strides=HALVES,
        kernels=((3, 3, 3),) * 6,
        encoder_convolutions=(1, 3, 4, 6, 6, 6),
        decoder_convolutions=(1,) * 5,
    )
    assert feature_values(plan, (128, 128, 128)) == 558319104


@pytest.mark.parametrize("name", ["residual_unet_m", "residual_unet_l", "residual_unet_xl"])
@pytest.mark.parametrize("shape", [(512, 512, 120), (3000, 2600, 1)])
def test_residual_presets_fill_what_they_are_made_for(
    name: str, shape: tuple[int, int, int]
) -> None:
    found, limit = fitted(name, shape, width=32), PRESETS[name].values[0 if shape[2] == 1 else 1]
    values = feature_values(found.network, found.patch)
    assert 0.7 * limit < values <= limit
    assert found.network.encoder_counts[:5] == (1, 3, 4, 6, 6)
    assert found.network.decoder_counts[:2] == (1, 1)
    assert found.network.features[:3] == (32, 64, 128)
    assert found.network.features[-1] == (512 if shape[2] == 1 else 320)
    assert found.batch_size == round(limit / values * (12 if shape[2] == 1 else 2))
    assert f"{PRESETS[name].memory_gb} GB" in found.reason


def test_small_scans_leave_room_for_a_larger_batch() -> None:
    # 40 x 56 x 40: all of the scan, so that what is left goes to the batch, up to a
    # twentieth of the training set.
    shape = (36, 50, 35)
    ground = Ground(shape, (1.0, 1.0, 1.0), 40_000, 200)
    found = fit("residual_unet_m", ground, Frame(3, 1, 3, width=8, widest=64))
    assert found.patch == (40, 56, 40)
    assert found.batch_size == round(0.05 * 200 * prod(shape) / prod(found.patch))
    few = fit("residual_unet_m", Ground(shape, (1.0, 1.0, 1.0), 1, 3), Frame(3, 1, 3, 8, 64))
    assert few.batch_size == 2


def test_mednext_sizes() -> None:
    # Roy et al., MICCAI 2023: blocks and expansions of the four sizes.
    large = fitted("mednext_l", (300, 300, 90), width=32)
    assert large.network.encoder_counts == (3, 4, 8, 8, 8)
    assert large.network.decoder_counts == (3, 4, 8, 8)
    assert large.network.options.model_dump() == {"expansions": (3, 4, 8, 8, 8)}
    assert large.network.features == (32, 64, 128, 256, 512)


@pytest.mark.parametrize(
    "shape",
    [
        (36, 50, 35),
        (512, 512, 40),
        (300, 280, 9),
        (64, 48, 1),
        (700, 500, 1),
        (12, 9, 8),
        (5, 3, 4),
        (6, 3, 1),
    ],
)
@pytest.mark.parametrize("name", [*NETWORK_KINDS, *PRESETS])
def test_every_network_fits_every_grid(name: str, shape: tuple[int, int, int]) -> None:
    found = fitted(name, shape, width=20)
    divisor = found.network.divisor
    assert all(side % step == 0 for side, step in zip(found.patch, divisor, strict=True))
    assert prod(found.patch) > prod(divisor)
    assert found.network.fixed_size in (None, found.patch)
    assert (found.patch[2] == 1) == (shape[2] == 1)


@pytest.mark.parametrize("name", [*NETWORK_KINDS, "residual_unet_m", "mednext_b"])
def test_the_planner_takes_every_name(name: str) -> None:
    facts = fingerprint()
    means = means_for("cpu", two_dimensional=facts.two_dimensional, training_s=None)
    plan = make_plan(facts, LABELS, means, network=name)
    assert plan.network.name == (PRESETS[name].network if name in PRESETS else name)
    assert type(plan).from_json(plan.to_json()) == plan
    if name in PRESETS:
        assert plan.reasons["features"] == f"32 channels, as {name} has"


def test_a_package_that_is_missing_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "einops", None)
    check_network("mednext_s")
    with pytest.raises(MissingPackageError, match=r"swin_unetr.*medseg\[transformers\]"):
        check_network("swin_unetr")


def test_unknown_names() -> None:
    with pytest.raises(SettingsError, match=r"one of unet, .*residual_unet_l.*got vnet"):
        check_network("vnet")
