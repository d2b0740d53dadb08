"""Labels: what the integers in a mask mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medseg.core.errors import LabelError

# Ten colours that stay apart for colour-blind readers too, then repeated darker
# (P. Tol, "Colour schemes", SRON technical note, 2021, bright and muted sets).
_PALETTE = (
    (238, 102, 119), (68, 119, 170), (34, 136, 51), (204, 187, 68), (102, 204, 238),
    (170, 51, 119), (238, 119, 51), (0, 153, 136), (136, 34, 85), (153, 153, 51),
)  # fmt: skip

Colour = tuple[
    Annotated[int, Field(ge=0, le=255)],
    Annotated[int, Field(ge=0, le=255)],
    Annotated[int, Field(ge=0, le=255)],
]


def palette_colour(position: int) -> tuple[int, int, int]:
    """Colour of the n-th label (0-based): the palette, darkened at each further round."""
    base = _PALETTE[position % len(_PALETTE)]
    dim = 0.75 ** (position // len(_PALETTE))
    return int(base[0] * dim), int(base[1] * dim), int(base[2] * dim)


class Label(BaseModel):
    """One structure.

    Attributes:
        value: What the mask holds where this structure is (1 to 65535).
        name: What people call it.
        colour: Red, green, blue, 0 to 255.
        sources: The values in the training masks that this label unites.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: int = Field(ge=1, le=65535)
    name: str = Field(min_length=1, max_length=200)
    colour: Colour
    sources: tuple[int, ...] = ()


