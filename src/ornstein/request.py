"""The request for samples: everything that decides which samples a model makes, for Python, command line and studio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ornstein.settings import setting

if TYPE_CHECKING:  # importing PyTorch takes two seconds, which the help of a command should not
    import torch

    from ornstein.solvers import Solver

__all__ = ["CHURNED", "COLOURS", "GRID", "GRIDS", "SOLVER", "SOLVERS", "STEPS", "SampleRequest"]

SOLVER = "flow-3m"
CHURNED = "churned"  # `sa-3m` with the amount of fresh noise that was tuned for the model
STEPS = 20
GRID = "logistic"

# The keys of `ornstein.solvers.SOLVERS` and of `grids.GRIDS`, which import PyTorch; a test compares them.
SOLVERS = (
    "ddpm", "ddpm-upper", "ddim", "euler", "heun", "rk4", "euler-maruyama", "langevin", "flow-3m", "dpmpp-2m",
    "dpmpp-3m", "dpmpp-2s", "unipc", "deis", "ipndm", "dpmpp-2m-sde", "sa-3m", "restart", "side-by-side", "heun-churn",
    "rk45",
)  # fmt: skip
GRIDS = ("logistic", "uniform", "log-snr", "karras", "trailing")
COLOURS = ("blue", "red", "settling")  # the keys of `solvers.COLOURS`


@dataclass(frozen=True)
class SampleRequest:
    """How to sample. The same request and the same model give the same samples, however they are batched.

    Args:
        solver: a name of `ornstein.solvers.SOLVERS`, or a solver, e.g. `partial(solvers.ddim, eta=0.5)`. A `Tuned`
            solver (`checkpoint.load_tuned`) has its own time steps, which replace `grid` and `steps`. "NAME:AMOUNT" is
            a stochastic solver with so much fresh noise (`solvers.named`), and "churned" is "sa-3m" with the amount
            that `ornstein tune --churn` found for the model. None is "flow-3m", or what a distilled model was trained
            for.
        steps: number of steps. None is 20, or those of a distilled model.
        grid: the time schedule: a name of `ornstein.solvers.grids.GRIDS`, or the time steps themselves, which replace
            `steps` and `times`. None is "logistic", or that of a distilled model; for "ddpm" with the schedule of a
            chain (`Discrete`) "trailing", its own steps.
        times: where the trajectory starts and ends.
        seed: the noise of sample i at step k is a function of (seed, i, k): the same in any batch and on any device.
        guidance: the scale of classifier-free guidance; 1 or None is the plain conditional model.
        batch: how many samples go through the network at once; None is about a million numbers (`sampling.at_once`),
            so that memory does not grow with the number of samples.
        first: the number of the first sample, to make samples 64..127 of a set by themselves.
        precision: the precision of the network's convolutions and matrix products: a dtype such as torch.bfloat16, or
            a name of `ornstein.devices.PRECISIONS`; None leaves the network as it is. The solver's arithmetic keeps
            the dtype of the samples.
        guidance_interval: guide at the times low <= t <= high alone; None is at all of them.
        guidance_rescale: 0 to 1, how far the spread of a guided output is brought back to that of the conditional one.
        coloured: stochastic steps whose fresh noise has a colour: a name of `ornstein.solvers.COLOURS`, or a table of
            `solvers.coloured`, shares of fresh noise by time and spatial frequency. The solver is then "ddim".

    Raises:
        ValueError: steps or batch below 1; an interval or a rescale without guidance.
    """

    solver: str | Solver | None = setting(
        None,
        "Solver.",
        choices=(*SOLVERS, "tuned", CHURNED),
        other="sa-3m, dpmpp-2m-sde, ddim or heun-churn with an amount of fresh noise, such as sa-3m:0.3",
        by_data=f"the tuned, distilled or chosen one of the run, else {SOLVER}",
    )
    steps: int | None = setting(None, "Steps of the solver.", by_data=f"{STEPS}, or those of a distilled model")
    grid: str | Sequence[float] | torch.Tensor | None = setting(
        None,
        "Time steps.",
        choices=GRIDS,
        other="times such as 1,0.6,0.3,0",
        by_data=f"{GRID}; the steps of the chain for ddpm with a schedule that is one",
    )
    times: tuple[float, float] = (1.0, 0.0)
    seed: int = setting(0, "Seed; sample i of a seed is the same in any batch.", random=True, minimum=0)
    guidance: float | None = setting(
        None, "Scale of classifier-free guidance.", by_data="1, the plain conditional model"
    )
    batch: int | None = setting(
        None, "Samples through the network at once.", names=("-b", "--batch"), minimum=1, by_data="64, fewer large ones"
    )
    first: int = 0
    precision: str | torch.dtype | None = setting(None, "Precision of convolutions and matrix products.")
    guidance_interval: tuple[float, float] | None = setting(
        None, "Guide between these times alone, such as 0.2,0.8.", by_data="all times"
    )
    guidance_rescale: float = setting(
        0.0, "How far to bring the contrast of guided samples back to that of plain ones.", minimum=0, maximum=1
    )
    coloured: str | Sequence[Sequence[float]] | torch.Tensor | None = setting(
        None,
        "Stochastic steps whose fresh noise has this colour: fine detail alone, coarse shapes alone, or all that are "
        "not settled yet.",
        choices=COLOURS,
        other="a .json file of shares, a row for each time from 0 to 1, in it one for each spatial frequency from 0 up",
    )

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.guidance in (None, 1) and (self.guidance_interval is not None or self.guidance_rescale):
            raise ValueError("an interval or a rescale of guidance does nothing without guidance: give a scale")
