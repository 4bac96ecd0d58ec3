"""Placement: the landmarks of a source's face in a target's state, and a picture warped to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FEATURES", "Placement", "spots", "still", "thin_plate"]

FEATURES = 26
"""Landmarks that are drawn for a network, the first ones: features of a face. Others only move the picture."""

_FEW = 5  # landmarks that every detector gives, the first ones: the others are predicted from them if they are missing
_STIFF = 0.02  # stiffness of a thin plate: with 0 it goes through all points and folds where they cross
_COARSE = 16  # cells a side at which a thin plate is evaluated
_TOUCH = 1e-6
_FAR = 80.0  # squared deviations: beyond it a spot is 0, and denormal numbers would cost 40 times as much
_POINT = 1 / 32  # deviation of a landmark's spot, as a share of the side


class Placement(nn.Module):
    """From the landmarks of a source and of a target to those of the source in the target's state, (B, K, 2) each.

    All in units of half the picture, from -1 to 1. A linear map plus a small network,

        answer = L (source, target) + f(source, target),

    where L starts as the target's own landmarks and f as 0. The shape of the face is in the source's landmarks,
    pose and expression are in the target's; this is learned from points alone, in seconds.

    `fit` sets mean and spread of the landmarks, and the linear prediction of all of them from the first five, and from
    the first `FEATURES` of more.

    Args:
        points: K.
        width: of the network's hidden layers.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, points: int, width: int = 256) -> None:
        super().__init__()
        if min(points, width) < 1:
            raise ValueError(f"a placement needs points and a width, not {points} and {width}")
        self.points = points
        self.mean: Tensor
        self.spread: Tensor
        self.completion: Tensor
        self.register_buffer("mean", torch.zeros(points, 2))
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("completion", torch.zeros(2 * min(_FEW, points), 2 * points))
        self.features: Tensor
        more = points > FEATURES
        self.register_buffer("features", torch.zeros(2 * FEATURES * more, 2 * points), persistent=more)
        self.linear = nn.Linear(4 * points, 2 * points)
        self.rest = nn.Sequential(
            nn.Linear(4 * points, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2 * points)
        )
        with torch.no_grad():
            for parameter in (*self.linear.parameters(), *self.rest[-1].parameters()):
                parameter.zero_()
            self.linear.weight[:, 2 * points :].copy_(torch.eye(2 * points))

    @torch.no_grad()
    def fit(self, landmarks: Tensor) -> None:
        """Set mean, spread and the linear map from the first five landmarks to all, from landmarks (N, K, 2)."""
        self.mean.copy_(landmarks.mean(0))
        away = (landmarks - self.mean).double()
        self.spread.copy_(away.square().mean().sqrt().clamp(min=_TOUCH))
        for map_ in (each for each in (self.completion, self.features) if len(each)):
            few = away[:, : len(map_) // 2].flatten(1)
            ridge = _TOUCH * few.square().mean() * len(few) * torch.eye(few.shape[1], dtype=few.dtype)
            map_.copy_(torch.linalg.solve(few.T @ few + ridge, few.T @ away.flatten(1)))

    def completed(self, landmarks: Tensor) -> Tensor:
        """Landmarks (B, K, 2), with the most likely others if only the first five or `FEATURES` are given.

        Raises:
            ValueError: another number of them.
        """
        given = landmarks.shape[1]
        if given == self.points:
            return landmarks
        if given > self.points:
            return landmarks[:, : self.points]
        known = {len(each) // 2: each for each in (self.completion, self.features) if len(each)}
        if given not in known or given < _FEW:
            few = " or ".join(str(n) for n in known)
            raise ValueError(f"{given} landmarks, but this net takes {self.points}, or the first {few}")
        rest = ((landmarks - self.mean[:given]).flatten(1) @ known[given]).unflatten(1, (-1, 2)) + self.mean
        return torch.cat([landmarks, rest[:, given:]], 1)

    def normalised(self, landmarks: Tensor) -> Tensor:
        """Landmarks (B, K, 2) as (B, 2K) with mean 0 and mean square 1 over the faces of `fit`."""
        return ((landmarks - self.mean) / self.spread).flatten(1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        both = torch.cat([self.normalised(source), self.normalised(target)], 1)
        answer = self.linear(both) + self.rest(both)
        return answer.unflatten(1, (self.points, 2)) * self.spread + self.mean


def thin_plate(
    source: Tensor, onto: Tensor, size: int, stiffness: float | Tensor = _STIFF, cells: int = _COARSE
) -> Tensor:
    """A thin-plate warp: where in the source's picture each pixel of the result is sampled, (B, `size`, `size`, 2).

    The spline takes the points `onto` (B, K, 2) near those of the `source` (B, K, 2), in units of half the picture:
    q -> sum_k w_k U(|q - onto_k|) + affine(q) with U(r) = r^2 log r^2 and the least bending energy,

        (K + stiffness) w + P a = source,   P^T w = 0,

    the last equation regularised, so that points on a line have a solution too. It is evaluated at `cells` x `cells`
    places and interpolated: it is smooth. `stiffness`: one, or (B, 1, 1).

    Source: Bookstein 1989 (Principal warps, IEEE PAMI 11(6)); Wahba 1990, the stiffness.
    """
    b, k, _ = onto.shape
    bend = _bending(onto, onto) + stiffness * torch.eye(k, device=onto.device)
    flat = torch.cat([torch.ones_like(onto[..., :1]), onto], 2)
    touch = -_TOUCH * torch.eye(3, device=onto.device).expand(b, 3, 3)
    left = torch.cat([torch.cat([bend, flat], 2), torch.cat([flat.mT, touch], 2)], 1)
    w = torch.linalg.solve(left, torch.cat([source, source.new_zeros(b, 3, 2)], 1))
    cells = min(cells, size)
    at = still(cells, onto.device).reshape(1, -1, 2)
    away = _bending(at, onto) @ w[:, :k] + w[:, k, None] + at @ w[:, k + 1 :] - at
    away = F.interpolate(away.mT.unflatten(2, (cells, cells)), (size, size), mode="bicubic", align_corners=False)
    return still(size, onto.device) + away.permute(0, 2, 3, 1)


def still(size: int, device: torch.device | None = None) -> Tensor:
    """The centres of `size` x `size` pixels in units of half the picture, (size, size, 2), x then y."""
    at = (2 * torch.arange(size, device=device) + 1) / size - 1
    return torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)


def spots(landmarks: Tensor, size: int, width: float = _POINT) -> Tensor:
    """All landmarks (B, K, 2) in pixels as Gaussian spots of height 1 in one picture (B, 1, size, size), at most 1.

    width: their standard deviation, as a share of the side.
    """
    at = torch.arange(size, device=landmarks.device)
    squares = (((at - landmarks[..., i, None]) / (width * size)).square() for i in (0, 1))
    x, y = (torch.exp(-square.clamp(max=_FAR) / 2) for square in squares)
    # a Gaussian is the product of one along each axis: K of them are a product of matrices
    return (y.mT @ x).clamp(max=1)[:, None].to(landmarks.dtype)


def _bending(a: Tensor, b: Tensor) -> Tensor:
    """U of the distances of points (B, N, 2) and (B, K, 2): (B, N, K)."""
    square = (a[:, :, None] - b[:, None]).square().sum(-1)
    return square * (square + _TOUCH).log()
