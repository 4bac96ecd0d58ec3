"""Evaluation of swaps of photographs, by a recogniser and landmarks that no training saw."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.data import to_uint8
from ornstein.evaluation import frechet_distance, open_features
from ornstein.faces import align
from ornstein.faces.detect import Detector, Face
from ornstein.faces.photos import Photos
from ornstein.faces.recognise import Recogniser
from ornstein.faces.swap.sampling import FaceModel, swap_crops
from ornstein.faces.train.face_set import FaceSet

__all__ = ["Held", "SwapScores", "embed_crops", "found_landmarks", "photos_of", "score_swaps", "swap_held"]

_ENLARGED = 256  # dlib takes landmarks in whole pixels: crops are enlarged to this side before it sees them


def photos_of(faces: FaceSet) -> Photos:
    """A prepared set of faces as photos to train swaps on, with masks."""
    size = faces.images.shape[-1]
    masks = torch.cat([(255 * align.mask(part, size)).round().to(torch.uint8) for part in faces.landmarks.split(512)])
    return Photos(faces.images, masks, faces.landmarks, faces.person, faces.embeddings)


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

    top1: share of swaps whose nearest of the `among` photos, by dlib, is the source; target_top1: is the target still.
    to_source, to_target: mean distance of dlib's embeddings; below 0.6 it takes two faces for one person. pose: root
    mean square error of the five landmarks, as a share of the eyes' distance; found: share with a detected face.
    background: PSNR in dB outside the mask, infinite if nothing was changed. frechet: Frechet distance to the unswapped
    crops of all held-out people by `features`; frechet_floor: that of the targets themselves. seconds: a face, of the
    sampler alone.
    """

    among: int
    top1: float
    target_top1: float
    to_source: float
    to_target: float
    pose: float
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

    @classmethod
    def of(cls, faces: FaceSet, among: int, seed: int = 0) -> Held:
        """The first photo of `among` people of the set, in an order that depends on `seed`."""
        order = torch.randperm(len(faces.people), generator=torch.Generator().manual_seed(seed))[:among]
        rows = torch.stack([(faces.person == person).nonzero()[0, 0] for person in order])
        photos = photos_of(faces).select(rows)
        return cls(photos, faces.images[rows], faces.landmarks[rows], faces.embeddings[rows], faces.images)


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
    outside = held.photos.masks.roll(-1, 0) == 0
    wrong = ((swaps.float() - targets.float()) * outside).square().sum() / (3 * outside.sum())
    make = open_features("conv")(held.real)
    real = make(held.real)
    return SwapScores(
        among=n,
        top1=float((nearest == at).float().mean()),
        target_top1=float((nearest == (at + 1) % n).float().mean()),
        to_source=float(source.mean()),
        to_target=float(target.mean()),
        pose=pose,
        found=found,
        background=float(10 * torch.log10(255**2 / wrong)),
        frechet=frechet_distance(make(swaps), real),
        frechet_floor=frechet_distance(make(targets), real),
        features=make.name,
        seconds=seconds,
        settings=dict(settings),
    )
