"""The averages of the weights: of one width or decay, or several kept for a choice of the width afterwards."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ornstein import sharding
from ornstein.errors import UserError
from ornstein.store import atomic_save_tensors, load_tensors, make_folder, remove_partial
from ornstein.training.config import POST_HOC, WIDTHS, TrainConfig, decay_of, ema_exponent
from ornstein.training.state import STATE, read_record

__all__ = [
    "FOLDER",
    "SNAPSHOTS",
    "Averages",
    "drop_after",
    "interval",
    "profile",
    "reconstruct",
    "snapshot_steps",
    "weights_for",
]

FOLDER = "ema"
SNAPSHOTS = 24
"""Steps at most whose averages a run keeps, two copies of the model each."""

_CELLS = 20_000  # of the time that profiles are compared on
_SAME = 1e-9  # of a profile that a snapshot has already


class Averages:
    """The averages of a model's weights over a training, updated after every step.

    `shown` is what a run shows and saves. With `ema` "post-hoc" there are two, power-function averages of the relative
    widths 0.05 and 0.10 (Karras et al. 2024, arXiv:2312.02696, section 3.2), and `keep` stores both from time to time;
    `reconstruct` makes any other from these.

    Args:
        model: the trained model.
        config: of the training.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model, self.config = model, config
        self.widths = (config.ema,) if isinstance(config.ema, float) else WIDTHS
        self.modules = [copy.deepcopy(model).eval().requires_grad_(False) for _ in self.widths]
        self.decays: list[Callable[[int], float]] = [decay_of(width) for width in self.widths]

    @property
    def shown(self) -> Any:
        return self.modules[0]

    def split(self, world: int) -> None:
        """Split the averages over processes, as the model is."""
        for module in self.modules:
            sharding.split(module, world)

    def update(self, step: int) -> None:
        """Take in the weights after step 1, 2, ..."""
        now = sharding.parts(list(self.model.parameters()))
        for module, decay in zip(self.modules, self.decays, strict=True):
            get_ema_multi_avg_fn(decay(step))(sharding.parts(list(module.parameters())), now, step - 1)
            for old, new in zip(module.buffers(), self.model.buffers(), strict=True):
                old.copy_(new)

    def due(self, step: int) -> bool:
        """Whether the averages after this step are kept."""
        return self.config.ema == POST_HOC and step % interval(step) == 0

    def tensors(self) -> dict[str, Tensor]:
        """Both averages by number and name. Where they are split, all processes must ask at once."""
        return {f"{i}.{k}": v for i, module in enumerate(self.modules) for k, v in sharding.whole_state(module).items()}

    def keep(self, out: Path, step: int, tensors: dict[str, Tensor]) -> None:
        """Write `tensors` of this step, and delete those that are too close to others now.

        Raises RunError if they cannot be written.
        """
        folder = make_folder(out / FOLDER)
        atomic_save_tensors(_file(folder, step), tensors, {"step": str(step), "widths": json.dumps(self.widths)})
        for other in snapshot_steps(out):
            if other % interval(step):
                _file(folder, other).unlink(missing_ok=True)


