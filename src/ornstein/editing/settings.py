"""The settings of edits, one dataclass a command: its docstring is the help. It does not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ornstein.interop.settings import Prompts
from ornstein.request import SampleRequest
from ornstein.settings import again, check, device_setting, precision_setting, setting, trust_sizes_setting

__all__ = [
    "FITS", "METHODS", "Colourise", "EditSettings", "Inpaint", "Interpolate", "PosteriorSettings", "Restore", "Sdedit",
    "Upscale",
]  # fmt: skip

METHODS = ("moments", "pigdm", "dps", "ddrm", "ddnm", "diffpir", "repaint", "twisted")
"""The names of `ornstein.edit.METHODS_OF_EDITS`, which imports PyTorch; a test compares them."""

FITS = ("auto", "crop", "resize", "tile", "native")


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """What all edits have."""

    run: Path = setting(help="The run directory of a trained model, or the folder of a pipeline.", argument=True)
    input: Path = setting(
        help="A picture, a folder of pictures, or an array .npy; for a model of clips a clip.", argument=True
    )
    out: Path = setting(help="The folder to write; with -n 1 of one picture, a .png too.", names=("-o", "--out"))
    num: int = setting(1, "Answers for each picture.", names=("-n", "--num"), minimum=1)
    prompt: str | None = again(Prompts, "prompt", None)
    prompts: ClassVar[Path | None] = None  # an edit has one prompt
    negative: str | None = again(Prompts, "negative", None)
    lora: list[str] | None = again(Prompts, "lora", None)
    label: str | None = setting(None, "A class, by name or number.", names=("--class",), by_data="none")
    guidance: float | None = again(SampleRequest, "guidance", None)
    solver: str | None = again(SampleRequest, "solver", None, choices=(), other="", by_data="what suits the method")
    steps: int | None = again(SampleRequest, "steps", None, by_data="20, or 100 for methods by ancestral steps")
    seed: int = again(SampleRequest, "seed", 0)
    batch: int | None = again(SampleRequest, "batch", None)
    precision: str = precision_setting()
    device: str = device_setting()
    trust_sizes: bool = trust_sizes_setting()
    overwrite: bool = setting(False, "Replace files that this command did not write.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class PosteriorSettings(EditSettings):
    """What edits by the posterior p(x_0 | y) have besides."""

    method: str | None = setting(
        None,
        "How p(y | x_t) is approximated.",
        choices=METHODS,
        by_data="moments; of latents dps, but for a fill",
    )
    particles: int = setting(16, "Particles of each answer, for twisted.", minimum=1)
    iterations: int | None = setting(
        None, "Iterations of conjugate gradients, for moments and twisted.", by_data="3", minimum=1
    )
    noise_std: float | None = setting(
        None,
        "Standard deviation of the noise in the input; values span 2, from -1 to 1.",
        by_data="0 for a fill, else the rounding of 8-bit files",
        minimum=0,
    )
    fit: Literal["auto", "crop", "resize", "tile", "native"] = setting(
        "auto",
        "Pictures of another size than the model's: a window about the mask, the whole resized, overlapping tiles, or "
        "the network at that size.",
    )


@dataclass(frozen=True, kw_only=True)
class Inpaint(PosteriorSettings):
    """Fill what a mask hides. Outside the mask every pixel stays what it is.

    A picture of another size is brought to that of the model, or a window about the mask is, and what was made is set
    back. A clip takes one mask for all
    frames or a track of them, a video or a folder of masks: so objects are removed. With --known-frames the other
    frames are made.

    Example: ornstein edit inpaint runs/photos photo.png --mask hole.png -n 8 -o filled
    """

    mask: Path | None = setting(None, "Mask of the input's size: white where pixels are made; a track for a clip.")
    known_frames: tuple[int, ...] | None = setting(
        None, "Frames of a clip that are kept, such as 0,-1; the others are made.", panel="Clips"
    )
    fps: float | None = setting(None, "Frame rate of the clips.", by_data="that of the input", above=0, panel="Clips")


@dataclass(frozen=True, kw_only=True)
class Restore(PosteriorSettings):
    """Undo damage that is known: draws of what may have been, given y = A x + noise.

    Operators: noise, blur:SIGMA, box:WIDTH, motion:LENGTH, area:FACTOR, bicubic:FACTOR, grey, jpeg:QUALITY, and for
    arrays radon:ANGLES and sensing:SHARE; several in their order, joined by +, as blur:1.5+area:2.

    Example: ornstein edit restore runs/photos blurred.png --operator blur:1.5 --noise-std 0.05 -n 8 -o restored
    """

    operator: str = setting("noise", "What was done to the picture.")
    degrade: bool = setting(False, "The input is whole: damage it first, restore it, and say how near the answers are.")


@dataclass(frozen=True, kw_only=True)
class Upscale(PosteriorSettings):
    """Enlarge pictures: draws of what would become them when made smaller.

    Example: ornstein edit upscale runs/photos small.png --factor 4 -n 8 -o large
    """

    factor: int | None = setting(None, "How many times larger.", by_data="up to the size of the model", minimum=2)
    kind: Literal["area", "bicubic"] = setting("area", "How they were made smaller.")


@dataclass(frozen=True, kw_only=True)
class Colourise(PosteriorSettings):
    """Colour grey pictures: draws of pictures with this luma. Of colour pictures the luma is taken.

    Example: ornstein edit colourise runs/photos grey.png -n 8 -o coloured
    """


@dataclass(frozen=True, kw_only=True)
class Sdedit(EditSettings):
    """Make variations: noise up to a time, and the model's way back.

    Example: ornstein edit sdedit runs/photos photo.png --strength 0.5 -n 8 -o variations
    """

    strength: float = setting(
        0.5, "From near 0, which keeps the picture, to 1, which keeps nothing.", above=0, maximum=1
    )
    fit: Literal["auto", "resize", "tile", "native"] = again(PosteriorSettings, "fit", "auto")


@dataclass(frozen=True, kw_only=True)
class Interpolate(EditSettings):
    """Lead from one picture to another through noise: both are inverted exactly.

    Example: ornstein edit interpolate runs/photos a.png b.png -n 9 -o path
    """

    to: Path = setting(help="The picture that the path ends at.", argument=True)
    num: int = setting(9, "Pictures of the path, its ends among them.", names=("-n", "--num"), minimum=2)
    tolerance: float = setting(1e-4, "Root mean square error of the inversion at which it is finished.", above=0)
