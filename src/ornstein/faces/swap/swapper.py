"""Faces in a picture replaced: aligned, painted by a model, matched in colour and pasted back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ornstein import checkpoint
from ornstein.data import to_unit
from ornstein.devices import choose_device, choose_precision
from ornstein.errors import UserError
from ornstein.faces.align import Similarity, alignment, crop, mask
from ornstein.faces.detect import Detector, Face, FaceDetector, find_faces, subject
from ornstein.faces.nets import FaceUNet, RelitUNet
from ornstein.faces.photos import SourceFaces
from ornstein.faces.provenance.blocklist import BlockList
from ornstein.faces.provenance.card import ModelCard, read_card
from ornstein.faces.read import read_photo
from ornstein.faces.recognise import SAME_PERSON, FaceRecogniser, Recogniser
from ornstein.faces.settings import SwapSettings
from ornstein.faces.swap.blend import paste
from ornstein.faces.swap.colour import match_colour
from ornstein.faces.swap.sampling import FaceModel, swap_crops

__all__ = ["ALL", "LARGEST", "Aligned", "Choice", "Source", "SwapModel", "SwapSettings", "Swapper", "load_model"]

ALL, LARGEST = "all", "largest"
_PARTS = ("crop", "mask", "landmarks")
_SMALLEST = 60  # pixels: the side of the smallest faces that the quick look at a video's frame finds


@dataclass(frozen=True)
class SwapModel:
    """A trained model with its card. `sha256`: of its tensors and their descriptions."""

    model: FaceModel
    card: ModelCard
    sha256: str


def load_model(run: str | Path, device: str | torch.device = "auto") -> SwapModel:
    """The face-swap model in a run directory.

    Args:
        run: the directory.
        device: where its networks go, see `choose_device`.

    Raises:
        UserError: there is none, or another kind of model, or no such device.
    """
    run = Path(run)
    if not (run / checkpoint.CONFIG).is_file():
        what = "there is no such folder" if not run.is_dir() else f"it has no {checkpoint.CONFIG}"
        raise UserError(f"{run} holds no trained face-swap model: {what}; `ornstein faces train` makes one")
    net = checkpoint.read_config(run).get("net")
    if not isinstance(net, dict) or net.get("type") not in (FaceUNet.__name__, RelitUNet.__name__):
        raise UserError(f"{run} holds no face-swap model but one of another kind: `ornstein faces train` makes one")
    model = FaceModel.load(run, choose_device(device))
    identity = net.get("identity")
    if model.recogniser.config["embedding"] != identity:
        raise UserError(f"{run} is no working model: its recogniser is not the one that its network was trained with")
    if not model.size:
        raise UserError(f"{run} does not say what pictures it is for; train it with `ornstein faces train`")
    digest = hashlib.sha256()
    for file in (checkpoint.MODEL, "identity/identity.json", "identity/identity.safetensors"):
        digest.update(hashlib.sha256((run / file).read_bytes()).digest())
    described = {k: v for k, v in checkpoint.read_config(run).items() if k in ("net", "schedule", "prediction")}
    digest.update(repr(sorted(described.items())).encode())
    return SwapModel(model, read_card(run), digest.hexdigest())


@dataclass(frozen=True, eq=False, repr=False)
class Source:
    """A person whose face is put in: the mean embedding (D,) of some photos, and the faces in them for the model.

    The identity of each face is that of all photos together.
    """

    names: tuple[str, ...]
    embedding: Tensor
    faces: SourceFaces

    def facing(self, landmarks: Tensor) -> SourceFaces:
        """The photo's face whose pose is nearest to that of an aligned crop with these landmarks (K, 2)."""
        nearest = (self.faces.landmarks - landmarks).square().sum((1, 2)).argmin()
        return self.faces.select(nearest[None])

    def __repr__(self) -> str:
        return f"Source({', '.join(self.names)})"  # embeddings of real people belong in no log


