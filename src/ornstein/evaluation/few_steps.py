"""Quality against steps: one model by several solvers, and its distilled students, all from the same noise."""

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

__all__ = ["FRECHET", "KERNEL", "RMSE", "Way", "mean_over_seeds", "quality_by_steps"]

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
        """`count` samples (N, *), images or latents, whichever the model makes."""
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
    """Distances of the samples of each way from real images, and from the teacher's own samples.

    Args:
        teacher: the model that the samples are compared with, by 60 steps.
        ways: how to sample.
        real: uint8 (M, C, H, W).
        features: what the distances from real images are measured in.
        count: samples, their classes in turn.
        seeds: sets of samples.
        guidance: of the teacher.
        advance: called with (what, done, total), in network evaluations.

    Returns:
        A row for each way and seed. RMSE is the root mean square difference from the teacher's sample of the same
        noise, where black to white is 2 (of latents, in their own unit).
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
            made = features(to_uint8(way.denoiser.decode(x)).cpu())
            row = {
                "solver": way.name,
                "steps": way.steps,
                "seed": seed,
                FRECHET: frechet_distance(made, known),
                KERNEL: kernel_distance(made, known).value,
                RMSE: float((x - fine).double().square().mean().sqrt()),
            }
            rows.append(row)
            done += way.steps
    return rows


def mean_over_seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each way and number of steps, with the mean of every measure over the seeds."""
    keys = list(dict.fromkeys((row["solver"], row["steps"]) for row in rows))
    out = []
    for solver, steps in keys:
        same = [row for row in rows if (row["solver"], row["steps"]) == (solver, steps)]
        means = {m: sum(row[m] for row in same) / len(same) for m in (FRECHET, KERNEL, RMSE)}
        out.append({"solver": solver, "steps": steps, **means})
    return out
