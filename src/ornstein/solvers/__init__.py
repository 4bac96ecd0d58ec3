"""Solvers: generators of the states from t = 1 to t = 0. Each takes a denoiser, a state, times and noise."""

from collections.abc import Iterator
from functools import partial
from typing import Protocol

from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.request import SOLVER
from ornstein.solvers.adaptive import rk45
from ornstein.solvers.chain import ddim, ddpm
from ornstein.solvers.coloured import COLOURS, coloured, with_colour
from ornstein.solvers.multistep import multistep, singlestep
from ornstein.solvers.ode import euler, heun, rk4
from ornstein.solvers.restart import restart
from ornstein.solvers.sde import euler_maruyama, langevin, langevin_step
from ornstein.solvers.side_by_side import side_by_side
from ornstein.solvers.stepping import Counted, Noise
from ornstein.solvers.tuned import Tuned

__all__ = [
    "COLOURS",
    "SOLVER",
    "SOLVERS",
    "Counted",
    "Noise",
    "Solver",
    "Tuned",
    "coloured",
    "ddim",
    "ddpm",
    "euler",
    "euler_maruyama",
    "heun",
    "langevin",
    "langevin_step",
    "multistep",
    "restart",
    "rk4",
    "rk45",
    "side_by_side",
    "singlestep",
    "with_colour",
]


class Solver(Protocol):
    """Yields the state after each step; x is the state at times[0]."""

    def __call__(self, d: Denoises, x: Tensor, times: Tensor, noise: Noise) -> Iterator[Tensor]: ...


SOLVERS: dict[str, Solver] = {
    "ddpm": ddpm,
    "ddpm-upper": partial(ddpm, variance="upper"),
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "rk4": rk4,
    "euler-maruyama": euler_maruyama,
    "langevin": langevin,
    "flow-3m": partial(multistep, order=3, form="flow"),
    "dpmpp-2m": partial(multistep, order=2),
    "dpmpp-3m": partial(multistep, order=3),
    "dpmpp-2s": singlestep,
    "unipc": partial(multistep, order=3, corrected=True),
    "deis": partial(multistep, order=3, form="eps"),
    "ipndm": partial(multistep, order=4, form="eps", equal=True),
    "dpmpp-2m-sde": partial(multistep, order=2, stochastic=True),
    "sa-3m": partial(multistep, order=3, corrected=True, stochastic=0.5),
    "restart": restart,
    "side-by-side": side_by_side,
    "heun-churn": partial(heun, churn=10.0),
    "rk45": rk45,
}
