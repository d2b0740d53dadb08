"""The facts of one epoch; the device is asked for them only when the epoch ends."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.training.checkpoint import TrainState


class Epoch:
    """Adds up losses and gradient norms, which stay on the device until they are read.

    Args:
        samples_per_step: Of all processes.
        skips: Whether steps whose gradient is not finite change no weights (fp16).
    """

    def __init__(self, samples_per_step: int, *, skips: bool = False) -> None:
        self.began = time.perf_counter()
        self.samples_per_step, self.skips = samples_per_step, skips
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._losses)

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Take in the figures of a step."""
        self._losses.append(loss)
        self._norms.append(norm)

    def read(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Loss and gradient norm of each step so far; waits for the device, once."""
        if not self._losses:
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        figures = torch.stack([torch.stack(self._losses), torch.stack(self._norms)]).cpu().numpy()
        return figures[0], figures[1]

    def first_fault(self) -> int | None:
        """Position of the first step that left weights without meaning; None if all are well."""
        losses, norms = self.read()
        bad = ~np.isfinite(losses)
        if not self.skips:
            bad |= ~np.isfinite(norms)
        return int(np.argmax(bad)) if bad.any() else None

    def close(self, state: TrainState, share: float, *, waited_s: float) -> dict[str, Any]:
        """The facts as they go into ``log.jsonl``."""
        losses, norms = self.read()
        took = max(time.perf_counter() - self.began, 1e-9)
        norms = norms[np.isfinite(norms)]
        return {
            "epoch": len(state.history) + 1, "step": state.step, "progress": round(share, 4),
            "loss": float(losses.mean()), "elapsed_s": round(state.elapsed_s, 2),
            "steps_per_s": round(len(losses) / took, 3),
            "samples_per_s": round(len(losses) * self.samples_per_step / took, 3),
            "gradient_norm": round(float(norms.mean()), 5) if norms.size else None,
            "data_wait_share": round(min(1.0, waited_s / took), 4),
        }  # fmt: skip
