"""Training of a swap on pairs with a known truth: another person in exactly the target's state."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ornstein as orn
from ornstein import checkpoint
from ornstein.denoiser import Denoiser, SampleSpec
from ornstein.faces.conditions import scene
from ornstein.faces.identity import IDENTITY, Recognises, fingerprint
from ornstein.faces.nets import RelitUNet
from ornstein.faces.photos import Pairs, Photos
from ornstein.process import Prediction
from ornstein.training import Task

__all__ = ["WorldTask", "in_parts", "relit_denoiser"]

_FIRST = 0.85  # share of the rows at t = 1, where a swap begins and nothing is known: its answer is one step away
_TIMES = 0.4  # of the others, t = u^0.4: more of them at high noise
# weights of the pixels outside the mask, and inside it where the truth shows no face, against 1 of its face
_OUTSIDE, _BESIDE = 0.02, 0.25
_DROPPED = 0.05  # share of the rows without a source, for guidance
_PLACES = 512  # pairs of landmarks a step
_ROWS = 8  # rows of a thread at least


def relit_denoiser(photos: Photos, preset: str = "xs") -> Denoiser:
    """An untrained `RelitUNet` for photos of known states, with their landmarks' spread (v-prediction, cosine)."""
    net = RelitUNet.preset(
        preset,
        size=photos.size,
        identity=photos.embeddings.shape[1],
        points=photos.landmarks.shape[1],
        mirror=[] if photos.mirrored is None else photos.mirrored.tolist(),
    )
    net.placement.fit(net.units(photos.landmarks))
    return Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=SampleSpec((3, photos.size, photos.size)))


class WorldTask(Task[Denoiser]):
    """Training of a `RelitUNet` on pairs with a known truth (E8), and of its landmark placement.

    The loss is the squared error of x0, weighted by the mask. (That of v is larger by 1 / s^2 at t < 1, and half of its
    gradient would come from rows that see the answer under a little noise.) To it is added the squared distance of the
    landmarks from the truth's, in units of their spread. The recogniser is kept with the model, and not trained.

    Args:
        denoiser: of a `RelitUNet`.
        recogniser: whose embeddings the photos have.
        photos: of known states.
        threads: among which the rows of a batch are shared, see `in_parts`; PyTorch itself should be left one.
    """

    def __init__(self, denoiser: Denoiser, recogniser: Recognises, photos: Photos, threads: int = 1) -> None:
        super().__init__(denoiser, [denoiser.net])
        assert isinstance(denoiser.net, RelitUNet)
        self.photos, self.net, self.threads = photos, denoiser.net, threads
        self.recogniser = recogniser.eval().requires_grad_(False)

    def loss(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert labels is not None
        n, device = len(x0), x0.device
        pairs = self.photos.pairs(labels.cpu(), draw).to(device)
        u, first = torch.rand(2, n, generator=draw, device=draw.device).to(device)
        t = torch.where(first < _FIRST, torch.ones_like(u), (1 - u) ** _TIMES)
        z = torch.randn(pairs.truth.shape, generator=draw, device=draw.device).to(device)
        dropped = torch.rand(n, generator=draw, device=draw.device).to(device) < _DROPPED

        def errors(rows: Tensor) -> Tensor:
            return self.error(pairs.select(rows), t[rows], z[rows], dropped[rows])

        error = in_parts(errors, n, list(self.net.parameters()), self.threads)
        source, target, truth = (self.net.units(each.to(device)) for each in self.photos.places(_PLACES, draw))
        apart = (self.net.placement(source, target) - truth) / self.net.placement.spread
        place = apart.square().mean()
        return error + place, {"error": error.detach(), "place": place.detach()}

    def error(self, pairs: Pairs, t: Tensor, z: Tensor, dropped: Tensor) -> Tensor:
        """The weighted squared error of x0 at times t (B,) and noise z, row by row: (B,)."""
        process = self.model.process
        x_t = process.add_noise(pairs.truth, t, z)
        shown = scene(pairs.target, pairs.mask, pairs.landmarks, hidden=False)
        known = pairs.source.known(pairs.landmarks, moved=False)
        guess = self.model(x_t, t, scene=shown, **known, dropped=dropped)
        truth = Prediction(process, x_t, t, pairs.truth, process.noise.color(z))
        inside = torch.ones_like(pairs.mask) if pairs.face is None else _BESIDE + (1 - _BESIDE) * pairs.face
        weight = torch.lerp(torch.full_like(pairs.mask, _OUTSIDE), inside, pairs.mask)
        _, sigma = process.coefficients(t, x_t)  # s v = a x_t - x0
        error = weight * (sigma * (guess.v - truth.v)).square()
        return error.mean((1, 2, 3)) / weight.mean((1, 2, 3))

    def config(self) -> dict[str, Any]:
        return self.model.to_config() | {"recogniser": fingerprint(self.recogniser)}

    def save(self, model: Denoiser, out: Path, extra: dict[str, Any]) -> None:
        self.recogniser.save(out / IDENTITY)
        checkpoint.save(model, out, extra)


def in_parts(losses: Callable[[Tensor], Tensor], n: int, parameters: list[Tensor], threads: int) -> Tensor:
    """The mean of n losses that depend on one row each, with its gradient, computed by several threads.

    On a CPU each thread takes a share of the rows through the forward and backward pass. If PyTorch splits each
    operation instead, all threads wait for the slowest at the end of each: on two cores of a busy machine, two are
    slower than one. Here they meet once a step.

    Args:
        losses: from rows (K,) to their losses (K,).
        n: number of rows.
        parameters: what the gradient is taken by.
        threads: at most; on other devices one.
    """
    device = parameters[0].device
    parts = max(1, min(threads, n // _ROWS)) if device.type == "cpu" else 1
    rows = torch.arange(n, device=device)
    if parts == 1 or not torch.is_grad_enabled():
        return losses(rows).mean()

    def part(some: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        share = losses(some).sum() / n
        return share.detach(), torch.autograd.grad(share, parameters, allow_unused=True)

    values, slopes = zip(*_workers(parts).map(part, rows.tensor_split(parts)), strict=True)
    return _Known.apply(torch.stack(values).sum(), slopes, *parameters)  # pyright: ignore[reportReturnType]


@cache
def _workers(parts: int) -> ThreadPoolExecutor:
    """Threads that compute on one core each; kept, since a new thread starts with cold memory."""
    return ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(1,))


class _Known(torch.autograd.Function):
    """A number with a known gradient by the tensors: the sum of `slopes`, one list of them for each part."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: tuple[tuple[Tensor | None, ...], ...], *tensors: Tensor) -> Tensor:
        del tensors
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        out: list[Tensor | None] = [None, None]
        for parts in zip(*ctx.slopes, strict=True):
            known = [part for part in parts if part is not None]
            out.append(gradient * torch.stack(known).sum(0) if known else None)
        return tuple(out)
