"""What a swap is shown: of the target all around the face, a blur of it, its place and pose; of the source its face."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.faces.nets.placement import spots
from ornstein.faces.nets.unet import blurred

CHANNELS = 5  # of a scene: the picture, the mask, the landmarks
POINTS = 5  # of the landmarks, the first ones: those that dlib gives
LIGHT = 4  # cells a side at which a blur says how a face is lit and little of whose it is


def scene(target: Tensor, mask: Tensor, landmarks: Tensor, tint: Tensor | None = None, hidden: bool = True) -> Tensor:
    """The channels (B, 5, H, W) that tell a network of the target crop (B, 3, H, W) in [-1, 1].

    The picture with its face blurred to 8x8, where `mask` (B, 1, H, W) says that the face is; the mask; and the
    landmarks (B, K, 2), in pixels of the crop, as one heat map. `tint` (B, 3, 1, 1) is added to the blur. Without
    `hidden` the picture is as it is: for `RelitUNet`.

    Raises ValueError where the shapes do not fit. Source: the 8x8 blur against a black hole: Kim et al. 2022
    (DiffFace, arXiv:2212.13344) and the ablation of REFace (Baliah et al. 2024, arXiv:2409.07269).
    """
    size = target.shape[-1]
    if target.ndim != 4 or target.shape[1] != 3 or mask.shape != (len(target), 1, *target.shape[2:]):
        raise ValueError(f"a target (B, 3, H, W) and its mask (B, 1, H, W), not {target.shape} and {mask.shape}")
    if landmarks.ndim != 3 or len(landmarks) != len(target) or landmarks.shape[2] != 2:
        raise ValueError(f"landmarks are ({len(target)}, K, 2) pixels, not {tuple(landmarks.shape)}")
    picture = target
    if hidden:
        face = blurred(target) if tint is None else blurred(target) + tint
        picture = torch.lerp(target, face, mask)
    return torch.cat([picture, 2 * mask - 1, 2 * spots(landmarks, size) - 1], dim=1)


def lent(target: Tensor, shown: Tensor, share: float) -> Tensor:
    """The target (B, 3, H, W) with that share of its features, what an 8x8 blur has beyond a 4x4 one, from the source.

    shown: the source's `appearance` (B, 4, H, W). A blur still tells whose face it was, and with 0 the target's own is
    left in it; 1 takes over how the source holds its mouth and brows as well.
    """
    source = shown[:, :3] + (1 - shown[:, 3:]) * target

    def features(images: Tensor) -> Tensor:
        return blurred(images) - blurred(images, LIGHT)

    return target + share * (features(source) - features(target))


def appearance(source: Tensor, mask: Tensor, landmarks: Tensor, onto: Tensor) -> Tensor:
    """The channels (B, 4, H, W) that show `FaceUNet` the source's face, at the place of the target's.

    The source crop (B, 3, H, W) in [-1, 1] where its `mask` (B, 1, H, W) is, 0 elsewhere, and the mask; moved by the
    least-squares similarity that takes its `landmarks` (B, K, 2) to those of the target, `onto`.

    Raises ValueError where the shapes do not fit.
    """
    b, _, height, width = source.shape
    if source.shape[1] != 3 or mask.shape != (b, 1, height, width):
        raise ValueError(f"a source (B, 3, H, W) and its mask (B, 1, H, W), not {source.shape} and {mask.shape}")
    if landmarks.shape != onto.shape or len(onto) != b or landmarks.shape[1] < 2:
        raise ValueError(f"the same landmarks, 2 or more, of {b} faces each, not {landmarks.shape} and {onto.shape}")
    # `align.Similarity.fit` of a batch, over the complex plane p -> a p + c; from the target back to the source, which
    # is what a resampler asks for
    p, q = (torch.view_as_complex(each.double().contiguous()) for each in (onto, landmarks))
    mp, mq = p.mean(1, keepdim=True), q.mean(1, keepdim=True)
    power = (p - mp).abs().square().sum(1).clamp(min=1e-6)
    a = ((p - mp).conj() * (q - mq)).sum(1) / power
    c = (mq - a[:, None] * mp)[:, 0]
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    at = torch.complex(x.double(), y.double()).to(a.device)
    at = a[:, None, None] * at + c[:, None, None]
    size = torch.tensor([width, height], device=a.device)
    grid = ((2 * torch.view_as_real(at) + 1) / size - 1).to(source)
    shown = torch.cat([source * mask, mask], dim=1)
    return F.grid_sample(shown, grid, align_corners=False)
