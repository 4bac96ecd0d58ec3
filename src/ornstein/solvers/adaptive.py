"""The probability-flow ODE with the error of its steps controlled: Dormand and Prince's pair of orders 5 and 4."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.devices import in_float64
from ornstein.noise import SingularCovarianceError
from ornstein.solvers.runge_kutta import Slope, Step, column, dormand_prince
from ornstein.solvers.stepping import Knot, Noise, knots

__all__ = ["rk45"]

# Below this level s/a the rest of the way is one DDIM step: the prediction at the data itself is a limit.
_LAST = 0.002


@dataclass(frozen=True)
class _Rotation:
    """dy/du = v for y = x/sqrt(a^2 + s^2) and u = -atan(s/a), finite from zero SNR to the data: E20 in these terms.

    The whole batch goes through the denoiser, which holds conditions for it; the active rows come out. Samples are
    float64 here, and `like` is the sample that the denoiser takes.
    """

    d: Denoises
    whole: Tensor
    like: Tensor

    def time(self, u: Tensor) -> Tensor:
        t = self.d.process.schedule.time(-2 * torch.log(torch.tan(-u)))
        return t.clamp(0, 1)

    def __call__(self, u: Tensor, x: Tensor, rows: Tensor) -> Slope:
        y, angle, every = x, u, len(rows) == len(self.whole)
        index = rows.to(x.device)
        if not every:
            y = self.whole.index_copy(0, index, x)
            angle = u[:1].expand(len(self.whole)).index_copy(0, rows, u)
        t, schedule = self.time(angle), self.d.process.schedule
        a, s = schedule.alpha(t), schedule.sigma(t)
        norm = torch.sqrt(a**2 + s**2)
        # One copy to an accelerator in place of three.
        scale, of_x0, of_eps = (column(c, y) for c in torch.stack([norm, s / norm, a / norm]).to(y.device))
        out = self.d((scale * y).to(self.like.dtype).to(self.like.device), t)
        x0, eps = (form.to(y.device).to(y.dtype) for form in (out.x0, out.eps))
        # -v sqrt(a^2 + s^2)/norm: the angle falls as u rises.
        velocity = of_x0 * x0 - of_eps * eps
        return Slope(velocity if every else velocity[index], x.new_zeros(len(x), 1))


def rk45(d: Denoises, x: Tensor, times: Tensor, noise: Noise, tolerance: float = 1e-3) -> Iterator[Tensor]:
    """Order 5 with steps chosen for each sample; seven evaluations at least between two times, which it meets exactly.

    A step is accepted if its error, the root mean square of R^-1 x, is at most `tolerance` (1 + the magnitude). One
    step (`steps=1`) leaves the whole way to this control; `Counted` counts the evaluations.

    Raises:
        ValueError: the tolerance is not positive, or the path cannot be followed to it.
    """
    if not 0 < tolerance < math.inf:
        raise ValueError(f"the tolerance is a number > 0, got {tolerance}")
    p = d.process

    def whitened(y: Tensor) -> Tensor:
        try:
            return p.noise.whiten(y)
        except SingularCovarianceError:
            return y

    def error_of(step: Step) -> Tensor:
        magnitude = torch.maximum(whitened(step.before).abs(), whitened(step.after).abs())
        return (whitened(step.error) / (1 + magnitude)).flatten(1).square().mean(1).sqrt()

    def angle(knot: Knot) -> float:
        return math.atan(math.exp(-knot.log_snr / 2))

    for start, end in knots(p, times, down=True):
        low, high, t = angle(start), max(angle(end), _LAST), start.t
        if low > high:
            # in float64: a step is accepted or not by a difference of nearly equal numbers
            y = in_float64(x) / math.hypot(start.a, start.s)
            field = _Rotation(d, y, x)
            y = dormand_prince(field, y, -low, -high, tolerance, error_of).x
            t = end.t if high > _LAST else float(field.time(torch.tensor([-high], dtype=torch.float64)))
            a, s = p.coefficients(t, y)
            x = (torch.sqrt(a**2 + s**2) * y).to(x.dtype).to(x.device)
        if t > end.t:
            ahead = d(x, t)
            x = end.a * ahead.x0 + end.s * ahead.eps
        yield x
