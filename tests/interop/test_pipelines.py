"""Tiny pipelines of each family with random weights: the same images as diffusers' own calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from ornstein.interop.pipeline import Pipeline

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

Folders = Callable[[str], Path]
PROMPTS, NEGATIVE, STEPS = ["a red cat", "two dogs."], "bad", 2

# What the calls of the pipelines take besides the prompts.
CALLS: dict[str, dict[str, Any]] = {
    "pixart": {"use_resolution_binning": False},
    "ldm": {"height": 256, "width": 256, "output_type": "np"},
    "wan": {"num_frames": 5, "height": 32, "width": 32},
    "flux": {"height": 32, "width": 32},
    "flux-distilled": {"height": 32, "width": 32, "guidance_scale": 2.5},
}
SIZES = {"wan": (5, 32, 32), "flux": (32, 32), "flux-distilled": (32, 32)}
WITHOUT_NEGATIVE = ("ldm", "sdxl")  # theirs takes none, and takes none as zeros
FAMILIES = ("sd1", "sd2", "sdxl", "sdxl-nulls", "sd3", "sd3-dynamic", "flux", "flux-distilled", "pixart", "ldm",
            "animatediff", "wan")  # fmt: skip


def opened(folder: Path) -> Pipeline:
    model = orn.load(folder)
    assert isinstance(model, Pipeline)
    size = SIZES.get(folder.name)
    return model if size is None else model.sized(*size)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def theirs(pipe: Any, name: str, start: Tensor, guidance: float) -> Tensor:
    """The images of diffusers' own call, (B, 3, *) in [0, 1]."""
    call = {"guidance_scale": guidance, "output_type": "pt", "latents": start.clone()} | CALLS.get(name, {})
    if name.startswith("flux"):
        call |= {"true_cfg_scale": guidance, "latents": pipe._pack_latents(start, *start.shape)}
    if name not in WITHOUT_NEGATIVE:
        call["negative_prompt"] = NEGATIVE if name == "pixart" else [NEGATIVE] * len(PROMPTS)
    out = pipe(prompt=PROMPTS, num_inference_steps=STEPS, **call)
    images = torch.as_tensor(out.frames if hasattr(out, "frames") else out.images)
    if images.ndim == 5:
        return images.transpose(1, 2)
    return images.permute(0, 3, 1, 2) if call["output_type"] == "np" else images


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_images_as_the_pipeline(pipeline: Folders, name: str, guidance: float) -> None:
    model = opened(pipeline(name))
    assert model.data is not None
    start = noise(2, *model.data.shape)
    negative = None if name in WITHOUT_NEGATIVE else NEGATIVE
    cond = model.encode(PROMPTS, negative, 2.5 if model.guided_by_condition else None)
    ours = orn.sample(model, start.shape, "ddim", grid=model.times(STEPS), start=start, cond=cond, guidance=guidance)
    ours = (model.decode(ours) / 2 + 0.5).clamp(0, 1)
    expected = theirs(model._pipe, name, start, guidance)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert float(expected.std()) > 0.05 and float(((expected > 0) & (expected < 1)).float().mean()) > 0.5
