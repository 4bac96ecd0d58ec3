"""The protocols of the CASIA FaceSwapping benchmark (Li et al. 2026, arXiv:2605.00883), for who has its pictures.

Its folder holds aligned faces `faces/0041-0_0.png` (person 0041, film 0, frame 0) and lists of pairs, a source and a
target in a line: `image_pairs_normal.txt`, `_cross_ethnicity`, `_cross_attribute`. The pictures are to be had from the
authors by a licence agreement. Swaps are written as their own evaluation reads them: `all_simple/SOURCE-TARGET.png`.

The metrics are theirs; the networks behind them are ours, so that numbers are not to be set beside theirs: dlib for
CosFace, five landmarks for Hopenet, random features for Inception. Their code can be run on the same swaps.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.data import to_unit
from ornstein.errors import UserError
from ornstein.evaluation import frechet_distance, open_features
from ornstein.evaluation.distortion import ssim
from ornstein.faces.align import alignment, crop
from ornstein.faces.detect import subject
from ornstein.faces.provenance.consent import Consent
from ornstein.faces.read import read_photo
from ornstein.faces.swap.choose import LARGEST, Choice, Source
from ornstein.faces.swap.photo import Order, swap_photo
from ornstein.faces.swap.swapper import SwapModel, Swapper

__all__ = ["PROTOCOLS", "Advance", "Pair", "ProtocolScores", "evaluate_protocol", "read_protocols", "swap_protocol"]

PROTOCOLS = {"normal": "all_simple", "cross_ethnicity": "all_cross_ethnicity", "cross_attribute": "all_cross_attribute"}
"""Of each protocol the folder that the authors' evaluation looks for."""
_HOME = "github.com/CASIA-NLPRAI/face-swapping-survey"
_NAME = re.compile(r"(\w+)-\w+\.(?:png|jpg|jpeg|webp)")
_CROP = 128  # pixels a side of the crops that are compared
Pair = tuple[str, str]
Advance = Callable[[int, int], object]


