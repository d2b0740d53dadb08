"""Post-processing steps as MONAI dictionary transforms, for use in any ``Compose``.

:class:`Postprocessd` takes whole chains; each step also has a transform of its own name.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends, convert_to_dst_type
from numpy.typing import NDArray
from pydantic import ValidationError

from medseg.core.errors import InputError, SettingsError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.plan import PostprocessStep, describe
from medseg.postprocess.chain import apply_chain, parse_steps, values_named


class Postprocessd(MapTransform):
    """Apply post-processing steps to label maps.

    Args:
        keys: Items to clean: (1, I, J, K) or (1, I, J) label maps, as NumPy array, tensor
            or MetaTensor; type, device and metadata stay as they are.
        steps: As they are typed (``"largest:liver; fill-holes:*"``, see docs/postprocessing.md),
            or as a plan has them.
        labels: What the values mean; None names each by its value (``"largest:1"``), and
            ``*`` stands for those that an item holds.
        affine_ras: (4, 4) affine of items that are no MetaTensor, for steps in mm; None
            takes voxels of 1 mm.
        connectivity: Of typed steps: 6, 18 or 26; of flat items also 4 or 8.
        allow_missing_keys: Do not complain about a key that is not there.

    Raises:
        SettingsError: A step is unknown, or lacks what it needs.
        LabelError: A step names an unknown label.
        InputError: When called with an array of another shape.
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.NUMPY]

    def __init__(
        self,
        keys: KeysCollection,
        steps: str | Sequence[PostprocessStep],
        *,
        labels: LabelSet | None = None,
        affine_ras: NDArray[Any] | None = None,
        connectivity: int = 26,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels, self.affine_ras, self.connectivity = labels, affine_ras, connectivity
        self.typed = steps if isinstance(steps, str) else ""
        self.steps = () if isinstance(steps, str) else tuple(steps)
        if self.typed:
            # What is wrong with them is better told now than in a worker.
            known = labels or _by_value(values_named(self.typed))
            parse_steps(self.typed, known, connectivity=connectivity)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items, with the label maps under the keys cleaned."""
        items = dict(data)
        for key in self.key_iterator(items):
            items[key] = self._clean(items[key])
        return items

    def _clean(self, item: Any) -> Any:
        array: NDArray[Any] = (
            item.detach().cpu().numpy() if isinstance(item, torch.Tensor) else np.asarray(item)
        )
        if array.ndim not in (3, 4) or array.shape[0] != 1:
            raise InputError(
                "label map",
                expected="shape (1, I, J, K) or (1, I, J)",
                got=str(array.shape),
                cure="Use AsDiscreted(argmax=True) before this step.",
            )
        volume = array[0] if array.ndim == 4 else array[0][..., None]
        if np.issubdtype(volume.dtype, np.floating):
            volume = volume.astype(np.int32)
        steps, labels = self.steps, self.labels
        if labels is None:
            met = [int(value) for value in np.unique(volume) if value > 0]
            named = [value for step in steps for value in map(int, step.names)]
            labels = _by_value((*met, *named, *values_named(self.typed)))
        if self.typed:
            steps = parse_steps(self.typed, labels, connectivity=self.connectivity)
        geometry = Geometry(volume.shape, self._affine_of(item))
        cleaned = apply_chain(volume, steps, labels, geometry=geometry)
        return convert_to_dst_type(cleaned.reshape(array.shape), item)[0]

    def _affine_of(self, item: Any) -> NDArray[Any]:
        if isinstance(item, MetaTensor):
            return np.asarray(item.affine.cpu().numpy(), dtype=np.float64)
        return np.eye(4) if self.affine_ras is None else self.affine_ras


class _OneStepd(Postprocessd):
    """One kind of step, of labels that are named by their values.

    Args:
        keys: As for :class:`Postprocessd`.
        values: The labels to clean, each by itself; others stay as they are.
        affine_ras: As for :class:`Postprocessd`.
        connectivity: 6, 18 or 26; of flat items also 4 or 8.
        allow_missing_keys: Do not complain about a key that is not there.
        **facts: What the step needs to be told, by the name of the field in
            :class:`medseg.core.plan.PostprocessStep`.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        keys: KeysCollection,
        values: Sequence[int],
        *,
        affine_ras: NDArray[Any] | None = None,
        connectivity: int = 26,
        allow_missing_keys: bool = False,
        **facts: Any,
    ) -> None:
        if "other" in facts:
            facts["other"] = str(facts["other"])
        super().__init__(
            keys, self._steps(values, {"connectivity": connectivity, **facts}),
            affine_ras=affine_ras, connectivity=connectivity,
            allow_missing_keys=allow_missing_keys,
        )  # fmt: skip

    def _steps(self, values: Sequence[int], facts: dict[str, Any]) -> list[PostprocessStep]:
        facts = {"step": self.kind, **facts}
        try:
            return [PostprocessStep(label=str(int(value)), **facts) for value in values]
        except ValidationError as error:
            raise SettingsError(
                type(self).__name__, expected="what the step needs", got=describe(error)
            ) from error


class KeepLargestRegiond(_OneStepd):
    """Keep only the largest connected regions of each label (``count``: how many; 1).

    Does the job of MONAI's ``KeepLargestConnectedComponentd(independent=True)`` on a label
    map, many times faster when there are many labels.
    """

    kind = "largest"


class RemoveSmallRegionsd(_OneStepd):
    """Remove the connected regions below ``volume_mm3``."""

    kind = "min-volume"


class KeepNearestRegiond(_OneStepd):
    """Keep the region nearest to ``point_mm`` (x, y, z; RAS+), or to the label ``other``."""

    kind = "nearest"


class KeepInsided(_OneStepd):
    """Keep the regions that touch the label ``other``."""

    kind = "inside"


class FillHolesd(_OneStepd):
    """Fill the background that a label encloses."""

    kind = "fill-holes"


class FillSliceHolesd(_OneStepd):
    """Fill the background that a label encloses in an axial slice."""

    kind = "fill-holes-slices"


class OpenLabelsd(_OneStepd):
    """Remove what is thinner than a ball of ``radius_mm``."""

    kind = "open"


class CloseLabelsd(_OneStepd):
    """Fill gaps that are narrower than a ball of ``radius_mm``."""

    kind = "close"


class SmoothLabelsd(_OneStepd):
    """Smooth borders with the background by a Gaussian; ``radius_mm`` is its deviation."""

    kind = "smooth"


class MajorityLabelsd(_OneStepd):
    """Give each voxel the label that most voxels within ``radius_mm`` have."""

    kind = "majority"


def _by_value(values: Sequence[int]) -> LabelSet:
    return LabelSet.from_names({value: str(value) for value in values} or {1: "1"})
