"""The schedulers of diffusers as schedules, predictions and time steps, and ours as theirs.

A scheduler says three things. The marginal: x_t = a x_0 + s z, whose log-SNR is all that a schedule decides. What the
network predicts. And what the network is told of the time, which is a function of the log-SNR too: its clock. With
`set_timesteps` it also says at which times it calls the network; they become time steps for `ornstein.sample`.

A chain of T steps calls its timesteps k = 0 ... T-1; on `schedules.Discrete(betas)` these are t = (k + 1)/T. Schedulers
that keep x_t/a (those of k-diffusion) mean the same marginal: here the state is always what the network sees.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from ornstein.denoiser import Kind
from ornstein.errors import UserError
from ornstein.extras import require
from ornstein.schedules import EDM, VE, Cosine, Discrete, Rectified, Schedule

__all__ = ["PREDICTIONS", "Clock", "Reading", "own_timesteps", "read", "scheduler_for", "start_of", "times_of"]

Clock = Literal["chain", "path", "log", "angle", "sigma"]
"""What a network is told, with S = s/a: the step of a chain; length S/(1 + S); log(S)/4; 2/pi atan(S); S itself."""

PREDICTIONS: dict[str, Kind] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}

_STRAIGHT = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "LTXEulerAncestralRFScheduler",
)
_EDM: dict[str, Clock] = {
    "EDMEulerScheduler": "log",
    "EDMDPMSolverMultistepScheduler": "log",
    "CosineDPMSolverMultistepScheduler": "angle",
}
_STAGES = "its path jumps between stages of several resolutions"
_TRAJECTORY = "its network predicts the end of a trajectory, not the mean of the data"
_TOKENS = "its noise is over discrete tokens, which have no Gaussian marginal"
_REFUSED = {
    "AmusedScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": _TRAJECTORY,
    "ConsistencyDecoderScheduler": _TRAJECTORY,
    "SCMScheduler": _TRAJECTORY,
    "HeliosScheduler": _STAGES,
    "HeliosDMDScheduler": _STAGES,
    "DDPMWuerstchenScheduler": "it tells its network a time of its own",
    "KarrasVeScheduler": "its network is told the noise level in units of its own",
    "IPNDMScheduler": "it starts without any signal, where a prediction of the noise says nothing of the data",
}

# A log-SNR in float32 tells a timestep to about this.
_NEAR = 1e-2
# diffusers computes 1 - abar in float32: its noise levels near the data are off by this, in steps of the chain.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Reading:
    """What a scheduler says of its network.

    Attributes:
        schedule: the marginal.
        prediction: what the network predicts; "edm" with the standard deviation `data_std` of the data.
        clock: what the network is told of the time.
        length: how many timesteps it counts.
        clip: x0 is clipped to [-clip, clip] while sampling (`interop.diffusers.Clipped`); None if it is not.
    """

    schedule: Schedule
    prediction: Kind
    clock: Clock
    length: int = 1000
    data_std: float = 0.5
    clip: float | None = None

    def timesteps(self, log_snr: Tensor) -> Tensor:
        """What the network is told at a log-SNR, float32 of the same shape."""
        return own_timesteps(self.schedule, log_snr, self.length, self.clock)


def own_timesteps(schedule: Schedule, log_snr: Tensor, length: int = 1000, clock: Clock | None = None) -> Tensor:
    """What a network of diffusers is told at a log-SNR, float32 of the same shape.

    Between two steps of a chain it is the fraction at which the logarithm of the noise level, interpolated, is that of
    the log-SNR, as in diffusers' own samplers.

    Args:
        clock: by default that of a chain for `Discrete`, and of straight paths for any other schedule.
    """
    log_snr = log_snr.double()
    if clock == "chain" or (clock is None and isinstance(schedule, Discrete)):
        return _place(schedule, log_snr, length).to(torch.float32)
    level = torch.exp(-log_snr / 2)
    if clock == "log":
        told = -log_snr / 8
    elif clock == "angle":
        told = torch.atan(level) * (2 / math.pi)
    elif clock == "sigma":
        told = level
    else:
        told = torch.sigmoid(-log_snr / 2) * length
    return told.to(torch.float32)


def _place(schedule: Schedule, log_snr: Tensor, length: int) -> Tensor:
    """The fractional timestep of a chain."""
    length = len(schedule.steps) if isinstance(schedule, Discrete) else length
    place = schedule.time(log_snr) * length - 1
    low = place.floor().clamp(0, max(length - 2, 0))
    high, below = (schedule.log_snr((low + n) / length) for n in (1, 2))
    share = (high - log_snr) / (high - below)
    share = torch.where(below.isinf() | (length == 1), place - low, share)  # zero terminal SNR
    place = (low + share).clamp(0, length - 1)
    nearest = place.round()
    return torch.where((place - nearest).abs() < _NEAR, nearest, place)


def read(scheduler: Any, mu: float | None = None) -> Reading:
    """What a scheduler of diffusers says of its network.

    Args:
        scheduler: the scheduler, or its config.
        mu: for dynamic shifting, what the pipeline gives its scheduler for the size of its samples; it shifts the
            schedule's times, not its marginals.

    Raises:
        UserError: it cannot be expressed; the scheduler and the reason are named.
    """
    scheduler = _instance(scheduler)
    config, name = scheduler.config, type(scheduler).__name__
    reason = _REFUSED.get(name)
    if config.get("invert_sigmas"):
        reason = "its path runs from noise at 0 to data at 1 (invert_sigmas)"
    elif config.get("thresholding"):
        reason = "it clips each sample at a quantile of its own (thresholding; false in its config leaves that out)"
    if reason is not None:
        raise UserError(f"{name} cannot be expressed: {reason}")
    length = int(config.get("num_train_timesteps", 1000))
    kind = _kind(name, config)
    if name in _STRAIGHT or config.get("use_flow_sigmas"):
        return Reading(_straight(config, mu), kind, "path", length)
    if name in _EDM or (config.get("timestep_type") == "continuous" and kind == "v"):
        return _noise_levels(name, config, kind, length)
    if name == "ScoreSdeVeScheduler":
        return Reading(VE(config["sigma_min"], _top(config)), "score", "sigma", length)
    if getattr(scheduler, "betas", None) is None or getattr(scheduler, "alphas_cumprod", None) is None:
        what = "neither a chain of betas, nor straight paths, nor noise levels"
        raise UserError(f"{name} cannot be expressed: it has {what}")
    clip = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None
    chain = _chain(scheduler)
    return Reading(chain, kind, "chain", len(chain.steps), clip=clip)


def _kind(name: str, config: Any) -> Kind:
    theirs, straight = config.get("prediction_type"), config.get("use_flow_sigmas")
    if name in _STRAIGHT or (straight and theirs == "flow_prediction"):
        return "flow"
    theirs = "sample" if theirs == "original_sample" else theirs or "epsilon"
    if theirs not in PREDICTIONS or (straight and theirs == "v_prediction"):
        known = ", ".join((*PREDICTIONS, "flow_prediction with use_flow_sigmas"))
        where = " on straight paths" if straight else ""
        raise UserError(f"{name} cannot be expressed: prediction_type {theirs!r}{where} is not read; known: {known}")
    return PREDICTIONS[theirs]


def _straight(config: Any, mu: float | None) -> Rectified:
    if config.get("use_dynamic_shifting"):
        if mu is None:
            return Rectified()
        return Rectified(mu if config.get("time_shift_type") == "linear" else math.exp(mu))
    return Rectified(float(config.get("shift") or config.get("flow_shift") or 1.0))


def _noise_levels(name: str, config: Any, kind: Kind, length: int) -> Reading:
    """Noise levels of any size on data of a known standard deviation (Karras et al. 2022)."""
    low, high = config.get("sigma_min"), config.get("sigma_max")
    if not low or not high:
        raise UserError(f"{name} cannot be expressed: continuous timesteps need a sigma_min and a sigma_max")
    clock = _EDM.get(name, "log")
    if kind == "v":
        # with data of unit variance, x/sqrt(1 + S^2) and v are those of a schedule that preserves variance
        if config.get("sigma_data", 1.0) != 1:
            raise UserError(f"{name} cannot be expressed: v_prediction on data of sigma_data {config['sigma_data']}")
        return Reading(Cosine(-2 * math.log(high)), "v", clock, length)
    if kind != "eps":
        raise UserError(f"{name} cannot be expressed: prediction_type {config['prediction_type']!r} of noise levels")
    top, std = _top(config), float(config["sigma_data"])
    karras = config.get("sigma_schedule") == "karras"
    return Reading(EDM(low, top, config["rho"]) if karras else VE(low, top), "edm", clock, length, std)


def _top(config: Any) -> float:
    """The sigma_max of our schedules, whose s^2 is the noise level's square minus sigma_min^2: s(1) is then theirs."""
    return math.hypot(config["sigma_max"], config["sigma_min"])


