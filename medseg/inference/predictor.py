"""Run one or several networks over a whole scan and bring the labels back to its grid.

Tiles run in the order in which parts of the scan are soonest done. What no further tile
touches is restored to the scan's own grid and becomes labels at once, so that only the overlap
of tiles is held, never all classes of the whole scan.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.core.geometry import Geometry
from medseg.core.plan import Plan
from medseg.core.scan import Scan
from medseg.inference.accumulator import Accumulator, Consume, Whole
from medseg.inference.backends import Backend
from medseg.inference.confidence import Confidence
from medseg.inference.device import tiles_at_once
from medseg.inference.memory import Limits, MemoryEstimate, Setup, fit
from medseg.inference.products import Products, outlet_for
from medseg.inference.tiles import Members, Tiles
from medseg.inference.volume import TensorVolume, Volume
from medseg.inference.windows import Bell, Tiling, Triple
from medseg.transforms.preprocess import RestoreRecord, preprocess_scan
from medseg.transforms.restore import ArraySink, Restorer, Sink
from medseg.transforms.winners import class_dtype, winners

Grid = Literal["own", "regular", "source"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """How a scan was run.

    Attributes:
        tiles: Windows that cover it.
        skipped: Those of a single value that took the logits of another of the same value.
        setup: Batch (after any out-of-memory), precision and place of the carried logits.
        estimate: Of its memory; None where it was not asked for.
        confidence: How sure the networks are of each label, where it was asked for.
    """

    tiles: int
    skipped: int
    setup: Setup
    estimate: MemoryEstimate | None = None
    confidence: dict[str, dict[str, float]] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What provenance is to say of it: plain JSON."""
        facts: dict[str, Any] = {"logits": "fp16" if self.setup.half else "fp32"}
        if self.setup.skip_air:
            facts |= {"tiles": self.tiles, "tiles_of_one_value": self.skipped}
        if self.confidence is not None:
            facts["confidence"] = self.confidence
        return facts


