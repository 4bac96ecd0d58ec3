"""Clips beyond plain sampling: frames that are given, and clips longer than the network's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.nets.video import frames_known
from ornstein.noise import Covariance, Identity
from ornstein.noise.frames import FrameCovariance
from ornstein.process import Prediction, Process
from ornstein.randomness import normal
from ornstein.sampling import sample
from ornstein.schedules import Times
from ornstein.solvers import SOLVERS, Solver
from ornstein.solvers.stepping import Noise


@dataclass(frozen=True)
class GivenFrames:
    """A denoiser that knows some clean frames: E[x_0 | x_t, x_0 on the known frames].

    The network sees them, and the answer on them is what they are: x_0 itself, and eps = (x_t - a x_0)/s. The whole
    clip is noised under C and denoised by the solver as any other; no part of a state is ever replaced. This is the
    exact conditional wherever the network is, for any C: Tweedie's formula for the law of x_t given the known frames.

    known (B, C, F, H, W), looked at where known_mask (B, F) bool is true. With guidance, wrap this in `ClassifierFree`:
    then the known frames stay known without the condition too. Raises ValueError for shapes that do not fit.
    """

    denoiser: Denoises
    known: Tensor
    known_mask: Tensor

    def __post_init__(self) -> None:
        if self.known.ndim != 5 or self.known_mask.shape != (self.known.shape[0], self.known.shape[2]):
            raise ValueError(
                f"known is {tuple(self.known.shape)} and known_mask {tuple(self.known_mask.shape)}; give clips "
                "(B, C, F, H, W) and which of their frames are known, (B, F)"
            )
        if self.known_mask.dtype != torch.bool:
            raise ValueError(f"known_mask is {self.known_mask.dtype}; it must be bool")

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        if x_t.shape != self.known.shape:
            raise ValueError(f"x_t has shape {tuple(x_t.shape)}, the known frames {tuple(self.known.shape)}")
        known, mask = self.known.to(x_t), self.known_mask.to(x_t.device)
        prediction = self.denoiser(x_t, t, known=known, known_mask=mask, **cond)
        given = mask[:, None, :, None, None]
        a, s = self.process.coefficients(t, x_t)
        eps = torch.where(s > 0, (x_t - a * known) / s, 0.0)
        return replace(
            prediction, x0=torch.where(given, known, prediction.x0), eps=torch.where(given, eps, prediction.eps)
        )


def sample_given(
    d: Denoises,
    known: Tensor,
    known_mask: Tensor,
    solver: str | Solver = "ddim",
    steps: int = 50,
    grid: str | Sequence[float] | Tensor = "logistic",
    seed: int = 0,
    guidance: float | None = None,
    cond: dict[str, Any] | None = None,
    batch: int | None = None,
    first: int = 0,
) -> Tensor:
    """Clips (B, C, F, H, W) that go on from known frames (prediction) or lead between them (interpolation).

    known (B, C, F, H, W), looked at where known_mask (F,) or (B, F) bool is true, and returned as it is there. The
    other arguments are those of `ornstein.sample`; sample i is the same in any `batch`. Raises ValueError as it does,
    and for shapes that do not fit.
    """
    mask = known_mask.expand(known.shape[0], -1) if known_mask.ndim == 1 else known_mask
    out = []
    for rows in _parts(known.shape[0], batch):
        given = GivenFrames(d, known[rows], mask[rows])
        own = _rows_of(cond, rows)
        shape = known[rows].shape
        x = sample(given, shape, solver, steps, grid, seed, guidance, own, first=first + rows.start)
        out.append(torch.where(mask[rows, None, :, None, None].to(x.device), known[rows].to(x), x))
    return torch.cat(out)


def sample_long(
    d: Denoises,
    shape: Sequence[int],
    window: int,
    overlap: int,
    solver: str | Solver = "ddim",
    steps: int = 50,
    grid: str | Sequence[float] | Tensor = "logistic",
    seed: int = 0,
    guidance: float | None = None,
    cond: dict[str, Any] | None = None,
    batch: int | None = None,
    first: int = 0,
) -> Tensor:
    """Clips of `shape` (B, C, F, H, W) of any length F, made `window` frames at a time.

    The first window is `sample`'s; each later one is given the last `overlap` frames of the one before, see
    `GivenFrames`. The noise of a frame is the same in the two windows that hold it, and that of the new frames is drawn
    from the Gaussian conditional of C given the old ones, at the start and in every stochastic step. The result depends
    on that noise through its innovation alone, which is independent of all that came before: so a network that knows
    the conditional law makes clips whose every frame has it given the `overlap` frames before.

    The other arguments are those of `sample`; sample i is the same in any `batch`. Raises ValueError as `sample` does;
    unless 1 <= overlap < window <= F; and for a covariance that is not stationary over frames, or that acts on pixels
    too with a root that mixes later frames into earlier ones.
    """
    shape = tuple(shape)
    if len(shape) != 5 or not 1 <= overlap < window <= shape[2]:
        raise ValueError(
            f"long clips are (B, C, F, H, W) with 1 <= overlap < window <= F, got {shape}, overlap {overlap} and "
            f"window {window}"
        )
    _check_stationary(d.process.noise)
    windows = 1 + math.ceil((shape[2] - window) / (window - overlap))
    out = []
    for rows in _parts(shape[0], batch):
        part = (rows.stop - rows.start, shape[1], window, *shape[3:])
        numbers = torch.arange(first + rows.start, first + rows.stop)
        own = _rows_of(cond, rows)
        x = sample(d, part, solver, steps, grid, seed, guidance, own, first=first + rows.start)
        step_with = SOLVERS[solver] if isinstance(solver, str) else solver
        noise = _WindowNoise(d.process.noise, part, overlap, seed, numbers, x)
        mask = frames_known(window, overlap).expand(part[0], -1)
        prior = d.process.prior(part, dtype=x.dtype, device=x.device)
        for k in range(1, windows):
            known = torch.cat([x[:, :, -overlap:], x.new_zeros(*part[:2], window - overlap, *part[3:])], dim=2)
            given = GivenFrames(d, known, mask)
            start = prior.sample(noise(k, 0))
            new = sample(given, part, _with_noise(step_with, noise, k), steps, grid, seed, guidance, own, start)
            x = torch.cat([x, new[:, :, overlap:]], dim=2)
        out.append(x[:, :, : shape[2]])
    return torch.cat(out)


def _parts(total: int, batch: int | None) -> list[slice]:
    size = total if batch is None else batch
    if size < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    return [slice(low, min(low + size, total)) for low in range(0, total, size)]


def _rows_of(cond: dict[str, Any] | None, rows: slice) -> dict[str, Any]:
    return {k: v[rows] if isinstance(v, Tensor) and v.ndim else v for k, v in (cond or {}).items()}


def _with_noise(solver: Solver, windows: _WindowNoise, window: int) -> Solver:
    """The solver with the noise of one window in place of the sampler's."""

    def run(d: Denoises, x: Tensor, times: Tensor, noise: Noise) -> Iterator[Tensor]:
        return solver(d, x, times, lambda step, draw=0: windows(window, step + 1, draw))

    return run


