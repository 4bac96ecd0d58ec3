"""Preconditioning of the network (Karras et al. 2022), mode by mode where data and noise have different covariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ornstein.noise import Covariance, FrameCovariance, Identity, SingularCovarianceError
from ornstein.noise.frames import frame_axis
from ornstein.process import Process, check_times, expand
from ornstein.schedules import Times

__all__ = ["Preconditioning"]

# A function of a, s and the variance of a mode of the data in units of the noise's.
Coefficient = Callable[[Tensor, Tensor, Tensor], Tensor]


def _into(a: Tensor, s: Tensor, v: Tensor) -> Tensor:
    return 1 / torch.sqrt(a**2 * v + s**2)


def _skip(a: Tensor, s: Tensor, v: Tensor) -> Tensor:
    return a * v / (a**2 * v + s**2)


def _out(a: Tensor, s: Tensor, v: Tensor) -> Tensor:
    return s * v.sqrt() * _into(a, s, v)


@dataclass(frozen=True)
class Preconditioning:
    """x0 = c_skip x + c_out F(c_in x), with c_skip x = E[x_0 | x_t] for data N(0, data_std^2 Sigma).

    C = W W^T and Sigma = W diag(r) W^T in the eigenbasis of
    R^-1 Sigma R^-T, and with v = data_std^2 r each c is W diag(.) W^-1 of

        c_skip = a v/(a^2 v + s^2),    c_out = s sqrt(v)/sqrt(a^2 v + s^2),    c_in = 1/sqrt(a^2 v + s^2)

    For such data F = 0 is the optimum, and input and target of the network have the covariance C at every time: unit
    variance in every mode. At a = 1 and Sigma = C these are the scalars of Karras et al. (2022, table 1).

    Source: Karras et al. 2022 (arXiv:2206.00364).

    Args:
        process: of the denoiser.
        data_std: standard deviation of the data.
        data_covariance: Sigma over frames in units of data_std^2; C by default. C must act on frames too.

    Raises:
        ValueError: a covariance does not act on frames, or their lengths differ.
        SingularCovarianceError: one of them has no inverse.
    """

    process: Process
    data_std: float
    data_covariance: Covariance | None = None
    _modes: tuple[Tensor, Tensor, Tensor] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sigma = self.data_covariance
        object.__setattr__(self, "_modes", None if sigma is None else _modes(self.process.noise, sigma))

    def network_input(self, x: Tensor, t: Times) -> Tensor:
        """c_in x, (B, *)."""
        return self._apply(_into, x, t)

    def x0(self, x: Tensor, t: Times, output: Tensor) -> Tensor:
        """c_skip x + c_out output, (B, *)."""
        return self._apply(_skip, x, t) + self._apply(_out, output, t)

    def target(self, x: Tensor, t: Times, x0: Tensor) -> Tensor:
        """The network output for x_0: c_out^-1 (x_0 - c_skip x), (B, *); infinite at t = 0."""
        return self._apply(lambda *c: 1 / _out(*c), x0 - self._apply(_skip, x, t), t)

    def _apply(self, f: Coefficient, y: Tensor, t: Times) -> Tensor:
        """W diag(f) W^-1 y at the times t."""
        t = check_times(t, y)
        a, s = self.process.schedule.alpha(t)[..., None], self.process.schedule.sigma(t)[..., None]
        if self._modes is None:
            c = f(a, s, torch.full((1,), self.data_std**2, dtype=torch.float64, device=a.device))
            return expand(c[..., 0], y) * y
        ratio, basis, inverse = (m.to(a.device) for m in self._modes)
        c = f(a, s, self.data_std**2 * ratio)
        matrix = (basis * c[..., None, :]) @ inverse
        matrix = matrix.to(y.dtype).to(y.device, non_blocking=True)  # cast first: MPS has no float64
        axis = frame_axis(y.shape[1:]) + 1
        length = len(ratio)
        if y.shape[axis] != length:
            raise ValueError(f"the data covariance acts on {length} frames, the sample {tuple(y.shape)} has another")
        flat = y.reshape(y.shape[0], math.prod(y.shape[1:axis]), length, math.prod(y.shape[axis + 1 :]))
        return (matrix.reshape(-1, 1, length, length) @ flat).reshape(y.shape)


def _modes(noise: Covariance, sigma: Covariance) -> tuple[Tensor, Tensor, Tensor]:
    """r (L,), W (L, L) and W^-1 with C = W W^T and Sigma = W diag(r) W^T; float64."""
    if not isinstance(sigma, FrameCovariance) or not isinstance(noise, FrameCovariance | Identity):
        raise ValueError(f"preconditioning by modes takes covariances over frames, got {sigma} for noise {noise}")
    unit = torch.eye(sigma.length, dtype=torch.float64)
    if isinstance(noise, FrameCovariance) and noise.length != sigma.length:
        raise ValueError(f"the data covariance is over {sigma.length} frames, the noise over {noise.length}")
    if sigma.singular:
        raise SingularCovarianceError(sigma)
    half = noise.whiten(sigma.dense())  # rows are samples: Sigma R^-T
    inner = noise.whiten(half.mT.contiguous())
    ratio, rotation = torch.linalg.eigh((inner + inner.mT) / 2)
    return ratio, noise.color(unit).mT @ rotation, rotation.mT @ noise.whiten(unit).mT