def _chain(scheduler: Any) -> Discrete:
    """The chain, from its betas: exact near the data, where float32 loses 1 - abar. From abar where that is changed."""
    betas, abar = scheduler.betas.double(), scheduler.alphas_cumprod.double()
    if scheduler.config.get("rescale_betas_zero_snr") and float(betas[-1]) == 1:
        return Discrete(betas)  # some put an abar above the one before it in the place of 0
    own = torch.cumprod(1 - betas, 0)
    if torch.allclose(own.log(), abar.log(), rtol=1e-4, atol=1e-4):
        return Discrete(betas)
    return Discrete(1 - abar / torch.cat([abar.new_ones(1), abar[:-1]]))


def times_of(scheduler: Any, steps: int, schedule: Schedule | None = None, **options: Any) -> list[float]:
    """The times at which a scheduler with `steps` inference steps calls its model, and its end: a grid for `sample`.

    A scheduler may begin below t = 1 (`timestep_spacing`), and end above 0. With "linspace", DDIM of diffusers calls
    the model at these times but computes its steps as if they were equally spaced. A solver's own evaluations between
    its steps are left out.

    Args:
        scheduler: it is left as it is.
        schedule: of the model; that of `read` by default.
        options: for its `set_timesteps`: mu for dynamic shifting; sigmas or timesteps, which replace the steps.

    Raises:
        UserError: it cannot be expressed, begins above the noise of its own chain, or goes back up in noise.
    """
    schedule = read(scheduler, options.get("mu")).schedule if schedule is None else schedule
    scheduler = _set(scheduler, steps, options)
    name = type(scheduler).__name__
    if hasattr(scheduler, "sigmas"):
        times = _times_of_levels(scheduler, schedule)
    else:
        length = len(schedule.steps) if isinstance(schedule, Discrete) else int(scheduler.config["num_train_timesteps"])
        end = 0.0 if float(getattr(scheduler, "final_alpha_cumprod", 1.0)) == 1 else 1 / length
        asked = [(int(k) + 1) / length for k in scheduler.timesteps]
        times = [*(t for t in asked if t > end), end]
    if any(b > a + 1e-12 for a, b in pairwise(times)):
        raise UserError(f"{name} goes back to more noise on its way: its time steps cannot be expressed")
    return sorted(set(times), reverse=True)


