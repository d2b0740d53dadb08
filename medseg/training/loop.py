"""The training loop, from top to bottom."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg.core.errors import Interrupted, MedsegError
from medseg.core.plan import Plan
from medseg.inference.device import autocast_dtype
from medseg.inference.predictor import Predictor
from medseg.networks.build import build_network
from medseg.training.cache import CachedCase
from medseg.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from medseg.training.loader import Batches
from medseg.training.losses import deep_supervision_loss
from medseg.training.schedule import Schedule, learning_rate
from medseg.training.validation import mean_class_dice

# Looks at the inner cases, as shares of the run. Late ones: weights are best near the end.
LOOKS = (0.25, 0.5, 0.65, 0.8, 0.9, 1.0)
_CHECKPOINT_EVERY_S = 300.0
# torch.compile takes up to a minute; in a shorter run it would cost more than it gives.
_COMPILE_PAYS_S = 240.0


@dataclass(frozen=True)
class TrainJob:
    """What the loop is asked to do.

    Attributes:
        plan: Network, batch, optimiser, augmentation.
        cases: To learn from.
        inner: Kept back, to choose the best weights by; may be empty.
        schedule: When it ends.
        seed: Decides the first weights and, with the step, every batch.
        device: Where it runs.
        checkpoint: File of the state; a run that was stopped goes on from it.
        exact: Bit-equal to an undisturbed run, or an error.
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
    exact: bool = False
    on_epoch: Callable[[dict[str, Any]], None] = field(default=lambda facts: None)
    on_look: Callable[[Predictor, int], None] = field(default=lambda predictor, step: None)
    on_step: Callable[[int, float], None] = field(default=lambda step, share: None)
    stop: Callable[[], bool] = field(default=lambda: False)


def train_network(job: TrainJob) -> TrainState:
    """Train until the schedule ends, going on from the checkpoint where there is one.

    Returns:
        The final state; ``state.best`` holds the weights to use.

    Raises:
        Interrupted: ``job.stop`` said so; the state is in ``job.checkpoint``.
        MedsegError: The loss is not finite.
    """
    plan, training, device = job.plan, job.plan.training, job.device
    state = new_state(plan, seed=job.seed, device=device)
    if job.checkpoint.is_file():
        load_checkpoint(job.checkpoint, state, device, exact=job.exact)
    compiled = device.type == "cuda" and (job.schedule.seconds or math.inf) > _COMPILE_PAYS_S
    step_once = Stepper(state, plan, device, compiled=compiled)
    batches = Batches(
        job.cases, plan, seed=job.seed, device=device, workers=4 if device.type == "cuda" else 0
    )
    stream = batches.iterate(state.step)
    began = time.perf_counter() - state.elapsed_s
    saved, epoch = time.perf_counter(), _Epoch()
    share = job.schedule.progress(state.step, state.elapsed_s)

    while share < 1.0:
        images, labels = next(stream)
        loss = step_once(images, labels, learning_rate(training, share))
        update_average(state, training.ema_decay)
        state.step += 1
        state.elapsed_s = time.perf_counter() - began
        epoch.add(loss, len(images))
        share = job.schedule.progress(state.step, state.elapsed_s)
        job.on_step(state.step, share)

        if state.step % training.steps_per_epoch == 0 or share >= 1.0:
            facts = epoch.close(state, share, waited_s=batches.waited_s)
            _check_finite(facts["loss"], state.step)
            facts["learning_rate"] = learning_rate(training, share)
            if any(state.looked < look <= share for look in LOOKS):
                state.looked = share
                facts["dice"] = choose_best(state, job)
            state.history.append(facts)
            job.on_epoch(facts)
            epoch, batches.waited_s = _Epoch(), 0.0

        if job.stop():
            save_checkpoint(job.checkpoint, state, device)
            raise Interrupted(
                "training", got=f"a request to stop at step {state.step}", cure="Add --resume."
            )
        if time.perf_counter() - saved > _CHECKPOINT_EVERY_S:
            save_checkpoint(job.checkpoint, state, device)
            saved = time.perf_counter()

    stream.close()
    save_checkpoint(job.checkpoint, state, device)
    return state


