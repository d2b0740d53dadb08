"""Run settings: from a preset, a YAML file and ``key=value`` pairs into one checked object.

An unknown key is an error. Later sources win: defaults, then the file, then the pairs,
then what the command line states outright.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medseg.core.errors import SettingsError
from medseg.core.plan import first_fault

# How the dimensions of a network are chosen: one of these, several of the named ones with
# commas, which are then compared, or "best": all that the planner finds sensible.
CONFIGURATIONS = ("auto", "2d", "3d", "3d-low")
# Two networks, one after the other.
CASCADE = "cascade"
_UNITS_S = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
_PROJECT_CONFIGS = Path(__file__).parents[2] / "configs"
_SHIPPED_CONFIGS = Path(__file__).parents[1] / "configs"


def seconds(text: str | float, *, what: str = "budget") -> float:
    """Read a span of time: ``"90"``, ``"45s"``, ``"10min"``, ``"1.5h"``, in seconds.

    Raises:
        SettingsError: It is not a positive number with a known unit.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", str(text).lower())
    if not match or (match[2] and match[2] not in _UNITS_S) or float(match[1]) <= 0:
        raise SettingsError(
            what,
            expected="a time such as 90s, 10min or 2h",
            got=repr(text),
        )
    return float(match[1]) * _UNITS_S.get(match[2] or "s", 1)


