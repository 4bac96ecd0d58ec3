"""Three recipes that others would train by, for so many minutes: peers of benchmarks/board.py.

    python benchmarks/peer_recipes.py plain --data DATA --size 32 --minutes 10 --parameters 1500000 --seed 0 --out DIR

- plain: what one writes oneself with diffusers' U-Net: v-prediction on 1000 cosine steps, AdamW at 6e-4, batches of 32.
- azula: its U-Net and Karras denoiser, trained as EDM is: log-normal levels (-1.2, 1.2), EDM's weights, Adam at 1e-3
  after a warm-up of 100 steps, averages with a half-life of 5 % of the images so far (Karras et al. 2022, table 1).
- lucidrains: the U-Net and the diffusion of denoising-diffusion-pytorch with the settings of its README: v-prediction
  on 1000 sigmoid steps, Adam at 8e-5 (0.9, 0.99), 32 images twice a step, mirrored, an average of 0.995 every 10 steps.
  Its modules import torchvision and pytorch-fid, for its own trainer alone: stand-ins are put there.

All gradients are clipped at 1; networks compute in bf16 where the processor has it; widths are those that come nearest
to `--parameters`. azula and denoising-diffusion-pytorch are found if installed:
`pip install --no-deps azula einops denoising-diffusion-pytorch ema-pytorch`.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from diffusers_recipe import CLOCKS
from diffusers_recipe import network as diffusers_network
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import ornstein as orn
from ornstein.data import open_images
from ornstein.devices import choose_precision
from ornstein.store import atomic_write

HELD_OUT = 0.1  # `ornstein train` holds out as much: all train on the same images
WEIGHTS, RECORD = "weights.safetensors", "recipe.json"


@dataclass
class Recipe:
    """A network and how it is trained: loss(x0) of a batch, EMA weight of the old average at step 1, 2, ..."""

    net: nn.Module
    loss: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    decay: Callable[[int], float]
    batch: int = 32
    warmup: int = 0
    flip: bool = False


class OfLevel(nn.Module):
    """A network (x, log_snr) -> v of unit-variance states, from one that takes its own kind of time."""

    def __init__(self, net: nn.Module, time_of: Callable[[Tensor], Tensor], sign: float) -> None:
        super().__init__()
        self.net, self.time_of, self.sign = net, time_of, sign

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        return self.sign * self.net(x, self.time_of(log_snr.expand(len(x)))).float()


class AzulaNet(nn.Module):
    """azula's U-Net, modulated by an embedding of the time that its denoiser passes."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        from azula.nn.layers import SineEncoding  # pyright: ignore[reportMissingImports]
        from azula.nn.unet import UNet  # pyright: ignore[reportMissingImports]

        features = 4 * width
        self.embed = nn.Sequential(
            SineEncoding(width, 1e2), nn.Linear(width, features), nn.SiLU(), nn.Linear(features, features)
        )
        widths = (width, 2 * width, 2 * width)
        self.unet = UNet(channels, channels, hid_channels=widths, hid_blocks=(2, 2, 2), mod_features=features)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.unet(x, self.embed(t))


