"""ONNX files against torch, run by two other programs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.cli.app import run
from medseg.core.errors import InputError, MissingPackageError, PackageError, SettingsError
from medseg.core.plan import Plan
from medseg.inference import onnx_file
from medseg.package.package import load_package
from medseg.workflows.export import export
from tests.models import small_plan, write_random_package

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def package(folder: Path, *, dims: int = 3, members: int = 1) -> Path:
    return write_random_package(folder, small_plan(dims=dims, channels=2), members=members)


def tiles(plan: Plan, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, len(plan.channels), *plan.patch_size, generator=generator)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_file_computes_what_torch_computes(dims: int, tmp_path: Path) -> None:
    folder = package(tmp_path / "run" / "model", dims=dims)
    told = export(tmp_path / "run", tmp_path / "m.onnx")
    assert told["files"] == [str(tmp_path / "m.onnx")]
    assert told["checked_with"] == "ONNX Runtime"
    assert told["difference"] < 1e-4
    assert told["equal"] > 0.999
    loaded = load_package(folder)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3):
        x = tiles(loaded.plan, count)
        with torch.inference_mode():
            reference = loaded.networks()[0](x).numpy()
        (logits,) = session.run(["logits"], {"tiles": x.numpy()})
        np.testing.assert_allclose(logits, reference, atol=1e-4, rtol=1e-4)


def test_the_metadata_are_enough_to_use_it(tmp_path: Path) -> None:
    folder = package(tmp_path / "model")
    export(folder, tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    loaded = load_package(folder)
    assert Plan.from_json(facts["plan"]) == loaded.plan
    assert facts["package_sha256"] == loaded.sha256
    assert facts["use"] == "research only"
    sides = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["N", 2, *loaded.plan.patch_size]
    # Nothing tells of the machine that it was made on.
    data = (tmp_path / "m.onnx").read_bytes()
    assert str(Path(onnx_file.__file__).parents[2]).encode() not in data
    assert b".py" not in data


def test_one_file_per_member(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = package(tmp_path / "model", dims=2, members=2), tmp_path / "m.onnx"
    command = ["export", str(folder), "--to", "onnx", "--out", str(out)]
    assert run([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [str(tmp_path / "m_0.onnx"), str(tmp_path / "m_1.onnx")]
    assert not out.exists()
    loaded = load_package(folder)
    x = tiles(loaded.plan, 1)
    for path, network in zip(told["files"], loaded.networks(), strict=True):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        with torch.inference_mode():
            reference = network(x).numpy()
        logits = session.run(None, {"tiles": x.numpy()})[0]
        np.testing.assert_allclose(logits, reference, atol=1e-4, rtol=1e-4)
    assert run(command) == 0
    assert "checked with ONNX Runtime" in capsys.readouterr().out


def test_openvino_checks_where_onnxruntime_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    true = importlib.util.find_spec
    monkeypatch.setattr(
        onnx_file, "find_spec", lambda name: None if name == "onnxruntime" else true(name)
    )
    told = export(package(tmp_path / "model"), tmp_path / "m.onnx")
    assert told["checked_with"] == "OpenVINO"
    assert told["difference"] < 1e-4
    # With neither, the cure is told.
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"medseg\[onnx\]"):
        export(tmp_path / "model", tmp_path / "n.onnx")


def test_a_file_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(data: bytes) -> onnx_file.Runner:
        inner = onnx_file._by_onnxruntime(data)
        return lambda x: inner(x)[:, ::-1].copy()

    monkeypatch.setattr(onnx_file, "_runner", lambda: ("a wrong program", wrong))
    with pytest.raises(InputError, match="not those of torch"):
        export(package(tmp_path / "model"), tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_what_cannot_be_exported_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = package(tmp_path / "model", dims=2)
    with pytest.raises(SettingsError, match="--to"):
        export(folder, tmp_path / "m.onnx", to="tflite")
    for name in ("m.pt", "model"):
        with pytest.raises(InputError, match=r"\.onnx"):
            export(folder, tmp_path / name)
    with pytest.raises(PackageError):
        export(tmp_path / "nothing", tmp_path / "m.onnx")

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError("an operation of its own")

    with pytest.raises(InputError, match="own"):
        onnx_file.write_onnx(tmp_path / "m.onnx", Odd(), small_plan(), metadata={})
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert run(["export", str(folder), "--to", "onnx", "--out", str(tmp_path / "m.onnx")]) == 2
    assert "pip install 'medseg[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()
