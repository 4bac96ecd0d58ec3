"""`ornstein edit` on small models that are not trained: what is kept, what is written, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import ornstein as orn
from ornstein import edit
from ornstein.denoiser import SampleSpec
from ornstein.editing import Editor
from ornstein.editing.settings import METHODS
from ornstein.nets import UNet, VideoUNet
from running import done, ornstein, refused

SMALL: dict[str, Any] = {"width": 16, "multipliers": (1,), "depths": (1,), "attention": ()}
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (40, 24, 3), dtype=np.uint8)  # 24 wide, 40 high


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models `grey` (1, 8, 8), `colour` (3, 16, 16), `films` (3, 4, 16, 16), `given`; and pictures."""
    folder = tmp_path_factory.mktemp("edit")
    torch.manual_seed(0)
    process = orn.Process(orn.schedules.Cosine())
    nets = {
        "grey": (UNet(1, 8, 2, **SMALL), SampleSpec((1, 8, 8), ("cat", "dog"))),
        "colour": (UNet(3, 16, **SMALL), SampleSpec((3, 16, 16))),
        "films": (VideoUNet(3, 16, 4, **SMALL), SampleSpec((3, 4, 16, 16))),
        "given": (VideoUNet(3, 16, 4, conditioning=True, **SMALL), SampleSpec((3, 4, 16, 16))),
    }
    for name, (net, spec) in nets.items():
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        orn.Denoiser(net, process, "v", data=spec).save(folder / name)
    Image.fromarray(COLOUR).save(folder / "photo.png")
    Image.fromarray(COLOUR[:16, :16]).save(folder / "same.png")
    Image.fromarray(COLOUR[:8, :8, 0]).save(folder / "scan.png")
    Image.fromarray(hole(40, 24, 10, 20)).save(folder / "hole.png")
    Image.fromarray(hole(8, 8, 2, 6)).save(folder / "small-hole.png")
    return folder


