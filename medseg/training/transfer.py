"""Begin with the weights of another model: what fits is taken, heads by the names of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medseg.core.plan import NetworkPlan, Plan
from medseg.networks.build import build_network

_BACKGROUND = ""


@dataclass(frozen=True)
class Taken:
    """What came over from another model.

    Attributes:
        fitting: Tensors taken as they are.
        heads: Tensors with an entry per class, of which those of common labels were taken.
        fresh: Names of tensors that stay as they were drawn.
        common: Labels that both models have, by the new one's names.
        new_labels: Labels that only the new model has.
    """

    fitting: int
    heads: int
    fresh: tuple[str, ...]
    common: tuple[str, ...]
    new_labels: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """For the log: what was taken and what is new."""
        parts = [f"{self.fitting} tensors taken"]
        if self.common:
            parts.append(f"the heads of {', '.join(self.common)} go on")
        if self.new_labels:
            parts.append(f"those of {', '.join(self.new_labels)} are new")
        if self.fresh:
            layers = sorted({name.rpartition(".")[0] for name in self.fresh})
            more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
            parts.append(f"layers of other shapes are new: {', '.join(layers[:3])}{more}")
        return "; ".join(parts)


def take_weights(
    network: nn.Module, plan: Plan, *, source: Plan, weights: Mapping[str, Tensor]
) -> Taken:
    """Give a fresh network the weights of another model where they fit.

    A tensor with an entry per class (found by building the network for one class more) takes
    the entries of labels that have the same name, whatever their number; background goes to
    background.

    Args:
        network: Of ``plan``; it is changed.
        plan: Of the new model.
        source: Of the other model.
        weights: Of the other model.
    """
    rows, common, new_labels = _matching_rows(plan, source)
    per_class = _class_axes(plan.network)
    current = network.state_dict()
    fitting, heads, fresh = 0, 0, []
    with torch.no_grad():
        for name, value in current.items():
            old = weights.get(name)
            axis = per_class.get(name)
            if old is None:
                fresh.append(name)
            elif axis is not None and _same_but(value.shape, old.shape, axis):
                for new_row, old_row in rows:
                    value.select(axis, new_row).copy_(old.select(axis, old_row))
                heads += 1
            elif axis is None and value.shape == old.shape:
                value.copy_(old)
                fitting += 1
            else:
                fresh.append(name)
    return Taken(fitting, heads, tuple(fresh), common, new_labels)


def _matching_rows(
    plan: Plan, source: Plan
) -> tuple[list[tuple[int, int]], tuple[str, ...], tuple[str, ...]]:
    """(new, old) entries of the same label; labels that both have; those that are new."""
    old = {name.casefold(): row for row, name in enumerate(_outputs(source))}
    new = list(enumerate(_outputs(plan)))
    rows = [(row, old[name.casefold()]) for row, name in new if name.casefold() in old]
    common = [name for _, name in new if name.casefold() in old and name != _BACKGROUND]
    fresh = [name for _, name in new if name.casefold() not in old and name != _BACKGROUND]
    return rows, tuple(common), tuple(fresh)


def _outputs(plan: Plan) -> list[str]:
    """What each output channel of a network stands for."""
    return [*([] if plan.activation == "regions" else [_BACKGROUND]), *plan.labels.names]


def _class_axes(plan: NetworkPlan) -> dict[str, int]:
    """The axis along which each tensor has an entry per class, of those that have one."""
    shapes = []
    for classes in (plan.classes, plan.classes + 1):
        with torch.device("meta"):
            network = build_network(plan.model_copy(update={"classes": classes}))
        shapes.append({name: value.shape for name, value in network.state_dict().items()})
    axes = {}
    for name, shape in shapes[0].items():
        grown = [b - a for a, b in zip(shape, shapes[1][name], strict=True)]
        if grown.count(1) == 1 and sum(grown) == 1:
            axes[name] = grown.index(1)
    return axes


def _same_but(shape: Sequence[int], other: Sequence[int], axis: int) -> bool:
    return len(shape) == len(other) and all(
        a == b for place, (a, b) in enumerate(zip(shape, other, strict=True)) if place != axis
    )
