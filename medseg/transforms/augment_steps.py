"""Each way of varying a patch as a MONAI transform, alone or together, for one's own Compose.

Chance comes from MONAI's own state (``set_random_state``). Training uses the same functions
on whole batches without MONAI, see :mod:`medseg.transforms.augment`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from monai.transforms.transform import MapTransform, Randomizable, Transform
from torch import Tensor

from medseg.core.augmentation_plan import AugmentationPlan, Chance
from medseg.transforms.augment import Variation, draw_variation
from medseg.transforms.augment_space import sample_patch, swapped
from medseg.transforms.augment_values import vary_intensity

_USUAL = AugmentationPlan()
#: Names of the steps that change intensities.
STEPS = tuple(
    name for name in AugmentationPlan.model_fields if isinstance(getattr(_USUAL, name), Chance)
)
_NOTHING = AugmentationPlan(
    affine_probability=0.0,
    intensity_probability=1.0,
    **{name: getattr(_USUAL, name).model_copy(update={"probability": 0.0}) for name in STEPS},
)


class _RandStep(Randomizable, Transform):
    """One step on (C, I, J, K) float; the array that is given stays as it was.

    Args:
        prob: How often.
        low, high: Range of its value; None takes that of :class:`AugmentationPlan`.
    """

    step: ClassVar[str]

    def __init__(
        self, prob: float = 0.1, *, low: float | None = None, high: float | None = None
    ) -> None:
        usual: Chance = getattr(_USUAL, self.step)
        chance = Chance(
            probability=prob,
            low=usual.low if low is None else low,
            high=usual.high if high is None else high,
        )
        self.plan = _NOTHING.model_copy(update={self.step: chance})

    def __call__(self, data: Tensor) -> Tensor:
        x = torch.as_tensor(data).float().clone()
        variation = _drawn(self.R, self.plan, tuple(x.shape[1:]))
        return vary_intensity(x[None], [variation])[0]


class RandBias(_RandStep):
    """A smooth field of brightness, as coils give it: the exponential of a polynomial."""

    step = "bias_field"


class RandGhosts(_RandStep):
    """Faint copies along one axis: every second to fifth line of k-space is weakened."""

    step = "ghosting"


class RandShake(_RandStep):
    """The patient moves along one axis while the outer lines of k-space are measured."""

    step = "motion"


class RandWave(_RandStep):
    """One wave over the image: a spike in k-space."""

    step = "spike"


class RandBlur(_RandStep):
    """A Gaussian, sigma in voxels."""

    step = "blur"


class RandNoise(_RandStep):
    """Gaussian noise."""

    step = "noise"


class RandGain(_RandStep):
    """A factor of brightness."""

    step = "gain"


class RandContrast(_RandStep):
    """A factor about the mean, within the range."""

    step = "contrast"


class RandCoarse(_RandStep):
    """Low resolution: down to fewer voxels and up again."""

    step = "coarseness"


class RandGamma(_RandStep):
    """An exponent on the range; mean and standard deviation stay."""

    step = "gamma"


class RandInverseGamma(_RandStep):
    """The same on the inverted image."""

    step = "inverse_gamma"


class RandCutOut(_RandStep):
    """One to three boxes are set to 0."""

    step = "cutout"


class RandVaryd(MapTransform, Randomizable):
    """All steps of a plan for ``{"image": ..., "label": ...}``.

    The image (C, I, J, K) float and the label (1, I, J, K) keep their shape; rotation,
    scaling, elastic displacement and mirroring are one resampling of both.

    Args:
        plan: Ranges and probabilities. A plan without steps of intensity moves voxels alone.
        image: Key of the image.
        label: Key of the label; it may be missing.
        pairs: Classes that are exchanged where the patch is mirrored along axis 0.
    """

    def __init__(
        self,
        plan: AugmentationPlan,
        *,
        image: str = "image",
        label: str = "label",
        pairs: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__([image, label], allow_missing_keys=True)
        self.plan, self.image, self.label, self.pairs = plan, image, label, tuple(pairs)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        keys = list(self.key_iterator(done))
        arrays = {key: torch.as_tensor(done[key]) for key in keys}
        boxes = [box.float() if key == self.image else box for key, box in arrays.items()]
        a, b, c = (int(side) for side in boxes[0].shape[1:])
        variation = _drawn(self.R, self.plan, (a, b, c))
        moved = sample_patch(
            [
                box.float() if key == self.image else box
                for key, box in zip(keys, boxes, strict=True)
            ],
            (np.array([a, b, c]) - 1) / 2,
            variation,
            patch=(a, b, c),
            nearest=[key == self.label for key in keys],
        )
        for key, voxels in zip(keys, moved, strict=True):
            if key == self.image:
                done[key] = vary_intensity(voxels[None].contiguous(), [variation])[0]
            else:
                done[key] = swapped(voxels, self.pairs if 0 in variation.mirrored else ())
        return done


class RandMoved(RandVaryd):
    """Rotation, scaling and elastic displacement of image and label, in one resampling.

    Args:
        prob: How often they are turned and scaled.
        elastic_prob: How often they are displaced besides.
        rotation_degrees: Most angle about each axis.
        scale: Range of the factor.
    """

    def __init__(
        self,
        prob: float = 0.5,
        *,
        elastic_prob: float = 0.0,
        rotation_degrees: float = 30.0,
        scale: tuple[float, float] = (0.7, 1.4),
        image: str = "image",
        label: str = "label",
    ) -> None:
        plan = _NOTHING.model_copy(
            update={
                "affine_probability": prob, "elastic_probability": elastic_prob,
                "rotation_degrees": rotation_degrees, "scale": scale,
            }
        )  # fmt: skip
        super().__init__(plan, image=image, label=label)


class RandMirrord(RandVaryd):
    """Mirror image and label along axes, each every second time; labels of pairs change places.

    Args:
        axes: Of (I, J, K).
        pairs: Classes that are exchanged where axis 0, the patient's left-right, is mirrored.
    """

    def __init__(
        self,
        axes: Sequence[int],
        *,
        pairs: Sequence[tuple[int, int]] = (),
        image: str = "image",
        label: str = "label",
    ) -> None:
        plan = _NOTHING.model_copy(update={"mirror_axes": tuple(axes)})
        super().__init__(plan, image=image, label=label, pairs=pairs)


def _drawn(
    state: np.random.RandomState, plan: AugmentationPlan, shape: tuple[int, ...]
) -> Variation:
    rng = np.random.default_rng(int(state.randint(2**31)))
    dims = 2 if shape[2] == 1 else 3
    return draw_variation(rng, plan, spatial_dims=dims, spacing=np.ones(3))