class LabelSet(BaseModel):
    """The labels of a dataset, a plan or a mask, in order; 0 is background, unnamed.

    Inside a network labels are class indices: 0 for background, n for the n-th label.

    Raises:
        LabelError: Two labels share a value or a name, or one is impossible (through
            :meth:`from_names`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[Label, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> LabelSet:
        for what in ("value", "name"):
            seen = [getattr(label, what) for label in self.labels]
            if len(set(seen)) != len(seen):
                raise ValueError(f"two labels share a {what}: {seen}")
        return self

    @classmethod
    def from_names(cls, names: Mapping[int, str]) -> LabelSet:
        """Build a set from value -> name; background (0) is left out, colours are given."""
        rows = sorted((value, name) for value, name in names.items() if value != 0)
        if not rows:
            raise LabelError(
                "labels",
                expected="at least one label besides background",
                got="none",
                cure='Name them in dataset.json, for example "labels": {"1": "liver"}.',
            )
        twice = sorted({name for _, name in rows if [n for _, n in rows].count(name) > 1})
        if twice:
            raise LabelError("labels", expected="a name of its own for each", got=f"twice {twice}")
        try:
            return cls(
                labels=tuple(
                    Label(value=value, name=name, colour=palette_colour(position), sources=(value,))
                    for position, (value, name) in enumerate(rows)
                )
            )
        except ValidationError as error:
            wrong = error.errors()[0]
            raise LabelError(
                "labels",
                expected="values from 1 to 65535 and names of 1 to 200 characters",
                got=f"{wrong['input']!r:.80} as a {wrong['loc'][-1]}",
            ) from error

    @property
    def values(self) -> tuple[int, ...]:
        """Mask value of each label, without background."""
        return tuple(label.value for label in self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each label, without background."""
        return tuple(label.name for label in self.labels)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned type that holds the values: uint8 or uint16."""
        return np.dtype(np.uint8 if max(self.values) <= 255 else np.uint16)

    def __len__(self) -> int:
        return len(self.labels)

    def named(self, name: str) -> Label:
        """Find a label by its name, exactly or without regard to case.

        Raises:
            LabelError: No label has that name.
        """
        for same in (str, str.casefold):
            for label in self.labels:
                if same(label.name) == same(name):
                    return label
        raise LabelError(f"label '{name}'", expected=f"one of {', '.join(self.names)}", got=name)

    def select(self, names: Iterable[str]) -> LabelSet:
        """The labels of these names, in the order of the set."""
        wanted = {self.named(name.strip()).value for name in names}
        return LabelSet(labels=tuple(label for label in self.labels if label.value in wanted))

    def to_values(self, classes: NDArray[Any]) -> NDArray[Any]:
        """Turn class indices (any shape) into mask values, uint8 or uint16."""
        table = np.array([0, *self.values], dtype=self.dtype)
        return np.asarray(table[classes])

    def to_classes(self, mask: NDArray[Any]) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Turn training-mask values (any shape) into class indices.

        A later label paints over an earlier one where both name a value; values that no
        label names become background.
        """
        top = max(int(mask.max(initial=0)), *(max(label.sources) for label in self.labels))
        table = np.zeros(top + 1, dtype=np.uint8 if len(self) <= 255 else np.uint16)
        for index, label in enumerate(self.labels, start=1):
            table[list(label.sources)] = index
        return np.asarray(table[mask])

    def regroup(self, selection: str) -> LabelSet:
        """Select, merge and rename labels: ``"liver=1+2,tumour=2"`` or ``"liver,spleen"``.

        Each part is ``name`` (kept with its value), ``new=old`` (renamed), or ``name=a+b`` with
        values or names to unite; ``a+b`` alone keeps that as its name. When labels are renamed
        or united the result is numbered 1, 2, 3 in the order given. A later part paints over an
        earlier one.

        Raises:
            LabelError: A part is malformed or names a label that is not there.
        """
        parts = [part.strip() for part in selection.split(",") if part.strip()]
        if not parts:
            raise LabelError("--labels", expected="name or name=1+2, with commas", got=selection)
        whole = {name.casefold() for name in self.names}
        if all("=" not in part and (part.casefold() in whole or "+" not in part) for part in parts):
            return self.select(parts)
        made: list[Label] = []
        for position, part in enumerate(parts):
            name, _, sources = part.partition("=")
            terms = [term.strip() for term in (sources or name).split("+")]
            if not sources and name.casefold() in whole:
                terms = [name]
            values = tuple(v for term in terms for v in self._sources_of(term, new=name.strip()))
            made.append(
                Label(
                    value=position + 1,
                    name=name.strip() or f"label {position + 1}",
                    colour=palette_colour(position),
                    sources=values,
                )
            )
        doubled = [label.name for label in made]
        if len(set(doubled)) != len(doubled):
            raise LabelError("--labels", expected="a name of its own for each", got=selection)
        return LabelSet(labels=tuple(made))

    def _sources_of(self, term: str, *, new: str) -> tuple[int, ...]:
        for label in self.labels:
            if term == str(label.value):
                return label.sources
        names = {name.casefold() for name in self.names}
        if new.casefold() in names and term.casefold() not in names:
            raise LabelError(
                f"label '{term}'", expected=f"one of {', '.join(self.names)}", got=f"{new}={term}",
                cure=f"A new name comes first: {term}={new}.",
            )  # fmt: skip
        return self.named(term).sources


_SIDES = (("left", "right"), ("l", "r"), ("lt", "rt"))


def left_right_pairs(labels: LabelSet) -> tuple[tuple[str, str], ...]:
    """Pairs of label names that differ only in a word for the side, left first.

    ``kidney_left`` and ``kidney_right``; ``L lung`` and ``R lung``.
    """
    by_key: dict[tuple[str, ...], str] = {}
    for name in labels.names:
        by_key[_words(name)] = name
    pairs = []
    for key, name in by_key.items():
        for left, right in _SIDES:
            other = by_key.get(tuple(right if word == left else word for word in key))
            if left in key and other is not None:
                pairs.append((name, other))
    return tuple(pairs)


def _words(name: str) -> tuple[str, ...]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return tuple(re.findall(r"[a-z]+|[0-9]+", spaced.lower()))
