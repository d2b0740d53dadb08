"""Networks as ONNX files for other programs, compared with torch before they are written."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.core.errors import InputError
from medseg.core.optional import require
from medseg.core.plan import Plan
from medseg.inference.careful_norm import with_careful_norms
from medseg.inference.openvino_backend import import_openvino
from medseg.inference.tile import Agreement, agreement, sample_tile
from medseg.io.atomic import whole_file

INPUT, OUTPUT = "tiles", "logits"
# Old enough for the runtimes of the last years; has all that a U-Net needs.
_OPSET = 17
_FEATURE = "export to ONNX"
_ABOUT = (
    "tiles: (N, C, I, J, K) float32 of the size, spacing and normalisation that the metadata "
    "'plan' says; logits: (N, classes, I, J, K). Research use only."
)
_log = logging.getLogger(__name__)
Runner = Callable[[NDArray[Any]], NDArray[Any]]


def write_onnx(
    path: Path, network: nn.Module, plan: Plan, *, metadata: Mapping[str, str]
) -> tuple[Agreement, str]:
    """Write one network, once another program gives the same logits from the file.

    Args:
        path: Replaced whole or not at all.
        network: On a CPU.
        plan: Its patch is the size of tiles; their number is free.
        metadata: For the file's ``metadata_props``.

    Returns:
        How close the file is to torch, and the name of the program that ran it.

    Raises:
        MissingPackageError: ONNX, or every program that runs it, is not installed.
        InputError: ONNX cannot hold this network, or its logits are not those of torch.
        OutputError: The file cannot be written.
    """
    onnx = require("onnx", extra="onnx", feature=_FEATURE)
    # Before the work, so that a missing package is told at once.
    program, open_model = _runner()
    network = network.eval()
    try:
        data = _with_metadata(onnx, _traced(network, plan), metadata)
        found = _worst(network, plan, open_model(data))
    # Exporters and runtimes fail in many ways.
    except Exception as error:
        raise _refusal(f"{type(error).__name__}: {error!s:.200}") from error
    if not found.close:
        raise _refusal(f"logits that are not those of torch: {found}")
    _log.info("%s, run by %s: %s", path.name, program, found)
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
    return found, program


def _traced(network: nn.Module, plan: Plan) -> bytes:
    """By the exporter that needs no further package; it warns developers that it is old."""
    if not plan.network.kind.any_size:
        # There it loses track of the number of channels, which its own norms ask for.
        network = with_careful_norms(network)
    tile = sample_tile(plan.network.in_channels, plan.patch_size)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network, (tile,), str(file), dynamo=False, opset_version=_OPSET,
                input_names=[INPUT], output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "N"}, OUTPUT: {0: "N"}},
            )  # fmt: skip
        return file.read_bytes()


def _with_metadata(onnx: Any, data: bytes, metadata: Mapping[str, str]) -> bytes:
    model = onnx.load_from_string(data)
    for node in model.graph.node:
        # Exporters note which line of which file on this machine a node comes from.
        node.ClearField("doc_string")
        if hasattr(node, "metadata_props"):
            node.ClearField("metadata_props")
    model.doc_string = _ABOUT
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _runner() -> tuple[str, Callable[[bytes], Runner]]:
    if find_spec("onnxruntime") is None and find_spec("openvino") is not None:
        return "OpenVINO", _by_openvino
    require("onnxruntime", extra="onnx", feature=_FEATURE)
    return "ONNX Runtime", _by_onnxruntime


def _by_onnxruntime(data: bytes) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda tiles: session.run([OUTPUT], {INPUT: tiles})[0]


def _by_openvino(data: bytes) -> Runner:
    ov = import_openvino()
    core = ov.Core()
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(data), "CPU", hint)
    return lambda tiles: compiled([tiles])[0]


def _worst(network: nn.Module, plan: Plan, run: Runner) -> Agreement:
    """Over a single tile and a batch of two that differ."""
    tile = sample_tile(plan.network.in_channels, plan.patch_size)
    found = []
    for tiles in (tile, torch.cat([tile.flip([2]), tile * 0.5])):
        with torch.inference_mode():
            reference: Tensor = network(tiles)
        found.append(agreement(reference, torch.from_numpy(run(tiles.numpy()))))
    return Agreement(max(one.difference for one in found), min(one.equal for one in found))


def _refusal(reason: str) -> InputError:
    return InputError(
        "model", expected="a network that an ONNX file can hold", got=reason,
        cure="Use the model package itself.",
    )  # fmt: skip
