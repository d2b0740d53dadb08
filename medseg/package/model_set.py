"""Sets of models: several packages that segment one scan together.

::

    models/whole_body/
      set.json                 members in order, what their labels mean, how they are joined
      members/0_organs/        a package of its own, and so on
      checksums                SHA-256 of set.json and of each member's ``checksums``

Tools with many organs split them over several networks; the masks are painted one over
another. Or members that were trained apart, with plans of their own, give the mean.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medseg.core.errors import PackageError
from medseg.core.labels import LabelSet
from medseg.core.plan import Order, Plan, PostprocessStep, edited, read_json_as
from medseg.package.package import ModelPackage, bytes_of, load_package, save_package, write_whole

SET_FORMAT = 1
_LISTING = re.compile(r"(?P<sha256>[0-9a-f]{64})  (?P<name>set\.json|members/\w[\w-]*/checksums)")
_Side = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SetMember(BaseModel):
    """One model of a set.

    Attributes:
        folder: Where it lies, below the set.
        labels: Its label names to those of the set; labels that are not named are dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(pattern=r"^members/\w[\w-]*$", max_length=200)
    labels: dict[str, str] = Field(min_length=1)


class SharedGrid(BaseModel):
    """A grid in RAS+ that the scan is brought to once, before each member's own preprocessing.

    Attributes:
        spacing_mm: Along right, anterior, superior.
        order: 0 nearest, 1 linear, 3 cubic.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spacing_mm: tuple[_Side, _Side, _Side]
    order: Order = 3


class SetFile(BaseModel):
    """What ``set.json`` holds.

    Attributes:
        labels: Of the joined mask.
        members: In order.
        combine: ``"paint"``: masks are painted, later over earlier, each after its own
            post-processing. ``"mean"``: the probabilities are averaged on the scan's grid.
        restore: ``"logits"``: each member's logits are interpolated to the scan's grid.
            ``"labels-nearest"``: labels are made on the members' grid (the shared one, where
            there is one) and brought to the scan's grid by the nearest voxel.
        resampling: A grid that all members share; None where each takes the scan itself.
        postprocess: Of the joined mask.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    medseg_version: str
    labels: LabelSet
    members: tuple[SetMember, ...] = Field(min_length=1)
    combine: Literal["paint", "mean"] = "paint"
    restore: Literal["logits", "labels-nearest"] = "logits"
    resampling: SharedGrid | None = None
    postprocess: tuple[PostprocessStep, ...] = ()
    licence: str = ""

    @model_validator(mode="after")
    def _known(self) -> Self:
        names = set(self.labels.names)
        folders = [member.folder for member in self.members]
        if len(set(folders)) != len(folders):
            raise ValueError(f"two members share a folder: {folders}")
        for member in self.members:
            if strange := sorted(set(member.labels.values()) - names):
                raise ValueError(f"{member.folder} gives labels that the set has not: {strange}")
            whole = set(member.labels.values()) == names and len(member.labels) == len(names)
            if self.combine == "mean" and not whole:
                raise ValueError(f"'mean' needs each label of the set once from {member.folder}")
        if strange := sorted({n for step in self.postprocess for n in step.names} - names):
            raise ValueError(f"postprocess names unknown labels: {strange}")
        return self


@dataclass(frozen=True)
class ModelSetPackage:
    """A set in memory.

    Attributes:
        file: What ``set.json`` holds.
        members: In its order.
        sha256: Hash of the ``checksums`` file: the identity of the set.
    """

    file: SetFile
    members: tuple[ModelPackage, ...]
    sha256: str

    @property
    def plan(self) -> Plan:
        """What the set takes and gives, as one plan: of its first member, with its labels."""
        return plan_of_set(self.file, [member.plan for member in self.members])


def plan_of_set(file: SetFile, plans: Sequence[Plan]) -> Plan:
    """Channels and series of the first plan, labels and post-processing of the set.

    Its spacing is that of the shared grid where there is one; how patches are cut and networks
    are built says nothing of the other members.
    """
    spacing_mm = plans[0].spacing_mm if file.resampling is None else file.resampling.spacing_mm
    channels = len(plans[0].channels)
    return edited(
        plans[0],
        {
            "labels": file.labels.model_dump(),
            "network.classes": len(file.labels) + 1,
            "network.in_channels": channels,
            "cascade_labels": 0,
            "activation": "softmax",
            "spacing_mm": spacing_mm,
            "inference.left_right_pairs": (),
            "postprocess": [step.model_dump() for step in file.postprocess],
            "reasons": {},
        },
    )


def is_set(folder: str | Path) -> bool:
    """Whether a folder looks like a set (nothing is verified)."""
    return (Path(folder) / "set.json").is_file()