def hole(height: int, width: int, low: int, high: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[low:high, low:high] = 255
    return mask


def array(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_the_names_of_methods_are_those_of_the_library() -> None:
    assert set(METHODS) == set(edit.METHODS_OF_EDITS)


@pytest.mark.parametrize("fit", ["auto", "crop", "resize", "native"])
def test_a_fill_keeps_every_pixel_outside_of_the_mask(home: Path, tmp_path: Path, fit: str) -> None:
    said = done("edit", "inpaint", home / "colour", home / "photo.png", "--mask", home / "hole.png", "-n", 2, "--steps",
                2, "--fit", fit, "-o", tmp_path)  # fmt: skip
    known = array(home / "hole.png") == 0
    made = [array(tmp_path / f"photo-00{i}.png") for i in range(2)]
    assert all(np.array_equal(each[known], COLOUR[known]) for each in made)
    assert not np.array_equal(made[0], made[1]) and not np.array_equal(made[0], COLOUR)
    spread = array(tmp_path / "photo-uncertainty.png")
    assert spread.shape == (40, 24) and spread.max() == 255 and not spread[known].any()
    record = json.loads((tmp_path / "edit.json").read_text())
    assert record["seed"] == 0 and record["pictures"]["photo.png"]["largest_uncertainty"] > 0
    assert "2 answers in" in said and (fit != "native" or "may not hold together" in said)


def test_answers_are_addressed_by_the_seed_and_their_number(home: Path, tmp_path: Path) -> None:
    words = ["edit", "inpaint", home / "grey", home / "scan.png", "--mask", home / "small-hole.png", "--steps", 3]
    done(*words, "-n", 3, "-o", tmp_path / "three")
    done(*words, "-n", 3, "-b", 1, "-o", tmp_path / "one-by-one")
    done(*words, "-n", 3, "--seed", 1, "-o", tmp_path / "other")
    done(*words, "-o", tmp_path / "single.png")
    three, again, other = (
        [array(tmp_path / name / f"scan-00{i}.png").astype(int) for i in range(3)]
        for name in ("three", "one-by-one", "other")
    )
    assert max(int(np.abs(a - b).max()) for a, b in zip(three, again, strict=True)) <= 1
    assert int(np.abs(three[0] - array(tmp_path / "single.png")).max()) <= 1
    assert all(not np.array_equal(a, b) for a, b in zip(three, other, strict=True))
    assert "0 answers" not in done(*words, "-n", 3, "-o", tmp_path / "three")  # our own files are replaced


def test_a_folder_of_pictures(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(COLOUR[i : i + 8, :8, 0]).save(folder / f"{i}.png")
    done("edit", "sdedit", home / "grey", folder, "--strength", 0.4, "-n", 2, "--steps", 2, "-o", tmp_path / "out")
    names = sorted(p.name for p in (tmp_path / "out").glob("*-00?.png"))
    assert names == ["0-000.png", "0-001.png", "1-000.png", "1-001.png"]
    record = json.loads((tmp_path / "out" / "edit.json").read_text())
    assert [record["pictures"][name]["first"] for name in ("0.png", "1.png")] == [0, 2]


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["restore", "{photo}", "--operator", "blur:1", "--noise-std", 0.1], (40, 24)),
        (["restore", "{photo}", "--operator", "area:2", "--degrade", "-n", 3], (40, 24)),
        (["restore", "{photo}", "--operator", "jpeg:30"], (40, 24)),
        (["restore", "{same}", "--operator", "motion:3+bicubic:2", "--degrade"], (16, 16)),
        (["restore", "{scan}", "--operator", "radon:6", "--degrade", "-n", 2], (8, 8)),
        (["upscale", "{scan}", "--factor", 2], (16, 16)),
        (["upscale", "{photo}", "--factor", 2, "--kind", "bicubic"], (80, 48)),
        (["colourise", "{photo}"], (40, 24)),
        (["colourise", "{same}"], (16, 16)),
        (["sdedit", "{photo}"], (16, 16)),
        (["sdedit", "{photo}", "--fit", "tile"], (40, 24)),
        (["interpolate", "{same}", "{photo}", "-n", 3, "--tolerance", 0.01], (16, 16)),
    ],
)
def test_every_edit_gives_pictures_of_its_size(home: Path, tmp_path: Path, words: list[Any], size: Any) -> None:
    words = [
        str(word).format(photo=home / "photo.png", same=home / "same.png", scan=home / "scan.png") for word in words
    ]
    model = home / ("grey" if "scan" in words[1] else "colour")
    said = done("edit", words[0], model, *words[1:], "--steps", 2, "-o", tmp_path)
    made = array(sorted(tmp_path.glob("*-000.png"))[0])
    assert made.shape[:2] == size
    if "--degrade" in words:
        assert "dB PSNR" in said and ("if calibrated" in said or "-n" not in words)


def test_colours_keep_the_luma_and_paths_their_ends(home: Path, tmp_path: Path) -> None:
    grey = (0.3 * (COLOUR @ (0.299, 0.587, 0.114)) + 90).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    said = done("edit", "colourise", home / "colour", tmp_path / "grey.png", "--steps", 4, "-o", tmp_path / "c")
    made = array(tmp_path / "c" / "grey-000.png")
    inside = ((made > 0) & (made < 255)).all(2)
    assert "laid over the picture's own luma" in said and inside.mean() > 0.1
    assert np.abs(made @ (0.299, 0.587, 0.114) - grey)[inside].max() < 1.5
    done("edit", "interpolate", home / "colour", home / "same.png", home / "same.png", "-n", 2, "--steps", 6, "-o",
         tmp_path / "p")  # fmt: skip
    for i in range(2):
        end = array(tmp_path / "p" / f"same-00{i}.png").astype(int)
        assert np.abs(end - COLOUR[:16, :16]).max() <= 2


def test_masks_that_hide_all_or_nothing_are_said(home: Path, tmp_path: Path) -> None:
    words = ["edit", "inpaint", home / "grey", home / "scan.png", "--steps", 2]
    for value, text in ((255, "samples of the model"), (0, "returned as")):
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / "mask.png")
        assert text in done(*words, "--mask", tmp_path / "mask.png", "-o", tmp_path / str(value))
    assert np.array_equal(array(tmp_path / "0" / "scan-000.png"), array(home / "scan.png"))
    assert not np.array_equal(array(tmp_path / "255" / "scan-000.png"), array(home / "scan.png"))


