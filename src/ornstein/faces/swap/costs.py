"""What a swap costs on this machine, part by part, at pictures of several sizes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.errors import UserError
from ornstein.faces.detect import largest
from ornstein.faces.swap.swapper import Swapper
from ornstein.faces.world import FaceWorld

__all__ = ["SIZES", "Cost", "costs", "scene_of_faces"]

SIZES = {"SD": (640, 480), "720p": (1280, 720), "1080p": (1920, 1080), "4K": (3840, 2160)}
_FACE = 0.45  # of the picture's height: how high a rendered head is shown


@dataclass(frozen=True)
class Cost:
    """Seconds of one swap of one face.

    source: finding and knowing the source, in a picture of this size. find: all looks at the target. paint: its mesh,
    crop and face. paste: into the picture. look: the quick look at a frame of a video. processor: of a photo, by all
    threads; more than the seconds where several work, and what is left of them on a busy machine.
    """

    name: str
    width: int
    height: int
    source: float
    find: float
    paint: float
    paste: float
    look: float
    processor: float

    @property
    def photo(self) -> float:
        """All of a photo but reading, writing and signing files."""
        return self.source + self.find + self.paint + self.paste

    @property
    def frame(self) -> float:
        """A frame of a video, by the quick look, without the embedding that every tenth gets."""
        return self.look + self.paint + self.paste


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
            marks, began = [time.perf_counter()], time.process_time()
            try:
                source = swapper.source_of([(image, swapper.subject(image, name), name)])
            except UserError:  # no face is found
                break
            marks.append(time.perf_counter())
            found = swapper.detector(image)
            if not found:
                break
            marks.append(time.perf_counter())
            placed = swapper.placed(image, largest(found))
            made = swapper.painted([placed], [source])
            marks.append(time.perf_counter())
            swapper.put_back(image, [placed], made)
            marks.append(time.perf_counter())
            used = time.process_time() - began
            swapper.scanner(image)
            marks.append(time.perf_counter())
            times.append([*(after - before for before, after in pairwise(marks)), used])
        if times:
            yield Cost(name, width, height, *(min(each) for each in zip(*times, strict=True)))