class TrainSettings(BaseModel):
    """All that a training run can be told.

    ``plan`` replaces single decisions of the planner by their dotted names, for example
    ``{"patch_size": [40, 56, 40], "training": {"learning_rate": 0.001}}``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fold: Literal["0", "1", "2", "3", "4", "all", "all-data"] = "0"
    labels: str | None = Field(default=None, description="Select, merge and rename labels.")
    budget_s: float | None = Field(default=None, gt=0, description="Wall time of the whole run.")
    epochs: int | None = Field(default=None, ge=1, description="Used when there is no budget.")
    start_from: str | None = Field(
        default=None, description="Model package whose weights to begin with."
    )
    mlflow: str | None = Field(
        default=None, description="Tracking server or database of MLflow that the facts go to."
    )
    checkpoint_every_s: float = Field(
        default=300.0, ge=0, description="Seconds from one checkpoint to the next."
    )
    device: str = "auto"
    seed: int = Field(default=0, ge=0, lt=2**63)
    deterministic: bool = False
    inner_share: float = Field(
        default=0.08, ge=0, lt=0.5, description="Training cases kept back to choose by."
    )
    network: str = Field(default="unet", description="Which network the planner sizes.")
    base_features: int | None = Field(
        default=None, ge=4, le=512, description="Channels of the finest stage; null: by budget."
    )
    configuration: str = Field(
        default="auto", description="auto, 2d, 3d, 3d-low, cascade; several with commas, or best."
    )
    preset: Literal["small", "medium", "large"] | None = None
    target_memory: str | None = Field(
        default=None, description="What a training step may take of the device, e.g. 8GB."
    )
    plan_file: str | None = Field(
        default=None, description="A plan to train with, in place of a planned one."
    )
    plan: dict[str, Any] = Field(default_factory=dict)

    @field_validator("fold", mode="before")
    @classmethod
    def _fold_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value

    @field_validator("configuration", mode="before")
    @classmethod
    def _known_configurations(cls, value: object) -> str:
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        names = [str(name).strip() for name in parts]
        if len(names) == 1 and names[0] in (*CONFIGURATIONS, "best", CASCADE):
            return names[0]
        if len(set(names)) < len(names) or not set(names) <= set(CONFIGURATIONS[1:]):
            several = ", ".join(CONFIGURATIONS[1:])
            raise ValueError(f"auto, best, cascade, or one or several of {several} with commas")
        return ",".join(names)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.budget_s is not None and self.epochs is not None:
            raise ValueError("a budget or a number of epochs, not both")
        return self

    @property
    def compares(self) -> bool:
        """Whether several configurations are to be trained and compared."""
        return self.configuration == "best" or "," in self.configuration

    def plan_changes(self) -> dict[str, object]:
        """The changes to the plan with dotted keys: ``training.learning_rate`` -> value."""
        return _flatten(self.plan)

    @classmethod
    def build(
        cls, *, config: str | Path | None, pairs: Iterable[str], stated: dict[str, Any]
    ) -> TrainSettings:
        """Merge a preset or YAML file, ``key=value`` pairs and what was stated outright.

        Raises:
            SettingsError: A key is unknown, a value is out of range, or the file is not YAML.
        """
        merged = read_config(config) if config is not None else {}
        for pair in pairs:
            key, equals, text = pair.partition("=")
            if not equals or not key:
                raise SettingsError("--set", expected="key=value", got=repr(pair))
            _place(merged, key.strip(), _parse(text))
        given = {key: value for key, value in stated.items() if value is not None}
        # What is stated outright also replaces the other way to say how long a run is.
        clock, count = {"budget", "budget_s"}, {"epochs"}
        for ours, other in ((clock, count), (count, clock)):
            if ours & set(given) and not other & set(given):
                merged = {key: value for key, value in merged.items() if key not in other}
        merged.update(given)
        for span in ("budget", "checkpoint_every"):
            if span in merged:
                merged[f"{span}_s"] = seconds(merged.pop(span), what=span)
        unknown = sorted(set(merged) - set(cls.model_fields))
        if unknown:
            near = difflib.get_close_matches(unknown[0], list(cls.model_fields), n=1)
            raise SettingsError(
                f"setting '{unknown[0]}'",
                expected=f"one of {', '.join(cls.model_fields)}",
                got="an unknown key",
                cure=f"Did you mean '{near[0]}'?" if near else "",
            )
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            key, rule, found = first_fault(error)
            where = f"setting '{key}'" if key else "settings"
            raise SettingsError(where, expected=rule, got=found) from error


def config_names() -> list[str]:
    """Names of the presets that come with medseg."""
    return sorted(path.stem for path in _configs_folder().glob("*.yaml"))


def read_config(name_or_file: str | Path) -> dict[str, Any]:
    """Read a preset by name, or a YAML file by path.

    Raises:
        SettingsError: There is no such preset or file, or it is not a YAML mapping.
    """
    path = Path(name_or_file)
    if path.suffix not in (".yaml", ".yml"):
        path = _configs_folder() / f"{name_or_file}.yaml"
    if not path.is_file():
        raise SettingsError(
            f"--config {name_or_file}",
            expected=f"a YAML file or a preset ({', '.join(config_names())})",
            got="no such file",
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(str(path), expected="YAML", got=str(error)) from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise SettingsError(str(path), expected="a mapping of keys to values", got=repr(data)[:80])
    return data


def cache_folder() -> Path | None:
    """Where medseg keeps what it can make anew: MEDSEG_CACHE, else the user's own cache folder.

    Everything in it may be deleted at any time. The folder need not be there; None where the
    user has no home: a folder that all may write to is no place for it.
    """
    if named := os.environ.get("MEDSEG_CACHE"):
        return Path(named).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # A path that is not absolute is to be ignored (XDG base directory specification).
    if Path(shared).is_absolute():
        return Path(shared) / "medseg"
    try:
        return Path.home() / ".cache" / "medseg"
    except RuntimeError:
        return None


def send_nothing(variable: str) -> None:
    """Have a package not report its use, by the variable of the environment that it looks for."""
    os.environ.setdefault(variable, "true")


@dataclass(frozen=True)
class Launch:
    """How a launcher (torchrun) started this process beside others.

    Attributes:
        rank: Number of the process among all.
        size: How many there are, on all machines.
        local_rank: Number of the process on its machine.
        local_size: How many there are on its machine.
        restarts: How often the launcher had to start them anew.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    restarts: int = 0


def launched() -> Launch | None:
    """What torchrun says in the environment; None for a process that nobody launched so.

    Raises:
        SettingsError: It says half of it, or no numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    # Job schedulers set some of these names, too; this one is torchrun's alone.
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    try:
        rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    except (KeyError, ValueError) as error:
        raise SettingsError(
            "the environment of torchrun", expected=f"numbers in {', '.join(names)}", got=str(error)
        ) from error
    return Launch(rank, size, local_rank, local_size, restarts)


def _configs_folder() -> Path:
    # In a wheel the presets lie inside the package, in a checkout beside it.
    return _SHIPPED_CONFIGS if _SHIPPED_CONFIGS.is_dir() else _PROJECT_CONFIGS


def _parse(text: str) -> object:
    try:
        value: object = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value


def _place(tree: dict[str, Any], key: str, value: object) -> None:
    *parents, last = key.split(".")
    for part in parents:
        branch = tree.setdefault(part, {})
        if not isinstance(branch, dict):
            raise SettingsError(f"--set {key}", expected="a key of a section", got=f"'{part}'")
        tree = branch
    tree[last] = value


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
