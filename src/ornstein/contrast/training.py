"""Training of one model for a processor time, with its losses and its samples along the way, and its scores."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ornstein.contrast.judges import mode_counts, modes_covered, reverse_kl
from ornstein.contrast.models import Autoregressive, Gan, Model, bits_per_dim
from ornstein.contrast.problems import Problem
from ornstein.data import to_uint8
from ornstein.errors import UserError
from ornstein.evaluation.frechet import frechet_distance, real_floor

__all__ = ["FRAMES", "Scores", "Trained", "check_budget", "evaluate", "sampling_costs", "score", "train"]

FRAMES = 25
"""Pictures of the samples along the training."""

_SHOWN = {True: 1000, False: 64}  # points, images
_INTERVALS = 100  # of a loss curve
_SAMPLE_SEED = 1
_MOST_UNCACHED = 256  # numbers of a sample up to which sampling without a cache is timed
_TIMED = 16


@dataclass
class Trained:
    """How a training went.

    Attributes:
        steps, seconds: steps, and the processor time that they took.
        ended: why it ended before its time; None if it did not.
        curves: by name, [share of the training, mean value since the last one] of each loss and the critic's gradient.
        modes: modes among the samples of each frame.
        frames: samples along the training, uint8 images (F, n, C, H, W) or points (F, n, 2).
    """

    steps: int = 0
    seconds: float = 0.0
    ended: str | None = None
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    modes: list[int] = field(default_factory=list)
    frames: Tensor = field(default_factory=lambda: torch.empty(0))


def check_budget(name: str, model: Model, seconds: float) -> None:
    """Take a step of a model that is not used further, two if the first is slow.

    Raises:
        UserError: a step takes longer than the whole training may.
    """
    took = math.inf
    for _ in range(2):
        start = time.process_time()
        model.step(0.0)
        took = min(took, time.process_time() - start)
        if took <= seconds:
            return
    raise UserError(
        f"{name} would train for {seconds:.2g} s with each seed, but one step takes {took:.2g} s: give more --minutes"
    )


def train(
    model: Model, problem: Problem, seconds: float = math.inf, steps: int | None = None, frames: int = FRAMES
) -> Trained:
    """Train for a processor time or a number of steps; samples that are drawn on the way do not count.

    It ends earlier if a loss is not finite: the weights stay those before that step.
    """
    result, shown, pending = Trained(), [], {}
    while True:
        share = min(1.0, result.seconds / seconds if steps is None else result.steps / max(1, steps))
        over = share >= 1 or result.ended is not None
        if share >= len(shown) / (frames - 1) or over:
            shown.append(_frame(model, problem))
            result.modes.append(_modes(problem, shown[-1]))
            if isinstance(model, Gan):
                result.curves.setdefault("critic gradient", []).append((share, model.gradient_norm()))
        if over:
            break
        start = time.process_time()
        losses = model.step(share)
        result.seconds += time.process_time() - start
        result.steps += 1
        for name, value in losses.items():
            pending.setdefault(name, []).append(value)
            if not math.isfinite(value):
                result.ended = f"the {name} {'was' if name == 'loss' else 'loss was'} {value} at step {result.steps}"
        if share >= len(next(iter(result.curves.get(n, []) for n in losses))) / _INTERVALS or result.ended:
            for name, values in pending.items():
                result.curves.setdefault(name, []).append((share, sum(values) / len(values)))
            pending = {}
    result.frames = torch.stack([_stored(problem, x) for x in shown])
    return result


def _frame(model: Model, problem: Problem) -> Tensor:
    return model.sample(_SHOWN[problem.points], _SAMPLE_SEED)


def _stored(problem: Problem, x: Tensor) -> Tensor:
    return x.float() if problem.points else to_uint8(x.nan_to_num(-1.0))


def _finite(x: Tensor) -> Tensor:
    return x[x.flatten(1).isfinite().all(1)]


def _modes(problem: Problem, x: Tensor) -> int:
    return score(problem, x, distances=False).modes


@dataclass
class Scores:
    """What the samples of a model are like; None where it does not exist.

    Attributes:
        n, finite: samples, and those without NaN and infinities, which alone are compared below.
        modes: modes covered: with a sample, of points a good one.
        good: share of all samples that are good.
        reverse_kl: of the histogram of modes, nats.
        frechet, floor: Frechet distance of the numbers of a sample from real data, and between halves of these.
    """

    n: int
    finite: int
    modes: int = 0
    good: float = 0.0
    reverse_kl: float | None = None
    frechet: float | None = None
    floor: float | None = None


def score(problem: Problem, x: Tensor, distances: bool = True) -> Scores:
    """The scores of samples x (N, *)."""
    kept = _finite(x)
    scores = Scores(len(x), len(kept))
    if problem.judge is not None and len(kept):
        mode, good = problem.judge(kept)
        scores.good = int(good.sum()) / len(x)
        if problem.probabilities is not None:
            counts = mode_counts(mode, len(problem.probabilities))
            hits = mode_counts(mode[good], len(counts)) if problem.points else counts
            scores.modes = modes_covered(hits, problem.probabilities)
            scores.reverse_kl = reverse_kl(counts, problem.probabilities)
    if distances and len(kept) >= 2:
        real = problem.real.flatten(1)
        scores.frechet = frechet_distance(kept.flatten(1), real)
        scores.floor = real_floor(real)
    return scores


def sampling_costs(model: Model, n: int, seed: int) -> tuple[Tensor, dict[str, float]]:
    """n samples, and the processor seconds that one takes; of an autoregressive model with and without a cache too."""
    start = time.process_time()
    x = model.sample(n, seed)
    costs = {"seconds": (time.process_time() - start) / n}
    if isinstance(model, Autoregressive) and model.net.length <= _MOST_UNCACHED:
        for name, cache in (("cached", True), ("uncached", False)):
            start = time.process_time()
            model.sample(_TIMED, seed, cache)
            costs[name] = (time.process_time() - start) / _TIMED
    return x, costs


def evaluate(model: Model, problem: Problem, n: int, seed: int, likelihood: bool) -> dict[str, Any]:
    """All scores of a trained model, in JSON types."""
    x, costs = sampling_costs(model, n, seed)
    bits = bits_per_dim(model, problem, seed) if likelihood else {}
    return {"scores": asdict(score(problem, x)), "costs": costs, "bits": bits}
