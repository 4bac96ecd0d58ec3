"""Evaluation of swaps of photographs: by dlib, by a recogniser that no training saw, and by the mesh of the face."""

from __future__ import annotations

import io
import time
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ornstein.data import to_uint8
from ornstein.evaluation import frechet_distance, open_features
from ornstein.faces import align
from ornstein.faces.detect import Detector, Face
from ornstein.faces.judge import judge
from ornstein.faces.mesh import expression, mesh
from ornstein.faces.photos import Photos
from ornstein.faces.recognise import Recogniser
from ornstein.faces.swap.sampling import FaceModel, swap_crops
from ornstein.faces.train.face_set import FaceSet

__all__ = [
    "Held",
    "SwapScores",
    "embed_crops",
    "found_landmarks",
    "photos_of",
    "score_swaps",
    "seen_again",
    "swap_held",
]

# What `seen_again` does to a picture: pixels, a share of the scale, a quality of JPEG, grey levels.
_SHIFT, _SCALE, _QUALITY, _GRAIN = 0.5, 0.05, 75, 4.0
_ENLARGED = 256  # dlib takes landmarks in whole pixels: crops are enlarged to this side before it sees them


def photos_of(faces: FaceSet) -> Photos:
    """A prepared set of faces as photos to train swaps on, with masks."""
    size = faces.images.shape[-1]
    masks = torch.cat([(255 * align.mask(part, size)).round().to(torch.uint8) for part in faces.landmarks.split(512)])
    return Photos(faces.images, masks, faces.landmarks, faces.person, faces.embeddings, points=faces.points)


def embed_crops(recogniser: Recogniser, crops: Tensor, landmarks: Tensor) -> Tensor:
    """dlib's embeddings (N, 128) of aligned crops, uint8 (N, 3, S, S), with landmarks (N, 5, 2) in their pixels."""
    out = []
    crops, landmarks = crops.cpu(), landmarks.cpu()
    for image, points in zip(*_enlarged(crops, landmarks), strict=True):
        out.append(recogniser(image, [Face(points, 1.0)]))
    return torch.cat(out)


def _enlarged(crops: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor]:
    scale = _ENLARGED / crops.shape[-1]
    large = F.interpolate(crops.float(), (_ENLARGED, _ENLARGED), mode="bicubic", align_corners=False)
    return large.round().clamp(0, 255).to(torch.uint8), (landmarks.double() + 0.5) * scale - 0.5


