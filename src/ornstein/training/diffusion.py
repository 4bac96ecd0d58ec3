"""Schedule and prediction of a diffusion model by the settings of a run, and which of them go together."""

from __future__ import annotations

import torch

from ornstein import schedules
from ornstein.denoiser import Kind
from ornstein.errors import UserError
from ornstein.schedules import Schedule
from ornstein.training.objective import TimeSampling
from ornstein.training.settings import DIFFUSION, Settings

__all__ = ["check_diffusion", "check_pair", "prediction_of", "schedule_of"]

_DATA_VARIANCE = 0.25  # of pixels in [-1, 1], about
_MOST_DATA = 0.1  # a/s at t = 1: samples start from pure noise, so little of the data may be left there
_MOST_GAIN = 1e5  # of the error of a network in x0; float32 has 7 digits
_MOST_UNEVEN = 10.0  # mean over median of the target's square over the times


def schedule_of(settings: Settings) -> Schedule:
    """The schedule of --schedule. Raises UserError if there is no such one."""
    try:
        return schedules.parse(settings.schedule)
    except ValueError as error:
        raise UserError(f"--schedule: {error}") from None


def prediction_of(settings: Settings) -> Kind:
    """What the network predicts."""
    return settings.predicted  # pyright: ignore[reportReturnType]  (its type cannot be imported without torch)


def check_diffusion(settings: Settings) -> None:
    """Raise UserError for a schedule, prediction and sampling of times that cannot work; before the data are read."""
    if settings.model != DIFFUSION:
        return
    schedule = schedule_of(settings)
    check_pair(settings.schedule, schedule, prediction_of(settings))
    TimeSampling(settings.time_sampling, settings.objective, schedule)
    if settings.objective == "vlb-eps" and schedule.zero_terminal_snr:
        raise UserError(f"--objective vlb-eps is infinite with --schedule {settings.schedule}: take vlb-x0")


def check_pair(name: str, schedule: Schedule, prediction: str) -> None:
    """Raise UserError if a network cannot learn the prediction under the schedule, or samples cannot start.

    The reasons, with a and s at t = 1: a/s is not small, and the prior N(0, s^2 C) is not where the data end; "eps"
    with a = 0, or s/a so large that x0 = (x - s eps)/a has no digits left; "flow" where dx/dt is infinite; a target
    whose size grows so much with the noise that the loss is that of the last times alone, which "edm" scales away.
    """
    a, s = float(schedule.alpha(1.0)), float(schedule.sigma(1.0))
    pair = f"--prediction {prediction} cannot work with --schedule {name}"
    if a > _MOST_DATA * s:
        raise UserError(
            f"--schedule {name} ends at a/s = {a / s:.2g}: samples start from pure noise, so it must end below "
            f"{_MOST_DATA:g}, with more noise"
        )
    if prediction == "eps" and (schedule.zero_terminal_snr or s > _MOST_GAIN * a):
        lost = "is 0/0" if schedule.zero_terminal_snr else f"multiplies the error of the network by {s / a:.1g}"
        raise UserError(
            f"{pair}: at t = 1 the sample is noise alone (a = {a:.1g}), and x0 = (x - s eps)/a {lost}: take "
            "--prediction v, x0 or edm"
        )
    if prediction == "flow" and not bool(schedule.alpha_dot(1.0).isfinite()):
        raise UserError(f"{pair}: its flow dx/dt is infinite at t = 1: take --prediction v or x0")
    square = _target(schedule, prediction)
    if square is not None and float(square.mean()) > _MOST_UNEVEN * float(square.median()):
        low, high = (float(value) ** 0.5 for value in (square.min(), square.max()))
        raise UserError(
            f"{pair}: what the network has to predict grows with the noise, from {low:.2g} to {high:.2g}, and the loss "
            "would be that of the last times alone: take --prediction edm, which scales it"
        )


def _target(schedule: Schedule, prediction: str) -> torch.Tensor | None:
    """The mean square of what the network predicts, at times over (0, 1]; None where it is bounded by its definition.

    With white noise and data of variance 1/4: v = a eps - s x0, flow = a' x0 + s' eps.
    """
    t = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
    if prediction == "v":
        return schedule.alpha(t) ** 2 + _DATA_VARIANCE * schedule.sigma(t) ** 2
    if prediction == "flow":
        return schedule.sigma_dot(t) ** 2 + _DATA_VARIANCE * schedule.alpha_dot(t) ** 2
    return None
