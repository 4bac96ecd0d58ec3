"""What the commands write: never over the files of others, with their settings inside; and what `info` says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import ornstein as orn
from ornstein.nets import UNet
from ornstein.seal import is_sealed, sealed
from running import done, ornstein, refused


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three classes, one of which has a name that looks like markup."""
    torch.manual_seed(0)
    net = UNet(1, 8, 3, width=8, multipliers=(1, 2), depths=(1, 1), attention=())
    out = tmp_path_factory.mktemp("runs [x]") / "run"
    spec = orn.SampleSpec((1, 8, 8), ("a", "[bold]b", "\x1b[31mc"))
    orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=spec).save(out)
    return out


def test_samples_do_not_replace_the_pictures_of_others(run: Path, tmp_path: Path) -> None:
    sample = ("sample", run, "-n", 4, "--steps", 2, "--out", tmp_path)
    foreign = tmp_path / "00002.png"
    Image.new("L", (5, 5), 7).save(foreign)
    before = foreign.read_bytes()
    refused(ornstein(*sample), "00002.png", "--overwrite")
    assert [p.name for p in tmp_path.iterdir()] == ["00002.png"] and foreign.read_bytes() == before
    done(*sample, "--overwrite")
    assert is_sealed(foreign) and foreign.read_bytes() != before
    done(*sample, "--seed", 5)  # our own files of other settings
    with Image.open(foreign) as picture:
        edited = picture.copy()
    edited.putpixel((0, 0), 255 - edited.getpixel((0, 0)))
    edited.save(foreign)
    refused(ornstein(*sample), "00002.png", "was changed since")


@pytest.mark.parametrize("name", ["grid.png", "samples.json"])
def test_nor_a_grid_or_a_record(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    refused(ornstein("sample", run, "-n", 2, "--steps", 1, "--out", tmp_path), name, "--overwrite")
    assert (tmp_path / name).read_text() == "mine"


def test_fit_noise_replaces_its_own_files_only(tmp_path: Path) -> None:
    fit = ("fit-noise", "bouncing-balls", "--frames", 3, "--size", 16, "--clips", 4, "--out", tmp_path / "n.json")
    (tmp_path / "n.json").write_text('{"my": "notes"}')
    refused(ornstein(*fit), "n.json", "--overwrite")
    assert json.loads((tmp_path / "n.json").read_text()) == {"my": "notes"}
    assert "--out runs/n" in done(*fit, "--overwrite")
    output = done(*fit, "--kind", "best")
    assert "recommended" in output and json.loads((tmp_path / "n.json").read_text())["type"]
    Image.new("L", (5, 5)).save(tmp_path / "plot.png")
    refused(ornstein(*fit, "--plot", tmp_path / "plot.png"), "plot.png")


def test_tune_keeps_a_file_that_is_not_its_own(run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    (out / "tuned.json").write_text('{"guitar": "E A D G B E"}')
    refused(ornstein("tune", out, "--steps", 2), "tuned.json")
    assert "guitar" in (out / "tuned.json").read_text()


def test_pictures_carry_their_settings_and_columns_are_classes(run: Path, tmp_path: Path) -> None:
    done("sample", run, "-n", 6, "--steps", 2, "--seed", 9, "--out", tmp_path)
    with Image.open(tmp_path / "00004.png") as picture:
        told = json.loads(picture.info["Comment"])
    assert (told["seed"], told["steps"], told["sample"], len(told["model"])) == (9, 2, 4, 64)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (8 * (3 * 9 - 1), 8 * (2 * 9 - 1))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_seal_breaks_with_any_byte(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"a.{kind.lower()}"
    Image.new("L", (9, 7), 3).save(file)
    plain = file.read_bytes()
    assert not is_sealed(file)
    file.write_bytes(sealed(plain))
    assert is_sealed(file)
    with Image.open(file) as picture:
        picture.load()
        assert picture.size == (9, 7)
    data = sealed(plain)
    for i in range(0, len(data), 5):
        file.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        assert not is_sealed(file), i
    for broken in (b"", data[:-1], data + b"\0", data[:10]):
        file.write_bytes(broken)
        assert not is_sealed(file)


def test_info_and_ls_show_names_as_they_are(run: Path) -> None:
    output = done("info", run)
    assert "[bold]b" in output and "\x1b" not in output and "runs [x]" in output.replace("0", "") and "UNet" in output
    told = json.loads(ornstein("info", run, "--json").stdout)
    assert told["shape"] == [1, 8, 8] and told["parameters"] == sum(p.numel() for p in orn.load(run).net.parameters())
    assert "diffusion" in done("ls", run.parent)
    assert "torch" in done("env")
    refused(ornstein("info", run.parent), "no config.json")
    refused(ornstein("ls", run / "none"), "no folder")


def test_a_path_of_markup_is_said_as_it_is(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out[red]"
    assert f"2 samples in {folder}" in done("sample", run, "-n", 2, "--steps", 1, "--out", folder)
    assert ornstein("sample", run, "-n", 1, "--steps", 1, "--out", folder, "--quiet").stdout.strip() == ""
    refused(ornstein("sample", tmp_path / "none[/x]"), "none[/x]")


def test_an_option_that_does_nothing_is_refused(run: Path) -> None:
    for option in (("--fps", 3), ("--frames", 4), ("--first", 1), ("--overlap", 2), ("--given", "x")):
        refused(ornstein("sample", run, *option), option[0], "does nothing here", "model of images")