@dataclass(frozen=True, eq=False)
class Aligned:
    """A face as a model sees it: crop uint8 (3, S, S), mask (1, S, S), landmarks (5, 2) in crop pixels."""

    crop: Tensor
    mask: Tensor
    landmarks: Tensor
    transform: Similarity


class Choice:
    """Which faces of a target are replaced, and by whom.

    Args:
        sources: the people whose faces are put in.
        every: "all" or "largest": these faces become `sources[0]`.
        references: embeddings (R, D), instead of `every`: the face most like reference r, within the distance that
            photos of one person have, becomes `sources[r]`.

    Raises:
        ValueError: the numbers of sources and references do not fit.
    """

    def __init__(self, sources: Sequence[Source], every: str = ALL, references: Tensor | None = None) -> None:
        if references is None and (len(sources) != 1 or every not in (ALL, LARGEST)):
            raise ValueError(f"one source for the faces {ALL!r} or {LARGEST!r}, not {len(sources)} for {every!r}")
        if references is not None and len(references) != len(sources):
            raise ValueError(f"{len(references)} references for {len(sources)} sources")
        self.sources, self.every, self.references = list(sources), every, references

    def who(self, embeddings: Tensor) -> list[int]:
        """The number of the source for each of the faces (N, D) by `references`, -1 for none; each is given once."""
        assert self.references is not None
        out = [-1] * len(embeddings)
        distances = torch.cdist(embeddings.double(), self.references.double())
        for flat in distances.flatten().argsort().tolist():
            face, reference = divmod(flat, len(self.references))
            if float(distances[face, reference]) < SAME_PERSON and out[face] < 0 and reference not in out:
                out[face] = reference
        return out


