"""One step of the optimiser, and the state that it changes."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medseg.core.plan import Plan
from medseg.inference.device import autocast_dtype
from medseg.networks.blocks import train_channels_last
from medseg.networks.build import build_network
from medseg.training.checkpoint import TrainState
from medseg.training.losses import SegmentationLoss
from medseg.training.muon import Muon
from medseg.training.processes import Team
from medseg.training.targets import Targets


def new_state(plan: Plan, *, seed: int, device: torch.device) -> TrainState:
    """Fresh weights and optimiser, a function of the plan and the seed alone."""
    network = build_network(plan.network, seed=seed).to(device).train()
    half = training_dtype(plan, device)
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    average = copy.deepcopy(network).eval()
    return TrainState(network, average, make_optimiser(network, plan), scaler)


def training_dtype(plan: Plan, device: torch.device) -> torch.dtype | None:
    """In what the network computes in a step; None is fp32 without autocast."""
    precision = plan.training.precision
    if precision == "auto":
        return autocast_dtype(device)
    return torch.bfloat16 if precision == "bf16" else None


def make_optimiser(network: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Muon, AdamW, or SGD with Nesterov momentum 0.99 (as nnU-Net trains)."""
    rate, decay = plan.training.learning_rate, plan.training.weight_decay
    if plan.training.optimiser == "sgd":
        return torch.optim.SGD(
            network.parameters(), lr=rate, momentum=0.99, nesterov=True, weight_decay=decay
        )
    if plan.training.optimiser == "muon":
        return Muon(network, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)


@torch.no_grad()
def update_average(state: TrainState, decay: float) -> None:
    """Move the averaged weights towards the network's; faster in the first steps."""
    keep = min(decay, (1 + state.step) / (10 + state.step))
    averages: list[Tensor] = list(state.average.parameters())
    currents: list[Tensor] = list(state.network.parameters())
    torch._foreach_lerp_(averages, currents, 1 - keep)
    for average, current in zip(state.average.buffers(), state.network.buffers(), strict=True):
        average.copy_(current)


class Stepper:
    """One optimisation step, in half precision where the device has it.

    Args:
        state: Its network, optimiser and scaler are changed by each call.
        plan: For the loss and the gradient's largest norm.
        device: Where the network lies.
        compiled: Let ``torch.compile`` fuse the network.
        team: The processes that share the step.
        parts: Batches of which a step is made.
    """

    def __init__(
        self,
        state: TrainState,
        plan: Plan,
        device: torch.device,
        *,
        compiled: bool = False,
        team: Team | None = None,
        parts: int = 1,
    ) -> None:
        self.state, self.device, self.parts = state, device, parts
        self.team = team or Team()
        self.parameters = list(state.network.parameters())
        self.largest_norm = plan.training.clip_gradient_norm
        self.loss = SegmentationLoss(plan, device, total=self.team.total, processes=self.team.size)
        if plan.training.memory_format == "channels_last":
            train_channels_last(state.network)
        self.half = training_dtype(plan, device)
        self.shared = self.team.share_gradients(state.network, device)
        self.forward = torch.compile(self.shared) if compiled else self.shared

    def __call__(
        self, batches: Iterable[tuple[Tensor, Targets]], rate: float, *, progress: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Learn from the batches of a step.

        Args:
            batches: ``parts`` of them: images and labels.
            rate: The learning rate.
            progress: Share of the run, for losses that change.

        Returns:
            The loss, and the gradient's norm before clipping; both still on the device.
        """
        optimiser, scaler = self.state.optimiser, self.state.scaler
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for number, (images, targets) in enumerate(batches, start=1):
            part = self._loss_of(images, targets, progress, last=number == self.parts)
            total += part
        scaler.unscale_(optimiser)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.largest_norm)
        scaler.step(optimiser)
        scaler.update()
        return total, norm

    def _loss_of(self, images: Tensor, targets: Targets, progress: float, *, last: bool) -> Tensor:
        """The share of one batch in the step's loss; its gradient is added to the others'."""
        shared = self.shared
        # Gradients go from process to process once a step, with its last batch.
        alone = isinstance(shared, DistributedDataParallel) and not last
        with cast(DistributedDataParallel, shared).no_sync() if alone else nullcontext():
            with torch.autocast(self.device.type, self.half) if self.half else nullcontext():
                outputs = self.forward(images)
            outputs = outputs if isinstance(outputs, list) else [outputs]
            loss = self.loss(outputs, targets, progress=progress) / self.parts
            self.state.scaler.scale(loss).backward()
        return loss.detach()
