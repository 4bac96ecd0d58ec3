"""Recognisers of aligned crops with gradients: dlib's, exactly, and a small one that is distilled from another."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.errors import UserError
from ornstein.faces.align import template
from ornstein.faces.dlib_net import DlibNet, chips
from ornstein.faces.models import RECOGNITION, model_path
from ornstein.faces.photos import Photos
from ornstein.nets.blocks import Block, group_norm
from ornstein.nets.recorded import Recorded
from ornstein.store import atomic_save_tensors, atomic_write, load_tensors, read_json
from ornstein.training import Task

__all__ = [
    "CONFIG",
    "IDENTITY",
    "MODEL",
    "SIDE",
    "Distillation",
    "ExactIdentity",
    "IdentityNet",
    "Recognises",
    "agreement",
    "augmented",
    "fingerprint",
    "likeness",
    "load_identity",
]

CONFIG, MODEL = "identity.json", "identity.safetensors"
IDENTITY = "identity"
"""The folder of the recogniser inside the run directory of a swap."""
SIDE = 64
"""Pixels a side of the crops that it reads."""


class _Normalised(nn.Module):
    """What both recognisers share: embeddings with the mean and the scale of those that they were fitted to."""

    mean: Tensor
    scale: Tensor

    def _register(self, embedding: int) -> None:
        self.register_buffer("mean", torch.zeros(embedding))
        self.register_buffer("scale", torch.ones(()))

    def fit_scale(self, embeddings: Tensor) -> None:
        """Take mean and scale from embeddings (N, K) that are not normalised."""
        embeddings = embeddings.to(self.mean)
        self.mean.copy_(embeddings.mean(0))
        self.scale.copy_((embeddings - self.mean).square().mean().sqrt())

    def normalised(self, embeddings: Tensor) -> Tensor:
        """(e - mean) / scale of embeddings (*, K), on their device."""
        return (embeddings - self.mean.to(embeddings.device)) / self.scale.to(embeddings.device)

    @torch.no_grad()
    def embed(self, images: Tensor, landmarks: Tensor | None = None, batch: int = 128) -> Tensor:
        """As `forward`, in batches, in evaluation mode and without gradients.

        The images may be on any device; the result is on the network's.
        """
        training = self.training
        self.eval()
        points = [None] * len(images) if landmarks is None else landmarks.split(batch)
        parts = zip(images.split(batch), points, strict=False)
        out = torch.cat([self(part.to(self.mean.device), known) for part, known in parts])
        self.train(training)
        return out


class ExactIdentity(_Normalised):
    """dlib's recogniser with a gradient: aligned crops (B, 3, H, W) in [-1, 1] to normalised embeddings (B, 128).

    The face is cut out again along its landmarks as dlib does it, differentiably. A folder of it holds mean and scale
    alone: its network is the file that face-recognition-models installs.

    Raises:
        UserError: that file is missing, or is another one.
    """

    config: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.net = DlibNet.load(Path(model_path(RECOGNITION)))
        self.config = {"recogniser": "dlib", "embedding": self.net.dimension}
        self._register(self.net.dimension)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """Normalised embeddings (B, 128) of crops in [-1, 1]; without landmarks (B, K, 2) those of the template."""
        if landmarks is None:
            landmarks = template(images.shape[-1]).expand(len(images), -1, -1)
        return self.normalised(self.net(127.5 * (chips(images.float(), landmarks) + 1)))

    def save(self, folder: Path) -> None:
        """Write identity.safetensors and identity.json into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        atomic_save_tensors(folder / MODEL, {"mean": self.mean, "scale": self.scale}, {})
        atomic_write(folder / CONFIG, (json.dumps(self.config, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> ExactIdentity:
        """The recogniser saved in the folder. Raises UserError: it is damaged, or dlib's file is missing."""
        tensors, _ = load_tensors(folder / MODEL)
        net = cls()
        for name in ("mean", "scale"):
            there, want = tensors.get(name), getattr(net, name)
            if there is None or there.shape != want.shape or not bool(there.isfinite().all()):
                raise UserError(f"{folder / MODEL} is not a recogniser of faces: its {name} is missing or damaged")
            want.copy_(there)
        return net


class IdentityNet(_Normalised, Recorded):
    """Aligned crops (B, 3, H, W) in [-1, 1] to normalised embeddings (B, K): the teacher's e as (e - mean) / scale.

    `mean` (K,) and `scale`, one number, are those of the photos that it learns from, so that an embedding has mean
    square 1 in each entry and 0 is nobody in particular. Crops of other sizes are resized to 64 pixels.

    Args:
        embedding: K.
        width: channels of the first level.
        multipliers: channels of each level, as multiples of `width`.

    Raises:
        ValueError: a size that is not positive, or more than 5 levels.
    """

    def __init__(self, embedding: int, width: int = 32, multipliers: Sequence[int] = (1, 2, 4, 6)) -> None:
        super().__init__()
        if min(embedding, width, *multipliers) < 1 or len(multipliers) > 5:
            raise ValueError("sizes of an IdentityNet must be positive, with at most 5 levels")
        self._register(embedding)
        self.stem = nn.Conv2d(12, width, 3, padding=1)
        widths = [width * m for m in multipliers]
        self.blocks = nn.ModuleList(Block(widths[max(0, i - 1)], out, 0, down=i > 0) for i, out in enumerate(widths))
        # flattened and not averaged: in aligned faces the place of a feature says as much as its presence
        side = SIDE // 2 >> (len(widths) - 1)
        self.head = nn.Sequential(group_norm(widths[-1]), nn.SiLU(), nn.Flatten(), nn.Dropout(0.2))
        self.out = nn.Linear(widths[-1] * side**2, embedding)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing from the stubs)

    def forward(self, images: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """Normalised embeddings (B, K), float32, of crops (B, 3, H, W) in [-1, 1]; it needs no landmarks."""
        del landmarks
        x = images
        if x.shape[-1] != SIDE:
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=x.shape[-1] > SIDE, align_corners=False)
        h = self.stem(F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            h = block(h)
        return self.out(self.head(h)).float()

    def save(self, folder: Path) -> None:
        """Write identity.safetensors and identity.json into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        atomic_save_tensors(folder / MODEL, self.state_dict(), {})
        atomic_write(folder / CONFIG, (json.dumps(self.config, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> IdentityNet:
        """The net saved in the folder, frozen and in evaluation mode.

        Raises:
            UserError: there is none, or it is damaged.
        """
        config = read_json(folder / CONFIG)
        try:
            tensors, _ = load_tensors(folder / MODEL)
            # without memory: the file's tensors have the last word on the sizes
            with torch.device("meta"):
                net = cls(**config)
            net.load_state_dict(tensors, assign=True)
        except (UserError, RuntimeError, TypeError, ValueError, ArithmeticError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{folder / MODEL} is not a recogniser of faces: {reason}") from error
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return net.eval().requires_grad_(False)


Recognises = ExactIdentity | IdentityNet
"""A recogniser of aligned crops that a swap is trained with."""


def load_identity(folder: Path) -> Recognises:
    """The recogniser saved in the folder, frozen. Raises UserError: there is none, or it is damaged."""
    exact = read_json(folder / CONFIG).get("recogniser") == "dlib"
    return (ExactIdentity if exact else IdentityNet).load(folder)


def fingerprint(net: nn.Module) -> str:
    """The first digits of the SHA-256 of a network's tensors."""
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def likeness(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of normalised embeddings (*, K): 1 for the same face, about 0 for two people."""
    return F.cosine_similarity(a, b, dim=-1)


class Distillation(Task[IdentityNet]):
    """Learns the photos' embeddings from their pixels: squared error, and the same angles between the faces of a batch.

    The pictures are mirrored, moved, coarsened, tinted and made noisy (`augmented`, by `strength`), so that the net
    reads what a recogniser sees and not what an optimiser can hide in pixels.

    Args:
        net: the recogniser.
        photos: faces with the teacher's embeddings.
        relational: weight of the term with the angles.
        strength: of the augmentation.

    Source: Park et al. 2019 (Relational Knowledge Distillation, arXiv:1904.05068), the second term, with distances.
    """

    def __init__(self, net: IdentityNet, photos: Photos, relational: float = 0.1, strength: float = 1.0) -> None:
        super().__init__(net, [net])
        self.photos, self.relational, self.strength = photos, relational, strength
        net.fit_scale(photos.embeddings)

    def loss(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert labels is not None
        truth = self.model.normalised(self.photos.embeddings[labels.cpu()].to(x0.device))
        guess = self.model(augmented(x0, draw, self.strength))
        error = F.mse_loss(guess, truth)
        angles, true_angles = (F.normalize(each) @ F.normalize(each).T for each in (guess, truth))
        relation = F.mse_loss(angles, true_angles) * truth.shape[1]
        return error + self.relational * relation, {"likeness": likeness(guess, truth).mean()}

    def config(self) -> dict[str, Any]:
        return {"identity": self.model.config, "relational": self.relational, "strength": self.strength}

    def save(self, model: IdentityNet, out: Path, extra: dict[str, Any]) -> None:
        model.save(out)


def augmented(images: Tensor, draw: torch.Generator, strength: float = 1.0, mirror: bool = True) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] mirrored, moved, turned, coarsened, brightened and noisy, differentiably.

    Shifts of up to 5 % of the side, turns of up to 6 degrees, sizes of 0.93 to 1.07; an eighth of the rows each at half
    and at a quarter of the resolution; contrast and brightness by 20 %; noise of up to 0.1. All times `strength`.
    `draw` may be on another device than the images.
    """
    n, device = len(images), images.device

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(n, *shape, generator=draw, device=draw.device).to(device) - 1

    angle = strength * math.radians(6) * uniform()
    size = 1 + strength * 0.07 * uniform()
    sign = torch.where(uniform() < 0, -1.0, 1.0) if mirror else torch.ones(n, device=device)
    rows = [
        torch.stack([size * angle.cos() * sign, -size * angle.sin(), strength * 0.1 * uniform()], 1),
        torch.stack([size * angle.sin() * sign, size * angle.cos(), strength * 0.1 * uniform()], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    out = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    coarse = uniform()
    for low, high, factor in ((1 - 0.5 * strength, 1 - 0.25 * strength, 2), (1 - 0.25 * strength, 1.0, 4)):
        small = F.avg_pool2d(out, factor)
        small = F.interpolate(small, out.shape[2:], mode="bilinear", align_corners=False)
        chosen = (coarse >= low) & (coarse < high)
        out = torch.where(chosen[:, None, None, None], small, out)
    out = out * (1 + 0.2 * strength * uniform(1, 1, 1)) + 0.15 * strength * uniform(3, 1, 1)
    level = 0.1 * strength * uniform(1, 1, 1).abs()
    return out + level * torch.randn(out.shape, generator=draw, device=draw.device).to(device)


@torch.no_grad()
def agreement(net: Recognises, photos: Photos, among: int = 100) -> dict[str, float]:
    """How far the net agrees with its teacher on `photos`, whose people it should not have seen.

    Returns:
        likeness: mean cosine of prediction and truth. top1: the share of `among` people (of all, if there are fewer)
        whose own teacher's embedding, of one photo each, is the nearest to the prediction. verified: accuracy of
        telling pairs of one person from pairs of two by the best threshold on the likeness of two predictions; NaN if
        nobody has two photos.
    """
    truth = net.normalised(photos.embeddings)
    guess = net.embed(photos.batch(torch.arange(len(photos)))[0], photos.landmarks).cpu()
    _, first = _firsts(photos.person)
    first = first[:among]
    nearest = torch.cdist(guess[first], truth[first]).argmin(1)
    pairs = (photos.person[:, None] == photos.person[None]).triu(1).nonzero()
    verified = math.nan
    if len(pairs):
        draw = torch.Generator().manual_seed(0)
        a, b = torch.randint(len(photos), (2, 4 * len(pairs)), generator=draw)
        apart = (photos.person[a] != photos.person[b]).nonzero()[: len(pairs), 0]
        same, other = likeness(guess[pairs[:, 0]], guess[pairs[:, 1]]), likeness(guess[a[apart]], guess[b[apart]])
        levels = torch.linspace(-1, 1, 401)
        right = (same[:, None] > levels).float().mean(0) + (other[:, None] <= levels).float().mean(0)
        verified = float(right.max() / 2)
    return {
        "likeness": float(likeness(guess, truth).mean()),
        "top1": float((nearest == torch.arange(len(first))).float().mean()),
        "verified": verified,
    }


def _firsts(person: Tensor) -> tuple[Tensor, Tensor]:
    """The people, in order, and the first row of each."""
    people, inverse = torch.unique(person, return_inverse=True)
    first = torch.full((len(people),), len(person)).scatter_reduce_(0, inverse, torch.arange(len(person)), "amin")
    return people, first
