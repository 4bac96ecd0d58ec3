"""Weights of 8 bits: one scale for each output of a layer, and the error that this makes."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser
from ornstein.store import CONFIG, MODEL, SCALE, atomic_save_tensors, atomic_write, dequantised, json_bytes, make_folder

__all__ = ["output_error", "quantised", "save_int8"]

_LEAST = 64  # numbers of a tensor that is worth a scale for each row
_PROBES = 9  # diffusion times at which the error is measured


def quantised(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels as int8 with a scale (rows,) float32 each, "NAME.scale"; other tensors as they are.

    A row w becomes round(w / scale) with scale = max|w| / 127, so no weight is off by more than half a scale.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.ndim < 2 or tensor.numel() < _LEAST:
            out[name] = tensor
            continue
        rows = tensor.detach().float().flatten(1)
        scale = rows.abs().amax(1).clamp(min=1e-30) / 127
        out[name] = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8).view(tensor.shape)
        out[name + SCALE] = scale
    return out


def save_int8(denoiser: Denoiser, path: str | Path) -> Denoiser:
    """Write a model's folder with 8-bit weights; returns the model as it will be loaded from there."""
    folder = make_folder(path)
    stored = quantised({name: tensor.cpu().contiguous() for name, tensor in denoiser.net.state_dict().items()})
    atomic_save_tensors(folder / MODEL, stored, {})
    atomic_write(folder / CONFIG, json_bytes(denoiser.to_config() | {"int8": True}))
    rounded = copy.deepcopy(denoiser)
    rounded.net.load_state_dict(dequantised(stored))
    return rounded.eval()


def output_error(model: Denoiser, other: Denoiser) -> float:
    """The difference of two models' predictions of x0, on noise, over the size of them: root mean squares.

    Over nine diffusion times; without conditions.
    """
    assert model.data is not None
    device = next(model.net.parameters()).device
    t = (torch.arange(_PROBES, device=device) + 0.5) / _PROBES
    z = torch.randn((_PROBES, *model.data.shape), generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        ours, theirs = model(z, t).x0, other(z, t).x0
    return float((ours - theirs).square().mean().sqrt() / ours.square().mean().sqrt().clamp(min=1e-12))
