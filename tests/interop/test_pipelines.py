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
    cond = model.encode(PROMPTS, negative, **({"guidance_scale": 2.5} if model.guided_by_condition else {}))
    ours = orn.sample(model, start.shape, "ddim", grid=model.times(STEPS), start=start, cond=cond, guidance=guidance)
    ours = (model.decode(ours) / 2 + 0.5).clamp(0, 1)
    expected = theirs(model._pipe, name, start, guidance)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert float(expected.std()) > 0.05 and float(((expected > 0) & (expected < 1)).float().mean()) > 0.5


def test_the_classes_of_a_dit(pipeline: Folders) -> None:
    model = orn.load(pipeline("dit"))
    assert model.data is not None and model.data.classes[:3] == ("cat", "dog", "2")
    pipe = model._pipe
    start, labels = noise(2, *model.data.shape), [1, 999]
    for guidance in (1.0, 4.0):
        # theirs takes no latents: it draws them by a generator
        draw = torch.Generator().manual_seed(0)
        images = pipe(labels, guidance, generator=draw, num_inference_steps=STEPS, output_type="np").images
        ours = orn.sample(
            model, start.shape, "ddim", grid=model.times(STEPS), start=start, cond={"label": labels}, guidance=guidance
        )
        ours = (model.decode(ours) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        torch.testing.assert_close(ours, torch.from_numpy(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_inpainting_with_nine_channels(pipeline: Folders, guidance: float) -> None:
    model = opened(pipeline("inpaint"))
    start = noise(2, 4, 32, 32)
    image, mask = noise(2, 3, 64, 64, seed=1).clamp(-1, 1), torch.zeros(2, 1, 64, 64)
    mask[:, :, 16:40, 8:56] = 1
    expected = model._pipe(
        prompt=PROMPTS, negative_prompt=[NEGATIVE] * 2, image=image, mask_image=mask, latents=start.clone(),
        num_inference_steps=STEPS, guidance_scale=guidance, output_type="pt", height=64, width=64,
        generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    # Theirs draws the latents of the picture that stays from the encoder, ours takes their mean: give it theirs.
    kept = image * (mask < 0.5)
    drawn = model._pipe._encode_vae_image(kept, torch.Generator().manual_seed(5))
    given = model.inpainting(image, mask)
    assert float((given[:, 1:] - drawn).abs().max()) < 6 * float(model.space.encode(kept)[1].max())
    cond = model.encode(PROMPTS, NEGATIVE, inpaint=torch.cat([given[:, :1], drawn], 1))
    ours = orn.sample(model, start.shape, "ddim", grid=model.times(STEPS), start=start, cond=cond, guidance=guidance)
    torch.testing.assert_close((model.decode(ours) / 2 + 0.5).clamp(0, 1), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_control_net_and_its_residuals(pipeline: Folders, guidance: float) -> None:
    model, plain = opened(pipeline("controlled")), opened(pipeline("sd1"))
    start, picture = noise(2, 4, 32, 32), noise(2, 3, 64, 64, seed=1).clamp(0, 1)
    expected = model._pipe(
        prompt=PROMPTS, negative_prompt=[NEGATIVE] * 2, image=picture, latents=start.clone(),
        num_inference_steps=STEPS, guidance_scale=guidance, output_type="pt",
    ).images  # fmt: skip
    options = {"solver": "ddim", "grid": model.times(STEPS), "start": start, "guidance": guidance}
    cond = model.encode(PROMPTS, NEGATIVE, control=picture)
    ours = orn.sample(model, start.shape, cond=cond, **options)
    torch.testing.assert_close((model.decode(ours) / 2 + 0.5).clamp(0, 1), expected, rtol=0, atol=1e-4)
    free = orn.sample(plain, start.shape, cond=plain.encode(PROMPTS, NEGATIVE), **options)
    assert float((free - ours).abs().max()) > 0.01


def test_features_of_an_adapter_are_passed_through(pipeline: Folders) -> None:
    model = opened(pipeline("adapted"))
    start, picture = noise(2, 4, 32, 32), noise(2, 3, 64, 64, seed=1).clamp(0, 1)
    call = {"negative_prompt": [NEGATIVE] * 2, "num_inference_steps": STEPS, "guidance_scale": 5.0}
    expected = model._pipe(
        prompt=PROMPTS, image=picture, latents=start.clone(), output_type="latent", **call
    ).images  # fmt: skip
    with torch.no_grad():
        features = {f"inner_{i}": f for i, f in enumerate(model.parts["adapter"](picture))}
    cond = model.encode(PROMPTS, NEGATIVE, residuals=features)
    ours = orn.sample(model, start.shape, "ddim", grid=model.times(STEPS), start=start, cond=cond, guidance=5.0)
    torch.testing.assert_close(ours, torch.as_tensor(expected), rtol=1e-4, atol=1e-4)
