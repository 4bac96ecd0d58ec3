"""Distillation to a few steps: what a student learns, and the trajectories of its teacher that it learns it from.

On a grid 1 = t_0 > t_1 > ... > t_N = 0 the probability-flow ODE (E20) of the teacher carries x_{t_k} to x_{t_{k+1}}.
The student answers at each t_k with the one x0 whose DDIM step ends there (E31), so that N steps of DDIM with the
student are the teacher's flow. Its target is no average, as E[x_0 | x_t] is: one x_t has one end, whatever C is.

Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512) takes the end of two DDIM steps of the last student for
that of the flow, and halves N. Consistency models (Song et al. 2023, arXiv:2303.01469; of several steps, Heek et al.
2024, arXiv:2403.06807) take the student's own answer from a little further on. Here the flow itself is followed, by a
solver of order 3 (as Luhman & Luhman 2021, arXiv:2101.02388, with one step and DDIM): no error is handed on from one
student to the next, and no data are needed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser, Denoises
from ornstein.errors import UserError
from ornstein.guidance import ClassifierFree
from ornstein.process import Prediction, Process, check_times, expand
from ornstein.randomness import normal
from ornstein.schedules import Times
from ornstein.solvers import grids
from ornstein.solvers.multistep import multistep
from ornstein.wrapper import Conditioned, device_of

MOST_STEPS = 10
"""Past these a student has little to save."""

TEACHER_STEPS = 20  # about as many as `ornstein sample` takes: its samples are what the student is to make
_ORDER = 3
_PLAIN = 10  # of so many rounds through the classes one is without: the student stays a model without them too

# Noise that no sample of the model is made from.
_STREAM = 0x44535449

_KNOWN_CONDITIONS = {"label", "known", "known_mask"}


def leading_to(p: Process, x_t: Tensor, t: Times, x_s: Tensor, s: Times) -> Prediction:
    """The prediction at x_t (B, *) whose DDIM step from t to s < t ends at x_s (E31).

    x0~ = (x_s - r x_t)/(a_s - r a_t), r = s_s/s_t, which solves x_s = a_s x0~ + s_s (x_t - a_t x0~)/s_t; the divisor is
    a_s (1 - sqrt(SNR_t/SNR_s)). With x_s of two DDIM steps it is the target of Salimans & Ho 2022, algorithm 2. Raises
    ValueError unless s < t.
    """
    s64, t64 = check_times(s, x_t), check_times(t, x_t)
    if bool((s64 >= t64).any()):
        raise ValueError("a step towards the data goes from t to an earlier time: here s >= t")
    schedule = p.schedule
    a, r = schedule.alpha(s64), schedule.sigma(s64) / schedule.sigma(t64)
    share = -torch.expm1((schedule.log_snr(t64) - schedule.log_snr(s64)) / 2)
    x0 = (x_s - expand(r, x_t) * x_t) / expand(a * share, x_t)
    return p.convert(x_t, t, x0=x0)


def student_times(p: Process, steps: int) -> tuple[float, ...]:
    """The grid of a student of so many steps, from 1 to 0. Raises UserError for steps out of 1 to 10."""
    if not 1 <= steps <= MOST_STEPS:
        raise UserError(f"a model is distilled to 1 to {MOST_STEPS} steps, not {steps}")
    return tuple(grids.make(grids.GRID, p.schedule, (1.0, 0.0), steps).tolist())


def check_teacher(model: Denoiser, guidance: float) -> None:
    """Raises UserError where the model is none to follow from noise alone, or not with that guidance."""
    if model.distilled is not None:
        raise UserError(f"it is distilled itself, to {model.distilled}: distil the model that it was made from")
    foreign = sorted(set(model.conditions) - _KNOWN_CONDITIONS)
    if foreign:
        raise UserError(f"it is made to be given {', '.join(foreign)}: only models that start from noise are distilled")
    if model.data is None:
        raise UserError("it does not say what its samples look like: train it with `ornstein train`")
    if guidance != 1 and not model.data.classes:
        raise UserError("it was trained without classes: there is nothing for --guidance to lean towards")
    if not guidance >= 0:
        raise UserError(f"--guidance is a scale from 0 on, not {guidance}")


def labels_of(model: Denoiser, index: Tensor) -> Tensor | None:
    """The class of each of the trajectories `index` (M,), every tenth round of them none (-1); None without classes."""
    classes = len(model.data.classes) if model.data is not None else 0
    if not classes:
        return None
    return torch.where(index // classes % _PLAIN == _PLAIN - 1, -1, index % classes)


def follow(
    model: Denoiser, steps: int, count: int, guidance: float, seed: int, batch: int, first: int = 0
) -> Iterator[Tensor]:
    """States of the teacher's flow at the student's times, (B, steps + 1, *), batch by batch from trajectory `first`.

    Trajectory i starts from the noise of (seed, i) and is of the class `labels_of`; of a batch that begins elsewhere it
    is the same to rounding. 20 steps of the multistep solver of order 3, or so many that they meet the student's times.
    """
    assert model.data is not None
    often = -(-TEACHER_STEPS // steps)
    times = grids.make(grids.GRID, model.process.schedule, (1.0, 0.0), steps * often)
    device, shape = device_of(model), tuple(model.data.shape)
    d: Denoises = model if guidance == 1 else ClassifierFree(model, guidance)
    for low in range(first, count, batch):
        index = torch.arange(low, min(low + batch, count))
        labels = labels_of(model, index)
        own = d if labels is None else Conditioned(d, {"label": labels.to(device)})
        z = normal((len(index), *shape), seed, index, 0, stream=_STREAM, device=device)
        x = model.process.prior(tuple(z.shape), device=device).sample(z)
        states = [x]
        with torch.no_grad():
            for k, state in enumerate(multistep(own, x, times, _no_noise, order=_ORDER), start=1):
                if k % often == 0:
                    states.append(state)
        yield torch.stack(states, 1)


def _no_noise(step: int, draw: int = 0) -> Tensor:
    raise AssertionError("the flow is deterministic")
