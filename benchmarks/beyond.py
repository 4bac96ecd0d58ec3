"""Training past one machine, on paper: time, memory, traffic, data and cost, as tables for docs/scaling.md.

    python benchmarks/beyond.py

Of our networks the arithmetic and what the forward pass keeps are counted on this machine, a step of one image; of the
larger transformer both follow from its shape. What a GPU makes of its peak, prices and sizes of files are assumptions,
declared at the top and repeated under the tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tables import Table
from torch.utils.flop_counter import FlopCounterMode

from ornstein.nets import UNet
from ornstein.training.plan import kept_for_backward

GPUS = 8
PEAK = 989e12  # bf16 operations a second of an H100 SXM, dense (its data sheet)
LINK = 450e9  # bytes a second of its NVLink, each way (its data sheet)
HBM = 80e9
PRICE = 2.5  # dollars a GPU hour: an assumption
JPEG = 30e3  # bytes of a photograph at 256 pixels: an assumption
DECODE = 1.7e-3  # seconds of a core for one: measured, docs/scaling.md
LATENT = 2 * 4 * 4 * 32 * 32  # bytes in our cache: means and deviations, float32
INDEX_BYTES, INDEX_SECONDS = 305.0, 115e-6  # of a sample of a tar archive, with its fingerprint: measured
BATCH = 256


@dataclass(frozen=True)
class Net:
    """name; parameters; operations of a training step for an image; bytes kept for an image; share of the peak."""

    name: str
    parameters: float
    work: float
    kept: float
    share: float


def counted(name: str, channels: int, size: int, patch: int | None, share: float) -> Net:
    """A U-Net of ours, by a step of one image in bf16."""
    net = UNet.preset("l", channels=channels, size=size, classes=1000, patch=patch)
    x, label = torch.randn(1, channels, size, size), torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        with kept_for_backward(net) as kept:
            loss = net(x, torch.zeros(1), label).float().square().mean()
        loss.backward()
    parameters = sum(p.numel() for p in net.parameters())
    # the weights in bf16, which are kept once and not for each image
    return Net(name, parameters, counter.get_total_flops(), kept.bytes - 2 * parameters, share)


def transformer(name: str, depth: int, width: int, tokens: int, share: float) -> Net:
    """A DiT with adaLN: 12 w^2 weights a block work on each token, 6 w^2 once; three times the forward pass.

    Kept: 34 bytes a token, block and channel, without the attention matrix (Korthikanti et al. 2022, arXiv:2205.05198,
    section 4).
    """
    each, once = 12 * depth * width**2, 6 * depth * width**2
    forward = 2 * tokens * each + 4 * depth * tokens**2 * width + 2 * once
    return Net(name, each + once, 3 * forward, 34.0 * depth * tokens * width, share)


def hours(net: Net, images: float) -> float:
    return images * net.work / (GPUS * PEAK * net.share) / 3600


def main() -> None:
    nets = [
        counted("U-Net l, 256x256 pixels", 3, 256, None, 0.2),
        counted("U-Net l, latents 4x32x32", 4, 32, 1, 0.2),
        transformer("DiT-XL/2, latents 4x32x32", 28, 1152, 256, 0.35),
    ]
    table = Table("256x256 on 8 GPUs", ["", *(net.name for net in nets)])

    def row(name: str, f: object) -> None:
        assert callable(f)
        table.add(name, *(f(net) for net in nets))

    row("parameters, M", lambda n: n.parameters / 1e6)
    row("GFLOP an image, forward and backward", lambda n: n.work / 1e9)
    row("assumed share of the peak", lambda n: n.share)
    row("images a second", lambda n: GPUS * PEAK * n.share / n.work)
    for images, what in ((BATCH * 400e3, "400,000 steps of 256"), (BATCH * 7e6, "7 million steps of 256")):
        row(f"hours for {what}", lambda n, images=images: hours(n, images))
        row(f"dollars for {what}", lambda n, images=images: GPUS * PRICE * hours(n, images))
    row("GB a GPU: weights, gradients, moments, EMA (20 P)", lambda n: 20 * n.parameters / 1e9)
    row("the same, split by FSDP", lambda n: 20 * n.parameters / GPUS / 1e9)
    row("GB a GPU: activations of 32 images", lambda n: 32 * n.kept / 1e9)
    row("largest batch a GPU, without checkpointing", lambda n: f"{(0.9 * HBM - 20 * n.parameters) / n.kept:,.0f}")
    row("GB sent by a GPU a step", lambda n: 2 * (GPUS - 1) / GPUS * 4 * n.parameters / 1e9)
    row("milliseconds of it", lambda n: 1e3 * 2 * (GPUS - 1) / GPUS * 4 * n.parameters / LINK)
    row("milliseconds of a step of 256", lambda n: 1e3 * BATCH * n.work / (GPUS * PEAK * n.share))
    row("MB of JPEG a second", lambda n: JPEG * GPUS * PEAK * n.share / n.work / 1e6)
    row("cores that decode them", lambda n: DECODE * GPUS * PEAK * n.share / n.work)
    print(table.markdown())

    billion = Table("A billion images", ["", "", "how"])
    for name, value, how in (
        ("as JPEG at 256 pixels, TB", 1e9 * JPEG / 1e12, "assumed 30 kB each"),
        ("as cached latents, TB", 1e9 * LATENT / 1e12, "32.8 kB each: means and deviations of 4x32x32, float32"),
        ("core hours to decode once", 1e9 * DECODE / 3600, "measured, 1.7 ms"),
        ("core hours to index and fingerprint", 1e9 * INDEX_SECONDS / 3600, "measured, 115 microseconds"),
        ("GB of index in each process", 1e9 * INDEX_BYTES / 1e9, "measured, 305 bytes"),
        *((f"hours of one pass, {n.name}", hours(n, 1e9), "8 GPUs, computed") for n in nets),
        *((f"dollars of one pass, {n.name}", GPUS * PRICE * hours(n, 1e9), "computed") for n in nets),
        ("dollars to carry the JPEGs once, at $0.05 a GB", 0.05 * 1e9 * JPEG / 1e9, "assumed price"),
    ):
        billion.add(name, float(value), how)
    print(billion.markdown())


if __name__ == "__main__":
    main()
