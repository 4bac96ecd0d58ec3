"""Deterministic samplers of diffusers, azula and skrample as one function: (denoiser, x_1, evaluations) -> x_0.

A state of theirs is c (x_0 + rho eps) with rho = s/a the level, and c a scale that depends on the family: 1 (variance
exploding: Euler, Heun, KDPM2, LMS, EDM), 1/sqrt(1 + rho^2) (variance preserving: the rest) or 1/(1 + rho) (on flow
sigmas). So each can ask the same denoiser, whatever the process it was made for, and at exactly the level that its step
names instead of at the nearest trained timestep, which can only help it. All their steps are linear in x and eps with
numbers for coefficients, so that noise with a covariance C != I changes nothing for them either: they are given the eps
that has that covariance, and a step commutes with the change of coordinates R^-1.

Of diffusers and azula it is every one. skrample composes its own: here are its families at orders up to the highest
that they have, in x0 and in the flow, on diffusers' grids. Left out are what draws noise (DDPM, the ancestral and SDE
ones, LCM), what needs a distilled model, and what is another one under a second name (DDIMParallel, TCD at eta = 0 and
FlowMatchEuler are DDIM steps on grids of this list). Each is held to the evaluations that it was given: a step of Heun
or KDPM2 counts two, PNDM's first step two.
"""

from __future__ import annotations

import inspect
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.process import Prediction
from ornstein.schedules import Schedule
from ornstein.solvers import Counted

CHAIN = 1000
_LEAST = 1e-3  # the level that azula's schedules end at, their default

# Their grids: spacings of the trained timesteps, and of the level.
GRIDS: dict[str, dict[str, Any]] = {
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "leading": {"timestep_spacing": "leading"},
    "Karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "Lu": {"use_lu_lambdas": True},
    "flow": {"use_flow_sigmas": True},
    "flow shift 3": {"use_flow_sigmas": True, "flow_shift": 3.0},
}

Scale = Callable[[float], float]
Run = Callable[[Denoises, Tensor, int], Tensor]


def exploding(rho: float) -> float:
    return 1.0


def preserving(rho: float) -> float:
    return 1 / math.sqrt(1 + rho * rho)


def flow(rho: float) -> float:
    return 1 / (1 + rho)


@dataclass(frozen=True)
class Peer:
    """One of their samplers on one of its grids."""

    library: str
    name: str
    run: Run

    def __call__(self, d: Denoises, x: Tensor, evaluations: int) -> Tensor:
        """The end (B, *) from x (B, *) at t = 1. Raises RuntimeError where it asks more often than it may."""
        counted = Counted(d)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            end = self.run(counted, x, evaluations)
        if counted.calls > evaluations:
            raise RuntimeError(f"{self.name} asked {counted.calls} times, not {evaluations}")
        return end


def diffusers_peers(schedule: Schedule) -> Iterator[Peer]:
    """All of diffusers', for the chain of 1000 steps of `schedule`."""
    from diffusers.utils import logging

    logging.set_verbosity_error()  # of the settings that it corrects by itself
    betas = schedule.betas(CHAIN).tolist()
    yield from _preserving_peers(betas)
    yield from _exploding_peers(betas)
    yield from _timestep_peers(betas)
    yield from _edm_peers(betas)


def _preserving_peers(betas: list[float]) -> Iterator[Peer]:
    last = {"final_sigmas_type": "sigma_min"}  # the forms in the noise, and bh1, have no step into the data
    kinds: list[tuple[str, dict[str, Any]]] = [
        *(("DPMSolverMultistep", {"solver_order": o, "solver_type": k}) for o in (2, 3) for k in ("midpoint", "heun")),
        *(("DPMSolverMultistep", {"solver_order": o, "algorithm_type": "dpmsolver", **last}) for o in (2, 3)),
        *(("DPMSolverSinglestep", {"solver_order": o, "solver_type": k}) for o in (2, 3) for k in ("midpoint", "heun")),
        *(("DPMSolverSinglestep", {"solver_order": o, "algorithm_type": "dpmsolver", **last}) for o in (2, 3)),
        *(("UniPCMultistep", {"solver_order": o, "solver_type": "bh2"}) for o in (2, 3)),
        *(("UniPCMultistep", {"solver_order": o, "solver_type": "bh1", **last}) for o in (2, 3)),
        *(("UniPCMultistep", {"solver_order": o, "predict_x0": False, **last}) for o in (2, 3)),
        *(("DEISMultistep", {"solver_order": o}) for o in (2, 3)),
        *(("SASolver", {"predictor_order": p, "corrector_order": c}) for p, c in ((2, 2), (3, 3), (3, 4))),
    ]
    for (kind, settings), (grid, spacing) in itertools.product(kinds, GRIDS.items()):
        if not _takes(kind, spacing):
            continue
        extra = {"tau_func": _no_noise} if kind == "SASolver" else {}
        make = _maker(kind, betas, settings | spacing | extra)
        scale = flow if "use_flow_sigmas" in spacing else preserving
        yield Peer("diffusers", _name(kind, settings, grid), _on_sigmas(make, scale))
    for grid, spacing in GRIDS.items():
        if "use_flow_sigmas" not in spacing:
            yield Peer("diffusers", f"IPNDM {grid}", _ipndm(_maker("DPMSolverMultistep", betas, spacing)))


