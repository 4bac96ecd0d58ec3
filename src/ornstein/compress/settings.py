"""The settings of `ornstein compress`. It imports no torch: the options of the command come from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ornstein.settings import again, check, device_setting, setting, trust_sizes_setting
from ornstein.training.config import TrainConfig, check_length

__all__ = ["BUDGET", "Compress", "CompressSettings"]

BUDGET = 0.5
"""Share of the multiply-adds that pruning keeps by default."""

_FINE_TUNING = "Fine-tuning"


@dataclass(frozen=True)
class CompressSettings:
    """The settings of a compression, stored in the small run's directory as compress.json."""

    macs: float | None = setting(None, "Share of the multiply-adds to keep.", by_data="0.5 for prune", above=0, below=1)
    method: Literal["prune", "integral", "int8"] = setting(
        "prune",
        "Remove channels; or learn a network that is resampled to any width; or store the weights in 8 bits.",
    )
    criterion: Literal["taylor", "magnitude", "random"] | None = setting(
        None,
        "Which channels to keep: those whose removal changes the loss most over diffusion time, those with large "
        "weights, or any.",
        by_data="taylor with data, else magnitude",
    )
    depth: float = setting(
        0.0,
        "Share of the saved multiply-adds that leaving out whole convolutions, attentions and MLPs of blocks gives; "
        "fewer channels give the rest. 1 leaves out as many as it can.",
        minimum=0, maximum=1,
    )  # fmt: skip
    data: str | None = setting(None, "Images to fine-tune on.", by_data="those of the run")
    steps: int | None = again(
        TrainConfig, "steps", None, help="Steps of fine-tuning; 0 for none.", minimum=0, panel=_FINE_TUNING,
        by_data="a tenth of those of the run, without --minutes",
    )  # fmt: skip
    minutes: float | None = again(
        TrainConfig, "minutes", None, help="Minutes of fine-tuning, instead of steps.", panel=_FINE_TUNING
    )
    batch: int | None = again(TrainConfig, "batch", None, by_data="that of the run", panel=_FINE_TUNING)
    learning_rate: float | None = again(
        TrainConfig, "learning_rate", None, by_data="that of the run", panel=_FINE_TUNING
    )
    precision: str = again(TrainConfig, "precision", "auto", panel=_FINE_TUNING)
    seed: int = setting(0, "Seed of what the criterion draws.", random=True)
    checkpoint_every: int = again(TrainConfig, "checkpoint_every", 500, panel=_FINE_TUNING)
    teacher: str = setting("", stored=True)
    fingerprint: str = setting("", stored=True)

    def __post_init__(self) -> None:
        check(self)
        check_length(self.steps, self.minutes)


@dataclass(frozen=True, kw_only=True)
class Compress(CompressSettings):
    """Make a trained model cheaper: a smaller run that does what the large one does.

    prune removes coupled channels, and with --depth whole branches of blocks, until the measured multiply-adds are
    within 3 % of the budget, and trains what is left on the predictions of the large model. integral orders the
    channels so that the kernels are smooth, and trains one checkpoint that `sample --width` resamples to any width from
    0.25 to 1. int8 stores the weights in 8 bits. The result is a run like any other. A folder of diffusers becomes a
    folder of diffusers, fine-tuned on --data.

    Example: ornstein compress runs/photos --macs 0.5 --minutes 10 --out runs/photos-small
    """

    run: Path = setting(help="The run directory, or the folder of a pipeline.", argument=True)
    out: Path = setting(help="The run directory of the small model to write.", names=("-o", "--out"))
    resume: bool = setting(False, "Continue the fine-tuning of --out with its stored settings.")
    report: bool = setting(True, "Evaluate the result at the end and write report.html.")
    device: str = device_setting()
    trust_sizes: bool = trust_sizes_setting()
