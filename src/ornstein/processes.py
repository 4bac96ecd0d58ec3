"""The processes of a launch (`torchrun -m ornstein ...`, `accelerate launch`, `srun`, `mpirun`), and what they share.

Hugging Face Accelerate starts the process group and wraps the model in PyTorch's DistributedDataParallel, or where it
says FSDP, PyTorch splits the model; it is imported only where a launcher started more than one process. The plain
command is one process and needs no Accelerate.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ornstein import sharding
from ornstein.errors import RunError, UserError
from ornstein.extras import require
from ornstein.launch import join, launched

T = TypeVar("T")

# What `accelerate launch` sets for engines that split the model itself.
_FSDP, _DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
# How the engines' errors name a peer that is gone. They have no class of their own for it.
_LOST = ("closed by peer", "reset by peer", "broken pipe", "socket", "pair closure", "nccl", "timed out waiting")


class Processes:
    """This process, number `rank` of `world`; with a world of 1 nothing is communicated.

    Where `split`, each holds its part of the model (see `sharding`); else each holds all of it.
    """

    def __init__(self, accelerator: Any = None, split: bool = False) -> None:
        self.accelerator = accelerator
        self.split = split
        self.rank: int = 0 if accelerator is None else accelerator.process_index
        self.world: int = 1 if accelerator is None else accelerator.num_processes

    @property
    def here(self) -> int:
        """The processes of this machine."""
        return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if self.world > 1 else 1

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def place(self, module: nn.Module) -> torch.device:
        """Move a model to the device of this process: that of its local rank in a launch, else where it is."""
        if self.accelerator is not None:
            module.to(self.accelerator.device)
        return next(module.parameters()).device

    def wrap(self, module: nn.Module, varying: bool) -> nn.Module:
        """The module whose backward pass averages the gradients over the processes.

        `varying`: some parameters may have no part in a step, which takes a search through the graph each time.
        """
        if self.accelerator is None:
            return module
        if self.split:
            sharding.split(module, self.world)
            return module
        self.accelerator.ddp_handler.find_unused_parameters = varying
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Accelerate names one of its options as of old
            return self.accelerator.prepare(module)

    def apart(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Within it a backward pass of the wrapped module adds to this process's gradients and averages nothing."""
        if self.split:
            return sharding.without_sum(module)
        return nullcontext() if self.accelerator is None else self.accelerator.no_sync(module)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over the processes."""
        if self.accelerator is not None:
            torch.distributed.all_reduce(values)
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (B, *) of all processes in their order, (world B, *), without a gradient."""
        if self.accelerator is None:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        torch.distributed.all_gather(parts, rows.detach().contiguous())
        return torch.cat(parts)

    def collected(self, items: Sequence[T]) -> list[T]:
        """The items of all processes, in their order; pickled on their way, as in `agreed`."""
        if self.accelerator is None:
            return list(items)
        lists: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(lists, list(items))
        return [item for each in lists for item in each]

    def each(self, f: Callable[[], T]) -> T:
        """What `f` returns in this process, once all have called it. If it fails in one, it fails in all.

        Raises:
            UserError, RunError: those of `f`, here or in another process.
        """
        if self.accelerator is None:
            return f()
        result, failure = None, None
        try:
            result = f()
        except (UserError, RunError) as error:
            failure = error
        failures = self.collected([None if failure is None else (type(failure), str(failure))])
        if failure is not None:
            raise failure
        for other in failures:
            if other is not None:
                raise other[0](other[1])
        return cast("T", result)

    def agreed(self, f: Callable[[], T]) -> T:
        """What `f` returns or raises in the main process, in all of them; the others do not call it.

        What it returns is pickled on its way between the processes of one launch, which trust each other.
        """
        if self.accelerator is None:
            return f()
        told: list[Any] = [None, None]
        failure: Exception | None = None
        if self.main:
            try:
                told[0] = f()
            except (UserError, RunError) as error:
                failure = error
                told[1] = (type(error), str(error))
        torch.distributed.broadcast_object_list(told, src=0)
        if failure is not None:
            raise failure
        if told[1] is not None:
            kind, message = told[1]
            raise kind(message)
        return told[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def end(self) -> None:
        """Leave the group: from here on this process is by itself, and keeps its number."""
        if self.accelerator is not None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        self.accelerator, self.world = None, 1

    def lost(self, error: RuntimeError) -> bool:
        """Whether `error` of a communication says that another process is gone."""
        network = isinstance(error, torch.distributed.DistError) if self.world > 1 else False
        return network or (self.world > 1 and any(word in str(error).lower() for word in _LOST))


@lru_cache(maxsize=1)
def current() -> Processes:
    """The processes that this one was launched with. The first call starts their group, and waits for all of them.

    Raises:
        UserError: more than one and no Accelerate, or DeepSpeed.
    """
    world = launched()
    if world == 1:
        return Processes()
    join()
    if _asked(_DEEPSPEED):
        raise UserError(
            "DeepSpeed is not supported: launch with --multi_gpu or --cpu, or --use_fsdp to split the model"
        )
    split = _asked(_FSDP)
    if split:
        # Accelerate would want to make the optimizer itself, and knows FSDP on GPUs alone
        del os.environ[_FSDP]
    accelerate = require("accelerate", "distributed", f"a run on {world} processes")
    # Buffers are the same everywhere as it is.
    kwargs = accelerate.DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    accelerator = accelerate.Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision="no", dynamo_backend="no", kwargs_handlers=[kwargs]
    )
    return Processes(accelerator, split)


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")
