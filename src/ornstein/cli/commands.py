"""The options of the commands, one dataclass each: its docstring is the help. See `ornstein.cli.options`."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from ornstein.few_steps.settings import TuneSettings
from ornstein.interop.settings import Prompts
from ornstein.request import SampleRequest
from ornstein.settings import (
    PRECISIONS,
    again,
    check,
    device_setting,
    precision_setting,
    setting,
    size_setting,
    trust_sizes_setting,
)
from ornstein.training.settings import DataSettings, DistilSettings, Settings

__all__ = ["KINDS", "Demo", "Distil", "Ema", "Env", "FitNoise", "Info", "Ls", "Plan", "Sample", "Train", "Tune"]

KINDS = ("ar1", "mixed", "toeplitz", "spectral", "equal-snr", "blue", "ar1-equal-snr", "toeplitz-equal-snr", "best")


@dataclass(frozen=True, kw_only=True)
class Train(Settings):
    """Train a diffusion model on your images or videos, or an autoencoder and a diffusion model of its latents.

    Example: ornstein train --data photos.zip --size 32 --minutes 30 --out runs/photos
    """

    data: str | None = again(Settings, "data", None, names=("-d", "--data"))  # pyright: ignore[reportIncompatibleVariableOverride]
    out: Path = setting(help="The run directory to write.", names=("-o", "--out"))
    resume: bool = setting(False, "Continue the run in --out with its stored settings.")
    report: bool = setting(True, "Evaluate the model at the end and write a report, within a tenth of the training.")
    choose_solver: bool = setting(
        True, "With the report, choose the default solver of the model from its own trajectories."
    )
    device: str = device_setting()


@dataclass(frozen=True, kw_only=True)
class Plan(DataSettings):
    """Say what `ornstein train --minutes` would choose here and how far it would come; this machine is measured first.

    Example: ornstein plan --data photos.zip --size 32 --minutes 60
    """

    data: str = again(DataSettings, "data", MISSING, names=("-d", "--data"))
    minutes: float = again(Settings, "minutes", 60.0, help="Minutes of training.", by_data="")
    net: str = again(Settings, "net", "auto")
    batch: int | None = again(Settings, "batch", None)
    conditional: bool | None = again(Settings, "conditional", None)
    precision: str = precision_setting()
    device: str = device_setting()
    save: Path | None = setting(None, "Write the choice into this file, for `ornstein train --config`.")
    json: bool = setting(False, "As JSON.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train on 1,797 scanned digits, sample them by class, score them and write a report; under 3 minutes on 2 cores.

    Example: ornstein demo && open runs/demo/report.html
    """

    out: Path = setting(Path("runs/demo"), "The run directory to write.", names=("-o", "--out"))
    quick: bool = setting(False, "A short training, to see that all works.")
    resume: bool = again(Train, "resume", False)
    precision: str = again(Settings, "precision", "auto")
    device: str = device_setting()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw samples: a PNG each and all in grid.png, or for clips an mp4 and a gif each and all in sheet.png.

    Images that are there already, of the same model and options, are kept: an interrupted command continues where it
    stopped. `torchrun --nproc-per-node 8 -m ornstein sample ...` shares them out; each is the same picture as of one
    process. A run of an autoencoder draws from its own prior, by -n and --seed alone.

    Example: ornstein sample runs/photos -n 64 --steps 20 --seed 1
    """

    run: Path = setting(help="The run directory of a trained model, or the folder of a pipeline.", argument=True)
    num: int | None = setting(
        None, "How many.", names=("-n", "--num"), by_data="64, or 16 clips, or one a prompt", minimum=1
    )
    prompt: str | None = again(Prompts, "prompt", None)
    prompts: Path | None = again(Prompts, "prompts", None)
    negative: str | None = again(Prompts, "negative", None)
    lora: list[str] | None = again(Prompts, "lora", None)
    solver: str | None = again(SampleRequest, "solver", None)
    steps: int | None = again(SampleRequest, "steps", None)
    grid: str | None = again(SampleRequest, "grid", None)
    size: int | str | None = size_setting(
        None, "Size of the images.", by_data="that of the training, the commonest bucket if there are several"
    )
    tiled: bool = setting(
        False, "Make a larger --size of overlapping tiles of the size of the training, at constant memory."
    )
    label: str | None = setting(
        None, "A class, by name or number.", names=("--class",), by_data="each in turn, or those of the given videos"
    )
    cache: int = setting(
        1, "Compute the deep levels of a U-Net at each CACHE-th evaluation, and say what that changes.", minimum=1
    )
    merge: float = setting(
        0.0, "Merge this share of a transformer's tokens, those that are alike, and say what that changes.",
        minimum=0, maximum=0.75,
    )  # fmt: skip
    width: float | None = setting(
        None, "Share of the channels, for a run of `compress --method integral`.", by_data="1, all of them", above=0,
        maximum=1,
    )  # fmt: skip
    guidance: float | None = again(SampleRequest, "guidance", None)
    guidance_interval: tuple[float, float] | None = again(SampleRequest, "guidance_interval", None)
    guidance_rescale: float = again(SampleRequest, "guidance_rescale", 0.0)
    coloured: str | None = again(SampleRequest, "coloured", None)
    seed: int = again(SampleRequest, "seed", 0)
    batch: int | None = again(SampleRequest, "batch", None)
    precision: str = precision_setting()
    device: str = device_setting()
    trust_sizes: bool = trust_sizes_setting()
    compile: bool = setting(False, "Compile the network first, and say how long that took.")
    frames: int | None = setting(None, "Clips of so many frames, by overlapping windows.", minimum=1, panel="Clips")
    overlap: int | None = setting(
        None, "Frames that two windows share.", by_data="half a window", minimum=1, panel="Clips"
    )
    given: str | None = setting(None, "Videos that the clips continue from.", panel="Clips")
    flow: Path | None = setting(
        None, "The motion of the clips: a .npy file of (F - 1, 2, H, W), pixels; for a model of --noise warped.",
        panel="Clips",
    )  # fmt: skip
    like: str | None = setting(
        None, "Videos whose motion the clips take.", by_data="those held out from the training", panel="Clips"
    )
    first: int = setting(0, "Keep so many first frames of the given videos.", minimum=0, panel="Clips")
    last: int = setting(0, "Keep so many last frames; those between are made.", minimum=0, panel="Clips")
    fps: float | None = setting(
        None, "Frame rate of the videos.", by_data="that of the training clips, else 8", above=0, panel="Clips"
    )
    out: Path | None = setting(
        None, "Folder for the samples.", names=("-o", "--out"), by_data="RUN/samples, or beside a pipeline"
    )
    overwrite: bool = setting(False, "Replace files that this command did not write.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Tune(TuneSettings):
    """Learn times and coefficients of a solver for this model, from its own fine trajectories; no weight changes.

    The solver is stored in the run, or beside a pipeline, and `sample --steps N` uses it from then on. A solver that is
    not better than the untuned one, from noise that it was not learned from, is not stored.

    Example: ornstein tune runs/photos --steps 5,8,10
    """

    run: Path = again(Sample, "run", MISSING)
    prompt: str | None = again(Prompts, "prompt", None)
    prompts: Path | None = again(Prompts, "prompts", None)
    negative: str | None = again(Prompts, "negative", None)
    precision: str = again(Sample, "precision", "float32")
    device: str = device_setting()
    trust_sizes: bool = trust_sizes_setting()


@dataclass(frozen=True, kw_only=True)
class Distil(DistilSettings):
    """Distil a trained model to a few steps: a student that ends in 1 to 10 steps where the model's own flow does.

    It follows trajectories of the model from noise, which needs no data, and trains a copy of it on them; or, with
    --method consistency or meanflow, it trains the copy on the images of the run. The student is a run like any other;
    `ornstein sample` and `evaluate` take its own steps. Its report compares it with the teacher at 1 to 20 steps, and
    with the tuned solver of `ornstein tune` if there is one.

    Example: ornstein distil runs/photos --out runs/photos-2 --to 2 --method consistency
    """

    run: Path = setting(help="The run directory of the teacher, a trained diffusion model.", argument=True)
    out: Path = setting(help="The run directory of the student to write.", names=("-o", "--out"))
    resume: bool = setting(False, "Continue the student in --out with its stored settings.")
    report: bool = again(Train, "report", True)
    device: str = device_setting()
    trust_sizes: bool = trust_sizes_setting()


@dataclass(frozen=True, kw_only=True)
class FitNoise:
    """Estimate the noise covariance of your clips over frames, for `ornstein train --noise FILE.json`.

    Example: ornstein fit-noise moving-digits --frames 16 --size 32 --kind ar1 --out noise.json --plot noise.png
    """

    data: str = setting(help="Videos: a folder, a zip, a file, or a bundled set.", argument=True)
    out: Path = setting(help="The JSON file to write.", names=("-o", "--out"))
    frames: int = setting(16, "Frames of a clip.", minimum=2)
    size: int | str | None = again(DataSettings, "size", 32, by_data="")
    channels: Literal[1, 3] | None = setting(None, "3 for colour, 1 for grey.", by_data="3, or that of the bundled set")
    stride: int = again(DataSettings, "stride", 1, panel="")
    kind: str = setting("toeplitz", "Kind of covariance to write.", choices=KINDS, other="blend:0.5 (0 to 1)")
    shrinkage: float = setting(0.01, "Share of white noise in toeplitz and blend.", minimum=0, maximum=1)
    clips: int = setting(2000, "At most so many clips, spread over the data.", minimum=2)
    batch: int = setting(16, "Clips in memory at once.", names=("-b", "--batch"), minimum=1)
    plot: Path | None = setting(None, "A picture of the correlations to write.")
    precision: str = setting(
        "auto", "Precision of the Fourier transforms; auto is float64 where the device has it.", choices=PRECISIONS[:2]
    )
    device: str = device_setting()
    overwrite: bool = again(Sample, "overwrite", False)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Ema:
    """Choose the width of the average of a run's weights, after a training with --ema post-hoc.

    The run keeps averages of two widths from time to time; any other is made of them by least squares. Without --out
    the model of the run itself is replaced: the kept averages stay, so any other width can follow, 0.05 for the first.

    Example: ornstein ema runs/photos --width 0.1 --out runs/photos-ema-0.1
    """

    run: Path = setting(help="The run directory of a diffusion model, trained with --ema post-hoc.", argument=True)
    width: float = setting(
        help="Width of the average, as a share of the training, such as 0.05.", minimum=0.01, maximum=0.28
    )
    out: Path | None = setting(
        None, "The run directory to write.", names=("-o", "--out"), by_data="RUN itself, whose model is replaced"
    )
    trust_sizes: bool = trust_sizes_setting()

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show what a run is: its model, data, settings, progress and scores.

    Example: ornstein info runs/photos
    """

    run: Path = setting(help="The run directory.", argument=True)
    json: bool = setting(False, "As JSON.")


@dataclass(frozen=True, kw_only=True)
class Ls:
    """List the runs in a folder: kind, shape, steps, loss, and when each was last written.

    Example: ornstein ls runs
    """

    folder: Path = setting(Path("runs"), "The folder to look in.", argument=True)
    json: bool = setting(False, "As JSON.")


@dataclass(frozen=True, kw_only=True)
class Env:
    """Show versions, devices and optional packages: what to say in a bug report.

    Example: ornstein env
    """

    json: bool = setting(False, "As JSON.")
