# pyright: reportPrivateImportUsage=false
"""Pipelines of diffusers here and there: speed at equal pictures, memory of SDXL, noise that frames share.

    python benchmarks/pipelines.py speed [--steps 4] [--batch 2] [--repeats 5] [--compile] [--clock processor]
    python benchmarks/pipelines.py memory
    python benchmarks/pipelines.py noise FOLDER --prompt "a boat on a lake" [--clips 4] [--steps 20]

speed: a network like Stable Diffusion's and one like PixArt's, with random weights, in diffusers' own call and here, in
turns in one process. memory: SDXL at 1024x1024 in float16 on tensors without data. noise: flicker and motion of clips
of a pipeline from white, mixed and AR(1) noise; with random weights it means nothing.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tables import Table, median, ratio, turns
from torch import Tensor

import ornstein as orn
from ornstein.compiling import compile_network
from ornstein.evaluation.motion import flicker
from ornstein.interop.families import family_of
from ornstein.interop.memory import peak_activations
from ornstein.interop.notes import quiet
from ornstein.interop.pipeline import Pipeline

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

_GUIDANCE = 4.0
_PROMPTS = ("a red fox in snow", "two owls")
_GIB = 2**30


def pipelines() -> dict[str, Any]:
    """A pipeline like Stable Diffusion and one like PixArt."""
    import diffusers

    from interop import tiny  # pyright: ignore[reportMissingImports]

    down, up = ("CrossAttnDownBlock2D",) * 2, ("CrossAttnUpBlock2D",) * 2
    unet = tiny.unet(
        block_out_channels=(128, 256, 256), norm_num_groups=32, layers_per_block=2, attention_head_dim=4,
        cross_attention_dim=32, down_block_types=(*down, "DownBlock2D"), up_block_types=("UpBlock2D", *up),
    )  # fmt: skip
    text = (tiny.clip_text(), tiny.clip_tokenizer())
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=32, num_layers=6, patch_size=2, attention_head_dim=32, num_attention_heads=8,
        caption_channels=32, cross_attention_dim=256, in_channels=4, out_channels=8,
    ).eval()  # fmt: skip
    encoder, tokenizer = tiny.t5()
    return {
        "like SD": diffusers.StableDiffusionPipeline(tiny.vae(), *text, unet, tiny.ddim(), None, None, None, False),
        "like DiT": diffusers.PixArtSigmaPipeline(tokenizer, encoder, tiny.vae(), transformer, tiny.ddim()),
    }


def speed(steps: int, batch: int, repeats: int, compiled: bool, clock: Callable[[], float]) -> Table:
    """Seconds of both, and how far the pictures are apart."""
    warnings.simplefilter("ignore")
    table = Table(
        f"The same weights, {steps} steps of DDIM, guidance {_GUIDANCE:g}, {batch} pictures, float32",
        [
            "network",
            "parameters",
            "pictures differ by at most",
            "seconds",
            "diffusers, seconds",
            "ratio",
            "spread",
            "aim",
        ],
        note=f"Random weights; medians of {repeats} turns.",
    )
    torch.manual_seed(0)
    with quiet():
        for name, pipe in pipelines().items():
            pipe.set_progress_bar_config(disable=True)
            model = Pipeline(copy.deepcopy(pipe), family_of(type(pipe).__name__), name).eval()
            prompts = [_PROMPTS[i % len(_PROMPTS)] for i in range(batch)]
            start = torch.randn(batch, 4, 32, 32, generator=torch.Generator().manual_seed(0))
            options = {"use_resolution_binning": False, "clean_caption": False} if name == "like DiT" else {}

            def theirs(pipe: Any = pipe, options: Any = options, prompts: Any = prompts, x: Tensor = start) -> Tensor:
                call = {"num_inference_steps": steps, "guidance_scale": _GUIDANCE, "output_type": "pt", **options}
                return pipe(prompt=prompts, latents=x.clone(), **call).images

            def ours(model: Any = model, prompts: Any = prompts, x: Tensor = start) -> Tensor:
                cond = model.encode(prompts)
                y = orn.sample(model, x.shape, "ddim", grid=model.times(steps), start=x, cond=cond, guidance=_GUIDANCE)
                return (model.decode(y) / 2 + 0.5).clamp(0, 1)

            parameters = f"{sum(p.numel() for p in model.net.parameters()) / 1e6:.1f} M"
            for how in ("", *(["compiled"] if compiled else [])):
                took = f", compiled in {compile_network(model, ours):.0f} s" if how else ""
                difference = float((theirs() - ours()).abs().max())
                found = turns([ours, theirs], repeats, clock)
                each = sorted(ours / theirs for ours, theirs in found)
                seconds = (median(found, 0), median(found, 1), ratio(found, 0, 1), f"{each[0]:.3f} to {each[-1]:.3f}")
                table.add(name + took, parameters, f"{difference:.1e}", *seconds, "0.95, equal to 1e-4")
    return table


def memory() -> Table:
    """Weights and activations of SDXL."""
    import diffusers

    half = torch.float16
    with quiet(), torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ).to(half)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
            sample_size=512,
        )
        added = {"text_embeds": torch.empty(2, 1280, dtype=half), "time_ids": torch.empty(2, 6, dtype=half)}
        x, k, text = torch.empty(2, 4, 128, 128, dtype=half), torch.empty(2), torch.empty(2, 77, 2048, dtype=half)
        both = peak_activations(lambda: unet(x, k, encoder_hidden_states=text, added_cond_kwargs=added), [unet])
        z = torch.empty(1, 4, 128, 128)
        whole = peak_activations(lambda: vae.decode(z), [vae])
        vae.enable_tiling()
        tiles = peak_activations(lambda: vae.decode(z), [vae])
    table = Table("SDXL, 1024×1024, one picture with guidance", ["part", "weights, GiB", "largest activations, GiB"])
    for name, module, peak in (
        ("U-Net, float16, both sides of guidance", unet, both),
        ("decoder, float32, whole", vae, whole),
        ("decoder, float32, tiles of 512", vae, tiles),
    ):
        weights = sum(p.numel() * p.element_size() for p in module.parameters())
        table.add(name, f"{weights / _GIB:.2f}", f"{peak / _GIB:.2f}")
    return table


def noise(folder: Path, prompt: str, clips: int, steps: int) -> Table:
    """Flicker and motion of clips from noise that frames share more or less."""
    model = orn.load(folder)
    assert isinstance(model, Pipeline) and model.data is not None
    channels, frames, *size = model.data.shape
    shape = (clips, channels, frames, *size)
    table = Table(
        f"{folder.name}: {clips} clips of {prompt!r}",
        ["noise", "flicker", "motion, RMS of a frame's change", "contrast, standard deviation"],
        note="Flicker: 3 for frames without correlation, near 0 for smooth motion. Less motion is not better.",
    )
    choices = {
        "white": orn.noise.Identity(),
        "mixed, c = 0.3": orn.noise.Mixed(frames, 0.3),
        "AR(1), rho = 0.5": orn.noise.AR1(frames, 0.5),
    }
    for name, covariance in choices.items():
        chosen = model.with_noise(covariance)
        cond = chosen.encode([prompt] * clips)
        made = chosen.decode(orn.sample(chosen, shape, steps=steps, cond=cond, guidance=7.5, seed=0))
        motion = float(made.diff(dim=2).square().mean().sqrt())
        table.add(name, flicker(made), motion, float(made.std()))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "noise"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--prompt", default="a boat on a lake")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="processor: of a busy machine")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.what == "speed":
        clock = time.process_time if asked.clock == "processor" else time.perf_counter
        speed(asked.steps or 4, asked.batch, asked.repeats, asked.compile, clock).show()
    elif asked.what == "memory":
        memory().show()
    else:
        noise(asked.folder, asked.prompt, asked.clips, asked.steps or 20).show()


if __name__ == "__main__":
    main()
