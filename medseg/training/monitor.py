"""What a run leaves behind to look at: ``log.jsonl``, TensorBoard curves, overlay pictures."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.core.geometry import Geometry
from medseg.inference.predictor import Predictor
from medseg.io.atomic import write_bytes, write_text
from medseg.report.pictures import overlay_planes
from medseg.training.cache import CachedCase
from medseg.training.validation import predicted_classes

_CURVES = (
    "loss", "learning_rate", "gradient_norm", "steps_per_s", "samples_per_s", "data_wait_share",
)  # fmt: skip
# Waiting for less than this share of the time is not worth a word.
_LITTLE_WAIT = 0.1


def advice(history: Sequence[Mapping[str, Any]], device_type: str) -> str | None:
    """What to do where much of the time went by waiting for data; None where little did.

    Args:
        history: The facts of each epoch.
        device_type: ``"cuda"`` or ``"cpu"``.
    """
    # The first epoch fills caches and compiles; it says little about the rest.
    shares = [facts["data_wait_share"] for facts in history[1:] or history]
    share = float(np.mean(shares)) if shares else 0.0
    if share < _LITTLE_WAIT:
        return None
    if device_type == "cuda":
        cure = (
            "put the run's folder on a local disk, give the process more processor cores, or use "
            "a larger plan.patch_size or plan.training.batch_size"
        )
    else:
        cure = (
            "batches are made by the same cores that train: lower "
            "plan.training.augmentation.affine_probability, or train on a GPU"
        )
    return f"the device waited for data in {100 * share:.0f} % of the time: {cure}"


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process ever took, and of the GPU, in MB."""
    found = {}
    if sys.platform != "win32":
        import resource

        # macOS counts bytes, others kilobytes.
        unit = 1e6 if sys.platform == "darwin" else 1e3
        found["process_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
    if device.type == "cuda":
        found["device_mb"] = round(torch.cuda.max_memory_reserved(device) / 1e6, 1)
    return found


class RunMonitor:
    """Writes the facts of a run into its folder.

    Args:
        folder: The run; ``log.jsonl``, ``tensorboard/`` and ``overlays/`` appear in it.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self._log = folder / "log.jsonl"
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._resumed = False

    def epoch(self, facts: dict[str, Any]) -> None:
        """Add one epoch; lines that a stopped run wrote beyond its checkpoint are dropped."""
        if not self._resumed:
            self._drop_from(int(facts["step"]))
            self._resumed = True
        with self._log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(facts) + "\n")
        step = int(facts["step"])
        for name in _CURVES:
            if facts.get(name) is not None:
                self._board.add_scalar(name, facts[name], step)
        for label, value in facts.get("dice", {}).items():
            if value is not None:
                self._board.add_scalar(f"dice/{label}", value, step)

    def picture(self, predictor: Predictor, cases: Sequence[CachedCase], step: int) -> None:
        """Draw the first case with its truth and the prediction of the moment."""
        from PIL import Image

        plan = predictor.plan
        spacing = [side or 1.0 for side in plan.spacing_mm]
        for case, prediction in predicted_classes(predictor, cases[:1]):
            a, b, c = case.label.shape
            picture = overlay_planes(
                np.asarray(case.image)[0],
                {
                    "truth": plan.labels.to_values(np.asarray(case.label)),
                    "prediction": plan.labels.to_values(prediction),
                },
                geometry=Geometry((a, b, c), np.diag([*spacing, 1.0])),
                labels=plan.labels,
                title=f"step {step}",
                modality="MR",
            )
            write_bytes(self.folder / "overlays" / f"step_{step:07d}.png", picture)
            pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
            image = torch.from_numpy(pixels.copy())
            self._board.add_image("overlay", image, step, dataformats="HWC")

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        self._board.close()

    def _drop_from(self, step: int) -> None:
        if self._log.is_file():
            lines = self._log.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line and json.loads(line)["step"] < step]
            write_text(self._log, "".join(f"{line}\n" for line in kept))
