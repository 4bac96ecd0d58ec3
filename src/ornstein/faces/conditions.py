"""The conditions of a swap: of the target its surroundings, a blur, place and pose; of the source its face."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.faces.nets.placement import FEATURES, spots
from ornstein.faces.nets.unet import blurred
from ornstein.faces.shape import CONTOURS, contours, moved_face

__all__ = ["CHANNELS", "LIGHT", "POINTS", "SHAPED", "appearance", "blended_features", "laid_on", "scene"]

CHANNELS = 5
"""Channels of a scene with landmarks: the picture, the mask, the landmarks."""
SHAPED = 4 + len(CONTOURS)
"""Channels of a scene with the points of `shape`: the picture, the mask, the contours."""
POINTS = 5
"""The landmarks that every detector gives: the first ones."""
LIGHT = 4
"""Cells a side of the blur that shows how a face is lit and little of whose it is."""

_CONTRAST = 3.0  # the most by which contrast is raised


def scene(
    target: Tensor,
    mask: Tensor,
    landmarks: Tensor,
    tint: Tensor | None = None,
    hidden: bool = True,
    points: Tensor | None = None,
) -> Tensor:
    """The channels (B, S, H, W) that describe the target to a network: the picture, the mask, the landmarks as spots.

    Args:
        target: the crop (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W), where the face is.
        landmarks: (B, K, 2), in pixels of the crop.
        tint: (B, 3, 1, 1), added to the blur.
        hidden: blur the face to 8x8. Without it the picture is as it is: for `RelitUNet`.
        points: (B, shape.POINTS, 3), where the points of the swapped face lie: their contours replace the landmarks.

    Raises:
        ValueError: the shapes do not fit.

    Source: the 8x8 blur against a black hole: Kim et al. 2022 (DiffFace, arXiv:2212.13344) and the ablation of REFace
    (Baliah et al. 2024, arXiv:2409.07269).
    """
    size = target.shape[-1]
    if target.ndim != 4 or target.shape[1] != 3 or mask.shape != (len(target), 1, *target.shape[2:]):
        raise ValueError(f"a target (B, 3, H, W) and its mask (B, 1, H, W), not {target.shape} and {mask.shape}")
    if landmarks.ndim != 3 or len(landmarks) != len(target) or landmarks.shape[2] != 2:
        raise ValueError(f"landmarks are ({len(target)}, K, 2) pixels, not {tuple(landmarks.shape)}")
    mask, landmarks = mask.to(target.device), landmarks.to(target.device)
    picture = target
    if hidden:
        face = blurred(target) if tint is None else blurred(target) + tint
        picture = torch.lerp(target, face, mask)
    where = spots(landmarks[:, :FEATURES], size) if points is None else contours(points.to(target.device), size)
    return torch.cat([picture, 2 * mask - 1, 2 * where.to(target) - 1], dim=1)


def blended_features(target: Tensor, shown: Tensor, weight: float) -> Tensor:
    """The target with a share of its facial features taken from the source.

    Features are what an 8x8 blur has beyond a 4x4 one. A blur still shows whose face it was: with weight 0 that of the
    target is left; with 1 the source's mouth and brows are taken over as well.

    Args:
        target: (B, 3, H, W).
        shown: the source's `appearance` (B, 4, H, W).
        weight: the blend weight, in [0, 1].
    """
    source = shown[:, :3] + (1 - shown[:, 3:]) * target

    def features(images: Tensor) -> Tensor:
        return blurred(images) - blurred(images, LIGHT)

    return target + weight * (features(source) - features(target))


def laid_on(target: Tensor, mask: Tensor, shown: Tensor) -> Tensor:
    """The target with the source's face laid over it, in the target's colours: a swap by geometry alone.

    The face has the target's mean and standard deviation of each channel, inside the mask.

    Args:
        target: (B, 3, H, W).
        mask: (B, 1, H, W).
        shown: the source's `appearance` (B, 4, H, W).
    """
    there = mask * shown[:, 3:]
    area = there.sum((2, 3), keepdim=True).clamp(min=1e-6)

    def moments(images: Tensor) -> tuple[Tensor, Tensor]:
        mean = (images * there).sum((2, 3), keepdim=True) / area
        return mean, (((images - mean).square() * there).sum((2, 3), keepdim=True) / area).sqrt()

    face = shown[:, :3] / shown[:, 3:].clamp(min=0.05)
    (mean, spread), (wanted, contrast) = moments(face), moments(target)
    face = (face - mean) * (contrast / spread.clamp(min=1e-3)).clamp(max=_CONTRAST) + wanted
    return torch.lerp(target, face.clamp(-1, 1), there)


def appearance(source: Tensor, mask: Tensor, landmarks: Tensor, onto: Tensor, within: Tensor | None = None) -> Tensor:
    """The channels (B, 4, H, W) that show `FaceUNet` the source's face, at the place of the target's.

    The source crop where its mask is, 0 elsewhere, and the mask; moved by the least-squares similarity that takes its
    landmarks to those of the target, or by the thin plate of `shape.moved_face` if they are all points of a shape.

    Args:
        source: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W) in [0, 1].
        landmarks, onto: (B, K, 2) of the source and of the target, in pixels; or (B, shape.POINTS, 3).
        within: (B, 1, H, W), where a thin plate must not fold; None does not look.

    Raises:
        ValueError: the shapes do not fit.
    """
    b, _, height, width = source.shape
    if source.shape[1] != 3 or mask.shape != (b, 1, height, width):
        raise ValueError(f"a source (B, 3, H, W) and its mask (B, 1, H, W), not {source.shape} and {mask.shape}")
    if landmarks.shape != onto.shape or len(onto) != b or landmarks.shape[1] < 2:
        raise ValueError(f"the same landmarks, 2 or more, of {b} faces each, not {landmarks.shape} and {onto.shape}")
    shown = torch.cat([source * mask, mask], dim=1)
    if landmarks.shape[2] == 3:
        return moved_face(shown, landmarks, onto, within)
    # `align.Similarity.fit` of a batch, from the target back to the source, which is what a resampler reads:
    # q = mean_q + [[c, -s], [s, c]] (p - mean_p)
    p, q = onto.to(source), landmarks.to(source)
    mean_p, mean_q = p.mean(1), q.mean(1)
    p, q = p - mean_p[:, None], q - mean_q[:, None]
    power = p.square().sum((1, 2)).clamp(min=1e-6)
    c, s = (p * q).sum((1, 2)) / power, (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(1) / power
    turn = torch.stack([torch.stack([c, s], 1), torch.stack([-s, c], 1)], 1)  # for points as rows
    x, y = torch.meshgrid(
        torch.arange(width, device=source.device), torch.arange(height, device=source.device), indexing="xy"
    )
    at = (torch.stack([x, y], -1).flatten(0, 1).to(source) - mean_p[:, None]) @ turn + mean_q[:, None]
    grid = torch.stack([(2 * at[..., 0] + 1) / width - 1, (2 * at[..., 1] + 1) / height - 1], -1)
    return F.grid_sample(shown, grid.unflatten(1, (height, width)), align_corners=False)
