"""Failures of a training step as one-line errors that say what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ornstein.compiling import is_of_compiler
from ornstein.errors import RunError
from ornstein.processes import Processes
from ornstein.training.config import TrainConfig
from ornstein.training.state import has_state

__all__ = ["kept", "not_finite_rows", "of_step"]

_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


def kept(out: Path) -> str:
    """Says whether a failed run has a checkpoint."""
    return f"the last checkpoint is kept in {out}" if has_state(out) else "no checkpoint"


def of_step(
    error: RuntimeError | MemoryError, step: int, config: TrainConfig, processes: Processes, out: Path
) -> RunError | None:
    """The one-line error of a step: out of memory, not compiled, or without another process; None for any other."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in text.lower() for word in _NO_MEMORY):
        return _memory(text, step, config, processes, out)
    if is_of_compiler(error):
        why = text.strip().splitlines() or [type(error).__name__]
        return RunError(f"step {step}: torch.compile does not work here: {why[0]}; {kept(out)}. Leave out --compile")
    if processes.lost(error):
        return RunError(
            f"step {step}: another of the {processes.world} processes has ended, see what it said; {kept(out)}. Go on "
            "with --resume, on any number of processes"
        )
    return None


def _memory(text: str, step: int, config: TrainConfig, processes: Processes, out: Path) -> RunError:
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", text)
    asked = f", where {wanted[1]} more were asked for" if wanted else ""
    at_once = config.batch // processes.world // config.accumulate
    if at_once > 1:
        advice = (
            f"halve what is computed at once with --accumulate {2 * config.accumulate} (the same training to "
            f"rounding), or the batch with --batch {max(1, config.batch // 2)}"
        )
    else:
        advice = "it is down to one at once: take a smaller --net or --size"
    return RunError(f"step {step}: out of memory with {at_once} images at once{asked}; {kept(out)}. {advice}")


def not_finite_rows(x0: Tensor, indices: Sequence[int], names: Sequence[str] | None) -> str | None:
    """Names the images of x0 (B, *) that hold values that are not finite, or their numbers; None if all are finite."""
    bad = (~x0.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
    if not bad:
        return None
    first = indices[bad[0]]
    name = names[first] if names is not None else f"number {first}"
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"the data have values that are not finite: image {name}{more}"
