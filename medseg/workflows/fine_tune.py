"""``--from MODEL``: go on from another model, on its grid and with its network."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.core.errors import SettingsError
from medseg.core.labels import left_right_pairs
from medseg.core.plan import Fingerprint, Plan, TrainingPlan
from medseg.package.package import ModelPackage
from medseg.training.checkpoint import TrainState
from medseg.training.step import new_state
from medseg.training.transfer import take_weights
from medseg.workflows.api import package_of
from medseg.workflows.run import Run

_log = logging.getLogger(__name__)
# What the weights were learned with: the network, and all that brings a scan before it.
_KEPT = ("patch_size", "spacing_mm", "orientation", "axis_order", "crop", "resampling")


@dataclass(frozen=True)
class Start:
    """The model that a run begins with."""

    package: ModelPackage

    @classmethod
    def read(cls, folder: str | Path) -> Start:
        """Read it.

        Raises:
            PackageError: It is no model, or damaged.
            SettingsError: It is a cascade.
        """
        package = package_of(folder)
        if package.previous is not None:
            raise SettingsError(
                f"--from {folder}",
                expected="a model of one stage",
                got="a cascade",
                cure="Begin with its first stage, which lies in its folder 'previous'.",
            )
        if len(package.members) > 1:
            _log.info("of the %d members of the model the first is taken", len(package.members))
        return cls(package)

    def plan_changes(self, run: Run, fingerprint: Fingerprint) -> dict[str, object]:
        """What the model's plan decides for the new one, by dotted keys.

        Raises:
            SettingsError: It is of 2D pictures and the dataset is not, or the reverse.
        """
        source = self.package.plan
        flat = source.network.spatial_dims == 2
        if flat != fingerprint.two_dimensional:
            raise SettingsError(
                "--from",
                expected=f"a {2 if fingerprint.two_dimensional else 3}D model, as the dataset is",
                got=f"a {source.network.spatial_dims}D model",
            )
        data = source.model_dump()
        changes: dict[str, object] = {key: data[key] for key in _KEPT}
        fitted = ("spatial_dims", "in_channels", "classes")
        changes |= {f"network.{k}": v for k, v in data["network"].items() if k not in fitted}
        # A decay by which the first steps fade would take what the model knows with them.
        changes["training.weight_decay"] = TrainingPlan.model_fields["weight_decay"].default
        # Axes of the model's grid need not be the patient's; with sides, none is mirrored.
        axes = () if left_right_pairs(run.labels) else source.inference.mirror_axes
        changes |= {"training.augmentation.mirror_axes": axes, "inference.mirror_axes": axes}
        names = [channel.name for channel in fingerprint.channels]
        if len(names) == len(source.channels):
            changes["channels"] = [
                {**channel, "name": name}
                for channel, name in zip(data["channels"], names, strict=True)
            ]
        return changes

    def state(self, run: Run, plan: Plan) -> TrainState:
        """A fresh state with the model's weights where they fit.

        Raises:
            SettingsError: None fit.
        """
        state = new_state(plan, seed=run.settings.seed, device=run.device)
        source, weights = self.package.plan, self.package.members[0]
        taken = take_weights(state.network, plan, source=source, weights=weights)
        if not taken.fitting:
            raise SettingsError(
                "--from", expected="weights that fit the plan's network", got="none that fit",
                cure="Leave --network and --set plan.network... away.",
            )  # fmt: skip
        state.average.load_state_dict(state.network.state_dict())
        if run.team.leads:
            _log.info("from %s: %s", self.package.sha256[:12], taken.sentence)
        return state


def changes_of(start: Start | None, run: Run, fingerprint: Fingerprint) -> dict[str, Any]:
    """Changes to the planner's choices: those of the model to begin with, then the user's."""
    model = {} if start is None else start.plan_changes(run, fingerprint)
    return model | run.settings.plan_changes()
