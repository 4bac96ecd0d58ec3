"""The settings of face swaps and of `ornstein swap`, each declared once. It does not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ornstein.errors import UserError
from ornstein.settings import check, setting

__all__ = [
    "DEVICE",
    "DEVICES",
    "FACE",
    "MAX_TURN",
    "ORDERS",
    "OTHERS",
    "PRECISION",
    "REGIONS",
    "Precision",
    "SwapCommand",
    "SwapSettings",
    "VideoSettings",
    "parse_indices",
    "parse_noise",
    "parse_padding",
    "parse_regions",
    "parse_time",
]

Precision = Literal["auto", "float32", "bf16", "fp16"]
FACE = ("eyes", "brows", "nose", "mouth", "skin")
"""The regions inside the mask of a face; all of them unless others are asked for."""
REGIONS = (*FACE, "hair")
ORDERS = (
    "left-right", "right-left", "top-bottom", "bottom-top", "large-small", "small-large", "best-worst", "worst-best",
)  # fmt: skip
_LARGEST_PADDING = 40

MAX_TURN = 35.0
"""Degrees: beyond it, the laid-on face is seen to be another view than the head (docs/swap.md)."""
PRECISION = "Precision of the networks' convolutions and matrix products."
DEVICE = "Where to compute."
DEVICES, OTHERS = ("auto", "cpu", "cuda", "mps"), "cuda:0, cuda:1, ..."


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
    shape: float = setting(
        0.5, "Share of the source's own shape of the face; the rest is the target's.", minimum=0, maximum=1
    )
    onset: float | None = setting(
        None,
        "Time at which the sampler begins, with the source's face laid on by its shape: 0 is that face alone, 1 noise.",
        by_data="what suits the model",
        minimum=0,
        maximum=1,
    )
    max_turn: float = setting(
        MAX_TURN,
        "How far a face may be turned against the nearest photo of the source; one that is turned further is left.",
        unit="degrees",
        minimum=0,
        maximum=180,
    )
    blend: Literal["feather", "laplacian", "poisson"] = setting(
        "laplacian", "How the face is blended into the picture."
    )
    regions: str = setting(
        "all", "What is repainted, with commas between: " + ", ".join(REGIONS) + "; all is without hair."
    )
    padding: str = setting(
        "0", "Widen the mask: one number, or TOP,RIGHT,BOTTOM,LEFT; negative narrows it.", unit="percent of the crop"
    )
    occlusion: Literal["none", "net", "colour"] = setting(
        "none", "Keep what stands before a face: found by a network, or by colours that the skin does not have."
    )
    colour: Literal["moments", "light", "none"] = setting(
        "moments", "Match the target's colours: mean and contrast; or its light, place by place; or not."
    )
    detail: float = setting(
        0.0,
        "Share of a network of finer detail, for faces larger than the model's.",
        minimum=0,
        maximum=1,
    )
    label: bool = setting(True, "The visible badge; the manifest says if it is missing.")
    seed: int = setting(0, "The same seed gives the same picture.", minimum=0, maximum=2**63 - 1, random=True)
    precision: Precision = setting("auto", PRECISION)

    def __post_init__(self) -> None:
        check(self)
        parse_regions(self.regions)
        parse_padding(self.padding)


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
    fade: int = setting(
        3, "Video: frames that a face is held and faded out for, where it is lost within a shot.", minimum=0, maximum=50
    )
    begin: str | None = setting(None, "Video: where to begin, in seconds or H:MM:SS.", names=("--from",), by_data="0")
    end: str | None = setting(
        None, "Video: where to end, in seconds or H:MM:SS.", names=("--to",), by_data="the end of the video"
    )
    codec: Literal["h264", "hevc", "av1", "vp9"] | None = setting(
        None, "Video: how the pictures are coded.", by_data="h264, and vp9 in a .webm"
    )
    quality: int | None = setting(
        None,
        "Of a video, or of a photo as JPEG: 100 loses least.",
        by_data="68 for videos, 95 for JPEG",
        minimum=1,
        maximum=100,
    )
    segment: int = setting(50, "Video: frames that are lost at most if the work is killed.", stored=True, minimum=1)
    batch: int = setting(8, "Video: frames in memory at a time.", stored=True, minimum=1)

    def __post_init__(self) -> None:
        check(self)
        parse_noise(self.noise)
        begin, end = parse_time(self.begin, "--from"), parse_time(self.end, "--to")
        if end is not None and end <= (begin or 0):
            raise UserError(f"--to {self.end} is not after --from {self.begin or 0}")


def parse_regions(text: str) -> frozenset[str]:
    """The regions of a text such as "eyes,mouth"; "all" is `FACE`. Raises UserError for another text."""
    names = [name.strip() for name in text.split(",")]
    if names == ["all"]:
        return frozenset(FACE)
    for name in names:
        if name not in REGIONS:
            raise UserError(f"regions {text!r}: {name!r} is none of all, {', '.join(REGIONS)}")
    return frozenset(names)


def parse_padding(text: str) -> tuple[float, float, float, float]:
    """Shares of the crop's side (top, right, bottom, left) of a text: one number of percent, or four."""
    try:
        numbers = [float(each) for each in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 4) or not all(abs(each) <= _LARGEST_PADDING for each in numbers):
        raise UserError(
            f"padding {text!r}: one number of percent, or four as TOP,RIGHT,BOTTOM,LEFT, each from "
            f"-{_LARGEST_PADDING} to {_LARGEST_PADDING}"
        )
    top, right, bottom, left = (each / 100 for each in (numbers * 4 if len(numbers) == 1 else numbers))
    if top + bottom <= -0.7 or left + right <= -0.55:
        raise UserError(f"padding {text!r} leaves nothing of the mask")
    return top, right, bottom, left