class _WindowNoise:
    """White noise z of each window such that R z is the same on the frames that two windows share.

    Of window k, given the noise e of the last `overlap` frames of window k - 1: z = z' + R_o^+ (e - R_o z'), with z'
    fresh and R_o the rows of R for the shared frames. R z then has covariance C and is e on these (Matheron's rule).
    Where R acts on pixels too and is causal in the frames, the same is z = R^-1 e on the shared frames and z' after.
    """

    def __init__(
        self, noise: Covariance, shape: tuple[int, ...], overlap: int, seed: int, index: Tensor, like: Tensor
    ) -> None:
        self.noise, self.shape, self.overlap = noise, shape, overlap
        self.seed, self.index, self.like = seed, index, like.new_empty(0)
        self.ends: dict[tuple[int, int, int], Tensor] = {}
        window = shape[2]
        self.root: Tensor | None = None
        if isinstance(noise, Identity | FrameCovariance):
            self.root = noise.color(torch.eye(window, dtype=torch.float64)).mT[:overlap]
            self.inverse = torch.linalg.pinv(self.root)
        else:
            late = torch.ones(1, *shape[1:])
            late[:, :, :overlap] = 0
            if float(noise.color(late * torch.randn(late.shape))[:, :, :overlap].abs().max()) > 1e-4:
                raise ValueError(f"long clips need noise over frames alone, or with a causal root; {noise} has neither")

    def __call__(self, window: int, step: int, draw: int = 0) -> Tensor:
        """z (B, C, F, H, W) of a window at a step; windows are asked for in order."""
        stream = window << 16 | draw
        z = normal(
            self.shape, self.seed, self.index, step, stream=stream, dtype=self.like.dtype, device=self.like.device
        )
        if window:
            shared = self.ends.pop((window - 1, step, draw), None)
            z = self._continued(z, self._end(self(window - 1, step, draw)) if shared is None else shared)
            self.ends[window, step, draw] = self._end(z)
        return z

    def _end(self, z: Tensor) -> Tensor:
        return self.noise.color(z)[:, :, -self.overlap :].clone()

    def _continued(self, fresh: Tensor, shared: Tensor) -> Tensor:
        n = self.overlap
        if self.root is None:
            start = self.noise.whiten(torch.cat([shared, torch.zeros_like(fresh[:, :, n:])], dim=2))
            return torch.cat([start[:, :, :n], fresh[:, :, n:]], dim=2)
        flat = fresh.flatten(3)
        gap = shared.flatten(3) - self.root.to(fresh) @ flat
        return (flat + self.inverse.to(fresh) @ gap).view_as(fresh)


def _check_stationary(noise: Covariance) -> None:
    over_frames = getattr(noise, "time", noise)
    if isinstance(over_frames, FrameCovariance):
        c = over_frames.dense()
        if not torch.allclose(c[1:, 1:], c[:-1, :-1], rtol=1e-6, atol=1e-9):
            raise ValueError(f"long clips need noise whose covariance depends on the lag alone; {noise}'s does not")