class Predictor:
    """Networks that share a plan, ready to segment scans. Holds no state of a scan.

    Safe to use from several threads: nothing is changed after it is made.

    Args:
        networks: Modules or backends: tiles (N, C, *patch) to logits (N, classes, *patch).
        plan: Of the model.
        device: Where they run.
        batch: Tiles at a time; None for what suits the device. Fewer where memory is short.
        limits: Of memory.
        skip_air: Run tiles that hold one and the same value in each channel (air, which
            clipping makes constant) once and use their logits again. Labels stay as they are.
        confidence: Runs tell how sure the networks are of each label.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module | Backend],
        plan: Plan,
        device: torch.device,
        *,
        batch: int | None = None,
        limits: Limits | None = None,
        skip_air: bool = False,
        confidence: bool = False,
    ) -> None:
        # A plain module runs as it is; a backend stands on its device already.
        self.networks: Sequence[Callable[[Tensor], Tensor]] = [
            network.to(device).eval() if isinstance(network, nn.Module) else network
            for network in networks
        ]
        self.plan, self.device = plan, device
        self.batch = tiles_at_once(device) if batch is None else batch
        self.limits = limits or Limits()
        self.skip_air, self.confidence = skip_air, confidence
        self._made = True

    def __setattr__(self, name: str, value: object) -> None:
        if "_made" in vars(self):
            raise AttributeError(f"{name}: a predictor stays as it is; see Predictor.adjusted")
        super().__setattr__(name, value)

    def adjusted(
        self,
        *,
        networks: Sequence[Callable[[Tensor], Tensor]] | None = None,
        limits: Limits | None = None,
        skip_air: bool | None = None,
        confidence: bool | None = None,
    ) -> Self:
        """The same with other settings; this one stays as it is.

        Args:
            networks: Ready to run on the device.
            limits: Of memory.
            skip_air: As above.
            confidence: As above.
        """
        given = {
            "networks": networks, "limits": limits, "skip_air": skip_air, "confidence": confidence,
        }  # fmt: skip
        other = copy.copy(self)
        vars(other).update({name: value for name, value in given.items() if value is not None})
        return other

    def segment(self, scan: Scan, *, grid: Grid = "own") -> tuple[NDArray[Any], Geometry]:
        """Class indices (I, J, K), before post-processing, and the grid that they lie on.

        Args:
            scan: Read by any reader.
            grid: ``"own"`` for the scan's; ``"regular"``, of a sheared scan, for the grid at
                right angles that covers it; ``"source"``, of a scan whose uneven slices were
                bridged, for one plane per original slice.

        Raises:
            ResourceError: The scan does not fit into memory.
        """
        self.check(scan.geometry)
        voxels, record = preprocess_scan(scan, self.plan)
        record = onto_grid(record, scan, grid)
        return self.infer(voxels, record), record.target

    def check(self, geometry: Geometry) -> MemoryEstimate:
        """Say what a scan of this grid takes, before it is preprocessed.

        Raises:
            ResourceError: It does not fit; with the figure.
        """
        record = RestoreRecord.for_plan(geometry, self.plan)
        wanted = self._setup()
        _, found = fit(record, self.plan, wanted, limits=self.limits, preparing=True)
        _log.debug("memory: %s", found.describe())
        return found

    def infer(self, voxels: Tensor | Volume, record: RestoreRecord) -> NDArray[Any]:
        """Class indices (I, J, K) on ``record.target``, in memory.

        Args:
            voxels: (C, I, J, K) on ``record.working``.
            record: From ``preprocess_scan``.

        Raises:
            ResourceError: It does not fit into memory.
        """
        return self.infer_with_facts(voxels, record)[0]

    def infer_with_facts(
        self, voxels: Tensor | Volume, record: RestoreRecord
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """The same, and what provenance is to say of the run: plain JSON."""
        sink = ArraySink(record.target.shape, class_dtype(len(self.plan.labels) + 1))
        return sink.array, self.stream(voxels, record, sink).facts

    @torch.inference_mode()
    def stream(
        self,
        voxels: Tensor | Volume,
        record: RestoreRecord,
        sink: Sink,
        *,
        products: Products | None = None,
        product_sinks: Mapping[str, Sink] | None = None,
    ) -> Run:
        """Run the networks over a scan; what is done goes into sinks while the rest runs.

        Args:
            voxels: (C, I, J, K) on ``record.working``.
            record: From ``preprocess_scan``.
            sink: Takes class indices, box by box.
            products: What else is wanted.
            product_sinks: Takes them, by their names.

        Raises:
            ResourceError: It does not fit into memory.
            LabelError: Probabilities of a label that the plan has not.
        """
        plan, products = self.plan, products or Products()
        volume = TensorVolume(voxels) if isinstance(voxels, Tensor) else voxels
        usual = self._setup()
        spread = products.disagreement or (self.confidence and usual.views > 1)
        in_memory = [one for one in (product_sinks or {}).values() if isinstance(one, ArraySink)]
        wanted = replace(
            usual,
            extra_channels=int(spread),
            products=sum(one.array.itemsize for one in in_memory),
            keeps_labels=isinstance(sink, ArraySink),
        )
        held = 4 * prod(volume.shape) if isinstance(volume, TensorVolume) else 0
        setup, found = fit(record, plan, wanted, limits=self.limits, volume_bytes=held)
        _log.debug("memory: %s", found.describe())
        tiling = self._tiling(volume)
        restorer = Restorer(
            record,
            tiling.order,
            sink,
            activation=plan.activation,
            classes=plan.network.classes,
            outlet=outlet_for(products, plan, product_sinks or {}),
        )
        consume: Consume = restorer
        if spread and not products.disagreement:
            # Nobody but the confidence asked for it.
            consume = _without_spread(restorer, plan.network.classes)
        sure = Confidence(plan, spread=spread) if self.confidence else None
        if sure is not None:
            consume = sure.before(consume)
        run = self._accumulate(volume, tiling, setup, consume, spread=spread)
        restorer.finish()
        _log.debug(
            "%d tiles (%d of one value), %d at a time", run.tiles, run.skipped, run.setup.batch
        )
        return replace(run, estimate=found, confidence=None if sure is None else sure.to_json())

    @torch.inference_mode()
    def logits(self, voxels: Tensor | Volume) -> Tensor:
        """Mean logits of all members over overlapping windows, of the whole volume at once.

        Args:
            voxels: (C, I, J, K) on the plan's grid.

        Returns:
            (classes, I, J, K) float32 on this predictor's device.
        """
        volume = TensorVolume(voxels) if isinstance(voxels, Tensor) else voxels
        tiling, classes = self._tiling(volume), self.plan.network.classes
        whole = Whole(tiling, tiling.shares(self._bell()), classes, device=self.device)
        self._run_tiles(volume, tiling, self._setup(), whole, spread=False)
        return whole.total

    @torch.inference_mode()
    def classes(self, voxels: Tensor | Volume) -> NDArray[Any]:
        """Class indices (I, J, K) on the plan's own grid, without restoring."""
        volume = TensorVolume(voxels) if isinstance(voxels, Tensor) else voxels
        tiling = self._tiling(volume)
        sink = ArraySink(tiling.shape, class_dtype(len(self.plan.labels) + 1))

        def collect(block: Tensor, corner: Triple) -> None:
            a, b, c = (slice(c, c + int(n)) for c, n in zip(corner, block.shape[1:], strict=True))
            sink.write((a, b, c), winners(block, self.plan.activation).cpu().numpy())

        self._accumulate(volume, tiling, self._setup(), collect, spread=False)
        return sink.array

    def _tiling(self, volume: Volume) -> Tiling:
        _, i, j, k = volume.shape
        return Tiling.of((i, j, k), self.plan.patch_size, self.plan.inference.step)

    def _setup(self) -> Setup:
        return Setup(
            self.device,
            batch=self.batch,
            held_on=self.device,
            views=len(self.networks) * 2 ** len(self.plan.inference.mirror_axes),
            skip_air=self.skip_air,
        )

    def _accumulate(
        self, volume: Volume, tiling: Tiling, setup: Setup, consume: Consume, *, spread: bool
    ) -> Run:
        accumulator = Accumulator(
            tiling,
            tiling.shares(self._bell()),
            self.plan.network.classes + int(spread),
            device=setup.held_on,
            dtype=torch.float16 if setup.half else torch.float32,
            consume=consume,
        )
        run = self._run_tiles(volume, tiling, setup, accumulator, spread=spread)
        accumulator.finish()
        return run

    def _run_tiles(
        self,
        volume: Volume,
        tiling: Tiling,
        setup: Setup,
        sum_of: Accumulator | Whole,
        *,
        spread: bool,
    ) -> Run:
        members = Members(self.networks, self.plan, self.device, spread=spread)
        tiles = Tiles(volume, tiling, setup, members)
        for window, logits in tiles:
            sum_of.add(window, logits)
        return Run(len(tiling), tiles.skipped, replace(setup, batch=tiles.batch))

    def _bell(self) -> Bell:
        settings = self.plan.inference
        return Bell(
            settings.gaussian_sigma,
            settings.gaussian_floor,
            flat=not settings.gaussian,
            centre=settings.gaussian_centre,
        )


def _without_spread(consume: Consume, classes: int) -> Consume:
    def taken(block: Tensor, corner: Triple) -> None:
        consume(block[:classes], corner)

    return taken


def onto_grid(record: RestoreRecord, scan: Scan, grid: Grid) -> RestoreRecord:
    """The way back to the grid that is wanted, see :meth:`Predictor.segment`."""
    if grid == "regular" and not scan.geometry.is_regular:
        return record.onto_cover()
    if grid == "source" and scan.slices is not None:
        return record.onto_slices(scan.slices)
    return record
