"""Faces in a picture replaced: aligned, painted by a model, matched in colour and pasted back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein import checkpoint
from ornstein.data import to_unit
from ornstein.devices import choose_device, choose_precision
from ornstein.errors import UserError
from ornstein.faces.align import Similarity, alignment, crop, mask
from ornstein.faces.blaze import BlazeDetector
from ornstein.faces.detect import Face, FaceDetector, find_faces, subject
from ornstein.faces.nets import FaceUNet, RelitUNet
from ornstein.faces.photos import SourceFaces
from ornstein.faces.provenance.blocklist import BlockList
from ornstein.faces.provenance.card import ModelCard, read_card
from ornstein.faces.read import read_photo
from ornstein.faces.recognise import FaceRecogniser, Recogniser
from ornstein.faces.settings import FACE, MAX_TURN, SwapSettings, parse_padding, parse_regions
from ornstein.faces.shape import angle_between, shape_in
from ornstein.faces.swap.blend import paste
from ornstein.faces.swap.choose import LARGEST, Choice, Source
from ornstein.faces.swap.colour import match_colour, match_light
from ornstein.faces.swap.cover import Uncovered
from ornstein.faces.swap.detail import enlarged
from ornstein.faces.swap.finishing import SIDE, load
from ornstein.faces.swap.regions import head, hull, region_weights
from ornstein.faces.swap.sampling import SHAPE, FaceModel, swap_crops

__all__ = ["SMALLEST", "Aligned", "SwapModel", "SwapSettings", "Swapper", "load_model"]

_PARTS = ("crop", "mask", "landmarks")
SMALLEST = 60  # pixels: the side of the smallest faces that the quick look at a video's frame finds
_LARGE = 0.2  # of a photo's shorter side: an upright face of this size is its subject
_LARGEST_PASTE, _LARGER = 4, 1.25  # times the crop's side; a face that is shown larger than this is enlarged


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


@dataclass(frozen=True, eq=False)
class Aligned:
    """A face as a model sees it: crop uint8 (3, S, S), mask (1, S, S), landmarks (5, 2) in crop pixels.

    points: (shape.POINTS, 3) in crop pixels, if the model needs them.

    transform: from the picture to the crop. pasted: (1, P, P), what is put back of it, P a multiple of S; the mask,
    unless there is another one.
    """

    crop: Tensor
    mask: Tensor
    landmarks: Tensor
    transform: Similarity
    pasted: Tensor | None = None
    points: Tensor | None = None


class Swapper:
    """A model with detectors and a recogniser; it works on pixels, not on files.

    Args:
        model: the swap model; its networks may be on any device.
        settings: how faces are painted.
        detector: finds faces in photos; BlazeFace by default. In videos it makes the full looks, and `scanner` the
            quick ones; a given detector is both, unless a `scanner` is given too.
        recogniser: tells people apart; dlib's by default.
        protected: faces that are refused.
        run: the directory of the model, which may have its own networks of `finishing`.
        scanner: see `detector`.

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
        run: Path | None = None,
        scanner: FaceDetector | None = None,
    ) -> None:
        self.model, self.settings, self.protected = model, settings or SwapSettings(), protected
        if self.settings.guidance is None:
            self.settings = replace(self.settings, guidance=model.guidance)
        s = self.settings
        if not model.shaped and (s.shape != SHAPE or s.onset is not None or s.max_turn != MAX_TURN):
            raise UserError(
                "--shape, --onset and --max-turn need a model that sees the shape of a face: train it again"
            )
        self._precision = choose_precision(self.settings.precision, model.device)
        self.detector = detector or BlazeDetector()
        self.scanner = scanner or detector or BlazeDetector(thorough=False)
        self.recogniser = recogniser or Recogniser()
        self._regions, self._padding = parse_regions(self.settings.regions), parse_padding(self.settings.padding)
        occlusion, detail = self.settings.occlusion, self.settings.detail
        self._uncovered = None if occlusion == "none" else Uncovered(occlusion, run)
        self._detail = load("detail", run) if detail > 0 else None

    def source(self, photos: Sequence[str | Path]) -> Source:
        """A source from one or more photos of a person: the mean over the photos.

        In a photo of several people the main subject is taken.

        Raises:
            UserError: naming the file, if there is no face or no photo, or the person is protected.
        """
        shown = []
        for path in photos:
            image = read_photo(path)
            shown.append((image, self.subject(image, str(path)), str(path)))
        if not shown:
            raise UserError("no photo of the source was given")
        return self.source_of(shown)

    def source_of(self, shown: Sequence[tuple[Tensor, Face, str]]) -> Source:
        """A source from pictures uint8 (3, H, W), its face in each, and their names. Raises UserError as `source`."""
        embeddings, seen = [], []
        for image, face, name in shown:
            embedding = self.recogniser(image, [face])
            if self.protected is not None:
                self.protected.check(embedding, name)
            embeddings.append(embedding[0])
            seen.append(self.aligned(image, face))
        mean = torch.stack(embeddings).mean(0)
        net = self.model.recogniser
        # the model's recogniser was distilled from dlib's embeddings; those of another one say nothing to it
        distilled = isinstance(self.recogniser, Recogniser) and net.config["embedding"] == len(mean)
        crops, masks, landmarks = (torch.stack([getattr(each, part) for each in seen]) for part in _PARTS)
        identity = net.normalised(mean) if distilled else net.embed(to_unit(crops)).mean(0).cpu()
        faces = SourceFaces(identity.expand(len(seen), -1), to_unit(crops), masks, landmarks, _points(seen))
        return Source(tuple(Path(name).name for _, _, name in shown), mean, faces)

    def reference(self, photo: str | Path) -> Tensor:
        """The embedding (D,) of the main subject of a photo. Raises UserError as `source` does."""
        image = read_photo(photo)
        return self.recogniser(image, [self.subject(image, str(photo))])[0]

    def subject(self, image: Tensor, name: str) -> Face:
        """The main subject of a photo `name`: by the quick look if that shows a large face, else by the full one.

        Raises:
            UserError: naming the file, if there is no face.
        """
        if self.scanner is not self.detector and (faces := self.scanner(image)):
            face = subject(faces, image)
            if face.side >= _LARGE * min(image.shape[1:]):
                return face
        return subject(find_faces(self.detector, image, name), image)

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
            if choice.indices:
                picked = choice.picked(faces)
                if picked is None:
                    raise UserError(f"--index {max(choice.indices)}: {name} has {_faces(len(faces))}")
                chosen = picked
            pairs = [(face, 0) for face in chosen]
            embeddings = self.recogniser(image, chosen) if self.protected is not None else None
        else:
            embeddings = self.recogniser(image, faces)
            who = choice.who(embeddings)
            kept = [i for i, number in enumerate(who) if number >= 0]
            if not kept:
                raise UserError(
                    f"none of the {_faces(len(faces))} in {name} is that of a reference photo (the nearest is "
                    f"{float(choice.distances(embeddings).min()):.2f} away, the limit is {choice.distance:g}): give "
                    "another photo of that person"
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
        shape = shape_in(image, face.landmarks, transform) if self.model.shaped else None
        covers = mask(points[None], size)[0]
        return Aligned(crop(image, transform, size), covers, points.float(), transform, points=shape)

    def placed(self, image: Tensor, face: Face, share: float = 1.0) -> Aligned:
        """A face that is swapped, with what is put back of it: its regions, without what stands before it.

        Args:
            image: uint8 (3, H, W).
            face: in it.
            share: weight of the swap; below 1 the target's face shows through.
        """
        seen, size = self.aligned(image, face), self.model.size
        times = self._times(seen.transform)
        points = seen.landmarks[None]
        if any(self._padding):
            padded = hull(points, size, self._padding)
            seen = replace(seen, mask=torch.maximum(seen.mask, padded[0]))
        if "hair" in self._regions:
            seen = replace(seen, mask=torch.maximum(seen.mask, head(points, size)[0]))
        fine = (points + 0.5) * times - 0.5
        pasted = hull(fine, times * size, self._padding)
        pasted = pasted * region_weights(fine, times * size, self._regions)
        if "hair" in self._regions:
            pasted = torch.maximum(pasted, head(fine, times * size))
        if self._uncovered is not None:
            place = alignment(face.landmarks, SIDE)
            around = (hull(place(face.landmarks)[None], SIDE) > 0).float()
            left = self._uncovered(crop(image, place, SIDE)[None], around)
            pasted = pasted * F.interpolate(left, pasted.shape[-2:], mode="bilinear", antialias=True)
        return replace(seen, pasted=share * pasted[0])

    def _times(self, transform: Similarity) -> int:
        """How many times larger than the crop the pasted face is; 1 unless that shows."""
        if not (self._uncovered or self._detail) and self._regions == set(FACE):
            return 1
        shown = 1 / transform.scale  # pixels of the picture for one of the crop
        times = 1
        while times < _LARGEST_PASTE and shown > _LARGER * times:
            times *= 2
        return times

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
            points=_points(faces),
            shape=s.shape,
            onset=s.onset,
            start=start,
            seed=s.seed,
            first=first,
            precision=self._precision,
        ).cpu()
        out = []
        for new, old, weight in zip((made + 1) / 2, crops.float() / 255, masks, strict=True):
            if s.colour != "none":
                new = (match_colour if s.colour == "moments" else match_light)(new, old, weight).clamp(0, 1)
            out.append(torch.where(weight > 0, new, old))
        return out

    def put_back(self, pixels: Tensor, faces: Sequence[Aligned], made: Sequence[Tensor]) -> Tensor:
        """The picture uint8 (3, H, W) with the faces pasted back; outside their masks not a bit changes."""
        for face, new in zip(faces, made, strict=True):
            weight = face.mask if face.pasted is None else face.pasted
            times = weight.shape[-1] // new.shape[-1]
            new = enlarged(new, times, self.settings.detail, self._detail)
            place = face.transform.then(Similarity(times, complex(times - 1, times - 1) / 2))
            pixels = paste(pixels, new, weight, place, self.settings.blend)
        return pixels

    def turn(self, face: Aligned, source: Source) -> float:
        """By how many degrees a face is turned in space against the photo of the source that is taken for it.

        0 for a model that does not see the shape of a face.
        """
        seen = source.facing(face.landmarks)
        if face.points is None or seen.points is None:
            return 0.0
        return float(angle_between(seen.points, face.points[None]))

    def picture(
        self,
        pixels: Tensor,
        shown: Tensor,
        chosen: Sequence[tuple[Face, int]],
        choice: Choice,
        left: Callable[[Face, float], object] = lambda face, degrees: None,
    ) -> Tensor:
        """`pixels` uint8 (3, H, W) with the chosen faces, cut out of `shown`, swapped.

        A face that is turned further than `max_turn` of the settings is left as it is, and `left` is called with it
        and its angle in degrees.
        """
        faces: list[Aligned] = []
        sources: list[Source] = []
        for face, number in chosen:
            placed, source = self.placed(shown, face), choice.sources[number]
            degrees = self.turn(placed, source)
            if degrees > self.settings.max_turn:
                left(face, degrees)
            else:
                faces.append(placed)
                sources.append(source)
        return self.put_back(pixels, faces, self.painted(faces, sources)) if faces else pixels


def _points(faces: Sequence[Aligned]) -> Tensor | None:
    """The points (N, shape.POINTS, 3) of faces that have them."""
    points = [face.points for face in faces if face.points is not None]
    return torch.stack(points) if points else None


def _faces(count: int) -> str:
    return f"{count} face{'s' * (count != 1)}"
