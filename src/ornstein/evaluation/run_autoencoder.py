"""The report of an autoencoder: reconstructions, rates layer by layer, and its latents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.autoencoders import Autoencoder, VQAutoencoder, addressed
from ornstein.autoencoders.vq import perplexity
from ornstein.data import ImageSet, batch_indices, save_grid, to_uint8, to_unit
from ornstein.evaluation.distortion import psnr, ssim
from ornstein.evaluation.facts import run_facts
from ornstein.evaluation.markup import Table
from ornstein.evaluation.panels import Panel
from ornstein.evaluation.report import Images, Report, Score, Skipped, write_report
from ornstein.evaluation.run import Advance, loss_curve

__all__ = [
    "Quality", "evaluate_autoencoder", "reconstruct", "warnings_of", "write_autoencoder_report",
]  # fmt: skip

_BATCH = 64
_SHOWN = 10
_DIRECTIONS = 6
_TURNS = (-3, -2, -1, 0, 1, 2, 3)  # standard deviations along a direction
_INTERPOLATIONS = 5
_BETWEEN = 8
_SAMPLES = 64

COLLAPSED = 0.01  # nats a latent dimension, below which a layer carries nothing
UNUSED = 0.5  # share of the codebook, below which it has collapsed


@dataclass(frozen=True)
class Quality:
    """Scores of an autoencoder, means over `count` held-out images.

    bits, error: bits/dim of the bound and its standard error, NaN without a bound. reconstruction, rates: the parts of
    the bound in bits/dim, the rates by layer. usage, perplexity: share of the codebook in use, and its effective size.
    """

    count: int
    psnr: float
    ssim: float
    bits: float
    error: float
    reconstruction: float
    rates: tuple[float, ...]
    usage: float | None = None
    perplexity: float | None = None


def evaluate_autoencoder(model: Autoencoder, images: ImageSet, count: int = 512, seed: int = 0) -> Quality:
    """Distortion (PSNR in decibels, SSIM) and rate (bits/dim, E27-E30) of an autoencoder, one draw of z per image.

    Args:
        model: the autoencoder; it stays on its device.
        images: held-out images, of which at most `count` are used.
        count: how many.
        seed: of the draws.
    """
    rows = batch_indices(len(images), min(count, len(images)), step=0, seed=0).sort().values
    device = next(model.parameters()).device
    values: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "reconstruction": [], "rates": []}
    codes: list[Tensor] = []
    dimensions = math.prod(model.shape) * math.log(2)
    for part in rows.split(_BATCH):
        pixels = images.images[part]
        x = to_unit(pixels).to(device)
        back = reconstruct(model, pixels)
        values["psnr"].append(psnr(back, pixels))
        values["ssim"].append(ssim(back, pixels))
        if model.kind == "ae":
            continue  # a plain autoencoder has no bound
        elbo = model.bound(x, addressed(seed, part, device=device))
        values["reconstruction"].append(elbo.reconstruction.cpu() / dimensions)
        values["rates"].append(elbo.rates.cpu() / dimensions)
        if isinstance(model, VQAutoencoder):
            with torch.no_grad():
                codes.append(model.indices(x).cpu().flatten())
    usage, effective = None, None
    if isinstance(model, VQAutoencoder):
        used = torch.bincount(torch.cat(codes), minlength=model.codebook.size)
        usage, effective = float((used > 0).double().mean()), float(perplexity(used))
    mean = {name: float(torch.cat(each).mean()) for name, each in values.items() if each and name != "rates"}
    total, rates = torch.empty(0), ()
    if values["rates"]:
        by_layer = torch.cat(values["rates"], 1)
        total, rates = torch.cat(values["reconstruction"]) + by_layer.sum(0), tuple(by_layer.mean(1).tolist())
    return Quality(
        count=len(rows),
        psnr=mean["psnr"],
        ssim=mean["ssim"],
        bits=float(total.mean()) if len(total) else math.nan,
        error=float(total.std() / len(total) ** 0.5) if len(total) > 1 else math.nan,
        reconstruction=mean.get("reconstruction", math.nan),
        rates=rates,
        usage=usage,
        perplexity=effective,
    )


def reconstruct(model: Autoencoder, pixels: Tensor) -> Tensor:
    """uint8 images (N, C, H, W) encoded and decoded by the means of both, in batches; on the CPU."""
    with torch.no_grad():
        device = next(model.parameters()).device
        means = [model.encode(to_unit(part).to(device)).mean for part in pixels.split(_BATCH)]
        return _decoded(model, torch.cat(means))


def warnings_of(model: Autoencoder, quality: Quality) -> list[str]:
    """A sentence for each fault of the training, with its figure: collapsed layers, an unused codebook."""
    sentences = []
    nats = [rate * math.prod(model.shape) * math.log(2) for rate in quality.rates]
    for layer, (each, shape) in enumerate(zip(nats, model.layer_shapes, strict=False), 1):
        if model.kind != "vq" and each / math.prod(shape) < COLLAPSED:
            sentences.append(
                f"collapsed posterior: layer {layer} carries {each / math.prod(shape):.2g} nats a latent dimension; "
                "train with a lower --kl, or give it --free-bits"
            )
    if quality.usage is not None and quality.usage < UNUSED:
        sentences.append(
            f"collapsed codebook: {quality.usage:.1%} of its entries are used (perplexity {quality.perplexity:.1f}); "
            "train with fewer --codes, or for longer"
        )
    return sentences


def write_autoencoder_report(
    out: Path,
    model: Autoencoder,
    train: ImageSet,
    held_out: ImageSet,
    title: str,
    settings: Mapping[str, Any],
    advance: Advance = lambda what, done, total: None,
) -> tuple[list[Score], list[str]]:
    """Write `out`/reconstructions.png, samples.png if the model has a prior, and report.html.

    The report shows reconstructions, interpolations and traversals of the latents of held-out images, samples from the
    prior of the model, and the rate of each layer.

    Args:
        out: the run directory.
        model, train, held_out: the autoencoder and its data.
        title, settings: what the report is called, and the settings that it lists.
        advance: called with (what, done, total).

    Returns:
        The scores in the report, and the warnings about collapsed layers or an unused codebook.
    """
    advance("held-out images", 0, 2)
    quality = evaluate_autoencoder(model, held_out)
    warnings = warnings_of(model, quality)
    advance("pictures", 1, 2)
    rows = batch_indices(len(held_out), min(_BATCH, len(held_out)), step=0, seed=0)
    pixels = held_out.images[rows]
    with torch.no_grad():
        latents = model.encode(to_unit(pixels).to(next(model.parameters()).device)).mean
    pairs = torch.stack([pixels[:_SHOWN], _decoded(model, latents[:_SHOWN])])
    upscale = max(1, 64 // pixels.shape[-1])
    save_grid(pairs.flatten(0, 1), out / "reconstructions.png", columns=pairs.shape[1], upscale=upscale, gap=1)
    count = f"{quality.count} held-out images"
    panels = [
        Panel("Reconstructions", "Held-out images, and their reconstructions.", pairs, rows=("image", "decoded")),
        Panel(
            "Interpolations",
            "On a straight line between the latents of two held-out images, from end to end.",
            _interpolations(model, latents),
        ),
        Panel(
            "Traversals",
            "One held-out image moved along the directions in which the latents vary most (principal components of "
            f"{len(latents)} of them), by a number of standard deviations.",
            *_traversals(model, latents),
        ),
    ]
    samples = _samples(model)
    if samples is not None:
        save_grid(samples, out / "samples.png", columns=8, upscale=upscale, gap=1)
    scores = _scores(quality, count)
    write_report(
        out / "report.html",
        Report(
            title=title,
            lead=f"{train.drawn_from or len(train)} training images, {len(held_out)} held out.",
            warnings=[f"Warning: {w}." for w in warnings],
            tables=_rates(model, quality, count),
            scores=scores,
            panels=panels,
            samples=None if samples is None else Images(samples),
            losses=loss_curve(out),
            facts=run_facts(out, model, train, held_out),
            settings=settings,
            skipped=[Skipped(name, reason) for name, reason in train.skipped],
        ),
    )
    advance("done", 2, 2)
    return scores, warnings


def _decoded(model: Autoencoder, z: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([to_uint8(model.decode(part)).cpu() for part in z.split(_BATCH)])


def _samples(model: Autoencoder) -> Tensor | None:
    """Images from the prior of the model; None if it has none."""
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            return to_uint8(model.sample(_SAMPLES, addressed(0, torch.arange(_SAMPLES), device=device))).cpu()
    except ValueError:
        return None


def _interpolations(model: Autoencoder, latents: Tensor) -> Tensor:
    """uint8 (pairs, steps, C, H, W)."""
    pairs = min(_INTERPOLATIONS, len(latents) // 2)
    share = torch.linspace(0, 1, _BETWEEN, device=latents.device).view(1, -1, *[1] * (latents.ndim - 1))
    between = torch.lerp(latents[:pairs, None], latents[pairs : 2 * pairs, None], share)
    return _decoded(model, between.flatten(0, 1)).unflatten(0, (pairs, _BETWEEN))


def _traversals(model: Autoencoder, latents: Tensor) -> tuple[Tensor, list[str], list[str]]:
    """uint8 (directions, turns, C, H, W), the names of the columns and of the rows."""
    flat = latents.flatten(1).double().cpu()
    centred = flat - flat.mean(0)
    _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
    count = min(_DIRECTIONS, len(lengths))
    std = lengths[:count] / max(1, len(flat) - 1) ** 0.5
    turns = torch.tensor(_TURNS, dtype=torch.float64)
    moved = flat[0] + turns[None, :, None] * (std[:, None] * directions[:count])[:, None]
    seen = _decoded(model, moved.flatten(0, 1).to(latents).view(-1, *latents.shape[1:]))
    shares = lengths.square() / lengths.square().sum()
    names = [f"{i + 1}: {float(share):.0%} of the variance" for i, share in enumerate(shares[:count])]
    return seen.unflatten(0, (count, len(_TURNS))), [f"{turn:+d}" if turn else "0" for turn in _TURNS], names


def _scores(quality: Quality, count: str) -> list[Score]:
    scores = [
        Score(
            "PSNR",
            f"{quality.psnr:.2f} dB",
            f"peak signal-to-noise ratio of the reconstructions of {count}; more is better",
        ),
        Score("SSIM", f"{quality.ssim:.4f}", "structural similarity of the same; 1 for equal images"),
    ]
    if quality.rates:
        scores.append(
            Score(
                "Bits/dim",
                f"{quality.bits:.3f} ± {quality.error:.3f}",
                "bound on -log2 p(x) per channel and pixel of 8 bits, discretised Gaussian decoder, with its standard "
                f"error: {quality.reconstruction:.3f} for the image given latents, {sum(quality.rates):.3f} for these",
            )
        )
    if quality.usage is not None:
        scores.append(
            Score("Codebook in use", f"{quality.usage:.1%}", f"perplexity {quality.perplexity:.1f}, its effective size")
        )
    return scores


def _rates(model: Autoencoder, quality: Quality, count: str) -> list[Table]:
    if not quality.rates:
        return []
    rows = []
    for layer, (rate, shape) in enumerate(zip(quality.rates, model.layer_shapes, strict=True), 1):
        nats = rate * math.prod(model.shape) * math.log(2)
        size = "x".join(str(n) for n in shape)
        rows.append((f"layer {layer}, {size}", f"{rate:.4f}", f"{nats:.2f}", f"{nats / math.prod(shape):.4f}"))
    header = f"The rate of the latents, layer by layer from the image up; means over {count}, one draw each, seed 0."
    return [
        Table("Rates", header, ("Layer", "bits/dim of the image", "nats per image", "nats per latent number"), rows)
    ]
