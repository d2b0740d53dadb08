"""The streamed predictor against a full-volume computation that is written as simply as can be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.labels import LabelSet
from medseg.core.plan import Plan, edited
from medseg.inference.memory import Limits
from medseg.inference.predictor import Predictor, onto_grid
from medseg.inference.products import Products
from medseg.inference.volume import TensorVolume
from medseg.inference.windows import window_starts
from medseg.transforms.preprocess import RestoreRecord
from medseg.transforms.restore import ArraySink
from tests.models import small_plan

CPU = torch.device("cpu")
Triple = tuple[int, int, int]


class Convolution(nn.Module):
    """One layer: enough for logits to depend on where a tile ends."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, classes, 3, padding=1)
        with torch.no_grad():
            for weights in self.layer.parameters():
                weights.copy_(torch.randn(weights.shape, generator=chance(seed)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def chance(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plan_of(labels: int, **changes: Any) -> Plan:
    names = LabelSet.from_names({value: f"organ {value}" for value in range(1, labels + 1)})
    regions = changes.get("activation") == "regions"
    classes = labels + (not regions)
    return edited(
        small_plan(),
        {"labels": names.model_dump(), "network.classes": classes, **changes},
    )


def full_logits(networks: list[nn.Module], plan: Plan, x: Tensor) -> Tensor:
    """Padded volume, full weights, one division: (classes, I, J, K) float64 sums."""
    patch, shape = plan.patch_size, x.shape[1:]
    missing = [max(0, p - s) for p, s in zip(patch, shape, strict=True)]
    low = [gap // 2 for gap in missing]
    whole = [s + gap for s, gap in zip(shape, missing, strict=True)]
    padded = torch.zeros(x.shape[0], *whole)
    inner = tuple(slice(a, a + s) for a, s in zip(low, shape, strict=True))
    padded[:, *inner] = x
    weight = torch.ones(patch, dtype=torch.float64)
    if plan.inference.gaussian:
        for axis, side in enumerate(patch):
            offset = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
            curve = torch.exp(-0.5 * (offset / (plan.inference.gaussian_sigma * side)) ** 2)
            curve = curve.clamp(min=plan.inference.gaussian_floor)
            weight = weight * curve.view([-1 if n == axis else 1 for n in range(3)])
    views = [v for n in range(4) for v in combinations(plan.inference.mirror_axes, n)]
    total = torch.zeros(plan.network.classes, *whole, dtype=torch.float64)
    sums = torch.zeros(whole, dtype=torch.float64)
    starts = [window_starts(w, p, plan.inference.step) for w, p in zip(whole, patch, strict=True)]
    for corner in product(*starts):
        box = tuple(slice(a, a + p) for a, p in zip(corner, patch, strict=True))
        seen = [
            network(padded[:, *box][None].flip([a + 2 for a in view])).flip([a + 2 for a in view])
            for network in networks
            for view in views
        ]
        total[:, *box] += weight * torch.stack(seen).mean(dim=0)[0]
        sums[box] += weight
    return (total / sums)[:, *inner]


def full_restored(logits: Tensor, record: RestoreRecord) -> tuple[Tensor, tuple[slice, ...]]:
    """Logits (classes, ...) on the box of the oriented grid that they cover."""
    box = record.crop or tuple(slice(0, side) for side in record.oriented.shape)
    for axis in range(3):
        size, side = logits.shape[axis + 1], box[axis].stop - box[axis].start
        if record.nearest[axis]:
            index = ((torch.arange(side) + 0.5) * (size / side)).floor().long().clamp(max=size - 1)
            logits = logits.index_select(axis + 1, index)
        else:
            target = list(logits.shape[1:])
            target[axis] = side
            logits = interpolate(logits[None], size=target, mode="trilinear")[0]
    return logits, box


@dataclass(frozen=True)
class Case:
    plan: Plan
    record: RestoreRecord
    voxels: Tensor
    networks: list[nn.Module]
    batch: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    side = st.integers(3, 22)
    original = (draw(side), draw(side), draw(side))
    turn = draw(st.sampled_from(ALL_ORIENTATIONS))
    own_mm = [draw(st.sampled_from([0.8, 1.0, 1.7])) for _ in range(3)]
    straight = Geometry(original, np.diag([*own_mm, 1.0]) + np.eye(4, k=3) * 7)
    labels = draw(st.sampled_from([2, 6]))
    regions = draw(st.booleans())
    plan = plan_of(
        labels,
        **{
            "activation": "regions" if regions else "softmax",
            "patch_size": tuple(draw(st.sampled_from([4, 6, 10])) for _ in range(3)),
            "spacing_mm": tuple(draw(st.sampled_from([0.9, 1.5, 2.2, None])) for _ in range(3)),
            "axis_order": tuple(draw(st.permutations([0, 1, 2]))),
            "inference.step": draw(st.sampled_from([0.3, 0.5, 1.0])),
            "inference.gaussian": draw(st.booleans()),
            "inference.gaussian_floor": draw(st.sampled_from([0.0, 1e-3])),
            "inference.mirror_axes": tuple(draw(st.sets(st.sampled_from([0, 1, 2]), max_size=2))),
        },
    )
    geometry = straight.reoriented(turn)
    crop = None
    if draw(st.booleans()):
        turned = RestoreRecord.for_plan(geometry, plan).oriented.shape
        low = [draw(st.integers(0, side // 3)) for side in turned]
        high = [side - draw(st.integers(0, side // 3)) for side in turned]
        a, b, c = (slice(x, y) for x, y in zip(low, high, strict=True))
        crop = (a, b, c)
    record = RestoreRecord.for_plan(geometry, plan, crop=crop)
    near = (draw(st.booleans()), draw(st.booleans()), draw(st.booleans()))
    record = replace(record, nearest=near)
    seed = draw(st.integers(0, 99))
    # Coarse noise: neighbours mostly agree, as they do in a scan.
    coarse = torch.randn(1, 1, 4, 4, 4, generator=chance(seed)) * 2
    voxels = interpolate(coarse, size=record.working.shape, mode="trilinear")[0]
    members = draw(st.integers(1, 2))
    networks = [Convolution(plan.network.classes, seed + n).eval() for n in range(members)]
    return Case(plan, record, voxels, networks, draw(st.integers(1, 3)))


def paste(case: Case, values: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    """From the box of the oriented grid to the scan's own, 0 outside."""
    oriented = np.zeros(case.record.oriented.shape, dtype=values.dtype)
    oriented[box] = values
    return case.record.orientation.inverse().apply(oriented)


@torch.inference_mode()
@settings(max_examples=40)
@given(cases())
def test_streaming_equals_the_full_volume(case: Case) -> None:
    plan, record = case.plan, case.record
    names = plan.labels.names
    sinks = {f"probability {n}": ArraySink(record.target.shape, "float32") for n in names}
    labels = ArraySink(record.target.shape, "uint8")
    predictor = Predictor(case.networks, plan, CPU, batch=case.batch)
    products = Products(probabilities=names, dtype="float32")
    predictor.stream(case.voxels, record, labels, products=products, product_sinks=sinks)
    plain = predictor.infer(case.voxels, record)

    logits, box = full_restored(full_logits(case.networks, plan, case.voxels), record)
    softmax = plan.activation == "softmax"
    chances = logits.softmax(0)[1:] if softmax else logits.sigmoid()
    for name, chance_ in zip(names, chances, strict=True):
        theirs = paste(case, chance_.numpy(), box)
        np.testing.assert_allclose(sinks[f"probability {name}"].array, theirs, atol=1e-5)
    if softmax:
        best = logits.topk(2, dim=0)
        margin, expected = best.values[0] - best.values[1], best.indices[0]
    else:
        margin = logits.abs().amin(dim=0)
        order = torch.arange(1, len(names) + 1).view(-1, 1, 1, 1)
        expected = ((logits > 0) * order).amax(dim=0)
    clear = paste(case, (margin <= 1e-5).numpy(), box) == 0
    expected = paste(case, expected.numpy(), box)
    for found in (labels.array, plain):
        np.testing.assert_array_equal(found[clear], expected[clear])


def organs(classes: int, shape: Triple, seed: int = 0) -> Tensor:
    """Smooth logits: (classes, ...)."""
    coarse = torch.randn(1, classes, 5, 5, 5, generator=chance(seed)) * 4
    return interpolate(coarse, size=shape, mode="trilinear")[0]


def test_half_precision_keeps_the_labels() -> None:
    plan = plan_of(7, patch_size=(12, 8, 10), spacing_mm=(1.0, 1.0, 1.0))
    record = RestoreRecord.for_plan(Geometry((50, 41, 37), np.diag([0.6, 0.7, 0.8, 1])), plan)
    voxels = organs(1, record.working.shape)
    networks = [Convolution(8, 3)]
    full, half = (
        Predictor(networks, plan, CPU, limits=Limits(ring=ring)).infer(voxels, record)
        for ring in ("fp32", "fp16")
    )
    assert len(np.unique(full)) > 4
    assert (full == half).mean() > 0.9985


def test_tilted_scans_and_uneven_slices_take_the_general_way() -> None:
    from medseg.core.scan import Scan
    from medseg.core.slices import SlicePlaces
    from medseg.transforms.resample import sample_rows

    plan = plan_of(2, spacing_mm=(1.3, 1.4, 2.0))
    for flip in (1.0, -1.0):
        affine = np.diag([0.9, 1.0, 2.5 * flip, 1.0])
        places = (0.0, 1.0, 2.5, 4.0, 7.0)
        slices = SlicePlaces(places, tuple(2.5 * p for p in places), ((0.0, 0.0, 0.0),) * 5)
        sheared = affine.copy()
        sheared[1, 2] = 0.6
        for matrix, grid in ((affine, "source"), (sheared, "own")):
            scan = Scan.from_array(np.zeros((20, 22, 8), np.float32), Geometry((20, 22, 8), matrix))
            scan = replace(scan, slices=slices)
            record = onto_grid(RestoreRecord.for_plan(scan.geometry, plan), scan, grid)  # type: ignore[arg-type]
            voxels = organs(1, record.working.shape)
            networks = [Convolution(3, 1).eval()]
            found = Predictor(networks, plan, CPU).infer(voxels, record)
            logits = full_logits(networks, plan, voxels).float()
            target = record.target.shape
            way = np.linalg.solve(record.working.affine_ras, record.original.affine_ras)
            last = places if grid == "source" else None
            rows = slice(0, target[0])
            with torch.inference_mode():
                whole = sample_rows(logits, way, target, rows=rows, fill=None, last=last)
            best = whole.topk(2, dim=0)
            clear = (best.values[0] - best.values[1] > 1e-4).numpy()
            assert clear.mean() > 0.98
            np.testing.assert_array_equal(found[clear], best.indices[0].numpy()[clear])


class Handed(nn.Module):
    """Tells left from right: a bright voxel is ``left`` where the ramp along I falls."""

    def forward(self, x: Tensor) -> Tensor:
        bright, ramp = x[:, :1], x[:, 1:]
        falls = torch.zeros_like(ramp)
        step = ramp[:, :, 1:] - ramp[:, :, :-1]
        falls[:, :, :-1] = step
        falls[:, :, -1:] = step[:, :, -1:]
        inside = 20 * bright - 18
        return torch.cat([torch.zeros_like(bright), inside - 6 * falls, inside + 6 * falls], dim=1)


@pytest.mark.parametrize("activation", ["softmax", "regions"])
def test_mirroring_exchanges_paired_organs(activation: str) -> None:
    """A network that sees the side keeps it in mirrored views only if the pairs are exchanged."""
    regions = activation == "regions"
    changes: dict[str, Any] = {
        "labels": LabelSet.from_names({1: "kidney_left", 2: "kidney_right"}).model_dump(),
        "activation": activation,
        "network.classes": 3 - regions,
        "axis_order": (2, 0, 1),
        "spacing_mm": (None, None, None),
    }
    plan = edited(small_plan(channels=2), changes)
    scan = torch.zeros(2, 16, 24, 8)
    scan[0, 4:9, 3:8, 2:6] = 1
    scan[0, 4:9, 15:20, 2:6] = 1
    # Left-right is working axis 1: a ramp that rises up to the middle and falls after it.
    ramp = torch.arange(24.0)
    scan[1] = torch.minimum(ramp, 23 - ramp)[:, None]
    truth = np.zeros((16, 24, 8), np.uint8)
    truth[4:9, 3:8, 2:6], truth[4:9, 15:20, 2:6] = 2, 1

    class Turned(nn.Module):
        """The same network on these axes."""

        def forward(self, x: Tensor) -> Tensor:
            logits = Handed()(x.transpose(2, 3)).transpose(2, 3)
            return logits[:, 1:] if regions else logits

    def dice(mirror: tuple[int, ...], pairs: tuple[tuple[str, str], ...]) -> float:
        settings_ = {"inference.mirror_axes": mirror, "inference.left_right_pairs": pairs}
        found = Predictor([Turned()], edited(plan, settings_), CPU).classes(scan)
        scores = [
            2 * ((found == n) & (truth == n)).sum() / ((found == n).sum() + (truth == n).sum())
            for n in (1, 2)
        ]
        return float(min(scores))

    pairs = (("kidney_left", "kidney_right"),)
    alone = dice((), ())
    assert alone > 0.99
    assert dice((0, 1, 2), pairs) >= alone
    assert dice((0, 1, 2), ()) < 0.7


def test_products_by_hand() -> None:
    class Fixed(nn.Module):
        """The same logits everywhere."""

        def __init__(self, *logits: float) -> None:
            super().__init__()
            self.logits = torch.tensor(logits).view(1, -1, 1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(len(x), -1, *x.shape[2:]).clone()

    plan = plan_of(2, spacing_mm=(None, None, None))
    record = RestoreRecord.for_plan(Geometry((9, 14, 10), np.diag([1, 2, 3, 1.0])), plan)
    voxels = torch.randn(1, *record.working.shape, generator=chance(0))
    # Sure of class 1, and sure of class 2: on the mean as likely as each other.
    networks = [Fixed(0.0, 30.0, 0.0), Fixed(0.0, 0.0, 30.0)]
    products = Products(("organ 2",), entropy=True, disagreement=True, dtype="uint8")
    assert products.names == ("probability organ 2", "entropy", "disagreement")
    sinks = {name: ArraySink(record.target.shape, "uint8") for name in products.names}
    labels = ArraySink(record.target.shape, "uint8")
    Predictor(networks, plan, CPU).stream(
        voxels, record, labels, products=products, product_sinks=sinks
    )
    assert (labels.array == 1).all()
    half, share = 0.5, np.log(2) / np.log(3)
    for name, value in zip(products.names, (half, share, half), strict=True):
        np.testing.assert_allclose(sinks[name].array, round(255 * value), atol=1)


def test_tiles_of_one_value_run_once_and_change_nothing() -> None:
    plan = plan_of(3, spacing_mm=(None, None, None))
    record = RestoreRecord.for_plan(Geometry((60, 40, 30), np.diag([1, 2, 3, 1.0])), plan)
    voxels = torch.full((1, *record.working.shape), -1.5)
    voxels[0, 5:20, 5:20, 3:20] = organs(1, (15, 15, 17))[0]
    seen = []

    class Counted(Convolution):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    results, runs = [], []
    for skip in (False, True):
        sink = ArraySink(record.target.shape, "uint8")
        predictor = Predictor([Counted(4, 0)], plan, CPU, batch=3, skip_air=skip)
        seen.clear()
        runs.append(predictor.stream(voxels, record, sink))
        assert sum(seen) == runs[-1].tiles - runs[-1].skipped
        results.append(sink.array)
    assert runs[0].skipped == 0
    assert runs[1].skipped > runs[1].tiles / 2
    np.testing.assert_array_equal(*results)


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    plan = plan_of(2, spacing_mm=(None, None, None))
    record = RestoreRecord.for_plan(Geometry((40, 30, 9), np.diag([1, 2, 3, 1.0])), plan)
    voxels = organs(1, record.working.shape)
    calls = []

    class Small(Convolution):
        most = 1

        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            if len(x) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    sink = ArraySink(record.target.shape, "uint8")
    run = Predictor([Small(3, 0)], plan, CPU, batch=4).stream(voxels, record, sink)
    assert calls[:4] == [4, 2, 1, 1]
    assert run.setup.batch == 1
    assert sum(n for n in calls if n == 1) == run.tiles
    plain = Predictor([Convolution(3, 0)], plan, CPU).infer(voxels, record)
    np.testing.assert_array_equal(sink.array, plain)

    from medseg.core.errors import ResourceError

    Small.most = 0
    with pytest.raises(ResourceError, match="room for one tile"):
        Predictor([Small(3, 0)], plan, CPU, batch=4).infer(voxels, record)


def test_volumes_are_read_tile_by_tile() -> None:
    plan = plan_of(2, spacing_mm=(None, None, None))
    record = RestoreRecord.for_plan(Geometry((40, 30, 9), np.diag([1, 2, 3, 1.0])), plan)
    voxels = organs(1, record.working.shape)
    largest = []

    class Watched(TensorVolume):
        def read(self, box: tuple[slice, slice, slice]) -> Tensor:
            largest.append([part.stop - part.start for part in box])
            return super().read(box)

    predictor = Predictor([Convolution(3, 0)], plan, CPU)
    found = predictor.infer(Watched(voxels), record)
    assert np.all(np.array(largest) <= plan.patch_size)
    np.testing.assert_array_equal(found, predictor.infer(voxels, record))
