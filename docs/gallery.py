"""The pictures of the README and of the gallery page that need no trained model.

python docs/gallery.py                 # all of them, half a minute on one core
python docs/gallery.py hero faces      # some
"""

import argparse
import textwrap
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

import ornstein as orn
from ornstein.data import shapes
from ornstein.data.pixels import grid, to_uint8
from ornstein.faces.world import attributes, identities, motion, render

FOLDER = Path(__file__).parent / "images" / "gallery"
HERO = Path(__file__).parent / "images" / "hero.gif"
FRAMES = 24


def talking(size: int, people: int = 1, seed: int = 1) -> Tensor:
    """Procedural people who turn, talk and blink: (people, 3, FRAMES, size, size) in [-1, 1]."""
    states = motion(people, frames=FRAMES, seed=seed)
    return torch.stack(
        [
            render(who.expand(FRAMES, -1), clip, size).image.movedim(0, 1)
            for who, clip in zip(identities(people, seed), states, strict=True)
        ]
    )


def noise_clip(covariance: orn.noise.Covariance, size: int = 32, upscale: int = 4) -> Tensor:
    """A grey clip of noise with a covariance over frames, (3, FRAMES, size * upscale, ...) in [-1, 1]."""
    z = covariance.sample((1, 1, FRAMES, size, size), generator=torch.Generator().manual_seed(0))
    larger = z[0].float().repeat_interleave(upscale, -1).repeat_interleave(upscale, -2)
    return (larger / 2.5).clamp(-1, 1).expand(3, -1, -1, -1)


def gif(clips: list[Tensor], path: Path, colours: int = 64, duration: int = 100) -> None:
    """Clips (3, F, H, W) of one height side by side, with a gap of 4 pixels."""
    frames = to_uint8(torch.cat([F.pad(clip, (0, 4), value=1) for clip in clips], -1)[..., :-4]).permute(1, 2, 3, 0)
    pictures = [Image.fromarray(frame.numpy()).quantize(colours, dither=Image.Dither.NONE) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=duration, loop=0, optimize=True)


def hero() -> None:
    """A talking procedural face, white noise, and noise that is correlated over frames."""
    clips = [*talking(128, people=2), noise_clip(orn.noise.Identity()), noise_clip(orn.noise.AR1(FRAMES, 0.9))]
    gif(clips, HERO)


def faces() -> None:
    """Fifteen procedural people in states of their own."""
    picture = grid(render(identities(15, 1), attributes(15, 1), 128).image, 5)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).quantize(255).save(FOLDER / "faces.png", optimize=True)


def swaps() -> None:
    """Every one of four people (columns) in every one of four states (rows): the true answers of all swaps."""
    people, states = identities(4, 2), attributes(4, 11)
    every = render(people.repeat(4, 1), states.repeat_interleave(4, 0), 128).image
    Image.fromarray(grid(every, 4).permute(1, 2, 0).numpy()).quantize(255).save(FOLDER / "swaps.png", optimize=True)


def talk() -> None:
    """Three procedural people who talk."""
    gif(list(talking(128, people=3)), FOLDER / "talk.gif")


def noise() -> None:
    """The same white noise under four covariances over the frames."""
    shown = [
        orn.noise.Identity(),
        orn.noise.AR1(FRAMES, 0.9),
        orn.noise.Mixed(FRAMES, 0.7),
        orn.noise.AR1(FRAMES, -0.9),
    ]
    gif([noise_clip(covariance) for covariance in shown], FOLDER / "noise.gif", colours=16)


def denoising() -> None:
    """A picture at nine times of the forward process, under the cosine schedule."""
    process = orn.Process(orn.schedules.Cosine())
    x0 = render(identities(1, 3), attributes(1, 3), 128).image
    z = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    steps = torch.cat([process.add_noise(x0, t, z) for t in torch.linspace(0, 1, 7).tolist()])
    Image.fromarray(grid(steps.clamp(-1, 1), 7).permute(1, 2, 0).numpy()).quantize(255).save(
        FOLDER / "forward.png", optimize=True
    )


def captioned() -> None:
    """Six pictures of the set of shapes, with one of their captions below."""
    side, line = 160, 14
    scenes = [scene for scene in shapes.scenes(40, seed=4) if scene.relations][:6]
    sheet = Image.new("RGB", (6 * side, side + 3 * line), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (scene, picture) in enumerate(zip(scenes, shapes.render(scenes, side - 8), strict=True)):
        sheet.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (i * side + 4, 0))
        for k, text in enumerate(textwrap.wrap(scene.captions[0], 24)):
            draw.text((i * side + 6, side - 4 + k * line), text, "black")
    sheet.quantize(64, dither=Image.Dither.NONE).save(FOLDER / "shapes.png", optimize=True)


def portraits(folder: Path) -> None:
    """Write six thousand procedural portraits to train on; a minute and a half on one core."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, 6000, 100):
        made = to_uint8(render(identities(100, 7, first), attributes(100, 7, first), 96).image)
        for i, picture in enumerate(made, first):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{i:05d}.png")


PICTURES: dict[str, Callable[[], None]] = {
    "hero": hero, "faces": faces, "swaps": swaps, "talk": talk, "noise": noise, "forward": denoising,
    "shapes": captioned,
}  # fmt: skip


def main() -> None:
    """Make the pictures named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--portraits", type=Path, metavar="FOLDER", help="write pictures to train on, and no others")
    arguments = parser.parse_args()
    if arguments.portraits is not None:
        portraits(arguments.portraits)
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or PICTURES:
        PICTURES[name]()
        print(name)


if __name__ == "__main__":
    main()
