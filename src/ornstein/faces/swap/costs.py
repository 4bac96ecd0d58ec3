"""What a swap costs on this machine, part by part, at pictures of several sizes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.faces.detect import largest
from ornstein.faces.swap.choose import Choice
from ornstein.faces.swap.swapper import Swapper
from ornstein.faces.world import FaceWorld

__all__ = ["SIZES", "Cost", "costs", "scene_of_faces"]

SIZES = {"SD": (640, 480), "720p": (1280, 720), "1080p": (1920, 1080), "4K": (3840, 2160)}
_FACE = 0.45  # of the picture's height: how high a rendered head is shown


@dataclass(frozen=True)
class Cost:
    """Seconds of one swap of one face: finding it, knowing it (for a source or a reference), painting, pasting."""

    name: str
    width: int
    height: int
    find: float
    know: float
    paint: float
    paste: float

    @property
    def photo(self) -> float:
        """All of a photo but reading and writing files; the source is found and known too."""
        return self.find + self.know + self.paint + self.paste

    @property
    def frame(self) -> float:
        """A frame of a video, by the quick look: what is compared with a reference is so in every tenth frame."""
        return self.paint + self.paste + 0.1 * self.know


def scene_of_faces(width: int, height: int, faces: int = 1, seed: int = 3) -> Tensor:
    """A picture uint8 (3, H, W) of rendered faces beside each other."""
    side = int(min(height * _FACE / 0.6, width / faces, 1024))
    pictures, _ = FaceWorld(faces, 1, max(min(side, 256), 16), seed).batch(list(range(faces)))
    shown = F.interpolate((pictures + 1) * 127.5, (side, side), mode="bicubic").clamp(0, 255)
    scene = torch.full((3, height, width), 96, dtype=torch.uint8)
    top, gap = (height - side) // 2, (width - faces * side) // (faces + 1)
    for k, picture in enumerate(shown):
        left = gap + k * (side + gap)
        scene[:, top : top + side, left : left + side] = picture.round().to(torch.uint8)
    return scene


def costs(swapper: Swapper, repeats: int = 1) -> Iterator[Cost]:
    """The cost at each of `SIZES`; of `repeats` the fastest. Sizes in which no face is found are left out."""
    for name, (width, height) in SIZES.items():
        image = scene_of_faces(width, height)
        times: list[list[float]] = []
        for _ in range(repeats):
            marks = [time.perf_counter()]
            faces = swapper.detector(image)
            marks.append(time.perf_counter())
            if not faces:
                break
            face = largest(faces)
            swapper.recogniser(image, [face])
            marks.append(time.perf_counter())
            source = swapper.source_of([(image, face, name)])
            choice = Choice([source])
            before = time.perf_counter()
            placed = swapper.placed(image, face)
            made = swapper.painted([placed], choice.sources)
            painted = time.perf_counter()
            swapper.put_back(image, [placed], made)
            ended = time.perf_counter()
            times.append([marks[1] - marks[0], marks[2] - marks[1], painted - before, ended - painted])
        if times:
            yield Cost(name, width, height, *(min(each) for each in zip(*times, strict=True)))