def lucidrains(channels: int, size: int, width: int) -> Any:
    """The GaussianDiffusion of the package around its U-Net."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.utils", "pytorch_fid"):
        sys.modules.setdefault(name, MagicMock())
    for name in ("pytorch_fid.fid_score", "pytorch_fid.inception"):
        sys.modules.setdefault(name, MagicMock())
    from denoising_diffusion_pytorch import (  # pyright: ignore[reportMissingImports]
        GaussianDiffusion,
        Unet,
    )

    return GaussianDiffusion(Unet(width, channels=channels), image_size=size, auto_normalize=False)


def nearest(parameters: int, widths: Iterable[int], build: Callable[[int], nn.Module]) -> int:
    """The width whose network has the nearest number of parameters."""

    def off(width: int) -> int:
        with torch.device("meta"):
            return abs(sum(p.numel() for p in build(width).parameters()) - parameters)

    return min(widths, key=off)


def plain(size: int, channels: int, parameters: int) -> tuple[Recipe, dict[str, Any]]:
    import diffusers

    net = diffusers_network(size, channels, parameters)
    scheduler = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")

    def loss(x0: Tensor) -> Tensor:
        k, z = torch.randint(0, 1000, (len(x0),)), torch.randn_like(x0)
        return F.mse_loss(net(scheduler.add_noise(x0, z, k), k).sample.float(), scheduler.get_velocity(x0, z, k))

    return Recipe(net, loss, torch.optim.AdamW(net.parameters(), 6e-4), lambda step: min(0.998, step / (step + 10))), {}


def azula(size: int, channels: int, parameters: int) -> tuple[Recipe, dict[str, Any]]:
    from azula.denoise import KarrasDenoiser  # pyright: ignore[reportMissingImports]
    from azula.noise import VESchedule  # pyright: ignore[reportMissingImports]

    width = nearest(parameters, range(16, 129, 8), lambda w: AzulaNet(channels, w))
    net, schedule = AzulaNet(channels, width), VESchedule()
    denoiser = KarrasDenoiser(net, schedule)
    lowest, highest = (float(schedule(torch.tensor(t))[1].log()) for t in (0.0, 1.0))

    def loss(x0: Tensor) -> Tensor:
        t = (-1.2 + 1.2 * torch.randn(len(x0)) - lowest) / (highest - lowest)
        return denoiser.loss(x0, t.clamp(0, 1))

    decay = lambda step: 0.5 ** (1 / (0.05 * step))  # noqa: E731
    return Recipe(net, loss, torch.optim.Adam(net.parameters(), 1e-3), decay, warmup=100), {"width": width}


def of_lucidrains(size: int, channels: int, parameters: int) -> tuple[Recipe, dict[str, Any]]:
    width = nearest(parameters, range(8, 65, 4), lambda w: lucidrains(channels, size, w).model)
    diffusion = lucidrains(channels, size, width)
    optimizer = torch.optim.Adam(diffusion.parameters(), 8e-5, (0.9, 0.99))
    decay = lambda step: 0.0 if step <= 100 else 0.995 if step % 10 == 0 else 1.0  # noqa: E731
    recipe = Recipe(diffusion.model, diffusion, optimizer, decay, batch=64, flip=True)
    return recipe, {"width": width, "size": size}


RECIPES = {"plain": plain, "azula": azula, "lucidrains": of_lucidrains}


def load(folder: Path) -> orn.Denoiser:
    """The denoiser that a recipe has trained into a folder."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if record["recipe"] == "plain":
        return orn.load(folder)
    channels, width = record["channels"], record["width"]
    if record["recipe"] == "azula":
        trained: nn.Module = AzulaNet(channels, width)
        # at unit variance its denoiser is x0 = a x + s F, so that F is -v
        net = OfLevel(trained, lambda log_snr: -log_snr / 2, -1.0)
    else:
        diffusion = lucidrains(channels, record["size"], width)
        trained, levels = diffusion.model, torch.logit(diffusion.alphas_cumprod.double())
        net = OfLevel(trained, lambda log_snr: (levels > log_snr[:, None].to(levels)).sum(1).clamp(max=999), 1.0)
    trained.load_state_dict(load_file(folder / WEIGHTS))
    data = orn.Data((channels, record["size"], record["size"]))
    return orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=data).eval()


def fit(recipe: Recipe, images: Any, seconds: float, clock: Callable[[], float], seed: int) -> dict[str, float]:
    """Train for so many seconds of the clock; the network ends with its averaged weights."""
    dtype = choose_precision("auto", torch.device("cpu"))
    parameters = list(recipe.net.parameters())
    average = [p.detach().clone() for p in parameters]
    rates = [group["lr"] for group in recipe.optimizer.param_groups]
    draw = torch.Generator().manual_seed(seed)
    order, step, losses = torch.empty(0, dtype=torch.int64), 0, []
    start = clock()
    while (elapsed := clock() - start) < seconds:
        for group, rate in zip(recipe.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / max(1, recipe.warmup))
        if len(order) < recipe.batch:
            order = torch.randperm(len(images), generator=draw)
        rows, order = order[: recipe.batch], order[recipe.batch :]
        x0 = images.batch(rows)[0]
        if recipe.flip:
            x0 = torch.where((torch.rand(len(x0)) < 0.5).view(-1, 1, 1, 1), x0.flip(-1), x0)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = recipe.loss(x0)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        recipe.optimizer.step()
        recipe.optimizer.zero_grad()
        step += 1
        with torch.no_grad():
            for old, new in zip(average, parameters, strict=True):
                old.lerp_(new, 1 - recipe.decay(step))
        losses.append(loss.detach())
    with torch.no_grad():
        for new, old in zip(parameters, average, strict=True):
            new.copy_(old)
    loss = float(torch.stack(losses[-100:]).mean())
    return {"steps": step, "images": recipe.batch * step, "seconds": elapsed, "training loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: seconds of each thread")
    parser.add_argument("--parameters", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    images = open_images(arguments.data, arguments.size).split(HELD_OUT, arguments.seed)[0]
    torch.manual_seed(arguments.seed)
    channels, size = images.shape[0], images.shape[-1]
    recipe, about = RECIPES[arguments.recipe](size, channels, arguments.parameters)
    own = {"recipe": arguments.recipe, "channels": channels, "size": size} | about
    own["parameters"] = sum(p.numel() for p in recipe.net.parameters())
    threads = torch.get_num_threads() if arguments.clock == "processor" else 1
    seconds = 60 * arguments.minutes * threads
    own |= fit(recipe, images, seconds, CLOCKS[arguments.clock], arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.recipe == "plain":
        import diffusers

        scheduler = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
        net: Any = recipe.net
        diffusers.DDPMPipeline(net, scheduler).save_pretrained(arguments.out)
    else:
        save_file(recipe.net.state_dict(), arguments.out / WEIGHTS)
    atomic_write(arguments.out / RECORD, json.dumps(own, indent=1).encode())


if __name__ == "__main__":
    main()
