"""Fréchet distance between two sets of features, taken as Gaussians (Dowson, Landau 1982; Heusel et al. 2017).

    d^2 = |mu1 - mu2|^2 + tr C1 + tr C2 - 2 tr (C1^{1/2} C2 C1^{1/2})^{1/2}

For any C1 = F1^T F1 and C2 = F2^T F2 the last trace is the sum of the singular values of F1 F2^T. That is
real and accurate for rank-deficient covariances too, where the usual matrix square root of C1 C2 turns complex or
loses half its digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.evaluation.neighbours import flat_pixels

__all__ = ["FrechetScore", "frechet_distance", "frechet_gaussians", "pixel_frechet", "real_floor"]


@dataclass(frozen=True)
class FrechetScore:
    """A Fréchet distance in squared feature units, the name of its features, and the distance between real halves."""

    name: str
    value: float
    floor: float


def _distance(mu1: Tensor, factor1: Tensor, mu2: Tensor, factor2: Tensor) -> float:
    cross = torch.linalg.svdvals(factor1 @ factor2.T).sum()
    value = (mu1 - mu2).square().sum() + factor1.square().sum() + factor2.square().sum() - 2.0 * cross
    return max(0.0, float(value))  # equal Gaussians leave rounding of either sign


def _root(cov: Tensor, name: str) -> Tensor:
    """F with cov = F^T F, by eigenvalues; those below rounding are set to zero."""
    if not torch.allclose(cov, cov.T, rtol=1e-6, atol=1e-9 * float(cov.abs().max())):
        raise ValueError(f"{name} is not symmetric, so it is not a covariance")
    values, vectors = torch.linalg.eigh(0.5 * (cov + cov.T))
    noise = len(cov) * torch.finfo(cov.dtype).eps * float(values.abs().max())
    if float(values[0]) < -max(noise, 1e-6 * float(values.abs().max())):
        raise ValueError(f"{name} has the negative eigenvalue {float(values[0]):.3g}: it is not a covariance")
    return torch.where(values > noise, values, 0.0).sqrt()[:, None] * vectors.T


def frechet_gaussians(mu1: Tensor, cov1: Tensor, mu2: Tensor, cov2: Tensor) -> float:
    """Squared Fréchet (2-Wasserstein) distance between N(mu1, cov1) and N(mu2, cov2), of any rank.

    Args:
        mu1, mu2: (D,).
        cov1, cov2: (D, D).

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a matrix that is not a covariance.

    Source: Dowson and Landau 1982, eq. 4. Computed in float64.
    """
    dim = len(mu1)
    for name, value, shape in (
        ("mu1", mu1, (dim,)),
        ("cov1", cov1, (dim, dim)),
        ("mu2", mu2, (dim,)),
        ("cov2", cov2, (dim, dim)),
    ):
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} holds values that are not finite")
    mu1, cov1, mu2, cov2 = (value.detach().cpu().double() for value in (mu1, cov1, mu2, cov2))
    return _distance(mu1, _root(cov1, "cov1"), mu2, _root(cov2, "cov2"))


def _moments(features: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Mean (D,) and F (min(N, D), D) with F^T F the unbiased covariance, the features never squared."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"{name} must be (N, D) features of two images or more, got shape {tuple(features.shape)}")
    x = features.detach().cpu().double()
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} holds values that are not finite")
    mean = x.mean(0)
    return mean, torch.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r").R


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance between the Gaussians fitted to features a (N, D) and b (M, D).

    In squared feature units, from unbiased covariances in float64, also for fewer images than features. Few images
    bias it upwards, about in proportion to 1/N + 1/M: compare only values of equal N and M, and print `real_floor`
    beside them.

    Raises:
        ValueError: fewer than two rows, different D, or values that are not finite.

    Source: Heusel et al. 2017 (arXiv:1706.08500), eq. 6.
    """
    if a.ndim == 2 and b.ndim == 2 and a.shape[1] != b.shape[1]:
        raise ValueError(f"features differ in length: {a.shape[1]} against {b.shape[1]}")
    return _distance(*_moments(a, "a"), *_moments(b, "b"))


def real_floor(real: Tensor, seed: int = 0) -> float:
    """Fréchet distance between two random halves of real features (N, D): about what a perfect model scores.

    Raises:
        ValueError: fewer than four rows.
    """
    if real.ndim != 2 or len(real) < 4:
        raise ValueError(f"real must be (N, D) features of four images or more, got shape {tuple(real.shape)}")
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed)).to(real.device)
    half = len(real) // 2
    return frechet_distance(real[order[:half]], real[order[half : 2 * half]])


def pixel_frechet(samples: Tensor, real: Tensor, seed: int = 0) -> FrechetScore:
    """Fréchet distance on raw pixels in [-1, 1] of images (N, C, H, W), with its floor (`real_floor`).

    It is meant for tiny images, where pixels suffice as features; on photographs it hardly sees shape.

    Raises:
        ValueError: images of different shapes, or fewer than two samples and four real images.
    """
    if samples.shape[1:] != real.shape[1:]:
        raise ValueError(f"images differ in shape: {tuple(samples.shape[1:])} against {tuple(real.shape[1:])}")
    features = flat_pixels(real)
    return FrechetScore(
        name=f"Frechet distance on raw pixels ({features.shape[1]}-D)",
        value=frechet_distance(flat_pixels(samples), features),
        floor=real_floor(features, seed),
    )
