"""8-bit pixels made continuous: spread evenly over their bins, or by a law q(u | x) that is fitted to a denoiser."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from ornstein.denoiser import Denoises
from ornstein.errors import UserError
from ornstein.likelihood.decoders import LEVELS, pixel_indices
from ornstein.likelihood.model import STREAM, open_model
from ornstein.randomness import generator, normal
from ornstein.solvers.runge_kutta import column
from ornstein.store import atomic_save_tensors, atomic_write, read_json
from ornstein.wrapper import evaluation_mode

__all__ = [
    "Dequantisation",
    "Dequantiser",
    "check_dequantisation",
    "dequantise",
    "fit_dequantiser",
]

_DEQUANTISE = STREAM + 9
_FORMAT = 1
_CONFIG, _WEIGHTS = "dequantiser.json", "dequantiser.safetensors"

_BIN = 2 / LEVELS
_BITS = 8
# Noise levels s/a of the fit, in bins: finer noise changes log p no more than the finest of these, and coarser noise
# does not tell the values within a bin apart.
_FINEST, _COARSEST = 1 / 8, 64.0


class Dequantiser(nn.Module):
    """q(u | x), u in [0, 1)^N, of 8-bit pixels x: Gaussians truncated to their bins (Ho et al. 2019, section 3.1).

    A small network computes location and scale of every pixel from all pixels near it. Before it is fitted, q is
    uniform to 1e-5 nats an element. For a density that is Gaussian along each axis by itself the best q is among these,
    and the bound is exact.

    Args:
        shape: of one sample, (N,), (C, H, W) or (C, F, H, W).
        width: channels of the network.

    Raises:
        ValueError: the shape is something else.
    """

    def __init__(self, shape: tuple[int, ...], width: int = 32) -> None:
        super().__init__()
        layers = {1: nn.Linear, 3: nn.Conv2d, 4: nn.Conv3d}
        if len(shape) not in layers or min(shape) < 1:
            raise ValueError(f"samples are (N,), (C, H, W) or (C, F, H, W), got {tuple(shape)}")
        self.shape, self.width = tuple(int(n) for n in shape), width
        layer, inputs = layers[len(shape)], (_BITS + 1) * shape[0]
        near: dict[str, Any] = {} if len(shape) == 1 else {"kernel_size": 3, "padding": 1}
        here: dict[str, Any] = {} if len(shape) == 1 else {"kernel_size": 1}
        last = layer(width, 2 * shape[0], **here)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first, second = layer(inputs, width, **near), layer(width, width, **near)
        self.net = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), last)

    def forward(self, index: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """u (B, *) float64 and log q(u | x) (B,) in nats, for pixels 0..255 `index` and uniform w in (0, 1), (B, *).

        u is the inverse of q's distribution function at w.

        Raises:
            ValueError: the samples have another shape.
        """
        if tuple(index.shape[1:]) != self.shape:
            raise ValueError(f"the dequantiser was made for samples of {self.shape}, got {tuple(index.shape[1:])}")
        # The bits of a pixel separate neighbouring values; the value alone hardly does.
        bits = [((index >> k) & 1) * 2 - 1 for k in range(_BITS)]
        features = torch.cat([index / ((LEVELS - 1) / 2) - 1, *bits], 1)
        place, size = self.net(features.to(next(self.parameters()).dtype)).double().chunk(2, 1)
        mean = 0.5 + 2.5 * torch.tanh(place)
        std = 0.1 + torch.exp((1 + size).clamp(max=5))  # the tails of a narrower one beyond the bin have no numbers
        low, high = -mean / std, (1 - mean) / std
        # In the lower tail, where the distribution function keeps its digits.
        mirrored = low + high > 0
        low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
        below = _ndtr(low)
        within = _ndtr(high) - below
        z = torch.special.ndtri(below + torch.where(mirrored, 1 - w, w) * within)
        log_q = -0.5 * z**2 - 0.5 * math.log(2 * math.pi) - torch.log(std * within)
        u = mean + std * torch.where(mirrored, -z, z)
        return u.clamp(0, 1), log_q.flatten(1).sum(1)

    def save(self, path: str | Path) -> None:
        """Write the folder `path`: dequantiser.safetensors and dequantiser.json.

        Raises:
            RunError: the folder cannot be written.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_save_tensors(folder / _WEIGHTS, self.state_dict(), {})
        config = {"format": _FORMAT, "shape": list(self.shape), "width": self.width}
        atomic_write(folder / _CONFIG, (json.dumps(config, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Dequantiser:
        """Read the folder `path` that `save` wrote.

        Raises:
            UserError: there is none, or it is damaged.
        """
        folder = Path(path)
        config = read_json(folder / _CONFIG)
        if config.get("format") != _FORMAT:
            raise UserError(f"{folder / _CONFIG} is no dequantiser of format {_FORMAT}, which this version reads")
        try:
            q = cls(tuple(config["shape"]), config["width"])
            tensors = load_tensors((folder / _WEIGHTS).read_bytes())
            if not all(bool(value.isfinite().all()) for value in tensors.values()):
                raise ValueError("values that are not finite")
            q.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder} holds no dequantiser that can be read: {reason}; fit it again") from error
        return q.eval()


def _ndtr(z: Tensor) -> Tensor:
    """The normal distribution function, down to 1e-300; torch's own ends at 1e-17."""
    return 0.5 * torch.special.erfc(-z * 0.5**0.5)


Dequantisation = Literal["none", "uniform"] | Dequantiser


def check_dequantisation(how: Dequantisation) -> str:
    """The name of a dequantisation in a result; ValueError for something else."""
    if isinstance(how, Dequantiser):
        return "variational"
    if how not in ("none", "uniform"):
        raise ValueError(f'dequantisation is "none", "uniform" or a Dequantiser, got {how!r}')
    return how


def dequantise(x0: Tensor, how: Dequantisation, seed: int, index: Tensor) -> tuple[Tensor, Tensor]:
    """y (B, *) and log q(u | x0) (B,), for samples x0 (B, *): log P(x0) >= E[log p(y) - log q] - N log(256/2).

    8-bit pixels k become y = 2(k + u)/256 - 1 in bins of width 2/256 that fill [-1, 1], u uniform (log q = 0; Theis et
    al. 2016) or from a `Dequantiser` (Ho et al. 2019, eq. 12); "none" leaves x0 as it is. `index` (B,) numbers the
    samples, and the draw is addressed by it.

    Raises:
        ValueError: elements are not 8-bit pixels.
    """
    nothing = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    if how == "none":
        return x0.double(), nothing
    k = pixel_indices(x0)
    u = torch.special.ndtr(normal(tuple(x0.shape), seed, index, 0, _DEQUANTISE, torch.float64, x0.device))
    log_q = nothing
    if isinstance(how, Dequantiser):
        device = next(how.parameters()).device
        with torch.no_grad():
            u, log_q = (out.to(x0.device) for out in how(k.to(device), u.to(device)))
    return _BIN * (k + u) - 1, log_q


def fit_dequantiser(
    d: Denoises,
    images: Tensor,
    *,
    steps: int = 300,
    batch: int = 64,
    learning_rate: float = 5e-3,
    seed: int = 0,
    cond: dict[str, Any] | None = None,
    advance: Callable[[int], object] = lambda done: None,
) -> Dequantiser:
    """The dequantiser for this denoiser's density, fitted to `images` (B, *) of 8-bit pixels, for `ode`.

    It minimises E[log q(u | x) + 1/2 int SNR ||y - y_hat||^2_{C^-1} d log-SNR] over the noise levels from 1/8 of a bin
    to 64 bins, one level and one call of the denoiser for each draw. For an exact denoiser the integral is -log p(y),
    blurred by noise of 1/8 of a bin, up to a constant within a bin (E17); the flow itself would cost a hundred times as
    much. The bound holds for any q.

    Args:
        images: (B, *), 8-bit pixels in [-1, 1].
        steps, batch, learning_rate: of the fit.
        seed: of all its draws.
        cond: conditions, one a sample.
        advance: called with the number of steps that are done.

    Raises:
        ValueError: wrong arguments; there are no images, or they are not 8-bit pixels or not the model's; C is
            singular; or predictions are not finite.
    """
    if steps < 1 or batch < 1 or not learning_rate > 0:
        raise ValueError(f"steps and batch must be >= 1, learning_rate > 0, got {steps}, {batch} and {learning_rate}")
    model = open_model(d, images, cond)
    process = model.process
    draws = generator(seed, "dequantiser")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds accelerators too
        q = Dequantiser(tuple(images.shape[1:]))
    q.to(model.exact)
    parameters = list(q.parameters())
    optimizer = torch.optim.Adam(parameters, learning_rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    low, high = (-2 * math.log(_BIN * level) for level in (_COARSEST, _FINEST))
    with evaluation_mode(d):
        for step in range(steps):
            rows = torch.randint(len(images), (batch,), generator=draws)
            shape = (batch, *images.shape[1:])
            w = torch.rand(shape, generator=draws, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
            z = torch.randn(shape, generator=draws, dtype=torch.float64)
            spread = (torch.rand(1, generator=draws, dtype=torch.float64) + torch.arange(batch) / batch) % 1
            k = pixel_indices(images[rows.to(images.device)])
            k, w, z = (v.to(model.exact) for v in (k, w, z))
            u, log_q = q(k, w)
            y = _BIN * (k + u) - 1
            level = low + (high - low) * spread
            t = process.schedule.time(level).clamp(0, 1)
            root_snr = column(torch.exp(level / 2), y)
            error = root_snr * (y - model(process.add_noise(y, t, z), t, rows).x0)
            loss = (log_q + 0.5 * (high - low) * process.noise.mahalanobis(error)).mean()
            if not bool(loss.isfinite()):
                raise ValueError(f"the dequantiser's loss is not finite at step {step}: the predictions are not")
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient  # the gradients of the denoiser stay as they are
            nn.utils.clip_grad_norm_(parameters, 100.0)
            optimizer.step()
            decay.step()
            advance(step + 1)
    return q.eval()