def _exploding_peers(betas: list[float]) -> Iterator[Peer]:
    cost = {"EulerDiscrete": 1, "LMSDiscrete": 1, "HeunDiscrete": 2, "KDPM2Discrete": 2}
    for kind, (grid, spacing) in itertools.product(cost, GRIDS.items()):
        if _takes(kind, spacing):
            make = _maker(kind, betas, spacing)
            yield Peer("diffusers", _name(kind, {}, grid), _on_sigmas(make, exploding, cost[kind]))


def _timestep_peers(betas: list[float]) -> Iterator[Peer]:
    for spacing in ("leading", "trailing", "linspace"):
        ddim = _maker("DDIM", betas, {"timestep_spacing": spacing, "clip_sample": False})
        pndm = _maker("PNDM", betas, {"timestep_spacing": spacing, "skip_prk_steps": True})
        yield Peer("diffusers", f"DDIM {spacing}", _on_timesteps(ddim, 0))
        yield Peer("diffusers", f"PNDM {spacing}", _on_timesteps(pndm, 1))


def _edm_peers(betas: list[float]) -> Iterator[Peer]:
    abar = math.prod(1 - b for b in betas)
    most = math.sqrt((1 - abar) / abar) if abar > 0 else math.inf
    limits = {"sigma_max": min(most, 500.0), "sigma_data": 0.5}
    both: list[tuple[str, dict[str, Any]]] = [
        ("EDMDPMSolverMultistep", {"solver_order": o, "solver_type": k}) for o in (2, 3) for k in ("midpoint", "heun")
    ]
    kinds: list[tuple[str, dict[str, Any]]] = [("EDMEuler", {}), *both]
    for (kind, settings), grid, least in itertools.product(kinds, ("karras", "exponential"), (0.002, 0.02)):
        make = _maker(kind, None, settings | limits | {"sigma_schedule": grid, "sigma_min": least})
        yield Peer("diffusers", f"{_name(kind, settings, grid)} from {least}", _edm(make))


def azula_peers() -> Iterator[Peer]:
    """All of azula's, each on each of its schedules, whose times are its grids; none where it is not installed."""
    try:
        from azula import noise, sample
    except ImportError:
        return
    families: list[tuple[str, dict[str, Any], int]] = [
        ("DDIMSampler", {}, 1),
        ("HeunSampler", {}, 2),
        *((f"{kind}Sampler", {"order": o}, 1) for kind in ("zAB", "vAB", "zEAB", "xEAB", "REAB") for o in (2, 3, 4)),
    ]
    grids = {
        "VP": lambda a, s: noise.VPSchedule(a, s),
        "cosine": lambda a, s: noise.CosineSchedule(a, s),
        "rectified": lambda a, s: noise.RectifiedSchedule(a, s),
        "decay": lambda a, s: noise.DecaySchedule(a, s),
        "VE": lambda a, s: noise.VESchedule(s, 1 / a),
    }
    for (kind, settings, cost), (grid, make) in itertools.product(families, grids.items()):
        name = " ".join([kind.removesuffix("Sampler"), *map(str, settings.values()), grid])
        yield Peer("azula", name, _azula(getattr(sample, kind), settings, make, cost))


