"""What a prediction gives besides labels: probabilities, entropy, disagreement of members."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medseg.core.plan import Plan
from medseg.transforms.restore import Outlet, Sink


@dataclass(frozen=True)
class Products:
    """What to make beside labels; each is a volume on the grid of the labels.

    Attributes:
        probabilities: Names of labels; each gives ``"probability NAME"``.
        entropy: Gives ``"entropy"``, from 0 (sure) to 1 (all classes alike): Shannon's, as a
            share of its largest; of regions the mean over regions.
        disagreement: Gives ``"disagreement"``: the variance of the probabilities over members
            and mirrored views, summed over classes (of regions their mean), on the network's
            grid and then restored; 0 where all agree, at most 1.
        dtype: ``"float32"``, ``"float16"``, or ``"uint8"`` with 255 for 1.
    """

    probabilities: tuple[str, ...] = ()
    entropy: bool = False
    disagreement: bool = False
    dtype: Literal["float32", "float16", "uint8"] = "float16"

    @property
    def names(self) -> tuple[str, ...]:
        """What comes, in order."""
        return (
            *(f"probability {name}" for name in self.probabilities),
            *(["entropy"] * self.entropy),
            *(["disagreement"] * self.disagreement),
        )


def outlet_for(products: Products, plan: Plan, sinks: Mapping[str, Sink]) -> Outlet | None:
    """What a restorer needs to make the products; None where there are none.

    Args:
        products: What is wanted.
        plan: Of the model.
        sinks: One for each of ``products.names``.

    Raises:
        LabelError: The plan has no such label.
    """
    if not products.names:
        return None
    first = int(plan.activation == "softmax")
    names = plan.labels.names
    places = [names.index(plan.labels.named(name).name) + first for name in products.probabilities]
    classes = plan.network.classes

    def values(logits: Tensor) -> Sequence[Tensor]:
        made = []
        if places or products.entropy:
            chances = probabilities(logits[:classes], softmax=bool(first))
            made = [chances[place] for place in places]
        if products.entropy:
            made.append(entropy(chances, softmax=bool(first)))
        if products.disagreement:
            made.append(logits[classes])
        return [as_stored(one, products) for one in made]

    return Outlet(values, [sinks[name] for name in products.names])


def as_stored(values: Tensor, products: Products) -> Tensor:
    """Numbers from 0 to 1 in the type of the products."""
    if products.dtype == "uint8":
        return (255 * values).round().clamp(0, 255).to(torch.uint8)
    return values.to(getattr(torch, products.dtype))


def probabilities(logits: Tensor, *, softmax: bool) -> Tensor:
    """(classes, ...) float32 to the same shape, 0 to 1; of regions each by itself."""
    return logits.float().softmax(dim=0) if softmax else logits.float().sigmoid()


def entropy(chances: Tensor, *, softmax: bool) -> Tensor:
    """Shannon's entropy of (classes, ...) probabilities as a share of its largest, (...)."""
    if softmax:
        summed: Tensor = torch.special.entr(chances).sum(dim=0)
        return summed / math.log(chances.shape[0])
    both: Tensor = torch.special.entr(chances) + torch.special.entr(1 - chances)
    return both.mean(dim=0) / math.log(2)


class Spread:
    """Variance of probabilities over members and views, added up one by one.

    Args:
        softmax: Else each class is a region by itself.
    """

    def __init__(self, *, softmax: bool) -> None:
        self._softmax, self._count = softmax, 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, logits: Tensor) -> None:
        """Add the logits (N, classes, ...) of one member or view."""
        chances = logits.softmax(dim=1) if self._softmax else logits.sigmoid()
        squares = self._over_classes(chances.square())
        self._count += 1
        if self._mean is None or self._squares is None:
            self._mean, self._squares = chances, squares
        else:
            self._mean.add_(chances)
            self._squares.add_(squares)

    def variance(self) -> Tensor:
        """(N, 1, ...)."""
        assert self._mean is not None
        assert self._squares is not None
        of_mean = self._over_classes((self._mean / self._count).square())
        return (self._squares / self._count - of_mean).clamp_(min=0)

    def _over_classes(self, values: Tensor) -> Tensor:
        if self._softmax:
            return values.sum(dim=1, keepdim=True)
        return values.mean(dim=1, keepdim=True)