def test_noise_0_with_something_inexact_is_said(home: Path, tmp_path: Path) -> None:
    words = ["edit", "restore", home / "grey", home / "scan.png", "--steps", 2]
    assert "JPEG rounds" in done(*words, "--operator", "jpeg:50", "-o", tmp_path / "jpeg")
    assert "are rounded" in done(*words, "--operator", "noise", "--noise-std", 0, "-o", tmp_path / "png")


def mistakes(home: Path, folder: Path) -> dict[str, tuple[list[Any], list[str]]]:
    fill = ["inpaint", home / "grey", home / "scan.png", "--mask"]
    small, photo, scan = home / "small-hole.png", home / "photo.png", home / "scan.png"
    np.save(folder / "nan.npy", np.full((1, 8, 8), np.nan, np.float32))
    np.save(folder / "many.npy", np.zeros((5, 8, 8), np.float32))
    np.save(folder / "one.npy", np.zeros((3, 8, 8), np.float32))
    np.save(folder / "film.npy", np.zeros((3, 4, 6, 6), np.float32))
    np.save(folder / "films.npy", np.zeros((3, 4, 16, 16), np.float32))
    np.save(folder / "text.npy", np.array(["a"]))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"format": 1, "autoencoder": {"type": "KL"}}')
    (folder / "empty").mkdir()
    (folder / "broken.png").write_bytes(photo.read_bytes()[:200])
    blur = ["--operator", "blur:1"]
    return {
        "mask of another size": ([*fill, home / "hole.png"], ["the mask is 24x40", "8x8"]),
        "no mask": (["inpaint", home / "grey", scan], ["--mask"]),
        "no such mask": ([*fill, folder / "none.png"], ["none.png"]),
        "colour on grey": (["sdedit", home / "grey", photo], ["3 channels", "makes 1"]),
        "channels": (["sdedit", home / "colour", folder / "many.npy"], ["(5, 8, 8)", "3 channels"]),
        "not finite": (["restore", home / "grey", folder / "nan.npy", *blur], ["not finite"]),
        "not finite to vary": (["sdedit", home / "grey", folder / "nan.npy"], ["not finite"]),
        "not finite outside": ([*fill[:2], folder / "nan.npy", "--mask", small], ["outside the mask", "not finite"]),
        "text": (["sdedit", home / "grey", folder / "text.npy"], ["no array of numbers"]),
        "broken": (["sdedit", home / "colour", folder / "broken.png"], ["broken.png cannot be used"]),
        "operator": (["restore", home / "grey", scan, "--operator", "sharpen"], ["unknown operator", "blur"]),
        "number": (["restore", home / "grey", scan, "--operator", "blur"], ["blur:2"]),
        "does not fit": (["restore", home / "grey", scan, "--operator", "area:3"], ["does not fit"]),
        "too wide": (["restore", home / "grey", scan, "--operator", "box:9"], ["larger than the picture"]),
        "grey of colour": (["restore", home / "colour", photo, "--operator", "grey"], ["1 channel", "3 channels"]),
        "of another size": (["restore", home / "grey", scan, "--operator", "sensing:0.5"], ["but y has"]),
        "eigenvalues": (["restore", home / "grey", scan, *blur, "--method", "ddrm"], ["eigenvalues", "moments"]),
        "method": (["restore", home / "grey", scan, *blur, "--method", "best"], ["moments"]),
        "noise": (["restore", home / "grey", scan, *blur, "--noise-std", -1], ["--noise-std"]),
        "noise of a JPEG": (["restore", home / "grey", scan, "--operator", "jpeg:9", "--noise-std", 1], ["leave out"]),
        "grey model": (["colourise", home / "grey", scan], ["no colours"]),
        "no fraction": (["upscale", home / "colour", photo], ["--factor"]),
        "strength": (["sdedit", home / "grey", scan, "--strength", 0], ["--strength"]),
        "class": (["sdedit", home / "grey", scan, "--class", "bird"], ["cat, dog"]),
        "guidance": (["sdedit", home / "grey", scan, "--guidance", 3], ["--class"]),
        "prompt": (["sdedit", home / "grey", scan, "--prompt", "a cat"], ["without text"]),
        "autoencoder": (["sdedit", folder / "model", scan], ["autoencoder"]),
        "no model": (["sdedit", folder / "nothing", scan], ["nothing"]),
        "no picture": (["sdedit", home / "grey", folder / "none.png"], ["none.png"]),
        "empty folder": (["sdedit", home / "grey", folder / "empty"], ["no pictures"]),
        "one file": (["sdedit", home / "grey", scan, "-n", 2, "-o", folder / "a.png"], ["give a folder"]),
        "folder": (["interpolate", home / "grey", folder / "empty", scan], ["is a folder"]),
        "clip option": ([*fill, small, "--known-frames", "0"], ["--known-frames", "images"]),
        "clip": (["sdedit", home / "films", photo], ["photo.png", "as a clip"]),
        "path of clips": (["interpolate", home / "films", photo, photo], ["models of pictures"]),
        "picture for a clip": (["restore", home / "films", folder / "many.npy"], ["(5, 8, 8)"]),
        "array of pictures": (["restore", home / "films", folder / "one.npy"], ["(3, 8, 8)", "(C, F, H, W)"]),
        "JPEG of clips": (["restore", home / "films", folder / "films.npy", "--operator", "jpeg:50"], ["does not fit"]),
        "clip of another size": (["upscale", home / "films", folder / "film.npy"], ["6x6", "--factor"]),
    }