def skrample_peers(schedule: Schedule) -> Iterator[Peer]:
    """Of skrample, which needs Python 3.12; none where it is not installed."""
    try:
        from skrample.sampling import functional, models, structured
        from skrample.sampling.interface import StructuredFunctionalAdapter
    except ImportError:
        return
    orders = {"DPM": (2, 3), "Adams": (2, 3, 4, 9), "UniP": (3,), "UniPC": (2, 3, 9)}
    spaces = {"x0": models.DataModel(), "flow": models.FlowModel()}
    betas = schedule.betas(CHAIN).tolist()
    for (space, model), (grid, spacing) in itertools.product(spaces.items(), GRIDS.items()):
        made: dict[str, tuple[Any, int]] = {
            f"{kind} {o}": (getattr(structured, kind)(order=o, derivative_transform=model), 1)
            for kind, known in orders.items()
            for o in known
        }
        made["SPC"] = (structured.SPC(derivative_transform=model), 1)
        made = {name: (StructuredFunctionalAdapter(sampler), cost) for name, (sampler, cost) in made.items()}
        made |= {f"RK {o}": (functional.RKUltra(order=o, derivative_transform=model), o) for o in (2, 3, 5, 15)}
        levels = _maker("DPMSolverMultistep", betas, spacing)
        scale = flow if "use_flow_sigmas" in spacing else preserving
        for name, (sampler, stages) in made.items():
            yield Peer("skrample", f"{name} {space} {grid}", _skrample(sampler, stages, levels, scale))


# -- what runs them --


@dataclass
class _Ray:
    """The denoiser in their coordinates: states c(rho) (x_0 + rho eps)."""

    d: Denoises
    scale: Scale

    def start(self, x: Tensor, rho: float) -> Tensor:
        """Their state at level rho from ours at t = 1: the same direction, at the size that theirs has there."""
        a, s = self.d.process.coefficients(1.0, x)
        return x * (self.scale(rho) * math.sqrt(1 + rho * rho) / torch.sqrt(a**2 + s**2))

    def __call__(self, y: Tensor, rho: float) -> Prediction:
        p = self.d.process
        t = float(p.schedule.time(torch.tensor(-2 * math.log(rho), dtype=torch.float64)).clamp(0, 1))
        a, s = p.coefficients(t, y)
        return self.d(y * (torch.sqrt(a**2 + s**2) / (self.scale(rho) * math.sqrt(1 + rho * rho))), t)


