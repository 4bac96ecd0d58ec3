"""Latent diffusion: the latent space of a denoiser, and the joint bound on -log p(x) (E11, E27)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein import autoencoders
from ornstein.autoencoders.autoencoder import Autoencoder
from ornstein.errors import UserError
from ornstein.likelihood.model import STREAM, chunks
from ornstein.nets.tiled import blended_tiles
from ornstein.randomness import normal

__all__ = ["TILE", "JointBound", "LatentSpace", "decode_tiled", "joint_bound"]

_ENCODER = STREAM + 16

TILE = 64
"""Largest height and width of latents that are decoded at once."""

_OVERLAP = 16
_BATCH = 64
_DETERMINISTIC = ("ae", "vq")


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """The latents y = (z - mean)/std of an autoencoder, normalised channel by channel, with z ~ q(z|x).

    Attributes:
        autoencoder: it follows latents and images to an accelerator; those on the CPU come to it, and their results
            return to the CPU.
        mean, std: (c,) of z.
        path: the folder of the autoencoder.
        fingerprint: the hash of its contents.
        frames: of clips, whose frames are encoded and decoded one by one; None for images.
    """

    autoencoder: Autoencoder
    mean: Tensor
    std: Tensor
    path: Path
    fingerprint: str
    frames: int | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> LatentSpace:
        return self  # it is never trained: copies of a denoiser share it

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images, (C, F, H, W) of clips."""
        return self._timed(tuple(self.autoencoder.shape))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(c, h, w) of the latents, (c, F, h, w) of clips; (n, 1, 1) for vectors of n numbers."""
        shape = tuple(self.autoencoder.latent_shape)
        return self._timed(shape if len(shape) == 3 else (*shape, 1, 1))

    @property
    def stochastic(self) -> bool:
        """Whether q(z|x) has a density, so that the joint bound exists."""
        return self.autoencoder.kind not in _DETERMINISTIC

    @property
    def log_scale(self) -> float:
        """log |dz/dy|, the sum of log std over all of a latent, in nats."""
        return float(self.std.double().log().sum()) * math.prod(self.latent_shape[1:])

    def normalise(self, z: Tensor) -> Tensor:
        """y from z, (B, c, [F,] h, w)."""
        mean, std = self._statistics(z)
        return (z - mean) / std

    def denormalise(self, y: Tensor) -> Tensor:
        """z from y, (B, c, [F,] h, w)."""
        mean, std = self._statistics(y)
        return y * std + mean

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of y given images or clips x (B, C, [F,] H, W), each (B, c, [F,] h, w)."""

        def both(images: Tensor) -> Tensor:
            q = self._for(images).encode(images)
            return torch.cat([each.reshape(len(images), -1, *self.latent_shape[-2:]) for each in (q.mean, q.std)], 1)

        with torch.no_grad():
            mean, std = _by_frame(both, x).to(x.device).chunk(2, 1)
        return self.normalise(mean), std / self._statistics(std)[1]

    def decode(self, y: Tensor) -> Tensor:
        """Images or clips (B, C, [F,] H, W) in [-1, 1] from latents y (B, c, [F,] h, w).

        Latents of more than 64 a side are decoded in overlapping tiles, which are blended.
        """

        def images(y: Tensor) -> Tensor:
            return torch.cat([decode_tiled(self.mean_of, part).clamp(-1, 1) for part in y.split(_BATCH)])

        with torch.no_grad():
            return _by_frame(images, y)

    def mean_of(self, y: Tensor) -> Tensor:
        """x_hat, the mean of p(x|y), (B, C, [F,] H, W), not clamped."""

        def images(z: Tensor) -> Tensor:
            return self._for(z).decode(z if len(self.autoencoder.latent_shape) == 3 else z.flatten(1))

        return _by_frame(images, self.denormalise(y)).to(y.device)

    def to_config(self) -> dict[str, Any]:
        config = {
            "autoencoder": str(self.path.resolve()),
            "fingerprint": self.fingerprint,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }
        return config if self.frames is None else config | {"frames": self.frames}

    @classmethod
    def from_config(cls, config: dict[str, Any], folder: Path, trust_sizes: bool = False) -> LatentSpace:
        """The space of the latent model in `folder`.

        Args:
            config: what `to_config` gives.
            trust_sizes: lift the bounds on the sizes of the autoencoder (`ornstein.sizes`).

        Raises:
            UserError: its autoencoder is missing or has changed.
        """
        path = Path(config["autoencoder"])
        if not path.is_dir():
            path = folder.resolve().parent / path.name  # both folders were moved
        if not path.is_dir():
            raise UserError(f"the autoencoder of {folder} is missing: put it back at {config['autoencoder']}")
        if autoencoders.fingerprint(path) != config["fingerprint"]:
            raise UserError(
                f"the autoencoder in {path} has changed since {folder} was trained on its latents (its hash "
                "differs): put the old one back, or train again"
            )
        model = autoencoders.load(path, trust_sizes)
        mean, std = (torch.tensor(config[name], dtype=torch.float32) for name in ("mean", "std"))
        channels = model.latent_shape[0]
        if not mean.shape == std.shape == (channels,):
            raise ValueError(f"latent.mean and latent.std have one number for each of {channels} channels")
        if not (bool(mean.isfinite().all()) and bool(((std > 0) & std.isfinite()).all())):
            raise ValueError("latent.mean is finite and latent.std finite and positive")
        frames = config.get("frames")
        if frames is not None and (type(frames) is not int or frames < 1):
            raise ValueError("latent.frames is a number of frames")
        return cls(model, mean, std, path, config["fingerprint"], frames)

    def _timed(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.frames is None else (shape[0], self.frames, *shape[1:])

    def _for(self, x: Tensor) -> Autoencoder:
        """The autoencoder, moved to the accelerator if x is there."""
        return self.autoencoder if x.device.type == "cpu" else self.autoencoder.to(x.device)

    def _statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        ones = [1] * (z.ndim - 2)
        return self.mean.to(z).view(-1, *ones), self.std.to(z).view(-1, *ones)


def _by_frame(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f of images (B, C, H, W); of clips (B, C, F, H, W) frame by frame, with the frames again in dim 2."""
    if x.ndim == 4:
        return f(x)
    return f(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), x.shape[2])).transpose(1, 2)


def decode_tiled(decode: Callable[[Tensor], Tensor], z: Tensor, tile: int = TILE, overlap: int = _OVERLAP) -> Tensor:
    """decode(z) for z (B, c, h, w) of any size, in tiles of at most `tile` latents a side to bound the memory."""
    return blended_tiles(decode, z, (tile, tile), overlap)


@dataclass(frozen=True)
class JointBound:
    """-log p(x) <= total = reconstruction - entropy + prior in expectation, each (B,) float64 in nats.

    Attributes:
        reconstruction: -E_q log p(x|z) of 8-bit pixels.
        entropy: of q(z|x).
        prior: bound on -E_q log p(z), or its estimate.
    """

    reconstruction: Tensor
    entropy: Tensor
    prior: Tensor

    @property
    def total(self) -> Tensor:
        return self.reconstruction - self.entropy + self.prior


def joint_bound(
    space: LatentSpace,
    x0: Tensor,
    prior: Callable[[Tensor, int], Tensor],
    *,
    seed: int = 0,
    first: int = 0,
    batch: int = 64,
) -> JointBound:
    """The bound of an autoencoder whose prior is a density of the normalised latents (E27 with E11, E17 or E21).

    Args:
        space: the latents, of an autoencoder with a density q(z|x).
        x0: images or clips of 8-bit pixels in [-1, 1].
        prior: prior(y, first) returns -log p(y), or a bound on it, in nats (B,), for latents y of which
            the first is number `first`: say `likelihood.vlb(d, y, decoder="gaussian", first=first).total`.
        seed, first: one draw of z ~ q(z|x) an image, addressed by (seed, first + row).
        batch: images that are encoded and decoded at once.

    Raises:
        UserError: the encoder has no density ("ae" and "vq" are deterministic).
    """
    if not space.stochastic:
        raise UserError(
            "this autoencoder has no joint bound: its encoder is deterministic, and log q(z|x) does not exist; "
            "train one with --model kl or vae"
        )
    parts = []
    for rows in chunks(len(x0), batch):
        x = x0[rows.to(x0.device)].to(space.autoencoder.device, torch.float32)
        mean, std = (each.cpu().double() for each in space.encode(x))
        y = mean + std * normal(tuple(mean.shape), seed, rows + first, 0, _ENCODER, torch.float64)
        with torch.no_grad():
            reconstruction = -space.autoencoder.log_prob(x, space.mean_of(y.to(x)))
        entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).flatten(1).sum(1) + space.log_scale
        parts.append((reconstruction.cpu().double(), entropy, prior(y, first + int(rows[0])).cpu() + space.log_scale))
    reconstruction, entropy, of_prior = (torch.cat(each) for each in zip(*parts, strict=True))
    return JointBound(reconstruction, entropy, of_prior)