def _times_of_levels(scheduler: Any, schedule: Schedule) -> list[float]:
    """The times of a scheduler that steps between noise levels."""
    levels = scheduler.sigmas.double()
    log_snr = 2 * (torch.log1p(-levels) - torch.log(levels)) if isinstance(schedule, Rectified) else -2 * levels.log()
    last = float(schedule.log_snr(1.0))
    if float(log_snr[0]) < last - 5 * _ROUNDING:
        raise UserError(
            f"{type(scheduler).__name__} cannot be expressed: it begins at a noise level of {float(levels[0]):.6g}, "
            f"but its schedule ends at {math.exp(-last / 2):.6g}"
        )
    times = schedule.time(log_snr).clamp(0, 1)
    if isinstance(schedule, Discrete):
        place = times * len(schedule.steps)
        near = (place - place.round()).abs() < _ROUNDING
        times = torch.where(near, place.round() / len(schedule.steps), times)
        if schedule.zero_terminal_snr and float(scheduler.timesteps[0]) == len(schedule.steps) - 1:
            times[0] = 1.0  # where their noise level is infinite, they write a finite one
    return times.tolist()


def start_of(scheduler: Any, steps: int, **options: Any) -> float:
    """The standard deviation of the state in which a scheduler starts, for white noise, at the first of its times.

    diffusers' pipelines start from `start_of(...)` times noise of unit variance, which is not s(t) where the scheduler
    begins below t = 1.
    """
    kind = read(scheduler, options.get("mu")).prediction
    scheduler = _set(scheduler, steps, options)
    std = float(getattr(scheduler, "init_noise_sigma", 1.0))
    if kind == "edm" or not hasattr(scheduler, "scale_model_input"):
        return std
    return std * float(scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), scheduler.timesteps[0]))


