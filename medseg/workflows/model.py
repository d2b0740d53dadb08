"""A trained model, ready to segment scans."""

from __future__ import annotations

import copy
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from medseg.core.errors import SettingsError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.plan import Plan
from medseg.core.profile import Profile
from medseg.core.scan import Scan
from medseg.inference.backends import backend_name
from medseg.inference.choice import Backends, forwards_of
from medseg.inference.memory import Limits
from medseg.inference.predictor import Predictor
from medseg.inference.products import Products
from medseg.transforms.preprocess import RestoreRecord
from medseg.workflows import cascade, segment
from medseg.workflows.maps import Maps, check_names
from medseg.workflows.reading import ScanReader, read_ahead
from medseg.workflows.result import Result
from medseg.workflows.segment import ScanLike
from medseg.workflows.streamed import StreamedPrediction, can_stream, must_stream, segment_to_disk

if TYPE_CHECKING:
    from torch import Tensor


class Model:
    """A trained model, loaded once and used for any number of scans, from any thread."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        sha256: str,
        backends: Backends | None = None,
        previous: Model | None = None,
        profile: Profile | None = None,
    ) -> None:
        self._predictor, self.sha256, self._previous = predictor, sha256, previous
        self.profile = profile
        self._backends, self._lock = backends, threading.Lock()
        self._products = Products()

    @property
    def plan(self) -> Plan:
        """All that was decided when it was trained."""
        return self._predictor.plan

    @property
    def labels(self) -> LabelSet:
        """What it can segment."""
        return self.plan.labels

    @property
    def device(self) -> str:
        """Where it runs."""
        return str(self._predictor.device)

    @property
    def limits(self) -> Limits:
        """What a scan may take of memory."""
        return self._predictor.limits

    @property
    def has_stages(self) -> bool:
        """Whether it is a cascade: one network sees what another found."""
        return self._previous is not None

    @property
    def skip_air(self) -> bool:
        """Whether tiles of one single value run once."""
        return self._predictor.skip_air

    def check(self, geometry: Geometry) -> None:
        """Refuse a scan of this grid that does not fit into memory, before it is prepared.

        Raises:
            ResourceError: With the figure.
        """
        self._predictor.check(geometry)

    def predict(
        self,
        source: ScanLike,
        *,
        labels: str | Sequence[str] | None = None,
        grid: str = "auto",
        scan: Scan | None = None,
    ) -> Result:
        """Segment one scan.

        Args:
            source: A path; a nibabel or SimpleITK image; ``(array, affine)`` with
                (I, J, K) or (C, I, J, K) voxels and a 4x4 RAS+ affine in mm; or a mapping from
                channel name to one of these.
            labels: Names of the labels to keep, in a list or with commas; None keeps all.
            grid: Where the mask of a tilted or sheared scan lies: ``"own"`` for the scan's
                grid, ``"regular"`` for one at right angles that covers it, ``"auto"`` for
                regular with DICOM and own with all else. ``"source"``, for DICOM: one plane per
                original slice, also where uneven slices were bridged; their positions stand in
                ``result.prediction.slices`` and in the sidecar. Else scans keep their grid.
            scan: The source as it was read already, where it was.

        Raises:
            MedsegError: The scan cannot be read or does not fit the model.
        """
        segment.expected_labels(self.plan, labels)
        prepared = self.prepare(source, grid=grid, scan=scan)
        hashes = segment.input_hashes(source, self.plan)
        return self.finish(self.infer(prepared), prepared, labels=labels, input_sha256=hashes)

    def predict_many(
        self,
        sources: Iterable[ScanLike],
        *,
        labels: str | Sequence[str] | None = None,
        grid: str = "auto",
    ) -> Iterator[Result]:
        """Segment scans one after another; yields each as it is done, in the order given.

        The next scan is read while the network works on the present one; DICOM, ITK's formats
        and pictures by a process that may crash on a damaged file. Arguments as in :meth:`predict`.

        Raises:
            MedsegError: At the scan that cannot be read or does not fit the model.
        """
        segment.expected_labels(self.plan, labels)

        def read(reader: ScanReader, source: ScanLike) -> Scan:
            return reader.read(source, self.plan)

        with closing(read_ahead(sources, read)) as readings:
            for source, reading in readings:
                yield self.predict(source, labels=labels, grid=grid, scan=reading.result())

    def must_stream(self, scan: Scan, *, beside_bytes: int = 0) -> bool:
        """Whether memory does not hold a scan, so that :meth:`predict_to_file` is for it.

        Worked out from its header; of scans that cannot be streamed either it is False.

        Args:
            scan: Not read yet.
            beside_bytes: Of RAM that something else will hold meanwhile.
        """
        return must_stream(scan, self._predictor, beside_bytes=beside_bytes)

    def can_stream(self, scan: Scan) -> bool:
        """Whether :meth:`predict_to_file` takes a scan; worked out from its header."""
        return can_stream(scan, self._predictor)

    def predict_to_file(
        self,
        source: ScanLike,
        path: str | Path,
        *,
        labels: str | Sequence[str] | None = None,
        grid: str = "auto",
        scan: Scan | None = None,
        input_sha256: Sequence[str] | None = None,
        before_tiles: Callable[[], None] | None = None,
    ) -> StreamedPrediction:
        """Segment a scan above memory: from disk to disk, a few slices at a time.

        Writes the mask and sidecar that ``predict(source).save(path)`` writes. Beside ``path``
        the disk must have room for the scan at the model's spacing (4 bytes a voxel) and the
        mask, uncompressed.

        Args:
            source: As in :meth:`predict`.
            path: A name ending in ``.nii.gz`` or ``.nii``.
            labels: As in :meth:`predict`.
            grid: As in :meth:`predict`.
            scan: The source as it was opened already; its voxels are not read yet.
            input_sha256: Hashes of its files, where they are known.
            before_tiles: Called before the network runs on some tiles; what it raises ends it.

        Returns:
            What stands in the sidecar; the voxels are in the file alone.

        Raises:
            MedsegError: The scan cannot be read or streamed, or does not fit the model.
        """
        wanted = segment.wanted_grid(source, grid)
        scan = scan or segment.read(source, self.plan)
        working = RestoreRecord.for_plan(scan.geometry, self.plan).working
        predictor = self.predictor_for(working.shape, before_tiles)
        hashes = segment.input_hashes(source, self.plan) if input_sha256 is None else input_sha256
        provenance = segment.provenance_of(predictor, self.sha256, input_sha256=hashes)
        return segment_to_disk(
            scan, predictor, Path(path), grid=wanted, labels=labels, provenance=provenance,
            products=self._products,
        )  # fmt: skip

    def prepare(
        self, source: ScanLike, *, grid: str = "auto", scan: Scan | None = None
    ) -> segment.Prepared:
        """The first part of :meth:`predict`: all that comes before the network.

        Raises:
            MedsegError: The scan cannot be read or does not fit the model.
        """
        wanted = segment.wanted_grid(source, grid)
        scan = scan or segment.read(source, self.plan)
        self.check(scan.geometry)
        prepared = segment.prepare(scan, self.plan, grid=wanted)
        if self._previous is None:
            return prepared
        earlier = self._previous.prepare(source, grid="own", scan=scan)
        return cascade.with_earlier(prepared, earlier, self.plan)

    def infer(
        self,
        prepared: segment.Prepared,
        *,
        before_tiles: Callable[[], None] | None = None,
        scratch: Path | None = None,
    ) -> NDArray[Any]:
        """The second part: class indices (I, J, K) by the network.

        Args:
            prepared: From :meth:`prepare`.
            before_tiles: Called before the network runs on some tiles; what it raises ends it.
            scratch: Folder for what is above memory; None for that of temporary files.

        Raises:
            ResourceError: The memory does not reach.
        """
        prepared = self.after_earlier(prepared, before_tiles)
        predictor = self.predictor_for(prepared.voxels.shape[1:], before_tiles)
        if not self._products.names:
            return segment.infer(prepared, predictor)
        folder = Path(tempfile.gettempdir()) if scratch is None else scratch
        maps = Maps.empty(self._products, prepared.record.target.shape, folder)
        prepared.maps.append(maps)
        classes, facts = maps.filled_by(predictor, prepared.voxels, prepared.record)
        prepared.facts.update(facts, backend=backend_name(predictor.networks))
        return classes

    def after_earlier(
        self, prepared: segment.Prepared, before_tiles: Callable[[], None] | None = None
    ) -> segment.Prepared:
        """What the network takes, once the first stage of a cascade has run; else the same."""
        if self._previous is None:
            return prepared
        assert isinstance(prepared, cascade.PreparedCascade)
        found = self._previous.infer(prepared.earlier, before_tiles=before_tiles)
        mask = self._previous.labels.to_values(found)
        return cascade.with_labels(prepared, mask, self.plan)

    def giving(self, products: Products) -> Model:
        """The same model, which also gives probabilities and the like.

        ``prepared.maps`` holds them after :meth:`infer`; :meth:`predict_to_file` writes them.

        Args:
            products: What to make beside labels.

        Raises:
            LabelError: The model has no such label.
            SettingsError: What sees a scan once cannot disagree.
        """
        for name in products.probabilities:
            self.labels.named(name)
        check_names(products)
        views = len(self._predictor.networks) * 2 ** len(self.plan.inference.mirror_axes)
        if products.disagreement and views == 1:
            raise SettingsError(
                "--disagreement",
                expected="a model of several members, or with mirrored views",
                got="one that sees a scan once",
            )
        more = copy.copy(self)
        more._lock, more._products = threading.Lock(), products
        return more

    def judging(self) -> Model:
        """The same model, whose runs also tell how sure the networks are of each label.

        Raises:
            SettingsError: It is a set of models.
        """
        more = copy.copy(self)
        more._lock, more._predictor = threading.Lock(), self._predictor.adjusted(confidence=True)
        return more

    def wanting(self, labels: str | Sequence[str] | None) -> Model:
        """The same model, without work that these labels do not need; a single one needs all.

        Args:
            labels: As in :meth:`predict`, which is to be given them, too.

        Raises:
            LabelError: The model has no such label.
        """
        segment.expected_labels(self.plan, labels)
        return self

    def within(self, limits: Limits, *, skip_air: bool = False) -> Model:
        """The same model, held to limits of memory.

        Args:
            limits: Of memory and precision.
            skip_air: Run tiles of one single value once.
        """
        limited = copy.copy(self)
        limited._lock = threading.Lock()
        limited._predictor = self._predictor.adjusted(limits=limits, skip_air=skip_air)
        if self._previous is not None:
            limited._previous = self._previous.within(limits, skip_air=skip_air)
        return limited

    def predictor_for(
        self, shape: Sequence[int], before_tiles: Callable[[], None] | None = None
    ) -> Predictor:
        """With the backend that a scan of this many voxels on the working grid is to be run by."""
        predictor = self._predictor_for(shape)
        return predictor if before_tiles is None else _watched(predictor, before_tiles)

    def _predictor_for(self, shape: Sequence[int]) -> Predictor:
        if self._backends is None:
            return self._predictor
        networks = self._backends.for_work(forwards_of(self.plan, shape))
        with self._lock:
            if self._predictor.networks is not networks:
                # Scans that are under way keep the predictor that they began with.
                self._predictor = self._predictor.adjusted(networks=networks)
            return self._predictor

    def finish(
        self,
        classes: NDArray[Any],
        prepared: segment.Prepared,
        *,
        labels: str | Sequence[str] | None = None,
        input_sha256: Sequence[str] = (),
    ) -> Result:
        """The last part: mask values, post-processing, provenance."""
        slices = prepared.scan.slices if prepared.grid == "source" else None
        provenance = self._provenance(input_sha256) | prepared.facts
        return Result(
            segment.finish(
                classes, prepared.scan, self.plan, geometry=prepared.record.target,
                slices=slices, labels=labels, provenance=provenance,
            )
        )  # fmt: skip

    def _provenance(self, input_sha256: Sequence[str]) -> dict[str, Any]:
        return segment.provenance_of(self._predictor, self.sha256, input_sha256=input_sha256)


class _Watched:
    """A network before each call of which a function is called."""

    def __init__(self, network: Callable[[Tensor], Tensor], before: Callable[[], None]) -> None:
        self._network, self._before = network, before
        self.name = backend_name([network])

    def __call__(self, tiles: Tensor) -> Tensor:
        self._before()
        return self._network(tiles)


def _watched(predictor: Predictor, before: Callable[[], None]) -> Predictor:
    return predictor.adjusted(networks=[_Watched(one, before) for one in predictor.networks])