def parse_time(text: str | None, name: str) -> float | None:
    """Seconds of a text: seconds, MM:SS or H:MM:SS, each with decimals; None if there is none."""
    if text is None:
        return None
    parts = text.split(":")
    try:
        numbers = [float(each) for each in parts]
    except ValueError:
        numbers = []
    whole = all(each.isdecimal() for each in parts[:-1])
    if (
        not 1 <= len(numbers) <= 3
        or not whole
        or not all(0 <= each < 1e9 for each in numbers)
        or any(each >= 60 for each in numbers[1:])
    ):
        raise UserError(f"{name} {text!r}: write seconds, MM:SS or H:MM:SS, for example 1:02.5")
    return sum(each * 60**power for power, each in enumerate(reversed(numbers)))


def parse_indices(text: str) -> tuple[int, ...]:
    """The numbers of a text such as "1,3", each from 1 on and given once."""
    parts = [each.strip() for each in text.split(",")]
    if not all(each.isdecimal() and 0 < int(each) < 10_000 for each in parts) or len(set(parts)) != len(parts):
        raise UserError(f"index {text!r}: numbers of faces from 1 on, with commas between, for example 1,3")
    return tuple(int(each) for each in parts)


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
    out: Path | None = setting(
        None, "The file to write: .png .jpg .webp; of a video .mp4 .mov .webm .mkv.", names=("--out", "-o")
    )
    consent: str | None = setting(
        None,
        'Who agreed, and to what: "WHO, WHY", at least two letters each. Nothing runs without it.',
        names=("--i-have-consent",),
    )
    model: Path = setting(Path("runs/faces"), "The run directory of a face-swap model.")
    face: str = setting("all", "Whose face is replaced.", choices=("all", "largest"), other="a photo of that person")
    reference: list[Path] | None = setting(
        None, "A photo of a person whose face is replaced; may be repeated.", repeated=True
    )
    distance: float | None = setting(
        None, "How far a face may be from its reference.", by_data="0.6, dlib's for one person", above=0, maximum=2
    )
    order: Literal[ORDERS] | None = setting(  # pyright: ignore[reportInvalidTypeForm]
        None, "Replace the first face in this order, or those of --index.", by_data="left-right with --index"
    )
    index: str | None = setting(None, "Replace the faces with these numbers in the order: 1, or 1,3.")
    map: list[str] | None = setting(
        None, "Give the person in REF the face of SOURCE: REF=SOURCE; may be repeated.", repeated=True
    )
    pairs: Path | None = setting(
        None,
        "Many swaps: a CSV or JSONL file with source,target,out and, if wanted, other settings of a row.",
        names=("--batch",),
    )
    preview: str | None = setting(
        None, "Video: swap one frame alone into a picture: its number from 1 on, or a time such as 0:12."
    )
    detector: Literal["blaze", "dlib"] = setting(
        "blaze", "What finds faces: BlazeFace (fast, sees turned and small faces), or dlib's (upright faces, slow)."
    )
    score: float | None = setting(
        None, "The least score of a face that is found.", by_data="0.6 for blaze, 0.5 for dlib", minimum=0, maximum=10
    )
    block_list: Path | None = setting(None, "Faces to refuse, of `ornstein faces protect`.")
    log: Path | None = setting(None, "The log of swaps.", by_data="ornstein-swaps.jsonl beside --out")
    resume: bool = setting(False, "Go on with a video, or with a --batch, that was stopped.")
    overwrite: bool = setting(False, "Replace an --out that this command did not write.")
    device: str = setting("auto", DEVICE, choices=DEVICES, other=OTHERS)


@dataclass(frozen=True)
class SwapCommand(VideoSettings, SwapSettings, _SwapFiles):
    """Swap a face in a photo or a video. A signed manifest in the output states what it is and whose consent it has.

    Example: ornstein swap me.jpg party.jpg -o swapped.png --i-have-consent "Ann Lee, her birthday card"
    """
