"""`ornstein train`: a folder or archive of images or videos in, a run folder out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ornstein.cli.command import console
from ornstein.cli.runs import DISTIL, SETTINGS, run
from ornstein.cli.setup import Settings
from ornstein.cli.setup_autoencoder import DIFFUSION, MODELS
from ornstein.errors import UserError
from ornstein.objectives import OBJECTIVES

_CLIPS = "Clips"
_LATENTS = "Autoencoders and latent diffusion"


def train(
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    data: Annotated[
        str | None,
        typer.Option(help="A folder or zip of images or videos (a sub-folder a class), or a bundled set: digits."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the square images in pixels; their own if all agree.")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="3 for colour, 1 for grey.")] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Decode images as they are needed, not all at the start. (default: where that would fill over 2 GB)",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps in all. (default: 20000)")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes in all, instead of steps.")] = None,
    batch: Annotated[
        int | None, typer.Option(help="Images or clips a step. (default: 128 images, 32 on a CPU, 16 clips)")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts to compute a batch in, where it does not fit in memory. (default: 1)")
    ] = None,
    net: Annotated[str | None, typer.Option(help="xs, s, m or l. (default: by size and device)")] = None,
    conditional: Annotated[
        bool | None, typer.Option(help="Learn the classes. (default: where there are images enough a class)")
    ] = None,
    held_out: Annotated[float | None, typer.Option(help="Share of the data kept for judging. (default: 0.1)")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="muon or adamw. (default: muon for diffusion on images, else adamw)")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Before its decay. (default: 0.004 with muon, 0.001 with adamw)")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(OBJECTIVES)}. (default: error of the network's output)")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bf16. (default: auto)")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random. (default: 0)")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints. (default: 500)")] = None,
    sample_every: Annotated[
        int | None, typer.Option(help="Steps between looks at samples, 0 for none. (default: 1000)")
    ] = None,
    track: Annotated[
        str | None, typer.Option(help="Log to tensorboard or wandb too. (metrics.jsonl is always written)")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT, with its own settings.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help=f"Of {', '.join(MODELS)}. (default: {DIFFUSION})", rich_help_panel=_LATENTS),
    ] = None,
    latent: Annotated[
        str | None,
        typer.Option(help="Train on the latents of the autoencoder in this run.", rich_help_panel=_LATENTS),
    ] = None,
    factor: Annotated[
        int | None, typer.Option(help="Image side over latent side: 2, 4, 8, ...", rich_help_panel=_LATENTS)
    ] = None,
    latent_channels: Annotated[
        int | None, typer.Option(help="Channels of the latents, or their length for a vae.", rich_help_panel=_LATENTS)
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="Layers of latents of an hvae. (default: 2)", rich_help_panel=_LATENTS)
    ] = None,
    codes: Annotated[
        int | None, typer.Option(help="Entries of the codebook of a vq. (default: 512)", rich_help_panel=_LATENTS)
    ] = None,
    reconstruction: Annotated[
        str | None,
        typer.Option(
            help="nll (Gaussian, learned scale), l1 or l2. (default: l1 for ae and vq, else nll)",
            rich_help_panel=_LATENTS,
        ),
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(help="Weight of the rate. (default: 1, the bound; 0.05 for kl)", rich_help_panel=_LATENTS),
    ] = None,
    kl_warmup: Annotated[
        float | None,
        typer.Option(help="Fraction of the training over which --kl rises from 0.", rich_help_panel=_LATENTS),
    ] = None,
    free_bits: Annotated[
        float | None,
        typer.Option(help="Nats a latent number that cost nothing. (default: 0.1 for hvae)", rich_help_panel=_LATENTS),
    ] = None,
    perceptual: Annotated[
        str | None,
        typer.Option(help="Features to compare in, too: random, or a TorchScript file.", rich_help_panel=_LATENTS),
    ] = None,
    perceptual_weight: Annotated[
        float | None, typer.Option(help="Of that comparison. (default: 1)", rich_help_panel=_LATENTS)
    ] = None,
    adversarial: Annotated[
        float | None, typer.Option(help="Weight of a patch discriminator. (default: none)", rich_help_panel=_LATENTS)
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Train on clips of so many frames.", rich_help_panel=_CLIPS)
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Take every STRIDE-th frame of a video. (default: 1)", rich_help_panel=_CLIPS)
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(help="white, ar1:0.9, or a FILE.json of `fit-noise`. (default: white)", rich_help_panel=_CLIPS),
    ] = None,
    data_noise: Annotated[
        str | None,
        typer.Option(
            help="The data's own covariance over frames, written as --noise: preconditions by it.",
            rich_help_panel=_CLIPS,
        ),
    ] = None,
    centre: Annotated[
        bool | None,
        typer.Option(
            "--centre",
            help="Shift the schedule so that logdet(C^-1 Sigma) = 0; needs --data-noise.",
            rich_help_panel=_CLIPS,
        ),
    ] = None,
    given_frames: Annotated[
        bool | None,
        typer.Option("--given-frames", help="Also learn to go on from frames given.", rich_help_panel=_CLIPS),
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="A run of images to start a model of clips from.", rich_help_panel=_CLIPS)
    ] = None,
) -> None:
    """Train a diffusion model on your images or videos, or an autoencoder and a diffusion model of its latents.

    Example: ornstein train --data photos.zip --size 32 --minutes 30 --out runs/photos
    """
    given = {k: v for k, v in locals().items() if k not in ("out", "resume") and v is not None}
    run(_settings(out, given, resume), out, resume)
    console.print(f"done: {out / 'report.html'}; more samples with `ornstein sample {out}`")


def _settings(out: Path, given: dict[str, Any], resume: bool) -> Settings:
    if resume and (out / DISTIL).is_file():
        raise UserError(f"{out} is a distilled model: go on with `ornstein distil TEACHER --out {out} --resume`")
    if resume and (out / SETTINGS).is_file():
        stored = Settings.stored(out / SETTINGS)
        if "steps" in given:
            stored = replace(stored, minutes=None)
        if "minutes" in given:
            stored = replace(stored, steps=None)
        return replace(stored, **given)
    if "data" not in given:
        raise UserError("give --data: a folder or zip of images or videos, or `digits`")
    return Settings(**given)
