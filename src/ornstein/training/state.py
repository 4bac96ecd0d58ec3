"""The trainer's part of a run folder: all that a resumed run needs, in one file, and the curve beside it."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ornstein import checkpoint
from ornstein.errors import UserError
from ornstein.metrics import METRICS
from ornstein.sharding import is_split, load_whole, split_as, whole
from ornstein.store import (
    atomic_save_tensors,
    keep_previous,
    load_tensors,
    make_folder,
    remove_partial,
)
from ornstein.training.config import TrainConfig

__all__ = [
    "FREE",
    "PREVIOUS",
    "STATE",
    "check_new",
    "check_resumable",
    "check_same",
    "clear",
    "has_state",
    "load",
    "read_record",
    "save",
    "sound",
    "tensors_of",
]

STATE = Path("state") / "trainer.safetensors"
PREVIOUS = Path("state") / "previous.safetensors"
# what may differ between a run and its resumption: how long it goes on, and what it leaves on the way
FREE = {
    "training.steps",
    "training.minutes",
    "training.checkpoint_every",
    "training.sample_every",
    "training.accumulate",  # the same steps but for rounding, as on another number of processes
    "training.track",
    "latent.autoencoder",  # where it lies; its fingerprint may not differ
}

_DEFAULTS = json.loads(json.dumps(asdict(TrainConfig())))

_AVERAGES = ("average.", "average2.")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


def check_new(out: Path) -> None:
    """Raises UserError where `out` already holds a run."""
    for name in (STATE, PREVIOUS, METRICS, checkpoint.CONFIG, checkpoint.MODEL):
        if (out / name).exists():
            raise UserError(f"{out} already holds a run ({name}): go on with --resume, or give another folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a folder for the run")


def check_resumable(out: Path) -> None:
    """Raises UserError where there is nothing to go on with."""
    if not out.is_dir():
        raise UserError(f"there is no run to resume in {out}: leave out --resume")
    if not has_state(out) and (out / checkpoint.MODEL).exists():
        raise UserError(f"{out} holds a model but no {STATE}: it can be sampled from, not trained further")


def clear(out: Path) -> None:
    """Delete what a killed run left half written."""
    for folder in (out, (out / STATE).parent):
        remove_partial(folder)


def has_state(out: Path) -> bool:
    """Whether there is anything but the beginning to go on from."""
    return (out / STATE).exists() or (out / PREVIOUS).exists()


def tensors_of(
    net: nn.Module, averages: Sequence[nn.Module], optimizer: torch.optim.Optimizer, keep: bool = True
) -> dict[str, Tensor]:
    """The trainer's state: raw and averaged weights, and the optimizer's moments.

    Where they are split over processes they are gathered one by one, in main memory, by those that `keep` them; all
    processes must then ask at once.
    """
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    for prefix, average in zip(_AVERAGES, averages, strict=False):
        tensors |= {f"{prefix}{name}": value for name, value in average.state_dict().items()}
    for name, parameter in net.named_parameters():
        moments = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{key}.{name}": moments[key] for key in _MOMENTS if key in moments}
    gathered = ((name, whole(value.detach()).cpu() if is_split(value) else value) for name, value in tensors.items())
    return {name: value for name, value in gathered if keep}


def save(out: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write the trainer's state, `tensors_of` it, and `record` as JSON in the header.

    One file and one rename, so that weights, moments and step are always of the same step. The state before it is kept.

    Raises:
        RunError: the disk is full; the last state is intact.
    """
    path = out / STATE
    make_folder(path.parent)
    if path.exists():
        keep_previous(path, out / PREVIOUS)
    atomic_save_tensors(path, tensors, {"record": json.dumps(record)})


def read_record(out: Path) -> dict[str, Any]:
    """The record of the last state: step, elapsed seconds and the description of the run."""
    return sound(out)[1]


def sound(out: Path) -> tuple[Path, dict[str, Any]]:
    """The file and the record of the last state; of the one before where that is damaged, with a warning that says so.

    Raises:
        UserError: neither can be read.
    """
    failures = []
    for name in (STATE, PREVIOUS):
        if not (out / name).exists():
            continue
        try:
            record = _read(out / name)[0]
        except UserError as error:
            failures.append(error)
            continue
        if failures:
            warnings.warn(f"{failures[0]}; going on from the one before, of step {record['step']}", stacklevel=2)
        return out / name, record
    raise failures[0] if failures else UserError(f"there is no file {out / STATE}")


def load(path: Path, net: nn.Module, averages: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load the state in the file `path` into the networks and the optimizer; its record, as `save` was given it.

    Raises:
        UserError: the file cannot be read, or is not of this network.
    """
    record, tensors = _read(path)
    try:
        for prefix, module in (("net.", net), *zip(_AVERAGES, averages, strict=False)):
            load_whole(module, _under(prefix, tensors))
    except RuntimeError as error:
        raise UserError(f"{path} is not of this network: {str(error).splitlines()[-1].strip()}") from error
    for name, parameter in net.named_parameters():
        for key in _MOMENTS:
            saved = tensors.get(f"optimizer.{key}.{name}")
            if saved is not None:
                # the fused step needs moments with the memory order of the parameter, and its counter on the device
                like = (
                    torch.empty_like(saved, device=parameter.device) if key == "step" else torch.empty_like(parameter)
                )
                optimizer.state[parameter][key] = like.detach().copy_(split_as(saved, like))
    return record


def check_same(out: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UserError naming the first field in which the run in `out` and the one asked for differ."""
    # settings that the run is older than had their defaults
    before = _flat({"training": _DEFAULTS}) | _flat(saved)
    after = _flat(json.loads(json.dumps(now)))
    for field in sorted(before.keys() | after.keys()):
        if field not in FREE and before.get(field) != after.get(field):
            raise UserError(
                f"{out} was trained with {field} = {before.get(field)}, and {after.get(field)} is asked for: "
                "resume with the same, or train into another folder"
            )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        tensors, metadata = load_tensors(path)
        record = json.loads(metadata["record"])
        missing = {"step", "elapsed", "run"} - record.keys()
        if missing:
            raise ValueError(f"it has no {min(missing)}")
    except (UserError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"cannot read the trainer's state {path}: {error}") from error
    return record, tensors


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}".lstrip(".")).items()}