def test_every_mistake_is_one_line(home: Path, tmp_path: Path) -> None:
    for name, (words, expected) in mistakes(home, tmp_path).items():
        out = [] if "-o" in words else ["-o", tmp_path / "out"]
        result = ornstein("edit", *words, "--steps", 2, *out)
        try:
            refused(result, *expected)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
    assert not (tmp_path / "out").exists()


def test_files_of_others_stay(home: Path, tmp_path: Path) -> None:
    (tmp_path / "scan-000.png").write_bytes(b"mine")
    words = ["edit", "sdedit", home / "grey", home / "scan.png", "--steps", 2, "-o", tmp_path]
    refused(ornstein(*words), "scan-000.png", "--overwrite")
    assert (tmp_path / "scan-000.png").read_bytes() == b"mine"
    done(*words, "--overwrite")


def test_an_object_is_removed_from_a_clip_by_a_track(home: Path, tmp_path: Path) -> None:
    clip = RNG.integers(0, 256, (7, 20, 16, 3), dtype=np.uint8)
    track = np.zeros((7, 20, 16), bool)
    for k in range(7):
        track[k, 4 : 8 + k, 3:9] = k > 0
    np.save(tmp_path / "clip.npy", (clip.astype(np.float32) / 127.5 - 1).transpose(3, 0, 1, 2))
    np.save(tmp_path / "track.npy", track)
    said = done("edit", "inpaint", home / "films", tmp_path / "clip.npy", "--mask", tmp_path / "track.npy", "-n", 2,
                "--steps", 2, "-o", tmp_path / "out")  # fmt: skip
    assert "7 frames, 4 at a time" in said and (tmp_path / "out" / "clip-001.mp4").is_file()
    made = np.stack([array(tmp_path / "out" / "clip-000" / f"{k:05d}.png") for k in range(7)])
    assert np.array_equal(made[~track], clip[~track]) and not np.array_equal(made[track], clip[track])
    short = tmp_path / "short.npy"
    np.save(short, track[:3])
    refused(ornstein("edit", "inpaint", home / "films", tmp_path / "clip.npy", "--mask", short, "-o", tmp_path / "no"),
            "3 frames", "7")  # fmt: skip


@pytest.mark.parametrize("model", ["films", "given"])
def test_frames_in_between(home: Path, tmp_path: Path, model: str) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(COLOUR[k : k + 16, :16]).save(folder / f"{k}.png")
    said = done("edit", "inpaint", home / model, folder, "--known-frames", "0,-1", "--steps", 2, "-o", tmp_path / "out")
    made = [array(tmp_path / "out" / "frames-000" / f"{k:05d}.png") for k in range(3)]
    assert [np.array_equal(each, COLOUR[k : k + 16, :16]) for k, each in enumerate(made)] == [True, False, True]
    assert ("has learned to continue" in said) == (model == "given")
    refused(ornstein("edit", "inpaint", home / model, folder, "--known-frames", "9", "-o", tmp_path / "no"), "0 to 2")


