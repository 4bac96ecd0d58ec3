"""The times of diffusers' schedulers: the schedule that one means, its timesteps as t, and t as its timesteps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Kind
from ornstein.errors import UserError
from ornstein.schedules import Discrete, Rectified, Schedule

__all__ = ["PREDICTIONS", "own_timesteps", "schedule_of", "times_of"]

PREDICTIONS: dict[str, Kind] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# A log-SNR in float32 tells a timestep to about this.
_NEAR = 1e-2


def own_timesteps(schedule: Schedule, log_snr: Tensor, length: int = 1000) -> Tensor:
    """The timesteps of diffusers at a log-SNR, (B,) float32: k of a chain at t = (k + 1)/T, u T of straight paths.

    Between two steps of a chain it is the fraction that has the same log-SNR.
    """
    if isinstance(schedule, Discrete):
        place = schedule.time(log_snr.double()) * len(schedule.steps) - 1
        nearest = place.round()
        return torch.where((place - nearest).abs() < _NEAR, nearest, place).clamp(min=0).to(torch.float32)
    return (torch.sigmoid(-log_snr.double() / 2) * length).to(torch.float32)  # u = s/(a + s)


def is_flow(config: Any) -> bool:
    """Whether a scheduler's config means straight paths."""
    return config.get("_class_name", "").startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))


def schedule_of(scheduler: Any, mu: float | None = None) -> tuple[Schedule, Kind]:
    """The schedule of a scheduler of diffusers, and the quantity that its model predicts.

    Args:
        scheduler: the scheduler.
        mu: for one with dynamic shifting, what its pipeline gives it for the size of its samples.

    Raises:
        UserError: it cannot be expressed; the scheduler and the reason are named.
    """
    config, name = scheduler.config, type(scheduler).__name__
    if name.startswith("FlowMatch") or is_flow(config):
        if config.get("use_dynamic_shifting") and mu is not None:
            return Rectified(mu if config.get("time_shift_type") == "linear" else math.exp(mu)), "flow"
        return Rectified(float(config.get("shift") or config.get("flow_shift") or 1.0)), "flow"
    betas = getattr(scheduler, "betas", None)
    if betas is None:
        raise UserError(f"{name} has neither a chain of betas nor straight paths: its schedule cannot be expressed")
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise UserError(f"{name} has prediction_type {kind!r}, which is not read; known: {', '.join(PREDICTIONS)}")
    return Discrete(betas.double().tolist()), PREDICTIONS[kind]


def times_of(scheduler: Any, steps: int, schedule: Schedule, **options: Any) -> list[float]:
    """The times at which a scheduler with `steps` inference steps calls its model, and its end: a grid for `sample`.

    A scheduler may begin below t = 1 (`timestep_spacing`), and one without `set_alpha_to_one` ends at 1/T. With
    "linspace", DDIM of diffusers calls the model at these times but computes its steps as if they were equally spaced.

    Args:
        scheduler: its timesteps are set.
        steps: as its `set_timesteps`, with the `options`.
        schedule: the one of the model.
    """
    scheduler.set_timesteps(steps, **options)
    if not isinstance(schedule, Discrete):
        u = scheduler.sigmas.double().clamp(0, 1)
        log_snr = 2 * (torch.log1p(-u) - torch.log(u))
        return schedule.time(log_snr).tolist()
    length = len(schedule.steps)
    config = scheduler.config
    at_data = config.get("set_alpha_to_one", True) and config.get("final_sigmas_type", "zero") == "zero"
    end = 0.0 if at_data else 1 / length
    asked = sorted({(float(k) + 1) / length for k in scheduler.timesteps}, reverse=True)
    return [*(t for t in asked if t > end), end]
