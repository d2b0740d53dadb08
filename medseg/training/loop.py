"""The training loop, from top to bottom."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from medseg.core.errors import Interrupted
from medseg.core.plan import Plan
from medseg.inference.predictor import Predictor
from medseg.training.cache import CachedCase
from medseg.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from medseg.training.determinism import chance_of_its_own, seed_step
from medseg.training.epoch import Epoch
from medseg.training.guard import Guard
from medseg.training.kept_memory import freed_memory_kept
from medseg.training.loader import Batches, Portion
from medseg.training.looks import choose_weights, is_due
from medseg.training.processes import Team
from medseg.training.schedule import Schedule, learning_rate
from medseg.training.step import Stepper, new_state, update_average

# torch.compile takes up to a minute; in a shorter run it would cost more than it gives.
_COMPILE_PAYS_S = 240.0


@dataclass(frozen=True)
class TrainJob:
    """What the loop is asked to do.

    Attributes:
        plan: Network, batch, optimiser, augmentation.
        cases: To learn from.
        inner: Kept back, to choose the weights by; may be empty.
        schedule: When it ends.
        seed: Decides the first weights and, with the step, every batch.
        device: Where it runs.
        checkpoint: File of the state; a run that was stopped goes on from it.
        checkpoint_every_s: Seconds from one checkpoint to the next.
        exact: Bit-equal to an undisturbed run, or an error.
        spacious: On a CPU there is memory to spare, which makes steps quicker.
        team: The processes that train together.
        parts: Batches of each process of which one step is made.
        on_epoch: Told the facts of each epoch, as they go into ``log.jsonl``.
        on_look: Given the predictor at each look at the inner cases.
        on_step: Told the steps that are done and the share of the run, 0 to 1.
        stop: Asked after each step; True saves the state and raises ``Interrupted``.
    """

    plan: Plan
    cases: list[CachedCase]
    inner: list[CachedCase]
    schedule: Schedule
    seed: int
    device: torch.device
    checkpoint: Path
    checkpoint_every_s: float = 300.0
    exact: bool = False
    spacious: bool = True
    team: Team = field(default_factory=Team)
    parts: int = 1
    on_epoch: Callable[[dict[str, Any]], None] = field(default=lambda facts: None)
    on_look: Callable[[Predictor, int], None] = field(default=lambda predictor, step: None)
    on_step: Callable[[int, float], None] = field(default=lambda step, share: None)
    stop: Callable[[], bool] = field(default=lambda: False)


def train_network(job: TrainJob, state: TrainState | None = None) -> TrainState:
    """Train until the schedule ends, going on from the checkpoint where there is one.

    Args:
        job: What to do.
        state: To begin with where there is no checkpoint; None for fresh weights.

    Returns:
        The final state; ``state.best`` holds the weights to use (of the leading process).

    Raises:
        Interrupted: ``job.stop`` said so; the state is in ``job.checkpoint``.
        MedsegError: The loss is not finite, also at a lower learning rate.
    """
    state = state or new_state(job.plan, seed=job.seed, device=job.device)
    state.processes = job.team.size
    if job.checkpoint.is_file():
        load_checkpoint(job.checkpoint, state, job.device, exact=job.exact)
    with chance_of_its_own(job.device), freed_memory_kept(job.device.type, spacious=job.spacious):
        _train(job, state)
    if job.team.leads:
        if state.best is None:
            _look(job, state)
        save_checkpoint(job.checkpoint, state, job.device)
    return state


def _train(job: TrainJob, state: TrainState) -> None:
    training, schedule, team = job.plan.training, job.schedule, job.team
    tools = _Tools(job, state)
    saved = time.perf_counter()
    began = saved - state.elapsed_s
    share = schedule.progress(state.step, state.elapsed_s)
    state.looked = min(state.looked, share)  # a run made longer is less far than it was

    while share < 1.0:
        rate = state.rate_scale * learning_rate(training, share)
        tools.take_step(rate, share)
        elapsed_s = time.perf_counter() - began
        job.on_step(state.step, schedule.progress(state.step, elapsed_s))
        # Processes go by one clock, and so end at the same step.
        elapsed_s, stopping = team.agree(elapsed_s, job.stop())
        state.elapsed_s, share = elapsed_s, schedule.progress(state.step, elapsed_s)

        closing = state.step % training.steps_per_epoch == 0 or share >= 1.0
        saving = stopping or time.perf_counter() - saved > job.checkpoint_every_s
        # Only here are losses read: no other step waits for the device.
        fault = tools.epoch.first_fault() if closing or (saving and team.leads) else None
        if closing and fault is not None:
            tools.roll_back(fault)
            state.elapsed_s, share = elapsed_s, schedule.progress(state.step, elapsed_s)
        elif closing:
            tools.close_epoch(share, rate)

        # Within an epoch that went wrong, the former checkpoint is the better one.
        if saving and team.leads and (closing or fault is None):
            save_checkpoint(job.checkpoint, state, job.device)
            saved = time.perf_counter()
        if stopping:
            team.wait()
            raise Interrupted(
                "training", got=f"a request to stop at step {state.step}", cure="Add --resume."
            )

    tools.stream.close()


class _Tools:
    """What the loop works with: batches, the step, the facts of the epoch, the way back."""

    def __init__(self, job: TrainJob, state: TrainState) -> None:
        self.job, self.state = job, state
        on_gpu, team = job.device.type == "cuda", job.team
        self.step_once = Stepper(
            state, job.plan, job.device, team=team, parts=job.parts,
            compiled=on_gpu and (job.schedule.seconds or math.inf) > _COMPILE_PAYS_S,
        )  # fmt: skip
        self.batches = Batches(
            job.cases, job.plan, seed=job.seed, device=job.device, workers=4 if on_gpu else 0,
            portion=Portion(team.rank, team.size, job.parts),
        )  # fmt: skip
        folder = job.checkpoint.parent / "failed_batch"
        self.guard = Guard(state, job.device, folder=folder, leads=team.leads)
        self.stream = self.batches.iterate(state.step)
        self.epoch = self._new_epoch()

    def _new_epoch(self) -> Epoch:
        self.batches.waited_s = 0.0
        return Epoch(self.batches.step_size, skips=self.state.scaler.is_enabled())

    def take_step(self, rate: float, share: float) -> None:
        state, job = self.state, self.job
        seed_step(job.seed, state.step, job.team.rank)
        batches = islice(self.stream, job.parts)
        self.epoch.add(*self.step_once(batches, rate, progress=share))
        update_average(state, job.plan.training.ema_decay)
        state.step += 1

    def close_epoch(self, share: float, rate: float) -> None:
        state, job = self.state, self.job
        facts = self.epoch.close(state, share, waited_s=self.batches.waited_s)
        facts["learning_rate"] = rate
        if is_due(state.looked, share):
            state.looked = share
            if job.team.leads:
                facts["dice"] = _look(job, state)
        state.history.append(facts)
        job.on_epoch(facts)
        self.guard.keep(state)
        self.epoch = self._new_epoch()

    def roll_back(self, fault: int) -> None:
        self.stream.close()
        failed = self.state.step - len(self.epoch) + fault
        self.guard.roll_back(self.state, fault=failed, batches=self.batches)
        self.stream, self.epoch = self.batches.iterate(self.state.step), self._new_epoch()


def _look(job: TrainJob, state: TrainState) -> dict[str, float | None]:
    """Score the averaged weights; the ones to use are kept, and a picture is drawn."""
    predictor = Predictor([copy.deepcopy(state.average)], job.plan, job.device)
    dice = choose_weights(state, predictor, job.inner)
    job.on_look(predictor, state.step)
    return dice
