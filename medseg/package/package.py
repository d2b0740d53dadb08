"""The model package: a folder that holds all that is needed to segment a scan.

::

    model/
      model.json               plan, labels, facts of the training, metrics, licence
      weights.safetensors      one file per member: weights_0.safetensors ... for several
      profile.json             optional: what masks and scans of the training look like
      previous/                a package of its own: the first stage of a cascade
      checksums                SHA-256 of each file, as ``sha256sum -c`` reads it; of the
                               earlier stage its ``checksums`` stands for all

It holds no case name, no path, no image and no date of a patient.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from medseg.core.errors import OutputError, PackageError
from medseg.core.plan import PLAN_FORMAT, Plan, read_json_as
from medseg.core.profile import Profile
from medseg.networks.build import build_network

PACKAGE_FORMAT = 1
Weights = Mapping[str, Tensor]
# Names that mean the same file in the same folder everywhere; "." and ".." are none.
_FILE_NAME = re.compile(r"\w[\w.-]*|previous/checksums", re.ASCII)
_PREVIOUS = "previous"
_PROFILE = "profile.json"


class ModelFile(BaseModel):
    """What ``model.json`` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    medseg_version: str
    weights: tuple[str, ...] = Field(min_length=1)
    plan: Plan
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    licence: str = ""
    previous: Literal["", "previous"] = ""


@dataclass(frozen=True)
class ModelPackage:
    """A package in memory.

    Attributes:
        model: What ``model.json`` holds.
        members: The weights of each member, by parameter name.
        sha256: Hash of the ``checksums`` file: the identity of the package.
        previous: The stage of a cascade that runs before; its labels are this one's channels.
        profile: What masks and scans of its training look like, where that was learned.
    """

    model: ModelFile
    members: tuple[Weights, ...]
    sha256: str
    previous: ModelPackage | None = None
    profile: Profile | None = None

    @property
    def plan(self) -> Plan:
        """The plan that the members share."""
        return self.model.plan

    def networks(self) -> list[nn.Module]:
        """Build each member and give it its weights, in evaluation mode.

        Raises:
            PackageError: The weights do not fit the network that the plan describes.
        """
        built = []
        for weights in self.members:
            # Without memory of its own: sizes are checked before any is taken.
            with torch.device("meta"), _NothingDrawn():
                network = build_network(self.plan.network)
            _check_fit(network, weights)
            # Whole numbers, as of an index, stay what they are.
            single = {
                name: value.float() if value.is_floating_point() else value
                for name, value in weights.items()
            }
            network.load_state_dict(single, assign=True)
            built.append(network.eval())
        return built


class _NothingDrawn(TorchFunctionMode):
    """First weights of a network are not drawn: they have no memory and will be replaced.

    Drawing them on the meta device would import torch's compiler, which takes seconds.
    """

    _DRAWS = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.erfinv_})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in self._DRAWS else func(*args, **(kwargs or {}))


def save_package(
    folder: Path,
    model: ModelFile,
    members: Sequence[Weights],
    *,
    previous: ModelPackage | None = None,
    profile: Profile | None = None,
) -> str:
    """Write a package, whole or not at all; one that stood there is replaced at the end.

    Args:
        folder: Where it goes.
        model: What ``model.json`` is to hold.
        members: The weights of each member.
        previous: The stage of a cascade that runs before.
        profile: What its training looked like.

    Returns:
        Its hash.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    package = ModelPackage(model, tuple(members), "", previous, profile)
    return write_whole(folder, lambda staging: _fill(staging, package))


def copy_package(source: Path, folder: Path) -> str:
    """Write a package that was checked as it was read to another folder; its hash.

    Raises:
        PackageError: What stands in ``source`` is damaged.
        OutputError: The folder cannot be written, or the disk is full.
    """
    package = load_package(source)
    return write_whole(folder, lambda staging: _fill(staging, package))


def write_whole(folder: Path, fill: Callable[[Path], str]) -> str:
    """Write a folder, whole or not at all; one that stood there is replaced at the end.

    Args:
        folder: Where it will stand.
        fill: Writes all of it into a folder that it is given; returns its hash.

    Returns:
        The hash.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".medseg-model-", dir=folder.parent))
        try:
            sha256 = fill(staging)
            staging.chmod(0o755)
            swap(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"writing {folder}",
            got=error.strerror or str(error),
            cure="Free some space or choose another --out.",
        ) from error
    return sha256


def load_package(folder: str | Path) -> ModelPackage:
    """Read a package and verify it: checksums first, then every field.

    Raises:
        PackageError: A file is missing or changed, or a newer medseg wrote it.
    """
    folder = Path(folder)
    contents, sha256 = _verified(folder)
    model = _parse(contents["model.json"], folder)
    members = []
    for name in model.weights:
        if name not in contents or not name.endswith(".safetensors"):
            raise PackageError(str(folder), expected=f"weights '{name}'", got="no such file in it")
        try:
            members.append(load_tensors(contents[name]))
        # The last three: a number type or a size that this torch does not know.
        except (SafetensorError, ValueError, LookupError, AttributeError, RuntimeError) as error:
            where = str(folder / name)
            raise PackageError(where, expected="safetensors", got=str(error)) from error
    previous = _load_previous(folder, model, contents)
    return ModelPackage(model, tuple(members), sha256, previous, _profile_of(contents, folder))