class Nothing(torch.nn.Module):
    """A network whose output is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        return self.weight * x


@pytest.mark.parametrize("frames", [3, 7])
def test_what_was_measured_of_every_frame_is_that_of_the_answers(frames: int) -> None:
    """`Nothing` is the exact denoiser of normal values: moment matching draws from their posterior."""
    torch.manual_seed(0)
    process, spec = orn.Process(orn.schedules.Cosine()), SampleSpec((3, 4, 8, 8))
    model = orn.Denoiser(Nothing(), process, "edm", data_std=0.2, data=spec)
    editor = Editor(model, n=12, options={"steps": 8})
    y = torch.randn(3, frames, 4, 4) / 10
    made = editor.upscale(y, 2, "area", 0.0)
    torch.testing.assert_close(F.avg_pool3d(made, (1, 2, 2)), y.expand(12, *y.shape), rtol=0, atol=0.015)
    within = made - y.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert float(within.var()) / 0.2**2 == pytest.approx(3 / 4, rel=0.2)  # of four values whose mean is known
    together = float((within[:, :, 0] * within[:, :, -1]).mean()) / 0.2**2
    assert together == pytest.approx(0, abs=0.1)  # frames are independent
    grey = editor.colourise(torch.randn(1, frames, 8, 8) / 10, 0.0)
    assert len(editor.notes) == 1 and grey.shape == (12, 3, frames, 8, 8)


def test_clips_are_enlarged_and_coloured(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for k in range(5):
        Image.fromarray(COLOUR[k : k + 8, :8]).save(folder / f"{k}.png")
    words = ["--steps", 2, "-n", 2, "-o", tmp_path / "out"]
    said = done("edit", "upscale", home / "films", folder, *words)
    assert "5 frames, 4 at a time" in said and read(tmp_path / "out" / "frames-001", 5).shape == (3, 5, 16, 16)
    assert (tmp_path / "out" / "frames-001.mp4").is_file()
    done("edit", "colourise", home / "films", tmp_path / "out" / "frames-001.mp4", "--steps", 2, "-o", tmp_path / "c")
    assert len(read(tmp_path / "c" / "frames-001-000", 5)) == 3


def read(folder: Path, frames: int) -> np.ndarray:
    """The frames that an edit wrote beside its video, (C, F, H, W) in [-1, 1]."""
    assert len(list(folder.iterdir())) == frames
    made = np.stack([array(folder / f"{k:05d}.png") for k in range(frames)])
    return made.transpose(3, 0, 1, 2) / 127.5 - 1


def test_damage_to_a_clip_of_any_size_is_undone(home: Path, tmp_path: Path) -> None:
    clip = RNG.integers(0, 256, (6, 20, 24, 3), dtype=np.uint8)
    np.save(tmp_path / "clip.npy", clip)
    said = done("edit", "restore", home / "films", tmp_path / "clip.npy", "--operator", "box:2+grey", "--degrade",
                "--noise-std", 0.1, "--steps", 2, "-n", 2, "-o", tmp_path / "out")  # fmt: skip
    assert "tiles of 16x16" in said and "4 at a time" in said and "PSNR" in said
    assert read(tmp_path / "out" / "clip-000", 6).shape == (3, 6, 20, 24)
    refused(
        ornstein("edit", "sdedit", home / "films", tmp_path / "clip.npy", "-o", tmp_path / "no"), "6 cannot be varied"
    )


def test_other_models_are_refused(home: Path, tmp_path: Path) -> None:
    orn.Denoiser(UNet(1, 8, **SMALL), orn.Process(orn.schedules.Cosine()), "v").save(tmp_path / "no-spec")
    refused(ornstein("edit", "sdedit", tmp_path / "no-spec", home / "scan.png", "-o", tmp_path / "o"), "look like")
    net = orn.nets.FaceUNet(3, 16, 5, 8, width=16, multipliers=(1,), depths=(1,))
    spec = SampleSpec((3, 16, 16))
    orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=spec).save(tmp_path / "swap")
    refused(ornstein("edit", "sdedit", tmp_path / "swap", home / "same.png", "-o", tmp_path / "o"), "ornstein swap")
