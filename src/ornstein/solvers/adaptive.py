"""The probability-flow ODE with the error of its steps controlled: Dormand and Prince's pair of orders 5 and 4."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.noise import SingularCovarianceError
from ornstein.process import expand
from ornstein.solvers.runge_kutta import dormand_prince
from ornstein.solvers.stepping import Noise, pairs

# Below this level s/a the rest of the way is one DDIM step: the prediction at the data itself is a limit.
_LAST = 0.002


@dataclass(frozen=True)
class _Rotation:
    """dy/du = v for y = x/sqrt(a^2 + s^2) and u = -atan(s/a), finite from zero SNR to the data: E20 in those terms.

    All rows of the batch go through the denoiser, as its conditions do, and the active ones come out.
    """

    d: Denoises
    rows: Tensor

    def time(self, u: Tensor) -> Tensor:
        t = self.d.process.schedule.time(-2 * torch.log(torch.tan(-u)))
        return t.clamp(0, 1)

    def __call__(self, u: Tensor, x: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        p = self.d.process
        y, angle = self.rows.clone(), torch.full((len(self.rows),), float(u[0]), dtype=torch.float64, device=u.device)
        y[active], angle[active] = x, u
        t = self.time(angle)
        a, s = p.coefficients(t, y)
        norm = torch.sqrt(a**2 + s**2)
        out = self.d(norm * y, t)
        # -v sqrt(a^2 + s^2)/norm: the angle falls as u rises.
        velocity = (s * out.x0 - a * out.eps) / norm
        return velocity[active], torch.zeros(len(x), 1, dtype=x.dtype, device=x.device)


def rk45(d: Denoises, x: Tensor, times: Tensor, noise: Noise, tolerance: float = 1e-3) -> Iterator[Tensor]:
    """Order 5 with steps chosen for each sample; seven evaluations at least between two times, which it meets exactly.

    A step stands where its error, the root mean square of R^-1 x, is at most `tolerance` (1 + the magnitude). One step
    (`steps=1`) leaves the whole way to that control; `Counted` tells what it took. Raises ValueError for a tolerance
    that is not positive, and where the way cannot be followed to it.
    """
    if not 0 < tolerance < math.inf:
        raise ValueError(f"the tolerance is a number > 0, got {tolerance}")
    p = d.process

    def whitened(y: Tensor) -> Tensor:
        try:
            return p.noise.whiten(y)
        except SingularCovarianceError:
            return y

    def angle(t: float) -> float:
        return math.atan(math.exp(-float(p.schedule.log_snr(t)) / 2))

    for t, s in pairs(times, down=True):
        start, end = angle(t), max(angle(s), _LAST)
        now = t
        if start > end:
            norm = expand(torch.sqrt(p.schedule.alpha(t) ** 2 + p.schedule.sigma(t) ** 2), x.double())
            # in float64: a step is accepted or not by a difference of nearly equal numbers
            field = _Rotation(d, x.double() / norm)
            y, _, _ = dormand_prince(field, field.rows, -start, -end, tolerance, whitened)
            now = s if end > _LAST else float(field.time(torch.tensor([-end], dtype=torch.float64)))
            a, std = p.coefficients(now, y)
            x = (torch.sqrt(a**2 + std**2) * y).to(x.dtype)
        if now > s:
            ahead = d(x, now)
            a, std = p.coefficients(s, x)
            x = a * ahead.x0 + std * ahead.eps
        yield x
