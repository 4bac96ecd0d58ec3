"""What the swap tool's small networks do, measured on rendered faces and, with --photos, on photographs.

python evidence/swap_tool.py occlusion [--photos lfw.zip]
python evidence/swap_tool.py detail [--photos lfw.zip]
python evidence/swap_tool.py picture
"""

from __future__ import annotations

import argparse
import random
import time
import zipfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ornstein.data import grid
from ornstein.faces.align import alignment, crop
from ornstein.faces.blaze import BlazeDetector
from ornstein.faces.detect import Face
from ornstein.faces.read import decode_photo
from ornstein.faces.recognise import Recogniser
from ornstein.faces.settings import REGIONS
from ornstein.faces.swap.cover import Uncovered
from ornstein.faces.swap.detail import enlarged
from ornstein.faces.swap.finishing import SIDE, aligned_faces
from ornstein.faces.swap.occluders import KINDS, covered
from ornstein.faces.swap.regions import head, hull, region_weights

PEOPLE, SEED = 100, 1
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "swap-tool.png"


def photos(archive: Path, count: int) -> list[Tensor]:
    """Random photographs of a zip archive."""
    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.endswith(".jpg"))
        return [decode_photo(files.read(name)) for name in random.Random(SEED).sample(names, count)]


def faces_of(archive: Path | None) -> tuple[Tensor, Tensor, Tensor]:
    """Crops (N, 3, S, S) in [0, 1], where they show the face, and landmarks."""
    if archive is None:
        return aligned_faces(PEOPLE, 99)
    detector, crops, points = BlazeDetector(), [], []
    for image in photos(archive, PEOPLE):
        found = detector(image)
        if found:
            place = alignment(found[0].landmarks, SIDE)
            crops.append(crop(image, place, SIDE).float() / 255)
            points.append(place(found[0].landmarks).float())
    return torch.stack(crops), torch.ones(len(crops), 1, SIDE, SIDE), torch.stack(points)


def occlusion(archive: Path | None) -> None:
    """Of what is painted over a face inside its mask: the share that is found, and of the rest what is taken for it."""
    crops, shown, points = faces_of(archive)
    inside = hull(points, SIDE)
    print(f"{len(crops)} faces; IoU of what covers them inside the mask")
    for method in ("net", "colour"):
        find = Uncovered(method)
        draw = torch.Generator().manual_seed(SEED)
        for kind in KINDS:
            pictures, left = covered(crops, points, draw, kind)
            began = time.process_time()
            seen = find((pictures * 255).round().to(torch.uint8), inside)
            seconds = (time.process_time() - began) / len(crops)
            hidden, found = (left * shown < 0.5) & (inside > 0.5), (seen < 0.5) & (inside > 0.5)
            both, either = (hidden & found).sum(), (hidden | found).sum()
            recall = both / hidden.sum().clamp_min(1)
            print(f"  {method:7} {kind:11} IoU {float(both / either):.2f} found {float(recall):.2f} {seconds:.3f} s")
        seen = find((crops * 255).round().to(torch.uint8), inside)
        wrong = ((seen < 0.5) & (inside > 0.5) & (shown > 0.5)).sum() / ((inside > 0.5) & (shown > 0.5)).sum()
        print(f"  {method:7} nothing     taken for something {float(wrong):.3f} of the mask")


def detail(archive: Path | None) -> None:
    """PSNR of faces reduced to half and enlarged again, and the distance of dlib's embedding from the whole one's."""
    crops, _, points = faces_of(archive)
    coarse = F.interpolate(crops, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)
    recogniser = Recogniser()

    def embedded(pictures: Tensor) -> Tensor:
        pairs = zip((pictures * 255).round().clamp(0, 255).to(torch.uint8), points, strict=True)
        return torch.stack([recogniser(picture, [Face(where.double(), 1.0)])[0] for picture, where in pairs])

    whole = embedded(crops)
    for share in (0.0, 0.5, 1.0):
        fine = torch.stack([enlarged(each, 2, share) for each in coarse])
        error = (fine - crops).square().mean((1, 2, 3))
        psnr = float((-10 * error.log10()).mean())
        away = float((embedded(fine) - whole).norm(dim=1).mean())
        print(f"  detail {share:.1f}  PSNR {psnr:.2f} dB  distance {away:.3f}")


def picture(archive: Path | None) -> None:
    """The figure of docs/swap.md, of rendered faces alone."""
    faces, _, points = aligned_faces(6, 12)
    red = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    inside = hull(points, SIDE)
    rows = []
    for k, name in enumerate(REGIONS):
        weight = head(points[k : k + 1], SIDE) if name == "hair" else region_weights(points[k : k + 1], SIDE, {name})
        weight = weight if name == "hair" else weight * inside[k : k + 1]
        rows.append(torch.lerp(faces[k], red.expand_as(faces[k]), 0.6 * weight[0]))
    draw = torch.Generator().manual_seed(7)
    find = Uncovered("net")
    for k, kind in enumerate(("hand", "glasses", "microphone")):
        shown, _ = covered(faces[k : k + 1], points[k : k + 1], draw, kind)
        seen = find((255 * shown).round().to(torch.uint8), inside[k : k + 1])
        kept = (1 - seen[0]) * inside[k]
        rows += [shown[0], torch.lerp(shown[0], red.expand_as(shown[0]), 0.6 * kept)]
    for k in range(2):
        small = F.interpolate(faces[k + 3 : k + 4], (SIDE // 2, SIDE // 2), mode="area")[0]
        fine = [enlarged(small, 2, share) for share in (0.0, 1.0)]
        rows += [F.interpolate(small[None], (SIDE, SIDE), mode="nearest")[0], *fine]
    pictures = grid(2 * torch.stack(rows) - 1, 6)
    Image.fromarray(pictures.permute(1, 2, 0).numpy()).save(FIGURE, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("occlusion", "detail", "picture"))
    parser.add_argument("--photos", type=Path)
    given = parser.parse_args()
    {"occlusion": occlusion, "detail": detail, "picture": picture}[given.what](given.photos)