class Swapper:
    """A model with detectors and a recogniser; it works on pixels, not on files.

    Args:
        model: the swap model; its networks may be on any device.
        settings: how faces are painted.
        detector: finds faces in photos; dlib's by default. In videos it makes the full looks, and `scanner` the quick
            ones; a given detector is both.
        recogniser: tells people apart; dlib's by default.
        protected: faces that are refused.

    Raises:
        UserError: the model's device does not have the precision of the settings.
    """

    def __init__(
        self,
        model: FaceModel,
        settings: SwapSettings | None = None,
        detector: FaceDetector | None = None,
        recogniser: FaceRecogniser | None = None,
        protected: BlockList | None = None,
    ) -> None:
        self.model, self.settings, self.protected = model, settings or SwapSettings(), protected
        if self.settings.guidance is None:
            self.settings = replace(self.settings, guidance=model.guidance)
        self._precision = choose_precision(self.settings.precision, model.device)
        self.detector = detector or Detector()
        self.scanner = detector or Detector(smallest=_SMALLEST, thorough=False)
        self.recogniser = recogniser or Recogniser()

    def source(self, photos: Sequence[str | Path]) -> Source:
        """A source from one or more photos of a person: the mean over the photos.

        In a photo of several people the main subject is taken.

        Raises:
            UserError: naming the file, if there is no face or no photo, or the person is protected.
        """
        embeddings, seen = [], []
        for path in photos:
            image = read_photo(path)
            face = subject(find_faces(self.detector, image, str(path)), image)
            embedding = self.recogniser(image, [face])
            if self.protected is not None:
                self.protected.check(embedding, str(path))
            embeddings.append(embedding[0])
            seen.append(self.aligned(image, face))
        if not embeddings:
            raise UserError("no photo of the source was given")
        mean = torch.stack(embeddings).mean(0)
        net = self.model.recogniser
        # the model's recogniser was distilled from dlib's embeddings; those of another one say nothing to it
        distilled = isinstance(self.recogniser, Recogniser) and net.config["embedding"] == len(mean)
        crops, masks, landmarks = (torch.stack([getattr(each, part) for each in seen]) for part in _PARTS)
        identity = net.normalised(mean) if distilled else net.embed(to_unit(crops)).mean(0).cpu()
        faces = SourceFaces(identity.expand(len(seen), -1), to_unit(crops), masks, landmarks)
        return Source(tuple(Path(path).name for path in photos), mean, faces)

    def reference(self, photo: str | Path) -> Tensor:
        """The embedding (D,) of the main subject of a photo. Raises UserError as `source` does."""
        image = read_photo(photo)
        face = subject(find_faces(self.detector, image, str(photo)), image)
        return self.recogniser(image, [face])[0]

    def choose(self, image: Tensor, choice: Choice, name: str) -> list[tuple[Face, int]]:
        """The faces of a picture that are swapped, each with the number of its source.

        Args:
            image: uint8 (3, H, W).
            choice: whom to replace.
            name: the file, for messages.

        Raises:
            UserError: there is no such face, or one of them is protected.
        """
        faces = find_faces(self.detector, image, name)
        if choice.references is None:
            chosen = [max(faces, key=lambda face: face.side)] if choice.every == LARGEST else faces
            pairs = [(face, 0) for face in chosen]
            embeddings = self.recogniser(image, chosen) if self.protected is not None else None
        else:
            embeddings = self.recogniser(image, faces)
            who = choice.who(embeddings)
            kept = [i for i, number in enumerate(who) if number >= 0]
            if not kept:
                raise UserError(
                    f"none of the {len(faces)} faces in {name} is that of a reference photo: give another photo of "
                    "that person"
                )
            pairs, embeddings = [(faces[i], who[i]) for i in kept], embeddings[kept]
        if self.protected is not None and embeddings is not None:
            self.protected.check(embeddings, name)
        return pairs

    def aligned(self, image: Tensor, face: Face) -> Aligned:
        """The crop of a face in a picture uint8 (3, H, W), with its mask."""
        size = self.model.size
        transform = alignment(face.landmarks, size)
        points = transform(face.landmarks)
        return Aligned(crop(image, transform, size), mask(points[None], size)[0], points.float(), transform)

    def painted(
        self, faces: Sequence[Aligned], sources: Sequence[Source], start: Tensor | None = None, first: int = 0
    ) -> list[Tensor]:
        """The faces repainted as those of the sources, in the target's colours.

        Args:
            faces: N faces of the target.
            sources: N sources.
            start: (N, 3, S, S), the state at t = 1; without it face i has the noise of (seed, first + i).
            first: see `start`.

        Returns:
            N pictures float (3, S, S) in [0, 1], on the CPU.
        """
        s = self.settings
        crops, masks, landmarks = (torch.stack([getattr(face, part) for face in faces]) for part in _PARTS)
        people = [source.facing(face.landmarks) for source, face in zip(sources, faces, strict=True)]
        made = swap_crops(
            self.model,
            to_unit(crops),
            masks,
            landmarks,
            SourceFaces.cat(people),
            steps=s.steps,
            guidance=s.guidance,
            strength=s.identity,
            towards=s.towards,
            start=start,
            seed=s.seed,
            first=first,
            precision=self._precision,
        ).cpu()
        out = []
        for new, old, weight in zip((made + 1) / 2, crops.float() / 255, masks, strict=True):
            matched = match_colour(new, old, weight).clamp(0, 1)
            out.append(torch.where(weight > 0, matched, old))
        return out

    def put_back(self, pixels: Tensor, faces: Sequence[Aligned], made: Sequence[Tensor]) -> Tensor:
        """The picture uint8 (3, H, W) with the faces pasted back; outside their masks not a bit changes."""
        for face, new in zip(faces, made, strict=True):
            pixels = paste(pixels, new, face.mask, face.transform, self.settings.blend)
        return pixels

    def picture(self, pixels: Tensor, shown: Tensor, chosen: Sequence[tuple[Face, int]], choice: Choice) -> Tensor:
        """`pixels` uint8 (3, H, W) with the chosen faces, cut out of `shown`, swapped."""
        faces = [self.aligned(shown, face) for face, _ in chosen]
        sources = [choice.sources[number] for _, number in chosen]
        return self.put_back(pixels, faces, self.painted(faces, sources))
