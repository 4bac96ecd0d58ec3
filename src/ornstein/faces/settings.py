"""The settings of face swaps and of their commands, each declared once. It does not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ornstein.errors import UserError
from ornstein.settings import check, setting

__all__ = [
    "CardCommand",
    "DemoCommand",
    "EvaluateCommand",
    "PrepareCommand",
    "ProtectCommand",
    "SwapCommand",
    "SwapSettings",
    "TrainCommand",
    "VerifyCommand",
    "VideoSettings",
    "parse_noise",
]

Precision = Literal["auto", "float32", "bf16", "fp16"]
_PRECISION = "Precision of the networks' convolutions and matrix products."
_DEVICE = "Where to compute."
_DEVICES, _OTHERS = ("auto", "cpu", "cuda", "mps"), "cuda:0, cuda:1, ..."


@dataclass(frozen=True)
class SwapSettings:
    """How a face is painted.

    Raises:
        UserError: a value out of range.
    """

    steps: int = setting(20, "Steps of the sampler; more is finer and slower.", minimum=1)
    identity: float = setting(
        1.0, "0 keeps the target's own identity, 1 is the source's, above it is further away.", minimum=0, maximum=3
    )
    guidance: float | None = setting(
        None,
        "Scale of classifier-free guidance towards the source; 1 for none.",
        by_data="what suits the model",
        minimum=0,
        maximum=20,
    )
    towards: float = setting(0.0, "Guidance by the model's recogniser, about 0.02; 0 for none.", minimum=0, maximum=1)
    blend: Literal["feather", "laplacian", "poisson"] = setting(
        "laplacian", "How the face is blended into the picture."
    )
    label: bool = setting(True, "The visible badge; the manifest says if it is missing.")
    seed: int = setting(0, "The same seed gives the same picture.", minimum=0, maximum=2**63 - 1, random=True)
    precision: Precision = setting("auto", _PRECISION)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class VideoSettings:
    """How the frames of a video hang together.

    Raises:
        UserError: a value out of range.
    """

    noise: str = setting(
        "shared",
        "Video: correlation of the noise over the frames of a face.",
        choices=("shared", "independent"),
        other="ar1:RHO",
    )
    gap: int = setting(5, "Video: longest run of frames without a face that is filled in.", minimum=0)
    every: int = setting(1, "Video: detect faces in every n-th frame.", names=("--detect-every",), minimum=1)
    segment: int = setting(50, "Video: frames that are lost at most if the work is killed.", stored=True, minimum=1)
    batch: int = setting(8, "Video: frames in memory at a time.", stored=True, minimum=1)

    def __post_init__(self) -> None:
        check(self)
        parse_noise(self.noise)


def parse_noise(text: str) -> tuple[str, float]:
    """The kind of noise over the frames of a face, and its correlation from one frame to the next.

    Args:
        text: "shared", "independent" or "ar1:RHO".

    Raises:
        UserError: another text.
    """
    kind, _, number = text.partition(":")
    if kind == "ar1":
        try:
            rho = float(number)
        except ValueError:
            rho = 2.0
        if not 0 <= rho < 1:
            raise UserError(f"noise {text!r}: write ar1:RHO with 0 <= RHO < 1, for example ar1:0.9")
        return kind, rho
    if text not in ("shared", "independent"):
        raise UserError(f"noise {text!r} is none of shared, independent, ar1:RHO")
    return text, 1.0 if text == "shared" else 0.0


@dataclass(frozen=True)
class _SwapFiles:
    paths: list[Path] | None = setting(
        None,
        "SOURCE, a photo or a folder of photos, and TARGET, a photo or video; with --map the target alone.",
        argument=True,
        repeated=True,
    )
    out: Path | None = setting(None, "The file to write: .png .jpg .webp, .mp4 .mov", names=("--out", "-o"))
    consent: str | None = setting(
        None,
        'Who agreed, and to what: "WHO, WHY", at least two letters each. Nothing runs without it.',
        names=("--i-have-consent",),
    )
    model: Path = setting(Path("runs/faces"), "The run directory of a face-swap model.")
    face: str = setting("all", "Whose face is replaced.", choices=("all", "largest"), other="a photo of that person")
    map: list[str] | None = setting(
        None, "Give the person in REF the face of SOURCE: REF=SOURCE; may be repeated.", repeated=True
    )
    pairs: Path | None = setting(None, "A CSV file with the columns source,target,out.", names=("--batch",))
    block_list: Path | None = setting(None, "Faces to refuse, of `ornstein faces protect`.")
    log: Path | None = setting(None, "The log of swaps.", by_data="ornstein-swaps.jsonl beside --out")
    resume: bool = setting(False, "Video: go on with a swap that was stopped.")
    overwrite: bool = setting(False, "Replace an --out that this command did not write.")
    device: str = setting("auto", _DEVICE, choices=_DEVICES, other=_OTHERS)


@dataclass(frozen=True)
class SwapCommand(VideoSettings, SwapSettings, _SwapFiles):
    """Swap a face in a photo or a video. A signed manifest in the output states what it is and whose consent it has.

    Example: ornstein swap me.jpg party.jpg -o swapped.png --i-have-consent "Ann Lee, her birthday card"
    """


@dataclass(frozen=True)
class PrepareCommand:
    """Detect, align and embed the face in each of your photos; by dlib, on the CPU.

    Example: ornstein faces prepare photos.zip --out faces --size 64
    """

    data: Path = setting(help="Photos: a folder or a zip archive, best with a folder per person.", argument=True)
    out: Path = setting(help="The folder to write.")
    size: int = setting(64, "Side of the aligned faces: 64, 128 or 256.", unit="pixels")
    shard: str = setting("1/1", "I/N: do the I-th of N parts only, to share the work.")
    workers: int | None = setting(None, "Processes.", by_data="the number of cores", minimum=1)
    resume: bool = setting(False, "Go on after what is finished in --out.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TrainCommand:
    """Train a face swap on your prepared photographs: first a recogniser after dlib's, then the swap.

    A tenth of the people is held out, for `faces evaluate`.

    Example: ornstein faces train runs/prepared --minutes 120 --out runs/faces
    """

    data: Path = setting(help="What `ornstein faces prepare` wrote.", argument=True)
    out: Path = setting(help="The run directory to write.")
    minutes: float = setting(120.0, "Training time of the swap.", unit="minutes", above=0)
    recogniser: float = setting(10.0, "Training time of the recogniser before it.", unit="minutes", above=0)
    net: Literal["xs", "s", "m", "l"] = setting("s", "Size of the network.")
    batch: int = setting(32, "Faces a step.", minimum=1)
    seed: int = setting(0, "Seed of everything random.", minimum=0, maximum=2**63 - 1, random=True)
    licence: str | None = setting(None, "The licence of the model, for its card.", by_data="not stated")
    research_only: bool = setting(False, "The data are for research only, says the card.")
    device: str = setting("auto", _DEVICE, choices=_DEVICES, other=_OTHERS)
    precision: Precision = setting("auto", _PRECISION)
    resume: bool = setting(False, "Go on with the run in OUT.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate swaps of people that the model has not seen, by dlib's recogniser and landmarks.

    Example: ornstein faces evaluate runs/faces --data runs/prepared -n 100
    """

    run: Path = setting(help="The run directory of `faces train`.", argument=True)
    data: Path = setting(help="What it was trained on: the people it held out are found again.")
    num: int = setting(
        100, "Held-out people to swap with each other.", names=("-n", "--num"), old_names=("--people",), minimum=2
    )
    steps: int = setting(20, "Steps of the sampler.", minimum=1)
    guidance: float | None = setting(
        None, "Scale of classifier-free guidance.", by_data="what suits the model", minimum=0, maximum=20
    )
    strength: float = setting(1.0, "0 is the target's identity, 1 the source's, or beyond.", minimum=0, maximum=3)
    towards: float = setting(0.0, "A step of identity guidance, in units of the pixels.", minimum=0, maximum=1)
    device: str = setting("auto", _DEVICE, choices=_DEVICES, other=_OTHERS)
    precision: Precision = setting("auto", _PRECISION)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class DemoCommand:
    """Train a swap on rendered faces, swap people it has not seen, and compare with the truth.

    Example: ornstein faces demo && open runs/demo-swap/report.html
    """

    out: Path = setting(Path("runs/demo-swap"), "The run directory to write.")
    minutes: float = setting(6.0, "Time in all, about, on two cores.", unit="minutes", above=0)
    device: str = setting("auto", _DEVICE, choices=_DEVICES, other=_OTHERS)
    precision: Precision = setting("auto", _PRECISION)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class VerifyCommand:
    """Read a file's provenance: who signed it, whether it was changed since, and what was stated about the swap.

    Exits with 1 unless the file is signed and intact.

    Example: ornstein faces verify swapped.png
    """

    file: Path = setting(help="A photo or a video.", argument=True)


@dataclass(frozen=True)
class ProtectCommand:
    """Put people on a list of protected faces, which `ornstein swap --block-list` refuses as source and as target.

    Example: ornstein faces protect ann.jpg bo.jpg --out protected.json
    """

    photos: list[Path] = setting(help="Photos of the people.", argument=True, repeated=True)
    out: Path = setting(help="The list to write, or to add to.")


@dataclass(frozen=True)
class CardCommand:
    """Show or write a model's card, which `ornstein swap` prints when the model is used.

    Example: ornstein faces card runs/faces --licence "research only" --data "Labeled Faces in the Wild" --research-only
    """

    run: Path = setting(help="The run directory of a model.", argument=True)
    licence: str | None = setting(None, "The licence of the model.")
    data: str | None = setting(None, "What it was trained on.")
    research_only: bool | None = setting(
        None, "Whether its data are for research only.", names=("--research-only/--any-use",)
    )
