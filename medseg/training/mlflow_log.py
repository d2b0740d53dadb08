"""The facts of a run sent to MLflow, where a team collects them. Only on request."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.core.errors import SettingsError
from medseg.core.optional import require
from medseg.core.settings import send_nothing
from medseg.io.atomic import write_text

_EXPERIMENT = "medseg"
_LONGEST = 250
_log = logging.getLogger(__name__)


class MlflowLog:
    """One run in MLflow; a run that goes on adds to the same one.

    Args:
        where: Address of a tracking server, or a database (``sqlite:///file.db``).
        folder: The run's; which run of MLflow it is stays in ``mlflow.json``.
        parameters: What was decided, by name. Holds no name of a case.

    Raises:
        MissingPackageError: MLflow is not installed.
        SettingsError: There is no server or database to write to.
    """

    def __init__(self, where: str, folder: Path, *, parameters: Mapping[str, object]) -> None:
        # It would tell its makers of each use.
        send_nothing("MLFLOW_DISABLE_TELEMETRY")
        mlflow = require("mlflow", extra="mlflow", feature="--mlflow")
        entities = require("mlflow.entities", extra="mlflow", feature="--mlflow")
        self._metric = entities.Metric
        self._failures: tuple[type[Exception], ...] = (mlflow.MlflowException, OSError)
        self._lost = False
        try:
            self._client = mlflow.MlflowClient(tracking_uri=where)
            self._run_id = self._open(folder / "mlflow.json", where, entities, parameters)
        except self._failures as error:
            raise SettingsError(
                "--mlflow",
                expected="the address of a tracking server, or sqlite:///file.db",
                got=f"{where}: {str(error)[:200]}",
            ) from error

    def _open(self, kept: Path, where: str, entities: Any, parameters: Mapping[str, object]) -> str:
        if kept.is_file():
            known = json.loads(kept.read_text(encoding="utf-8"))
            if known["where"] == where:
                self._client.update_run(known["run"], "RUNNING")
                return str(known["run"])
        found = self._client.get_experiment_by_name(_EXPERIMENT)
        made = found.experiment_id if found else self._client.create_experiment(_EXPERIMENT)
        run_id = str(self._client.create_run(made).info.run_id)
        rows = [entities.Param(key, str(value)[:_LONGEST]) for key, value in parameters.items()]
        self._client.log_batch(run_id, params=rows[:100])
        write_text(kept, json.dumps({"where": where, "run": run_id}))
        return run_id

    def epoch(self, facts: Mapping[str, Any]) -> None:
        """Send the figures of an epoch. A server that is gone costs a warning, not the run."""
        if self._lost:
            return
        figures = {key: value for key, value in facts.items() if key not in ("step", "dice")}
        figures |= {f"dice/{name}": value for name, value in facts.get("dice", {}).items()}
        now_ms, step = int(time.time() * 1000), int(facts["step"])
        rows = [
            self._metric(re.sub(r"[^\w\-. /]", "_", key), float(value), now_ms, step)
            for key, value in figures.items()
            if value is not None
        ]
        self._try(lambda: self._client.log_batch(self._run_id, metrics=rows))

    def close(self, *, done: bool) -> None:
        """Say how it ended."""
        if not self._lost:
            status = "FINISHED" if done else "KILLED"
            self._try(lambda: self._client.set_terminated(self._run_id, status))

    def _try(self, send: Any) -> None:
        try:
            send()
        except self._failures as error:
            self._lost = True
            _log.warning("nothing more is sent to MLflow: %s", str(error)[:200])
