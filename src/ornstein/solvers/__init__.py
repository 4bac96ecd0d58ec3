"""Solvers: generators of the states from t = 1 to t = 0. Each takes a denoiser, a state, times and noise."""

import math
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
    "named",
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

_AMOUNTS = {
    "ddim": ("eta", 1.0),
    "dpmpp-2m-sde": ("stochastic", math.inf),
    "sa-3m": ("stochastic", math.inf),
    "heun-churn": ("churn", math.inf),
}
"""The argument that is the amount of fresh noise of a stochastic solver, and its largest value."""


def named(name: str) -> Solver:
    """The solver of a name of `SOLVERS`; with a number behind it, NAME:AMOUNT, that of so much fresh noise.

    The amount is tau of "sa-3m" and "dpmpp-2m-sde", eta of "ddim" and the churn of "heun-churn": 0 is none.

    Raises:
        ValueError: an unknown name, an amount that is none, or one for a solver that takes none.
    """
    base, colon, text = name.partition(":")
    if base not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}; known: {', '.join(SOLVERS)}")
    if not colon:
        return SOLVERS[base]
    if base not in _AMOUNTS:
        raise ValueError(f"solver {name!r}: {base} takes no amount of fresh noise; {', '.join(_AMOUNTS)} do")
    argument, most = _AMOUNTS[base]
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 <= amount <= most or amount == math.inf:
        rule = "at least 0" if most == math.inf else f"from 0 to {most:g}"
        raise ValueError(f"solver {name!r}: its amount of fresh noise is a number {rule}, such as {base}:0.5")
    return partial(SOLVERS[base], **{argument: amount})