def read_protocols(folder: Path, limit: int | None = None) -> dict[str, list[Pair]]:
    """The pairs (source, target) of each protocol that the folder has a list of; the first `limit` of each.

    Raises:
        UserError: there is no list, a line of one is no pair, or pictures are missing.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    protocols: dict[str, list[Pair]] = {}
    for name in PROTOCOLS:
        listed = f"image_pairs_{name}.txt"
        path = next((each for each in (folder / "benchmark" / listed, folder / listed) if each.is_file()), None)
        if path is not None:
            protocols[name] = _pairs(path, limit)
    if not protocols:
        raise UserError(f"{folder} has no image_pairs_normal.txt: the lists of pairs are at {_HOME}, in benchmark/")
    wanted = sorted({each for pairs in protocols.values() for pair in pairs for each in pair})
    missing = [each for each in wanted if not (folder / "faces" / each).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(wanted)} pictures are not in {folder / 'faces'}, the first {missing[0]}: "
            f"they are given out under a licence agreement, see {_HOME}"
        )
    return protocols


def _pairs(path: Path, limit: int | None) -> list[Pair]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    pairs: list[Pair] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        names = line.split()
        if len(names) != 2 or not all(_NAME.fullmatch(name) for name in names):
            raise UserError(f"{path}, line {number}: write SOURCE TARGET, for example 0041-0_0.png 1268-0_0.png")
        pairs.append((names[0], names[1]))
    if not pairs:
        raise UserError(f"{path} has no pairs")
    return pairs[:limit]


def swap_protocol(
    swapper: Swapper,
    model: SwapModel,
    folder: Path,
    pairs: Sequence[Pair],
    out: Path,
    resume: bool = False,
    tell: Advance = lambda done, total: None,
) -> tuple[dict[Pair, Path], float]:
    """Swap each pair; a picture without a face is left out.

    Returns:
        The swaps that were made, and the seconds that one took, with all that it needs.
    """
    out.mkdir(parents=True, exist_ok=True)
    consent = Consent("the people of the data set, a benchmark under its licence")
    sources: dict[str, Source] = {}
    made: dict[Pair, Path] = {}
    seconds, count = 0.0, 0
    for number, (source, target) in enumerate(pairs, 1):
        path = out / f"{Path(source).stem}-{Path(target).stem}.png"
        if not (resume and path.is_file()):
            began = time.perf_counter()
            try:
                if source not in sources:
                    sources[source] = swapper.source([folder / "faces" / source])
                order = Order([[folder / "faces" / source]], folder / "faces" / target, path, consent, overwrite=True)
                swap_photo(swapper, model, Choice([sources[source]], LARGEST), order)
            except UserError:
                path.unlink(missing_ok=True)
                continue
            finally:
                tell(number, len(pairs))
            seconds, count = seconds + time.perf_counter() - began, count + 1
        made[source, target] = path
    return made, seconds / max(count, 1)


@dataclass(frozen=True)
class ProtocolScores:
    """The scores of a protocol.

    pairs: of the list; swapped: those that have a face in source, target and swap. retrieval: share whose nearest
    person of the list is the source's, and still_target: the target's. similarity: mean cosine of dlib's embeddings of
    swap and source. pose: error of the five landmarks, in distances of the eyes. ssim: of swap and target. frechet:
    distance of random features of the swaps from those of the targets. seconds: of a swap.
    """

    pairs: int
    swapped: int
    people: int
    retrieval: float
    still_target: float
    similarity: float
    pose: float
    ssim: float
    frechet: float
    seconds: float

    def as_row(self) -> dict[str, float | int]:
        return asdict(self)


def evaluate_protocol(
    swapper: Swapper,
    folder: Path,
    pairs: Sequence[Pair],
    made: dict[Pair, Path],
    seconds: float,
    tell: Advance = lambda done, total: None,
) -> ProtocolScores:
    """The scores of the swaps `made` of the pairs.

    Raises:
        UserError: no swap can be evaluated.
    """
    seen: dict[Path, tuple[Tensor, Tensor, Tensor] | None] = {}

    def looked(path: Path) -> tuple[Tensor, Tensor, Tensor] | None:
        """Picture, landmarks and embedding of the main face; None if there is none."""
        if path not in seen:
            image = read_photo(path)
            faces = swapper.detector(image)
            face = subject(faces, image) if faces else None
            embedding = None if face is None else swapper.recogniser(image, [face])[0]
            seen[path] = None if face is None or embedding is None else (image, face.landmarks, embedding)
        return seen[path]

    gallery: dict[str, list[Tensor]] = {}
    names = sorted({each for pair in pairs for each in pair})
    for number, name in enumerate(names, 1):
        found = looked(folder / "faces" / name)
        if found is not None:
            gallery.setdefault(_person(name), []).append(found[2])
        tell(number, len(names) + len(made))
    people = sorted(gallery)
    means = torch.stack([F.normalize(torch.stack(gallery[each]).mean(0), dim=0) for each in people])
    rows: list[tuple[float, ...]] = []
    crops: list[tuple[Tensor, Tensor]] = []
    for number, ((source, target), path) in enumerate(made.items(), 1):
        tell(len(names) + number, len(names) + len(made))
        one, two, swap = (looked(each) for each in (folder / "faces" / source, folder / "faces" / target, path))
        if one is None or two is None or swap is None:
            continue
        nearest = people[int((means @ F.normalize(swap[2], dim=0)).argmax())]
        like = float(F.cosine_similarity(swap[2], one[2], dim=0))
        eyes = float((two[1][0:2].mean(0) - two[1][2:4].mean(0)).norm())
        away = float((swap[1] - two[1]).square().sum(1).mean().sqrt()) / eyes
        place = alignment(two[1], _CROP)
        crops.append((crop(swap[0], place, _CROP), crop(two[0], place, _CROP)))
        rows.append((nearest == _person(source), nearest == _person(target), like, away))
    if not rows:
        raise UserError(f"no face is found in the swaps of {folder}: there is nothing to evaluate")
    mean = torch.tensor(rows).mean(0).tolist()
    swaps, targets = (torch.stack(each) for each in zip(*crops, strict=True))
    make = open_features("conv")(targets)
    return ProtocolScores(
        pairs=len(pairs),
        swapped=len(rows),
        people=len(people),
        retrieval=mean[0],
        still_target=mean[1],
        similarity=mean[2],
        pose=mean[3],
        ssim=float(ssim(to_unit(swaps), to_unit(targets)).mean()),
        frechet=frechet_distance(make(swaps), make(targets)) if len(rows) > 1 else float("nan"),
        seconds=seconds,
    )


def _person(name: str) -> str:
    return name.partition("-")[0]
