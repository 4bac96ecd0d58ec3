"""Distillation to a few steps: the student's target (E31), and the teacher's trajectories that it comes from.

On time steps 1 = t_0 > t_1 > ... > t_N = 0 the teacher's probability-flow ODE (E20) carries x_{t_k} to x_{t_{k+1}}. At
each t_k the student predicts the one x0 whose DDIM step ends there (E31), so N steps of DDIM with the student follow
the teacher's flow. This target is not an average, as E[x_0 | x_t] is: one x_t has one end, whatever C is.

Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512) uses two DDIM steps of the previous student instead of
the flow, and halves N. Consistency models use the student's own prediction a little further on
(`few_steps.consistency`). Here the flow itself is computed by a solver of
order 3 (Luhman & Luhman 2021, arXiv:2101.02388, do so with one step and DDIM): no error passes from student to student,
and no data are needed.
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

__all__ = ["MOST_STEPS", "TEACHER_STEPS", "check_teacher", "follow", "labels_of", "leading_to", "student_times"]

MOST_STEPS = 10
"""With more steps a student saves little."""

TEACHER_STEPS = 20  # about as many as `ornstein sample` takes: the student should match its samples
_ORDER = 3
_PLAIN = 10  # one round through the classes in ten is unconditional, so that the student stays able to do without

# A stream of noise that no sample of the model uses.
_STREAM = 0x44535449

_KNOWN_CONDITIONS = {"label", "known", "known_mask"}
_TEXT = {"text", "text_mask"}


def leading_to(p: Process, x_t: Tensor, t: Times, x_s: Tensor, s: Times) -> Prediction:
    """The prediction at x_t whose DDIM step from t to s < t ends at x_s (E31).

    x0~ = (x_s - r x_t)/(a_s - r a_t), r = s_s/s_t, solves x_s = a_s x0~ + s_s (x_t - a_t x0~)/s_t. The divisor is
    a_s (1 - sqrt(SNR_t/SNR_s)). If x_s is the end of two DDIM steps, this is the target of Salimans & Ho 2022,
    algorithm 2.

    Args:
        p: schedule and noise.
        x_t, x_s: states (B, *).
        t, s: times, scalars or (B,), s < t.

    Raises:
        ValueError: s >= t.
    """
    s64, t64 = check_times(s, x_t), check_times(t, x_t)
    if bool((s64 >= t64).any()):
        raise ValueError("a step towards the data goes to a smaller time, s < t, but here s >= t")
    schedule = p.schedule
    a, r = schedule.alpha(s64), schedule.sigma(s64) / schedule.sigma(t64)
    share = -torch.expm1((schedule.log_snr(t64) - schedule.log_snr(s64)) / 2)
    x0 = (x_s - expand(r, x_t) * x_t) / expand(a * share, x_t)
    return p.convert(x_t, t, x0=x0)


def student_times(p: Process, steps: int) -> tuple[float, ...]:
    """The time steps, from 1 to 0, of a student of `steps` steps. Raises UserError for steps outside 1 to 10."""
    if not 1 <= steps <= MOST_STEPS:
        raise UserError(f"a model is distilled to 1 to {MOST_STEPS} steps, not {steps}")
    return tuple(grids.make(grids.GRID, p.schedule, (1.0, 0.0), steps).tolist())


def check_teacher(model: Denoiser, guidance: float, text: bool = False) -> None:
    """Raise UserError if the model cannot be a teacher, or not with that guidance scale.

    text: whether its training data are at hand, with the captions that a model of text needs.
    """
    if model.distilled is not None:
        raise UserError(f"it is already distilled, to {model.distilled}: distil its teacher instead")
    foreign = set(model.conditions) - _KNOWN_CONDITIONS
    if foreign and foreign <= _TEXT and not text:
        raise UserError("it takes text, which trajectories have none of: give --method consistency")
    if foreign - _TEXT:
        needed = ", ".join(sorted(foreign))
        raise UserError(f"it needs {needed}: only models that start from noise can be distilled")
    if model.data is None:
        raise UserError("it has no sample spec: train it with `ornstein train`")
    if guidance != 1 and not model.data.classes and not foreign:
        raise UserError("it was trained without classes, which --guidance needs")
    if not guidance >= 0:
        raise UserError(f"--guidance is a scale of 0 or more, not {guidance}")


def labels_of(model: Denoiser, index: Tensor) -> Tensor | None:
    """The class of each trajectory `index` (M,), -1 (no class) in every tenth round; None if there are no classes."""
    classes = len(model.data.classes) if model.data is not None else 0
    if not classes:
        return None
    return torch.where(index // classes % _PLAIN == _PLAIN - 1, -1, index % classes)


def follow(
    model: Denoiser, steps: int, count: int, guidance: float, seed: int, batch: int, first: int = 0
) -> Iterator[Tensor]:
    """States of the teacher's flow at the student's time steps, batch by batch.

    Trajectory i starts from the noise of (seed, i) and has the class of `labels_of`. In another batch it is the same up
    to rounding. The multistep solver of order 3 takes 20 steps, or as many as it needs to meet the student's times.

    Args:
        steps: the student's.
        count, first: trajectories first ... count - 1.
        guidance: scale of classifier-free guidance.
        batch: trajectories computed at once.

    Yields:
        (B, steps + 1, *).
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
    raise AssertionError("this solver is deterministic")