def _profile_of(contents: Mapping[str, bytes], folder: Path) -> Profile | None:
    text = contents.get(_PROFILE)
    return None if text is None else Profile.from_json(text, source=str(folder / _PROFILE))


def _load_previous(
    folder: Path, model: ModelFile, contents: Mapping[str, bytes]
) -> ModelPackage | None:
    if bool(model.plan.cascade_labels) != bool(model.previous):
        expected = "an earlier stage where the plan has cascade_labels, and only there"
        raise PackageError(str(folder), expected=expected, got=f"'{model.previous}'")
    if not model.previous:
        return None
    if f"{_PREVIOUS}/checksums" not in contents:
        raise PackageError(str(folder / "checksums"), expected="a line for previous", got="none")
    earlier = load_package(folder / _PREVIOUS)
    if earlier.previous is not None:
        raise PackageError(str(folder), expected="a cascade of two stages", got="more")
    mine, its = ([c.name for c in one.channels] for one in (model.plan, earlier.plan))
    if mine != its:
        raise PackageError(str(folder), expected=f"channels {mine} of both stages", got=str(its))
    return earlier


def read_package_info(folder: str | Path) -> dict[str, Any]:
    """What ``model.json`` says, with the package's hash, after the checksums held."""
    contents, sha256 = _verified(Path(folder))
    model = _parse(contents["model.json"], Path(folder))
    found = _profile_of(contents, Path(folder))
    profile = None if found is None else found.summary()
    return {"sha256": sha256, **model.model_dump(mode="json"), "profile": profile}


def is_package(folder: str | Path) -> bool:
    """Whether a folder looks like a package (nothing is verified)."""
    return (Path(folder) / "model.json").is_file()


def _fill(folder: Path, package: ModelPackage) -> str:
    previous, members = package.previous, package.members
    model = package.model.model_copy(update={"previous": _PREVIOUS if previous else ""})
    inner = []
    if previous is not None:
        (folder / _PREVIOUS).mkdir()
        _fill(folder / _PREVIOUS, previous)
        inner = [f"{_PREVIOUS}/checksums"]
    if package.profile is not None:
        (folder / _PROFILE).write_text(package.profile.to_json() + "\n", encoding="utf-8")
        inner.append(_PROFILE)
    (folder / "model.json").write_text(model.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for name, weights in zip(model.weights, members, strict=True):
        plain = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
        (folder / name).write_bytes(save_tensors(plain))
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("model.json", *model.weights, *inner)
    ]
    (folder / "checksums").write_bytes("".join(lines).encode())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def swap(staging: Path, folder: Path) -> None:
    """Put a finished folder in its place; what stood there goes at the same moment."""
    if not folder.exists():
        staging.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=".medseg-old-", dir=folder.parent))
    folder.rename(old / "model")
    try:
        staging.rename(folder)
    except BaseException:
        (old / "model").rename(folder)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _verified(folder: Path) -> tuple[dict[str, bytes], str]:
    """Contents of each file that ``checksums`` lists, once all agree with it."""
    listing = folder / "checksums"
    # Unlike the methods of Path these never raise, also where access is forbidden.
    there = os.path.isdir(folder)  # noqa: PTH112
    if not (there and os.path.isfile(listing)):  # noqa: PTH113
        raise PackageError(
            str(folder),
            expected="a model package (model.json, weights.safetensors, checksums)",
            got="a folder without 'checksums'" if there else "no such folder",
            cure="Give RUN/model of a finished training.",
        )
    text = bytes_of(listing)
    contents: dict[str, bytes] = {}
    for line in text.decode("utf-8", errors="replace").removesuffix("\n").split("\n"):
        expected, _, name = line.partition("  ")
        if _FILE_NAME.fullmatch(name) is None:
            raise PackageError(str(listing), expected="'<sha256>  <file>' lines", got=line[:80])
        contents[name] = bytes_of(folder / name)
        got = hashlib.sha256(contents[name]).hexdigest()
        if got != expected:
            raise PackageError(
                str(folder / name),
                expected=f"SHA-256 {expected[:12]}...",
                got=f"{got[:12]}...",
                cure="The file was changed or damaged; copy the package again.",
            )
    if "model.json" not in contents:
        raise PackageError(str(listing), expected="a line for model.json", got="none")
    return contents, hashlib.sha256(text).hexdigest()


def bytes_of(path: Path) -> bytes:
    """Contents of a plain file; a link to one counts, a pipe or device does not."""
    try:
        if path.exists() and not path.is_file():
            raise PackageError(str(path), expected="a file", got="something else of that name")
        return path.read_bytes()
    except OSError as error:
        raise PackageError(
            str(path),
            expected="a file that can be read",
            got=error.strerror or str(error),
            cure="Copy the whole package again.",
        ) from error


def _parse(text: bytes, folder: Path) -> ModelFile:
    newest = {"package": PACKAGE_FORMAT, "plan": PLAN_FORMAT}
    source = str(folder / "model.json")
    return read_json_as(ModelFile, text, newest, expected="a valid model.json", source=source)


def _check_fit(network: nn.Module, weights: Weights) -> None:
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if wanted == given:
        return
    every = sorted(wanted.keys() | given.keys())
    odd = [name for name in every if wanted.get(name) != given.get(name)]
    raise PackageError(
        "weights",
        expected=f"{odd[0]} {wanted.get(odd[0], 'absent')}",
        got=f"{given.get(odd[0], 'absent')} ({len(odd)} parameters differ)",
        cure="The weights belong to another plan; copy the package again.",
    )