def _on_sigmas(make: Callable[[int], Any], scale: Scale, cost: int = 1) -> Run:
    """`cost` evaluations a step, but for the last, which asks once."""

    def run(d: Denoises, x: Tensor, evaluations: int) -> Tensor:
        scheduler, ray = make((evaluations + cost - 1) // cost), _Ray(d, scale)
        scheduler.set_begin_index(0)  # not the second of two steps that round to one timestep
        rho = _levels(scheduler.sigmas, scale)
        y = ray.start(x, rho[0])
        for i, k in enumerate(scheduler.timesteps):
            scheduler.scale_model_input(y, k)
            level = rho[i]
            if hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order:
                level = float(scheduler.sigmas_interpol[i])
            y = scheduler.step(ray(y, level).eps, k, y).prev_sample
        return y

    return run


def _on_timesteps(make: Callable[[int], Any], extra: int) -> Run:
    def run(d: Denoises, x: Tensor, evaluations: int) -> Tensor:
        scheduler, ray = make(evaluations - extra), _Ray(d, preserving)
        y = ray.start(x, 1.0)
        for k in scheduler.timesteps:
            abar = float(scheduler.alphas_cumprod[k])
            y = scheduler.step(ray(y, math.sqrt((1 - abar) / abar)).eps, int(k), y).prev_sample
        return y

    return run


def _ipndm(levels_of: Callable[[int], Any]) -> Run:
    """It has no grid on a chain: each of the others' is given to it, as the s that it takes for `trained_betas`."""

    def run(d: Denoises, x: Tensor, evaluations: int) -> Tensor:
        import diffusers

        rho = _levels(levels_of(evaluations).sigmas, preserving)
        std = [r / math.sqrt(1 + r * r) for r in rho]
        scheduler: Any = diffusers.IPNDMScheduler(trained_betas=std)
        scheduler.set_timesteps(evaluations)
        scheduler.set_begin_index(0)
        ray = _Ray(d, preserving)
        y = ray.start(x, rho[0])
        for i, k in enumerate(scheduler.timesteps):
            out = ray(y, rho[i])
            velocity = preserving(rho[i]) * out.eps - std[i] * out.x0
            y = scheduler.step(velocity.to(y.dtype), k, y).prev_sample
        return y

    return run


def _edm(make: Callable[[int], Any]) -> Run:
    """These want the residual of their preconditioning: that of x0."""

    def run(d: Denoises, x: Tensor, evaluations: int) -> Tensor:
        scheduler, ray = make(evaluations), _Ray(d, exploding)
        scheduler.set_begin_index(0)
        rho, std = _levels(scheduler.sigmas, exploding), float(scheduler.config["sigma_data"])
        y = ray.start(x, rho[0])
        for i, k in enumerate(scheduler.timesteps):
            scheduler.scale_model_input(y, k)
            norm = rho[i] ** 2 + std**2
            residual = (ray(y, rho[i]).x0 - std**2 / norm * y) / (rho[i] * std / math.sqrt(norm))
            y = scheduler.step(residual, k, y).prev_sample
        return y

    return run


def _azula(sampler: Any, settings: dict[str, Any], make: Callable[[float, float], Any], cost: int) -> Run:
    @dataclass
    class Theirs:
        ray: Denoises
        schedule: Any

        def __call__(self, y: Tensor, t: Tensor) -> Any:
            a, s = (float(v) for v in self.schedule(t))
            out = _Ray(self.ray, lambda rho: a)(y, s / a)
            return _Mean(out.x0)

    def run(d: Denoises, x: Tensor, evaluations: int) -> Tensor:
        a1, s1 = (float(v) for v in d.process.coefficients(1.0, x.double()))
        schedule = make(max(a1 / s1, 1e-3), _LEAST)
        solve = sampler(Theirs(d, schedule), steps=evaluations // cost, silent=True, dtype=torch.float64, **settings)
        a, s = (float(v) for v in schedule(torch.ones((), dtype=torch.float64)))
        return solve(_Ray(d, lambda rho: a).start(x.double(), s / a)).to(x.dtype)

    return run


def _skrample(sampler: Any, stages: int, levels_of: Callable[[int], Any], scale: Scale) -> Run:
    """`stages`: evaluations of a step, or fewer where there are fewer in all."""

    def run(d: Denoises, x: Tensor, evaluations: int) -> Tensor:
        import numpy as np
        from skrample.sampling.models import DataModel
        from skrample.scheduling import FixedSchedule, VariancePreserving

        asked = replace(sampler, order=min(stages, evaluations)) if stages > 1 else sampler
        steps = evaluations // (len(asked.tableau().stages) if stages > 1 else 1)
        rho = np.array(_levels(levels_of(steps).sigmas, scale)[:steps])
        schedule = FixedSchedule.from_regular(np.linspace(CHAIN, 1, steps), rho, VariancePreserving())

        def model(y: Tensor, k: float, s: float, a: float) -> Tensor:
            return _Ray(d, lambda rho: a)(y, s / a).x0

        start = _Ray(d, preserving).start(x.double(), float(rho[0]))
        return asked.sample_model(start, model, DataModel(), schedule, steps).to(x.dtype)

    return run


@dataclass(frozen=True)
class _Mean:
    mean: Tensor


def _maker(kind: str, betas: list[float] | None, options: dict[str, Any]) -> Callable[[int], Any]:
    """What makes one of diffusers' schedulers ready for a number of steps."""
    known = {} if betas is None else {"trained_betas": betas}

    def make(steps: int) -> Any:
        import diffusers

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = getattr(diffusers, f"{kind}Scheduler")(**known, **options)
            scheduler.set_timesteps(steps)
        return scheduler

    return make


def _takes(kind: str, options: dict[str, Any]) -> bool:
    import diffusers

    return set(options) <= set(inspect.signature(getattr(diffusers, f"{kind}Scheduler").__init__).parameters)


def _levels(sigmas: Tensor, scale: Scale) -> list[float]:
    values = [float(s) for s in sigmas]
    return [s / (1 - s) for s in values] if scale is flow else values


def _name(kind: str, settings: dict[str, Any], grid: str) -> str:
    told = [str(v) for k, v in settings.items() if k not in ("final_sigmas_type", "predict_x0")]
    return " ".join([kind, *told, *(["eps"] if "predict_x0" in settings else []), grid])


def _no_noise(_: Any) -> int:
    return 0
