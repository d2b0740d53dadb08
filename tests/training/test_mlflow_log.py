"""Facts sent to MLflow: a stand-in for it, and MLflow itself where it is installed."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest

from medseg.core.errors import MissingPackageError, SettingsError
from medseg.training.mlflow_log import MlflowLog

FACTS = {
    "step": 20, "epoch": 2, "loss": 0.5, "gradient_norm": None, "dice": {"a: b?": 0.75, "c": None},
}  # fmt: skip


class LostError(Exception):
    """As MlflowException."""


class Client:
    """What is used of MlflowClient, kept in memory by address."""

    servers: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, tracking_uri: str) -> None:
        if "nowhere" in tracking_uri:
            raise LostError("no such server")
        self.data = self.servers.setdefault(tracking_uri, {})

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return name

    def create_run(self, experiment: str) -> Any:
        name = f"run {len(self.data)}"
        self.data[name] = {"metrics": [], "params": [], "status": "RUNNING"}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=name))

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        if any(row[0] == "epoch" and row[1] == 13 for row in metrics):
            raise LostError("the server is gone")
        self.data[run]["metrics"] += metrics
        self.data[run]["params"] += params

    def update_run(self, run: str, status: str) -> None:
        self.data[run]["status"] = status

    def set_terminated(self, run: str, status: str) -> None:
        self.data[run]["status"] = status


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    package: Any = types.ModuleType("mlflow")
    package.MlflowClient, package.MlflowException = Client, LostError
    entities: Any = types.ModuleType("mlflow.entities")
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    entities.Param = lambda key, value: (key, value)
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(Client, "servers", {})
    # Set for good otherwise; the fixture puts back what was there.
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return Client.servers


def test_a_run_that_goes_on_adds_to_the_same_run(
    server: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    for done in (False, True):
        log = MlflowLog("here", tmp_path, parameters={"patch_size": [16, 12, 8]})
        log.epoch(FACTS)
        log.close(done=done)
    (run,) = server["here"].values()
    assert run["status"] == "FINISHED"
    assert run["params"] == [("patch_size", "[16, 12, 8]")]
    once = [("epoch", 2.0, 20), ("loss", 0.5, 20), ("dice/a_ b_", 0.75, 20)]
    assert run["metrics"] == once * 2


def test_a_server_that_is_gone_costs_a_warning_and_not_the_run(
    server: dict[str, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = MlflowLog("here", tmp_path, parameters={})
    with caplog.at_level(logging.WARNING, logger="medseg"):
        log.epoch({**FACTS, "epoch": 13})
        log.epoch(FACTS)
        log.close(done=True)
    assert caplog.text.count("nothing more is sent") == 1
    with pytest.raises(SettingsError, match="tracking server"):
        MlflowLog("nowhere", tmp_path / "other", parameters={})


def test_without_mlflow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    with pytest.raises(MissingPackageError, match=r"medseg\[mlflow\]"):
        MlflowLog("here", tmp_path, parameters={})


def test_mlflow_itself_reads_what_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    where = f"sqlite:///{tmp_path / 'log.db'}"
    log = MlflowLog(where, tmp_path, parameters={"network.name": "unet"})
    log.epoch(FACTS)
    log.close(done=True)
    client = mlflow.MlflowClient(tracking_uri=where)
    (run,) = client.search_runs([client.get_experiment_by_name("medseg").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"network.name": "unet"}
    assert run.data.metrics == {"epoch": 2.0, "loss": 0.5, "dice/a_ b_": 0.75}