def save_set(folder: Path, file: SetFile, members: Sequence[ModelPackage]) -> str:
    """Write a set, whole or not at all; what stood there is replaced at the end.

    Args:
        folder: Where it goes.
        file: What ``set.json`` is to hold.
        members: In the order of ``file.members``.

    Returns:
        Its hash.

    Raises:
        PackageError: The members do not go together.
        OutputError: The folder cannot be written, or the disk is full.
    """
    _check_members(file, [member.plan for member in members], str(folder))
    return write_whole(folder, lambda staging: _fill(staging, file, members))


def load_set(folder: str | Path) -> ModelSetPackage:
    """Read a set and verify it with all its members: checksums first, then every field.

    Raises:
        PackageError: A file is missing or changed, the members do not go together, or a newer
            medseg wrote it.
    """
    folder = Path(folder)
    file, listed, sha256 = _verified(folder)
    members = []
    for member in file.members:
        if f"{member.folder}/checksums" not in listed:
            where = str(folder / "checksums")
            raise PackageError(where, expected=f"a line for {member.folder}", got="none")
        members.append(load_package(folder / member.folder))
    _check_members(file, [member.plan for member in members], str(folder))
    return ModelSetPackage(file, tuple(members), sha256)


def read_set_info(folder: str | Path) -> dict[str, Any]:
    """What ``set.json`` says, with the set's hash, after the checksums held."""
    file, _, sha256 = _verified(Path(folder))
    return {"sha256": sha256, **file.model_dump(mode="json")}


def _fill(folder: Path, file: SetFile, members: Sequence[ModelPackage]) -> str:
    (folder / "set.json").write_text(file.model_dump_json(indent=2) + "\n", encoding="utf-8")
    names = ["set.json"]
    for place, package in zip(file.members, members, strict=True):
        target = folder / place.folder
        save_package(target, package.model, package.members, previous=package.previous)
        names.append(f"{place.folder}/checksums")
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in names
    ]
    text = "".join(f"{line}\n" for line in lines).encode()
    (folder / "checksums").write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def _verified(folder: Path) -> tuple[SetFile, Mapping[str, str], str]:
    """``set.json``, what ``checksums`` lists once all agrees with it, and the set's hash."""
    listing = bytes_of(folder / "checksums")
    listed: dict[str, str] = {}
    contents = b""
    for line in listing.decode("utf-8", errors="replace").removesuffix("\n").split("\n"):
        match = _LISTING.fullmatch(line)
        if match is None:
            where = str(folder / "checksums")
            raise PackageError(where, expected="'<sha256>  <file>' lines of a set", got=line[:80])
        name, text = match["name"], bytes_of(folder / match["name"])
        got = hashlib.sha256(text).hexdigest()
        if got != match["sha256"]:
            raise PackageError(
                str(folder / name),
                expected=f"SHA-256 {match['sha256'][:12]}...",
                got=f"{got[:12]}...",
                cure="The file was changed or damaged; copy the set again.",
            )
        listed[name] = got
        contents = text if name == "set.json" else contents
    if "set.json" not in listed:
        raise PackageError(str(folder / "checksums"), expected="a line for set.json", got="none")
    return _parse(contents, str(folder / "set.json")), listed, hashlib.sha256(listing).hexdigest()


def _parse(text: bytes, source: str) -> SetFile:
    newest = {"set": SET_FORMAT}
    return read_json_as(SetFile, text, newest, expected="a valid set.json", source=source)


def _check_members(file: SetFile, plans: Sequence[Plan], source: str) -> None:
    """Refuse members that cannot take one scan, or whose labels are others than the set says."""
    first = [channel.name for channel in plans[0].channels]
    for member, plan in zip(file.members, plans, strict=True):
        where = f"{source}, {member.folder}"
        names = [channel.name for channel in plan.channels]
        if names != first:
            raise PackageError(where, expected=f"channels {first}", got=str(names))
        if strange := sorted(set(member.labels) - set(plan.labels.names)):
            known = ", ".join(plan.labels.names)
            raise PackageError(where, expected=f"labels of {known}", got=", ".join(strange))
        if file.combine == "mean" and plan.activation != plans[0].activation:
            raise PackageError(
                where, expected=f"activation {plans[0].activation}", got=plan.activation
            )
        cut = file.resampling is not None and file.restore == "logits" and plan.crop != "none"
        if cut:
            raise PackageError(
                where,
                expected="no crop, where logits go from a shared grid to the scan's",
                got=f"crop '{plan.crop}'",
                cure="Take restore 'labels-nearest', or no shared grid.",
            )
