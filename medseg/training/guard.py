"""What happens when the loss is not finite: once back and slower, then the batch is kept."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch

from medseg.core.errors import MedsegError
from medseg.io.atomic import whole_file, write_text
from medseg.training.checkpoint import TrainState, restore_snapshot, take_snapshot
from medseg.training.loader import Batches, Portion

_SLOWER = 0.5
_log = logging.getLogger(__name__)


class Guard:
    """Holds the last good state of a run, on the host.

    Args:
        state: Good now.
        device: Where it lies.
        folder: Where a batch is written that cannot be learned from.
        leads: Whether this process writes.
    """

    def __init__(
        self, state: TrainState, device: torch.device, *, folder: Path, leads: bool = True
    ) -> None:
        self.device, self.folder, self.leads = device, folder, leads
        self.keep(state)

    def keep(self, state: TrainState) -> None:
        """Take the state as the last good one."""
        self._good = take_snapshot(state)

    def roll_back(self, state: TrainState, *, fault: int, batches: Batches) -> None:
        """Bring the state back to the last good one, at a lower learning rate.

        Args:
            state: It is changed.
            fault: The step whose loss or gradient was not finite.
            batches: That it learned from.

        Raises:
            MedsegError: The rate was lowered before; the step's batch lies in ``folder``.
        """
        if state.rate_scale < 1.0:
            rate = state.optimiser.param_groups[0]["lr"]
            strange = self._save_batch(batches, fault, rate) if self.leads else []
            cure = f"The batch of step {fault} is in {self.folder}."
            if strange:
                cure += f" Values of it are not finite: mend the scan of {', '.join(strange)}."
            else:
                cure += " Start again with a lower --set plan.training.learning_rate=..."
            raise MedsegError(
                "training",
                expected="a finite loss",
                got=f"one that is not at step {fault}, again after the learning rate was lowered",
                cure=cure,
            )
        scale = state.rate_scale * _SLOWER
        restore_snapshot(state, self._good, self.device)
        state.rate_scale = scale
        _log.warning(
            "the loss of step %d is not finite: back to step %d, with %g of the learning rate",
            fault, state.step, scale,
        )  # fmt: skip

    def _save_batch(self, batches: Batches, step: int, rate: float) -> list[str]:
        """Write all samples of a step; the cases of those that hold values without meaning."""
        lot = batches.portion
        images, labels, samples, strange = [], [], [], []
        for process in range(lot.processes):
            theirs = Batches(
                batches.cases, batches.plan, seed=batches.seed, device=batches.device,
                portion=Portion(process, lot.processes, lot.parts),
            )  # fmt: skip
            for part in range(lot.parts):
                image, targets = theirs.batch(step, part)
                images.append(image.cpu().numpy())
                labels.append(targets.labels.cpu().numpy().astype(np.int32))
                for draw, voxels in zip(theirs.draw(step, part), image, strict=True):
                    case, finite = theirs.cases[draw.case].case_id, bool(voxels.isfinite().all())
                    centre = [round(float(place), 2) for place in draw.centre]
                    samples.append({"case": case, "centre_voxel": centre, "finite": finite})
                    strange += [] if finite else [case]
        for name, arrays in (("images", images), ("labels", labels)):
            with whole_file(self.folder / f"{name}.npy") as temporary:
                np.save(temporary, np.concatenate(arrays), allow_pickle=False)
        facts = {
            "step": step, "learning_rate": rate, "seed": batches.seed,
            "images": "images.npy: (samples, channels, I, J, K) float32",
            "labels": "labels.npy: (samples, I, J, K) class indices, -1 where nobody labelled",
            "samples": samples,
        }  # fmt: skip
        write_text(self.folder / "batch.json", json.dumps(facts, indent=2))
        return sorted(set(strange))