def found_landmarks(detector: Detector, crops: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """Five landmarks (N, 5, 2) detected again in crops, and whether a face was detected at all, (N,)."""
    crops, landmarks = crops.cpu(), landmarks.cpu()
    out, found = landmarks.double().clone(), torch.zeros(len(crops), dtype=torch.bool)
    large, _ = _enlarged(crops, landmarks)
    scale = _ENLARGED / crops.shape[-1]
    for i, image in enumerate(large):
        faces = detector(image)
        if faces:
            out[i], found[i] = (faces[0].landmarks + 0.5) / scale - 0.5, True
    return out, found


@dataclass(frozen=True)
class SwapScores:
    """Scores of swaps of held-out people: person i of `among` into the photo of person i + 1.

    judge_top1: share of swaps whose nearest of the `among` crops is the source, by `judge.FaceRes`, which is a term of
    no training; judge_target: is the target still; judge_real: of the same people's other photos, where they have one,
    NaN if nobody has. top1, target_top1: the same by dlib, which training and guidance use.
    to_source, to_target: mean distance of dlib's embeddings; below 0.6 it takes two faces for one person. pose: root
    mean square error of the five landmarks, as a share of the eyes' distance. expression: root mean square difference
    of the `mesh.expression` from the target's; jitter: that of the target itself, seen again: moved, enlarged or
    reduced, compressed and noisy (`seen_again`). found: share with a detected face.
    background: PSNR in dB outside the mask, infinite if nothing was changed. frechet: Frechet distance to the unswapped
    crops of all held-out people by `features`; frechet_floor: that of the targets themselves. seconds: a face, of the
    sampler alone.
    """

    among: int
    judge_top1: float
    judge_target: float
    judge_real: float
    top1: float
    target_top1: float
    to_source: float
    to_target: float
    pose: float
    expression: float
    jitter: float
    found: float
    background: float
    frechet: float
    frechet_floor: float
    features: str
    seconds: float
    settings: dict[str, float] = field(default_factory=dict)

    def as_row(self) -> dict[str, float | int | str]:
        row = asdict(self)
        return row.pop("settings") | row


@dataclass(frozen=True)
class Held:
    """Held-out people, one photo each, with dlib's embeddings: person i is the source, person i + 1 the target."""

    photos: Photos
    crops: Tensor
    landmarks: Tensor
    embeddings: Tensor  # dlib's, of the photographs
    real: Tensor  # uint8, all crops of held-out people
    others: tuple[Tensor, Tensor, Tensor]  # second photos: whose they are, crops and landmarks

    @classmethod
    def of(cls, faces: FaceSet, among: int, seed: int = 0) -> Held:
        """The first photo of `among` people of the set, in an order that depends on `seed`."""
        order = torch.randperm(len(faces.people), generator=torch.Generator().manual_seed(seed))[:among]
        rows = torch.stack([(faces.person == person).nonzero()[0, 0] for person in order])
        photos = photos_of(faces).select(rows)
        seconds = [(faces.person == person).nonzero()[1:2, 0] for person in order]
        whose = torch.tensor([i for i, found in enumerate(seconds) if len(found)], dtype=torch.int64)
        second = torch.cat(seconds)
        others = (whose, faces.images[second], faces.landmarks[second])
        return cls(photos, faces.images[rows], faces.landmarks[rows], faces.embeddings[rows], faces.images, others)


def swap_held(
    model: FaceModel, held: Held, precision: str | torch.dtype | None = None, **settings: float
) -> tuple[Tensor, float]:
    """Person i into the photo of person i + 1.

    Args:
        model: a swap model.
        held: the people.
        precision: see `SampleRequest`.
        **settings: arguments of `swap_crops`.

    Returns:
        uint8 (N, 3, S, S) on the CPU, and the seconds that a face took.
    """
    known = held.photos.known_as(model.recogniser.normalised(held.embeddings))
    sources = known.faces(torch.arange(len(known)))
    target = sources.roll(-1)
    began = time.perf_counter()
    out = swap_crops(
        model,
        target.image,
        target.mask,
        target.landmarks,
        sources,
        points=target.points,
        own=target.identity if settings.get("strength", 1) != 1 else None,
        precision=precision,
        **settings,  # pyright: ignore[reportArgumentType]  (numbers by name)
    )
    return to_uint8(out).cpu(), (time.perf_counter() - began) / len(target)


def score_swaps(
    held: Held, swaps: Tensor, seconds: float, recogniser: Recogniser, detector: Detector | None, **settings: float
) -> SwapScores:
    """The scores of the swaps (uint8) of `held` that `swap_held` made. Without a detector, pose and found are NaN."""
    swaps = swaps.cpu()
    landmarks, targets = held.landmarks.roll(-1, 0), held.crops.roll(-1, 0)
    embedded = embed_crops(recogniser, swaps, landmarks)
    distances = torch.cdist(embedded, held.embeddings)
    n = len(swaps)
    nearest, at = distances.argmin(1), torch.arange(n)
    source, target = distances[at, at], distances[at, (at + 1) % n]
    pose = found = float("nan")
    if detector is not None:
        points, seen = found_landmarks(detector, swaps, landmarks)
        eyes = (landmarks[:, 0:2].mean(1) - landmarks[:, 2:4].mean(1)).norm(dim=1)
        error = (points - landmarks).square().sum(2).mean(1).sqrt() / eyes
        pose, found = float(error[seen].mean()), float(seen.float().mean())
    close, still, real_close = _judged(held, swaps)
    moves, jitter = _expressions(swaps, targets, landmarks)
    outside = held.photos.masks.roll(-1, 0) == 0
    wrong = ((swaps.float() - targets.float()) * outside).square().sum() / (3 * outside.sum())
    make = open_features("conv")(held.real)
    real = make(held.real)
    return SwapScores(
        among=n,
        judge_top1=close,
        judge_target=still,
        judge_real=real_close,
        top1=float((nearest == at).float().mean()),
        target_top1=float((nearest == (at + 1) % n).float().mean()),
        to_source=float(source.mean()),
        to_target=float(target.mean()),
        pose=pose,
        expression=moves,
        jitter=jitter,
        found=found,
        background=float(10 * torch.log10(255**2 / wrong)),
        frechet=frechet_distance(make(swaps), real),
        frechet_floor=frechet_distance(make(targets), real),
        features=make.name,
        seconds=seconds,
        settings=dict(settings),
    )


def _judged(held: Held, swaps: Tensor) -> tuple[float, float, float]:
    """The shares of swaps that are nearest to the source and to the target, and of second photos to their person."""
    known = judge(*_enlarged(held.crops, held.landmarks))
    at, n = torch.arange(len(swaps)), len(swaps)
    nearest = (judge(*_enlarged(swaps, held.landmarks.roll(-1, 0))) @ known.T).argmax(1)
    whose, crops, points = held.others
    real = float("nan")
    if len(whose):
        real = float(((judge(*_enlarged(crops, points)) @ known.T).argmax(1) == whose).float().mean())
    return float((nearest == at).float().mean()), float((nearest == (at + 1) % n).float().mean()), real


def _expressions(swaps: Tensor, targets: Tensor, landmarks: Tensor) -> tuple[float, float]:
    """The differences of expression of swaps and targets, and of the targets and themselves seen again."""
    large, points = _enlarged(targets, landmarks)
    truth = expression(mesh(large, points))
    swapped = expression(mesh(_enlarged(swaps, landmarks)[0], points))
    again = expression(mesh(*_enlarged(*seen_again(targets, landmarks))))
    a, b = (float((each - truth).square().mean().sqrt()) for each in (swapped, again))
    return a, b


def seen_again(crops: Tensor, landmarks: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Crops uint8 (N, 3, S, S) as another camera would have taken them, and their landmarks (N, 5, 2).

    Moved by up to half a pixel, enlarged or reduced by up to 5 %, JPEG of quality 75, and Gaussian noise of standard
    deviation 4 of 255: what differs between two pictures of the same face in the same moment.
    """
    draw = torch.Generator().manual_seed(seed)
    size = crops.shape[-1]
    middle = complex(size - 1, size - 1) / 2
    pictures, places = [], []
    for crop, points in zip(crops, landmarks.double(), strict=True):
        x, y, scale = (2 * torch.rand(3, generator=draw) - 1).tolist()
        move = align.Similarity.about(middle, middle + complex(x, y) * _SHIFT, 1 + _SCALE * scale, 0)
        moved = align.warp(crop, move, (size, size)).clamp(0, 255).round().to(torch.uint8)
        file = io.BytesIO()
        Image.fromarray(moved.permute(1, 2, 0).numpy()).save(file, "jpeg", quality=_QUALITY)
        moved = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1).float()
        pictures.append(moved + _GRAIN * torch.randn(moved.shape, generator=draw))
        places.append(move(points))
    return torch.stack(pictures).clamp(0, 255).round().to(torch.uint8), torch.stack(places).to(landmarks)