def new_state(plan: Plan, *, seed: int, device: torch.device) -> TrainState:
    """Fresh weights and optimiser, a function of the plan and the seed alone."""
    network = build_network(plan.network, seed=seed).to(device).train()
    return TrainState(network, copy.deepcopy(network).eval(), make_optimiser(network, plan))


def make_optimiser(network: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum 0.99 (as nnU-Net trains)."""
    rate, decay = plan.training.learning_rate, plan.training.weight_decay
    if plan.training.optimiser == "sgd":
        return torch.optim.SGD(
            network.parameters(), lr=rate, momentum=0.99, nesterov=True, weight_decay=decay
        )
    return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)


@torch.no_grad()
def update_average(state: TrainState, decay: float) -> None:
    """Move the averaged weights towards the network's; faster in the first steps."""
    keep = min(decay, (1 + state.step) / (10 + state.step))
    pairs = zip(state.average.parameters(), state.network.parameters(), strict=True)
    for average, current in pairs:
        average.lerp_(current, 1 - keep)


def choose_best(state: TrainState, job: TrainJob) -> dict[str, float | None]:
    """Score the averaged weights on the inner cases, and keep them where they did best.

    Returns:
        Mean Dice by label name (None for a label that no inner case has); empty without
        inner cases, where the latest weights are kept.
    """
    predictor = Predictor([copy.deepcopy(state.average)], job.plan, job.device)
    dice = mean_class_dice(predictor, job.inner)
    job.on_look(predictor, state.step)
    known = dice[~np.isnan(dice)]
    score = float(known.mean()) if known.size else -1.0
    if score >= state.best_score or not job.inner:
        weights = state.average.state_dict()
        state.best = {name: value.detach().clone() for name, value in weights.items()}
        state.best_score = score
    names = job.plan.labels.names if job.inner else ()
    return {
        name: None if math.isnan(value) else round(float(value), 4)
        for name, value in zip(names, dice, strict=False)
    }


class Stepper:
    """One optimisation step, in half precision where the device has it.

    Args:
        state: Its network and optimiser are changed by each call.
        plan: For the gradient's largest norm.
        device: Where the network lies.
        compiled: Let ``torch.compile`` fuse the network.
    """

    def __init__(
        self, state: TrainState, plan: Plan, device: torch.device, *, compiled: bool = False
    ) -> None:
        self.state, self.device = state, device
        self.parameters = list(state.network.parameters())
        self.largest_norm = plan.training.clip_gradient_norm
        self.half = autocast_dtype(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half is torch.float16)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)
        self.forward = torch.compile(state.network) if compiled else state.network

    def __call__(self, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        """Learn from a batch at a learning rate; returns the loss, still on the device."""
        optimiser = self.state.optimiser
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.half) if self.half else nullcontext():
            outputs = self.forward(images)
        loss = deep_supervision_loss(outputs if isinstance(outputs, list) else [outputs], labels)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(self.parameters, self.largest_norm)
        self.scaler.step(optimiser)
        self.scaler.update()
        self.state.scaler = self.scaler.state_dict()
        return loss.detach()


class _Epoch:
    """Adds up the facts of one epoch; the loss is read from the device only at its end."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.losses: list[Tensor] = []
        self.samples = 0

    def add(self, loss: Tensor, samples: int) -> None:
        self.losses.append(loss)
        self.samples += samples

    def close(self, state: TrainState, share: float, *, waited_s: float) -> dict[str, Any]:
        loss = float(torch.stack(self.losses).mean())
        took = max(time.perf_counter() - self.began, 1e-9)
        return {
            "epoch": len(state.history) + 1, "step": state.step, "progress": round(share, 4),
            "loss": loss, "elapsed_s": round(state.elapsed_s, 2),
            "steps_per_s": round(len(self.losses) / took, 3),
            "data_wait_share": round(min(1.0, waited_s / took), 4),
        }  # fmt: skip


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise MedsegError(
            "training",
            expected="a finite loss",
            got=f"{loss} at step {step}",
            cure="Start again with a lower --set plan.training.learning_rate=...",
        )