def interval(step: int) -> int:
    """Steps between the averages that are kept at `step`: the least power of 2 that keeps at most `SNAPSHOTS`.

    It follows from the step alone, and those kept for a later step are among those kept for an earlier one: a run that
    is resumed ends with the same ones.
    """
    least = -(-(step + 1) // (SNAPSHOTS + 1))  # then step // interval <= SNAPSHOTS
    return 1 << (least - 1).bit_length()


def snapshot_steps(out: Path) -> list[int]:
    """The steps of the averages that a run has kept, rising."""
    return sorted(int(file.stem) for file in (out / FOLDER).glob("*.safetensors") if file.stem.isdecimal())


def drop_after(out: Path, step: int) -> None:
    """Delete averages of later steps, which a killed run has left, and files that are half written."""
    if (out / FOLDER).is_dir():
        remove_partial(out / FOLDER)
        for other in snapshot_steps(out):
            if other > step:
                _file(out / FOLDER, other).unlink(missing_ok=True)


def profile(edges: np.ndarray, step: int, width: float) -> np.ndarray:
    """The share of each cell (edges[i], edges[i + 1]] of steps in the average of `width` at `step`, summing to 1.

    With g = gamma + 1, step k of n has the weight (k^g - (k-1)^g)/n^g, which follows from the decay (1 - 1/k)^g.
    """
    g = ema_exponent(width) + 1
    return np.diff((np.minimum(edges, step) / step) ** g)


def weights_for(kept: Sequence[tuple[int, float]], step: int, width: float) -> tuple[np.ndarray, float]:
    """The combination of kept averages (step, width) that comes nearest to the average of `width` at `step`.

    Their profiles over the steps are fitted by least squares, with weights that sum to 1 (Karras et al. 2024,
    section 3.3). A cell is one step in trainings of up to 20,000 steps, and then the fit is exact where it can be.

    Returns:
        The weights, and the sum over all steps of the difference of the two profiles: the weights that are found differ
        from the average by at most that times the largest distance between the last weights and those of any step.
    """
    edges = np.unique(np.concatenate([np.linspace(0, step, min(step, _CELLS) + 1).round(), [at for at, _ in kept]]))
    scale = np.diff(edges) ** -0.5
    target = profile(edges, step, width)
    profiles = np.stack([profile(edges, *each) for each in kept], 1)
    for i, (at, _) in enumerate(kept):
        if at == step and np.abs(profiles[:, i] - target).sum() < _SAME:
            return np.eye(len(kept))[i], 0.0
    base = int(np.argmin(np.square((profiles - target[:, None]) * scale[:, None]).sum(0)))
    others = np.delete(np.arange(len(kept)), base)
    directions = (profiles[:, others] - profiles[:, [base]]) * scale[:, None]
    found = np.linalg.lstsq(directions, (target - profiles[:, base]) * scale, rcond=1e-10)[0]
    weights = np.zeros(len(kept))
    weights[others], weights[base] = found, 1 - found.sum()
    return weights, float(np.abs(profiles @ weights - target).sum())


def reconstruct(run: Path, width: float) -> tuple[dict[str, Tensor], int, float]:
    """The average of the weights of relative width `width` at the last checkpoint of a run, by those that it kept.

    Returns:
        The state of the model, the step, and the difference of the profiles (see `weights_for`).

    Raises:
        UserError: the run was not trained with --ema post-hoc, or its files are damaged.
    """
    record = read_record(run)
    if record["run"].get("training", {}).get("ema") != POST_HOC:
        raise UserError(
            f"{run} kept one average of its weights: train with --ema post-hoc to choose the width afterwards"
        )
    step = int(record["step"])
    before = [each for each in snapshot_steps(run) if each < step]
    kept = [(each, own) for each in [*before, step] for own in WIDTHS]
    weights, apart = weights_for(kept, step, width)
    state = _last(run)
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in state[0].items()}
    for at, parts in _parts(run, before, step, state):
        for i, tensors in enumerate(parts):
            weight = float(weights[kept.index((at, WIDTHS[i]))])
            if tensors.keys() != total.keys() or any(v.shape != total[k].shape for k, v in tensors.items()):
                raise UserError(f"{_file(run / FOLDER, at)} is not of the model of this run: take it away")
            for name, value in tensors.items():
                total[name] += weight * value.double()
    found = {name: value.to(state[0][name].dtype) for name, value in total.items()}
    # whole numbers are not averaged
    return found | {name: value for name, value in state[0].items() if not value.is_floating_point()}, step, apart


def _parts(
    run: Path, before: Iterable[int], step: int, last: list[dict[str, Tensor]]
) -> Iterable[tuple[int, list[dict[str, Tensor]]]]:
    """The averages of each step, one step in memory at a time."""
    for at in before:
        tensors, _ = load_tensors(_file(run / FOLDER, at))
        yield at, [_under(f"{i}.", tensors) for i in range(len(WIDTHS))]
    yield step, last


def _last(run: Path) -> list[dict[str, Tensor]]:
    """The averages of the last checkpoint."""
    tensors, _ = load_tensors(run / STATE)
    return [_under(prefix, tensors) for prefix in ("average.", "average2.")]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _file(folder: Path, step: int) -> Path:
    return folder / f"{step:08d}.safetensors"
