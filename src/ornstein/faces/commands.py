"""The settings of `ornstein faces ...`, each declared once. It does not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ornstein.faces.settings import DEVICE, DEVICES, OTHERS, PRECISION, Precision
from ornstein.settings import check, setting

__all__ = [
    "AdaptCommand",
    "BenchmarkCommand",
    "CardCommand",
    "CostsCommand",
    "DemoCommand",
    "EvaluateCommand",
    "FinishCommand",
    "PrepareCommand",
    "ProtectCommand",
    "TrainCommand",
    "VerifyCommand",
]


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
    """Train a face swap on your photographs: they are prepared, then it learns from rendered faces, then from them.

    A tenth of the people is held out, for `faces evaluate`.

    Example: ornstein faces train photos.zip --minutes 180 --out runs/faces
    """

    data: Path = setting(
        help="Photos, a folder or a zip archive, best with a folder per person; or what `faces prepare` wrote.",
        argument=True,
    )
    out: Path = setting(help="The run directory to write.")
    minutes: float = setting(120.0, "Training time, after the preparation.", unit="minutes", above=0)
    size: Literal[64, 128, 256] | None = setting(
        None, "Side of the aligned faces.", by_data="64, or that of the prepared faces", unit="pixels"
    )
    world: float = setting(
        0.15, "Share of the training time on rendered faces, whose true swaps are known.", minimum=0, below=1
    )
    recogniser: float | None = setting(
        None,
        "Train a small recogniser after dlib's for so long first, and use it instead: it needs no file of dlib's.",
        by_data="dlib's own, with a gradient",
        unit="minutes",
        above=0,
    )
    net: Literal["xs", "s", "m", "l"] = setting("s", "Size of the network.")
    batch: int = setting(32, "Faces a step.", minimum=1)
    seed: int = setting(0, "Seed of everything random.", minimum=0, maximum=2**63 - 1, random=True)
    licence: str | None = setting(None, "The licence of the model, for its card.", by_data="not stated")
    research_only: bool = setting(False, "The data are for research only, says the card.")
    device: str = setting("auto", DEVICE, choices=DEVICES, other=OTHERS)
    precision: Precision = setting("auto", PRECISION)
    resume: bool = setting(False, "Go on with the run in OUT.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class AdaptCommand:
    """Adapt a model to one person: a LoRA on what it knows of the source, trained on a few photos of that person.

    Part of the photos is held out; the best model on these is kept, and the training stops where they get no better.

    Example: ornstein faces adapt runs/faces --source ann/ --out runs/ann
    """

    run: Path = setting(help="The run directory of `faces train`.", argument=True)
    source: Path = setting(help="Photos of one person, a folder or a zip archive; three or more.")
    out: Path = setting(help="The run directory to write, which `ornstein swap --model` takes.")
    minutes: float = setting(5.0, "Training time at most.", unit="minutes", above=0)
    steps: int = setting(1000, "Steps at most.", minimum=1)
    rank: int = setting(4, "Rank of the LoRA.", minimum=1, maximum=64)
    batch: int = setting(16, "Faces a step.", minimum=1)
    learning_rate: float = setting(1e-3, "Step size of AdamW.", above=0)
    patience: int = setting(6, "Checks of the held-out photos without a better one, after which it stops.", minimum=1)
    seed: int = setting(0, "Seed of everything random.", minimum=0, maximum=2**63 - 1, random=True)
    precision: Precision = setting("auto", PRECISION)
    device: str = setting("auto", DEVICE, choices=DEVICES, other=OTHERS)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate swaps of people that the model has not seen, by two recognisers, landmarks and the mesh of the face.

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
    onset: float | None = setting(
        None, "Time at which the sampler begins, as of `ornstein swap`.", by_data="what suits the model",
        minimum=0, maximum=1,
    )  # fmt: skip
    shape: float = setting(0.5, "Share of the source's own shape, as of `ornstein swap`.", minimum=0, maximum=1)
    device: str = setting("auto", DEVICE, choices=DEVICES, other=OTHERS)
    precision: Precision = setting("auto", PRECISION)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class DemoCommand:
    """Train a swap on rendered faces, swap people it has not seen, and compare with the truth.

    Example: ornstein faces demo && open runs/demo-swap/report.html
    """

    out: Path = setting(Path("runs/demo-swap"), "The run directory to write.")
    minutes: float = setting(6.0, "Time in all, about, on two cores.", unit="minutes", above=0)
    device: str = setting("auto", DEVICE, choices=DEVICES, other=OTHERS)
    precision: Precision = setting("auto", PRECISION)

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
class CostsCommand:
    """Measure what a swap costs on this machine, by the resolution of the picture.

    Example: ornstein faces costs runs/faces
    """

    run: Path = setting(help="The run directory of a face-swap model.", argument=True)
    steps: int = setting(20, "Steps of the sampler.", minimum=1)
    detector: Literal["blaze", "dlib"] = setting("blaze", "What finds faces.")
    repeats: int = setting(1, "Swaps of each size, of which the fastest counts.", minimum=1, maximum=100)
    device: str = setting("auto", DEVICE, choices=DEVICES, other=OTHERS)
    precision: Precision = setting("auto", PRECISION)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class FinishCommand:
    """Train the two small networks that finish a swap, on rendered faces and the CPU: what covers a face, finer detail.

    A swap uses those of RUN instead of the shipped ones.

    Example: ornstein faces finish runs/faces --minutes 20
    """

    run: Path = setting(help="The run directory of a face-swap model.", argument=True)
    minutes: float = setting(8.0, "Processor time in all.", unit="minutes", above=0)
    only: Literal["occlusion", "detail"] | None = setting(None, "Train this one alone.")
    seed: int = setting(0, "Seed of everything random.", minimum=0, maximum=2**63 - 1, random=True)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class BenchmarkCommand:
    """Evaluate a model on the CASIA FaceSwapping protocol, for who has its pictures.

    Example: ornstein faces benchmark casia/ --run runs/faces
    """

    folder: Path = setting(help="The folder with the pictures, faces/, and image_pairs_*.txt.", argument=True)
    run: Path = setting(help="The run directory of a face-swap model.")
    out: Path | None = setting(None, "Where to keep swaps and scores.", by_data="RUN/benchmark")
    num: int | None = setting(None, "Pairs, the first ones.", names=("-n", "--num"), by_data="all", minimum=1)
    steps: int = setting(20, "Steps of the sampler.", minimum=1)
    resume: bool = setting(False, "Keep the swaps that are in --out already.")
    device: str = setting("auto", DEVICE, choices=DEVICES, other=OTHERS)
    precision: Precision = setting("auto", PRECISION)

    def __post_init__(self) -> None:
        check(self)


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
