"""Sampling of clips: with given frames, and longer than the network's own length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.nets.video import frames_known
from ornstein.noise import Covariance, Identity
from ornstein.noise.frames import FrameCovariance
from ornstein.process import Prediction
from ornstein.randomness import normal
from ornstein.sampling import SampleRequest, State, draw, settled
from ornstein.schedules import Times
from ornstein.solvers import Solver
from ornstein.solvers.stepping import Noise
from ornstein.wrapper import Wrapper, conditions_of, device_of, rows_of

__all__ = ["GivenFrames", "sample_given", "sample_long"]


@dataclass(frozen=True)
class GivenFrames(Wrapper):
    """A denoiser that knows some clean frames: E[x_0 | x_t, x_0 on the known frames].

    The network sees the known frames, and the prediction there is exact: x_0 itself, and eps = (x_t - a x_0)/s. The
    whole clip is noised under C and denoised by the solver like any other; no part of a state is ever replaced. If the
    network is exact, so is this conditional, for any C: it is Tweedie's formula for the law of x_t given the known
    frames.

    With guidance, wrap this in `ClassifierFree`: the known frames then stay known without the condition too.

    Args:
        denoiser: a model of clips that takes known frames.
        known: (B, C, F, H, W), used where known_mask is true.
        known_mask: (B, F) bool.

    Raises:
        ValueError: shapes that do not fit.
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
    solver: str | Solver | None = None,
    steps: int | None = None,
    *,
    cond: dict[str, Any] | None = None,
    callback: Callable[[State], object] | None = None,
    **settings: Any,
) -> Tensor:
    """Clips that continue known frames (prediction) or lead between them (interpolation).

    Args:
        known: (B, C, F, H, W), used where known_mask is true, and returned unchanged there.
        known_mask: (F,) or (B, F) bool.
        solver, steps, settings: those of `SampleRequest`; sample i is the same in any `batch`.
        cond, callback: as in `ornstein.sample`.

    Returns:
        (B, C, F, H, W).

    Raises:
        ValueError: as `ornstein.sample`, and for shapes that do not fit.
    """
    request = SampleRequest(solver, steps, **settings)
    device = device_of(d)
    known = known.to(device)
    mask = (known_mask.expand(len(known), -1) if known_mask.ndim == 1 else known_mask).to(device)
    out = []
    for rows, own in _batches(d, cond, len(known), request.batch):
        given = GivenFrames(d, known[rows], mask[rows])
        x = draw(given, known[rows].shape, replace(request, first=request.first + rows.start), own, callback=callback)
        out.append(torch.where(mask[rows, None, :, None, None], known[rows].to(x), x))
    return torch.cat(out)


def sample_long(
    d: Denoises,
    shape: Sequence[int],
    window: int,
    overlap: int,
    solver: str | Solver | None = None,
    steps: int | None = None,
    *,
    cond: dict[str, Any] | None = None,
    callback: Callable[[State], object] | None = None,
    **settings: Any,
) -> Tensor:
    """Clips of any length, made `window` frames at a time.

    The first window equals a clip of `ornstein.sample`; each later one is conditioned on the last `overlap` frames of
    the one before, see `GivenFrames`. A frame in two windows has the same noise in both, and the noise of the new
    frames is drawn from the Gaussian conditional of C given the old ones, at the start and in every stochastic step.
    The result depends on that noise only through its innovation, which is independent of everything before. So with an
    exact conditional network, every frame of a clip follows the conditional law given the `overlap` frames before it.

    Args:
        shape: (B, C, F, H, W) with any number of frames F.
        window: frames that the network makes at once.
        overlap: frames that consecutive windows share, 1 <= overlap < window <= F.
        solver, steps, settings: those of `SampleRequest`; sample i is the same in any `batch`.
        cond: as in `ornstein.sample`.
        callback: called with the `State` at the start and after every step of each window: its `x` is that of the
            window, and its `step` and `steps` count the steps of all windows.

    Raises:
        ValueError: as `ornstein.sample`; windows that do not fit; a covariance that is not stationary over frames, or
            that acts on pixels too with a root that mixes later frames into earlier ones.
    """
    shape = tuple(shape)
    if len(shape) != 5 or not 1 <= overlap < window <= shape[2]:
        raise ValueError(
            f"long clips are (B, C, F, H, W) with 1 <= overlap < window <= F, got {shape}, overlap {overlap} and "
            f"window {window}"
        )
    _check_stationary(d.process.noise)
    request = SampleRequest(solver, steps, **settings)
    step_with, times = settled(d, request)
    windows = 1 + math.ceil((shape[2] - window) / (window - overlap))
    out = []
    for rows, own in _batches(d, cond, shape[0], request.batch):
        part = (rows.stop - rows.start, shape[1], window, *shape[3:])
        of_rows = replace(request, first=request.first + rows.start)
        x = draw(d, part, of_rows, own, callback=_of_window(callback, 0, windows))
        numbers = torch.arange(of_rows.first, of_rows.first + part[0], device=x.device)
        noise = _WindowNoise(d.process.noise, part, overlap, request.seed, numbers, x)
        mask = frames_known(window, overlap).expand(part[0], -1)
        prior = d.process.prior(part, dtype=x.dtype, device=x.device)
        for k in range(1, windows):
            known = torch.cat([x[:, :, -overlap:], x.new_zeros(*part[:2], window - overlap, *part[3:])], dim=2)
            start = prior.sample(noise(k, 0))
            of_window = replace(of_rows, solver=_with_noise(step_with, noise, k), grid=times, coloured=None)
            new = draw(GivenFrames(d, known, mask), part, of_window, own, start, _of_window(callback, k, windows))
            x = torch.cat([x, new[:, :, overlap:]], dim=2)
        out.append(x[:, :, : shape[2]])
    return torch.cat(out)


def _batches(
    d: Denoises, cond: dict[str, Any] | None, total: int, batch: int | None
) -> Iterator[tuple[slice, dict[str, Any]]]:
    """The rows of each batch, all at once by default, and their conditions."""
    size = total if batch is None else batch
    every = conditions_of(d, cond, total)
    for low in range(0, total, size):
        rows = slice(low, min(low + size, total))
        yield rows, rows_of(every, rows)


def _of_window(
    callback: Callable[[State], object] | None, window: int, windows: int
) -> Callable[[State], object] | None:
    """The callback for the states of one window, which counts the steps of all windows."""
    if callback is None:
        return None
    return lambda s: callback(replace(s, step=window * s.steps + s.step, steps=windows * s.steps))


def _with_noise(solver: Solver, windows: _WindowNoise, window: int) -> Solver:
    """The solver with the noise of one window instead of the sampler's."""

    def run(d: Denoises, x: Tensor, times: Tensor, noise: Noise) -> Iterator[Tensor]:
        return solver(d, x, times, lambda step, draw=0: windows(window, step + 1, draw))

    return run


class _WindowNoise:
    """White noise z of each window such that R z is the same on the frames that two windows share.

    Let e be the noise of the last `overlap` frames of window k - 1. Window k has z = z' + R_o^+ (e - R_o z'), with z'
    fresh and R_o the rows of R for the shared frames: R z has covariance C and equals e there (Matheron's rule). If R
    acts on pixels too and is causal in the frames, z = R^-1 e on the shared frames and z' on the others does the same.
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
        """z (B, C, F, H, W) of a window at a step; windows come in order."""
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
