"""Quality against steps: one model by several solvers, and students of it, from the same noise beside one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ornstein.data import to_uint8
from ornstein.denoiser import Denoiser
from ornstein.evaluation.features import Features
from ornstein.evaluation.frechet import frechet_distance
from ornstein.evaluation.kernel import kernel_distance
from ornstein.sampling import sample
from ornstein.solvers import Tuned

FRECHET, KERNEL, RMSE = "Fréchet distance", "kernel distance", "from the teacher"

_FINE = ("dpmpp-3m", 60)
_BATCH = 250


@dataclass(frozen=True)
class Way:
    """How samples are made: by a model with a solver, or by a distilled model (solver None) with its own steps."""

    name: str
    denoiser: Denoiser
    steps: int
    solver: str | Tuned | None = None
    guidance: float = 1.0

    def draw(self, labels: Tensor | None, count: int, seed: int) -> Tensor:
        """`count` samples (N, *) of the model's own space."""
        assert self.denoiser.data is not None
        return sample(
            self.denoiser,
            (count, *self.denoiser.data.shape),
            solver=self.solver,
            steps=None if self.solver is None else self.steps,
            seed=seed,
            guidance=self.guidance,
            cond={"label": labels},
            batch=_BATCH,
        )


def quality_by_steps(
    teacher: Denoiser,
    ways: Sequence[Way],
    real: Tensor,
    features: Features,
    count: int,
    seeds: Sequence[int] = (0,),
    guidance: float = 1.0,
    advance: Callable[[str, int, int], object] = lambda what, done, total: None,
) -> list[dict[str, Any]]:
    """A row for each way and seed: distances of its samples from the images `real`, uint8 (M, C, H, W), in `features`.

    RMSE is how far each sample is from the teacher's own of the same noise, by 60 steps with `guidance`; in the model's
    space, black to white being 2. Classes in turn. advance(what, done, total) is told the calls of the network.
    """
    assert teacher.data is not None
    labels, known = teacher.data.labels(count), features(real)
    total, done, rows = len(seeds) * (_FINE[1] + sum(way.steps for way in ways)), 0, []
    for seed in seeds:
        advance("the teacher, in full", done, total)
        fine = Way("teacher", teacher, _FINE[1], _FINE[0], guidance).draw(labels, count, seed)
        done += _FINE[1]
        for way in ways:
            advance(f"{way.name}, {way.steps} steps", done, total)
            x = way.draw(labels, count, seed)
            own = features(to_uint8(way.denoiser.decode(x)).cpu())
            row = {
                "solver": way.name,
                "steps": way.steps,
                "seed": seed,
                FRECHET: frechet_distance(own, known),
                KERNEL: kernel_distance(own, known).value,
                RMSE: float((x - fine).double().square().mean().sqrt()),
            }
            rows.append(row)
            done += way.steps
    return rows


def mean_over_seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of each way and number of steps as one, with the mean of every measure."""
    keys = list(dict.fromkeys((row["solver"], row["steps"]) for row in rows))
    out = []
    for solver, steps in keys:
        own = [row for row in rows if (row["solver"], row["steps"]) == (solver, steps)]
        means = {m: sum(row[m] for row in own) / len(own) for m in (FRECHET, KERNEL, RMSE)}
        out.append({"solver": solver, "steps": steps, **means})
    return out
