"""Several processes that train one network together: what they add up, and what they agree on.

They are started by ``torchrun``, one for each device. Each takes samples of its own; gradients
are averaged by DistributedDataParallel. A loss adds its sums over voxels up over all processes
before it divides them, so that it is the loss of the whole batch, not a mean of several losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from medseg.core.errors import ResourceError
from medseg.core.settings import Launch

# One process alone reads, plans, validates and writes; the others wait for it that long. A
# process that dies is noticed by torchrun, which then ends the others.
_PATIENCE = timedelta(days=2)
Result = TypeVar("Result")


class _AllSum(torch.autograd.Function):
    """Sum over processes whose gradient is right once gradients are averaged over processes.

    Each process derives the whole loss by its own part. The sum of these is the gradient;
    DistributedDataParallel takes their mean, hence the factor.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * dist.get_world_size()


@dataclass(frozen=True)
class Team:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: Which of them this is; 0 leads: it alone writes.
        size: How many they are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def total(self, sums: Tensor) -> Tensor:
        """Sums over voxels or samples, added up over all processes."""
        if self.size == 1:
            return sums
        total: Tensor = _AllSum.apply(sums)
        return total

    def share_gradients(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network, made to average its gradients over all processes."""
        if self.size == 1:
            return network
        return DistributedDataParallel(network, [device] if device.type == "cuda" else None)

    def agree(self, elapsed_s: float, stop: bool) -> tuple[float, bool]:
        """The leader's clock, and whether any process was asked to stop.

        All processes get the same answer, so that they end at the same step. It goes over the
        host: no device is waited for.
        """
        if self.size == 1:
            return elapsed_s, stop
        word = torch.tensor([elapsed_s if self.leads else -1.0, float(stop)], dtype=torch.float64)
        dist.all_reduce(word, dist.ReduceOp.MAX)
        return float(word[0]), bool(word[1])

    @contextmanager
    def told_of_losses(self) -> Iterator[None]:
        """Say in plain words that another process has ended.

        Raises:
            ResourceError: One has; this one cannot go on without it.
        """
        try:
            yield
        except RuntimeError as error:
            # gloo has no error class of its own.
            lost = isinstance(error, dist.DistError) or "gloo" in str(error)
            if self.size == 1 or not lost:
                raise
            raise ResourceError(
                f"process {self.rank} of {self.size}",
                expected="all processes to go on",
                got="one that has ended",
                cure="Look for its message; go on with --resume, or let torchrun do so with "
                "--max-restarts=3.",
            ) from error

    def first(self, action: Callable[[], Result]) -> Result:
        """Do it once the leader has: what it wrote is there, and need only be read."""
        if self.leads:
            result = action()
            self.wait()
            return result
        self.wait()
        return action()

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))


def device_of(launch: Launch | None, name: str) -> str:
    """The device that a process takes when ``name`` was asked for: ``auto`` is one for each.

    Raises:
        ResourceError: Several processes were sent to one GPU.
    """
    if launch is None or launch.size == 1:
        return name
    if name not in ("auto", "cuda", "cpu"):
        raise ResourceError(
            f"--device {name}",
            expected=f"auto, cuda or cpu for {launch.size} processes",
            got="one device for all",
            cure="Each process takes the GPU of its number; leave --device away.",
        )
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    return f"cuda:{launch.local_rank}"


@contextmanager
def team_of(launch: Launch | None, device: torch.device) -> Iterator[Team]:
    """Join the processes that were started with this one; a process by itself is a team of one.

    Args:
        launch: What the launcher said; None without one.
        device: Of this process.
    """
    if launch is None or launch.size == 1:
        yield Team()
        return
    if dist.is_initialized():  # by a program that calls medseg
        yield Team(dist.get_rank(), dist.get_world_size())
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Words about the run go over the host, tensors of the device by its own way.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, size = next(rendezvous("env://", launch.rank, launch.size, timeout=_PATIENCE))
    if launch.local_size == launch.size:
        # The store outlives a restart; addresses of processes that died must not be found in it.
        # On several machines the counts differ, and the launcher can be told to make a new store.
        store = dist.PrefixStore(  # type: ignore[attr-defined]
            f"medseg start {launch.restarts}", store
        )
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield Team(launch.rank, launch.size)
    finally:
        dist.destroy_process_group()
