"""The settings of `ornstein contrast`, and the models by name; importing them needs no PyTorch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ornstein.errors import UserError
from ornstein.settings import check, setting

__all__ = ["DATA", "DENSITIES", "MODELS", "Contrast", "family"]

DATA = ("gaussians-8", "gaussians-25", "stacked-digits", "digits")

MODELS = ("gan", "wgan-clip", "wgan-gp", "sn-gan", "dragan", "unrolled-5", "autoregressive", "diffusion")

DENSITIES = ("autoregressive", "patchwise", "diffusion")
"""Families with a likelihood."""

_NUMBERED = {"unrolled": (0, 20), "patchwise": (2, 8)}
_KNOWN = "gan, wgan-clip, wgan-gp, sn-gan, dragan, unrolled-K, autoregressive, patchwise-P, diffusion"


def family(model: str) -> tuple[str, int]:
    """The family of a model and its number: ("unrolled", 5), ("gan", 0).

    Raises:
        UserError: there is no such model.
    """
    if model in MODELS and model != "unrolled-5":
        return model, 0
    match = re.fullmatch(r"(unrolled|patchwise)-(\d{1,3})", model)
    if match is None:
        raise UserError(f"unknown model {model!r}; known: {_KNOWN}")
    name, number = match[1], int(match[2])
    low, high = _NUMBERED[name]
    if not low <= number <= high:
        raise UserError(f"{model}: the number of {name} lies between {low} and {high}")
    return name, number


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Train GANs, an autoregressive model and a diffusion model on the same data for the same time, and compare them.

    Writes one report: modes covered, share of good samples, reverse KL, Frechet distance, bits/dim, time a sample, and
    an animation of the samples over training, in which mode collapse is seen. Every model gets the same processor time
    on one thread of the CPU and, within 10 %, the same number of parameters. Started again with the same --out, it
    keeps the models that are finished.

    Example: ornstein contrast --data gaussians-25 --out runs/contrast
    """

    data: str = setting(
        "gaussians-25", "Data.", names=("-d", "--data"), choices=DATA, other="a folder or archive of images"
    )
    models: tuple[str, ...] = setting(
        MODELS,
        "Models.",
        other="gan, wgan-clip, wgan-gp, sn-gan, dragan, unrolled-K, autoregressive, patchwise-P, diffusion",
    )
    minutes: float = setting(
        3.0, "Processor time of each model, shared equally by its seeds.", unit="minutes", above=0, maximum=1e4
    )
    seeds: int = setting(3, "Trainings of each model.", minimum=1, maximum=100)
    out: Path = setting(help="The folder to write.", names=("-o", "--out"))
    num: int | None = setting(
        None,
        "Samples that a model is scored on.",
        names=("-n", "--num"),
        by_data="2500 points, 25600 stacks, 2000 images",
        minimum=2,
        maximum=10**6,
    )
    size: int | None = setting(
        None, "Pixels a side of the images of a folder: 8 or 16.", by_data="8", minimum=8, maximum=16
    )
    likelihood: tuple[str, ...] | None = setting(
        None, "Models whose bits/dim are measured.", other="none", by_data="those that have a likelihood"
    )
    jobs: int = setting(
        2, "Models that train at the same time, each in a process of one thread.", minimum=1, maximum=64
    )

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "models", tuple(dict.fromkeys(self.models)))
        if not self.models:
            raise UserError(f"give at least one model; known: {_KNOWN}")
        for model in self.models:
            family(model)
        self._check_likelihood()
        if self.size is not None and (self.data in DATA or self.size not in (8, 16)):
            why = f"{self.data} has its own size" if self.data in DATA else "it is 8 or 16"
            raise UserError(f"--size {self.size} does not fit: {why}")

    def _check_likelihood(self) -> None:
        for model in self.likelihood or ():
            if self.likelihood == ("none",):
                return
            if family(model)[0] not in DENSITIES:
                raise UserError(
                    f"{model} has no likelihood: a GAN generates samples without a density; those of autoregressive, "
                    "patchwise-P and diffusion can be measured"
                )
            if model not in self.models:
                raise UserError(f"--likelihood names {model}, which is not among the models")

    @property
    def seconds(self) -> float:
        """Processor time of one training."""
        return 60 * self.minutes / self.seeds

    def measured(self, model: str) -> bool:
        """Whether the bits/dim of a model are measured."""
        wanted = self.models if self.likelihood is None else self.likelihood
        return model in wanted and family(model)[0] in DENSITIES