def scheduler_for(reading: Reading) -> Any:
    """A scheduler of diffusers that `read` reads as this: DDIM for a chain, Euler for straight paths and noise levels.

    Raises:
        UserError: no scheduler of diffusers means that; the reason is named.
    """
    schedule, kind, clock = reading.schedule, reading.prediction, reading.clock
    theirs = next((name for name, own in PREDICTIONS.items() if own == kind), None)
    if isinstance(schedule, Discrete) and clock == "chain" and theirs:
        return _instance(
            {
                "_class_name": "DDIMScheduler",
                "num_train_timesteps": len(schedule.steps),
                "trained_betas": list(schedule.steps),
                "prediction_type": theirs,
                "clip_sample": reading.clip is not None,
                "clip_sample_range": reading.clip or 1.0,
                "timestep_spacing": "trailing",
            }
        )
    common: dict[str, Any] = {"num_train_timesteps": reading.length}
    if isinstance(schedule, Rectified) and clock == "path" and kind == "flow":
        return _instance({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": schedule.shift, **common})
    if isinstance(schedule, VE) and clock == "sigma" and kind == "score":
        return _instance({"_class_name": "ScoreSdeVeScheduler", **_levels(schedule), **common})
    common["_class_name"] = "EDMEulerScheduler" if clock == "log" else "CosineDPMSolverMultistepScheduler"
    if clock in ("log", "angle") and isinstance(schedule, EDM | VE) and kind == "edm":
        spaced = {"rho": schedule.rho, "sigma_schedule": "karras"} if isinstance(schedule, EDM) else {}
        common |= {"sigma_data": reading.data_std, "sigma_schedule": "exponential", "prediction_type": "epsilon"}
        return _instance({**common, **_levels(schedule), **spaced})
    if clock in ("log", "angle") and isinstance(schedule, Cosine) and kind == "v" and schedule.log_snr_min is not None:
        high = math.exp(-schedule.log_snr_min / 2)
        levels = {"sigma_min": min(0.002, high / 2), "sigma_max": high}
        return _instance({**common, **levels, "sigma_data": 1.0, "prediction_type": "v_prediction"})
    raise UserError(f"no scheduler of diffusers means the prediction {kind!r} on {schedule} with the clock {clock!r}")


def _levels(schedule: EDM | VE) -> dict[str, float]:
    """The inverse of `_top`."""
    return {
        "sigma_min": schedule.sigma_min,
        "sigma_max": math.sqrt(schedule.sigma_max**2 - schedule.sigma_min**2),
    }


def _instance(scheduler: Any) -> Any:
    """A scheduler of its own: nothing that is set on it reaches the caller's."""
    if not isinstance(scheduler, dict) or not scheduler:
        if not hasattr(scheduler, "config"):
            raise UserError(f"{type(scheduler).__name__} is not a scheduler of diffusers")
        return copy.deepcopy(scheduler)
    name = str(scheduler.get("_class_name", "DDPMScheduler"))
    if not name.endswith("Scheduler"):  # before it is built: a folder may name any class of the library
        raise UserError(f"{name} is not a scheduler of diffusers")
    try:
        return _class(name).from_config(scheduler)
    except (ValueError, TypeError, KeyError, NotImplementedError, ImportError) as error:
        raise UserError(f"{name} does not take this config: {' '.join(str(error).split())[:300]}") from error


def _set(scheduler: Any, steps: int, options: dict[str, Any]) -> Any:
    """The scheduler with its timesteps set."""
    scheduler = _instance(scheduler)
    try:
        if options.keys() & {"sigmas", "timesteps"}:
            scheduler.set_timesteps(**options)
        else:
            scheduler.set_timesteps(steps, **options)
        if type(scheduler).__name__ == "ScoreSdeVeScheduler":
            scheduler.set_sigmas(steps)
            scheduler.sigmas = torch.cat([scheduler.sigmas, torch.zeros(1)])
    except (ValueError, TypeError, AssertionError, IndexError) as error:
        given = ", ".join((f"{steps} steps", *(f"{k} {v}" for k, v in options.items())))
        raise UserError(f"{type(scheduler).__name__} does not take {given}: {error}") from error
    return scheduler


def _class(name: str) -> Any:
    library = require("diffusers", "interop", "a scheduler of diffusers")
    found = getattr(library, name, None) if name.isidentifier() else None
    if found is None:
        raise UserError(f"diffusers has no {name!r}")
    return found
