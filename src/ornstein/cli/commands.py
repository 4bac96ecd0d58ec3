"""The options of the commands, one dataclass each: its docstring is the help. See `ornstein.cli.options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ornstein.settings import again, device_setting, setting
from ornstein.training.settings import Settings

__all__ = ["Demo", "Train"]

_RESUME = "Continue the run in --out with its stored settings."


def _out(help: str) -> Path:
    return setting(help=help, names=("-o", "--out"))


@dataclass(frozen=True, kw_only=True)
class Train(Settings):
    """Train a diffusion model on your images or videos, or an autoencoder and a diffusion model of its latents.

    Example: ornstein train --data photos.zip --size 32 --minutes 30 --out runs/photos
    """

    data: str | None = again(Settings, "data", None, names=("-d", "--data"))  # pyright: ignore[reportIncompatibleVariableOverride]
    out: Path = setting(help="The run directory to write.", names=("-o", "--out"))
    resume: bool = setting(False, "Continue the run in --out with its stored settings.")
    report: bool = setting(True, "Evaluate the model at the end and write a report, within a tenth of the training.")
    device: str = device_setting()
