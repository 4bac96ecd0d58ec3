"""The optimal reverse variance of a denoiser, from data (E9)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoises
from ornstein.likelihood.model import STREAM, chunks, dimensions, open_model
from ornstein.randomness import normal
from ornstein.solvers.variance import AnalyticVariance, position
from ornstein.wrapper import evaluation_mode

__all__ = ["fit_variance"]

_NOISE = STREAM + 12


def fit_variance(
    d: Denoises,
    images: Tensor,
    *,
    nodes: int = 64,
    seed: int = 0,
    first: int = 0,
    batch: int = 256,
    cond: dict[str, Any] | None = None,
) -> AnalyticVariance:
    """Measure the optimal reverse variance of this denoiser, for `variance=` of ddpm and vlb.

    The table holds E||x_0 - x0_hat||^2_{C^-1}/N at `nodes` noise levels, with one draw of noise for each image. The
    optimum of a step between any two times follows from it (Bao et al. 2022, theorem 1). For an exact denoiser the
    error is s^2/a^2 (1 - E||z_hat||^2/N), their closed form; measured against the images it is also the optimum for a
    network.

    Args:
        images: (B, *).
        nodes: noise levels in the table, at least 2.
        seed, first: noise is addressed by (seed, first + row, node).
        batch: images that go through the network at once.
        cond: conditions, one a sample.

    Raises:
        ValueError: nodes < 2; there are no images, or they are not finite or not the model's; or C is singular.
    """
    if nodes < 2:
        raise ValueError(f"the table needs at least 2 nodes, got {nodes}")
    model = open_model(d, images, cond)
    process = model.process
    end = float(position(process.schedule.log_snr(1.0)))
    level = -4 * torch.logit(torch.arange(1, nodes + 1, dtype=torch.float64) / nodes * end)
    total = torch.zeros(nodes, dtype=torch.float64)
    with torch.no_grad(), evaluation_mode(d):
        for rows in chunks(len(images), batch):
            x0 = images[rows.to(images.device)].to(model.exact).double()
            for k in range(nodes):
                t = float(process.schedule.time(level[k]).clamp(0, 1))
                z = normal(tuple(x0.shape), seed, rows + first, k, _NOISE, torch.float64, x0.device)
                error = x0 - model(process.add_noise(x0, t, z), t, rows).x0
                total[k] += process.noise.mahalanobis(error).sum().cpu()
    return AnalyticVariance(level, total / (len(images) * dimensions(images)) / torch.sigmoid(-level))
