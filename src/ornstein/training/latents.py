"""Training on the latents of an autoencoder, computed once and kept on disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ornstein import autoencoders, processes
from ornstein.autoencoders.latent import LatentSpace
from ornstein.data import Clips, ImageSet, StreamedSet
from ornstein.data.rows import RowFile
from ornstein.devices import choose_device
from ornstein.errors import UserError
from ornstein.training.shared_rows import fill, find_cache, keep_cache
from ornstein.training.task import Diffusion

__all__ = ["FOLDER", "LatentDiffusion", "LatentSet", "encode_images"]

FOLDER = "latents"
_FILE = "latents.npy"
_BATCH = 64


class LatentSet:
    """The training set of a latent model: normalised q(z|x) of a set of images or clips, read row by row from a file.

    Args:
        file: float32 (N, 2, c, [F,] h, w), mean and standard deviation of y = (z - mean)/std given each image or clip.
        space: the latent space, with the autoencoder.
        labels: int64 (N,), or None.
    """

    def __init__(self, file: Path, space: LatentSpace, labels: Tensor | None) -> None:
        self.space = space
        self.labels = labels
        self._rows = RowFile(file)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Tensor | Sequence[int], /) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of y, float32 (B, 2, c, [F,] h, w), and labels int64 (B,) or None."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        values = torch.from_numpy(self._rows.read(rows.numpy()))
        return values, None if self.labels is None else self.labels[rows]


def encode_images(
    path: Path,
    images: ImageSet | StreamedSet | Clips,
    out: Path,
    progress: Callable[[int, int], object] = lambda done, total: None,
    device: torch.device | None = None,
) -> LatentSet:
    """The latents of images, or of clips frame by frame, cached in `out`/latents.

    They are computed again if the autoencoder or the images have changed. Mean and standard deviation of each channel
    are those of q(z|x) over all images. The processes of a launch share the images out and all call this; the latents
    are those of one process to the last bit.

    Args:
        path: the folder of the autoencoder.
        images: the data set.
        out: the run directory.
        progress: called with the number of images done, and of all.
        device: where to encode.

    Raises:
        UserError: the images do not fit the autoencoder, or a channel of the latents is constant.
        RunError: the latents cannot be written.
    """
    autoencoder, fingerprint = autoencoders.load(path), autoencoders.fingerprint(path)
    channels, *frames, height, width = images.shape
    if tuple(autoencoder.shape) != (channels, height, width):
        raise UserError(
            f"{path} encodes images of {tuple(autoencoder.shape)}, but {images.source} gives "
            f"{(channels, height, width)} (channels, height, width): give the --size it was trained with"
        )
    file = out / FOLDER / _FILE
    key = {"autoencoder": fingerprint, "images": images.fingerprint}
    about, partial = find_cache(file, key)
    c = autoencoder.latent_shape[0]
    # not normalised while they are written: the statistics are not known yet
    space = LatentSpace(autoencoder, torch.zeros(c), torch.ones(c), path, fingerprint, *frames)
    if partial is not None:
        mean, std = _write(space, images, partial, device or choose_device("auto"), progress)
        about = key | {"mean": mean.tolist(), "std": std.tolist()}
        keep_cache(file, partial, about)
    mean, std = torch.tensor(about["mean"]), torch.tensor(about["std"])
    return LatentSet(file, replace(space, mean=mean, std=std), _labels(images))


def _labels(images: ImageSet | StreamedSet | Clips) -> Tensor | None:
    """The labels (N,), or None."""
    if isinstance(images, ImageSet | StreamedSet):
        return images.labels
    parts = [images.batch(range(i, min(i + _BATCH, len(images))))[1] for i in range(0, len(images), _BATCH)]
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


def _write(
    space: LatentSpace,
    images: ImageSet | StreamedSet | Clips,
    file: Path,
    device: torch.device,
    progress: Callable[[int, int], object],
) -> tuple[Tensor, Tensor]:
    """Encode into `file`; mean and standard deviation (c,) of the latents by channel."""
    space.autoencoder.to(device).eval()
    c, *sides = space.latent_shape
    shape = (len(images), 2, c, *sides)
    batch, rest = max(1, _BATCH // (space.frames or 1)), [0, *range(2, 2 + len(sides))]
    sums: list[tuple[int, Tensor]] = []  # of the batches of this process, by their first row

    def encode(rows: range) -> Tensor:
        mean, std = (each.float().cpu() for each in space.encode(images.batch(rows)[0].to(device)))
        squares = (mean.double().square() + std.double().square()).sum(rest)
        sums.append((rows.start, torch.stack([mean.double().sum(rest), squares])))
        return torch.stack([mean, std], 1)

    fill(file, shape, batch, encode, done=lambda rows: progress(rows, len(images)))
    total = torch.zeros(2, c).double()
    for _, each in sorted(processes.current().collected(sums), key=lambda pair: pair[0]):
        total += each  # in the order of the rows: rounding is that of one process
    mean, squares = total / (len(images) * math.prod(sides))
    std = (squares - mean**2).clamp(min=0).sqrt()
    if float(std.min()) == 0:
        raise UserError(
            f"channel {int(std.argmin())} of the latents is the same for all images: the autoencoder has collapsed"
        )
    array = np.load(file, mmap_mode="r+")

    def normalised(rows: range) -> Tensor:
        part = torch.from_numpy(array[rows.start : rows.stop].copy())
        part[:, 0] -= mean.float().view(-1, *[1] * len(sides))
        return part / std.float().view(-1, *[1] * len(sides))

    fill(file, shape, batch, normalised, new=False)
    return mean, std


class LatentDiffusion(Diffusion):
    """Training of a denoiser on a `LatentSet`: every step draws a new y ~ q(y|x)."""

    def loss(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        mean, std = x0.unbind(1)
        n, rows = self.whole(x0)
        y = mean + std * torch.randn((n, *mean.shape[1:]), generator=draw, device=mean.device)[rows]
        return super().loss(y, labels, draw, progress)
