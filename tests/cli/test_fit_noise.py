"""`ornstein fit-noise` as a user types it."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from ornstein.cli import app
from ornstein.noise import AR1, Covariance, Mixed, SpectralAR1, Toeplitz, parse

ROW = [1.0, 0.8, 0.5, 0.2]


def fit_noise(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["fit-noise", *(str(a) for a in arguments)])


def videos(folder: Path, noise: Covariance, count: int = 40) -> Path:
    """Folders of frames, each a clip of 4 frames of 8x8 whose covariance over frames is that of the noise."""
    x = noise.sample((count, 1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    pixels = (128 + 30 * x).round().clamp(0, 255).to(torch.uint8)
    for i, clip in enumerate(pixels[:, 0]):
        (folder / f"{i:03d}").mkdir(parents=True)
        for k, frame in enumerate(clip):
            Image.fromarray(frame.numpy()).save(folder / f"{i:03d}" / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos(tmp_path_factory.mktemp("videos"), Toeplitz(ROW))


COMMON = ("--frames", 4, "--size", 8, "--channels", 1)


@pytest.mark.parametrize(
    ("kind", "type_", "row"),
    [
        ("toeplitz", Toeplitz, [1.0, 0.792, 0.495, 0.198]),
        ("ar1", AR1, [1.0, 0.8, 0.64, 0.512]),
        ("mixed", Mixed, [1.0, 0.6, 0.6, 0.6]),  # (3 x 0.8 + 2 x 0.5 + 0.2) / 6
        ("blend:0.5", Toeplitz, [1.0, 0.396, 0.2475, 0.099]),
        ("spectral", SpectralAR1, None),
    ],
)
def test_the_file_holds_the_covariance_of_the_videos(
    known: Path, tmp_path: Path, kind: str, type_: type[Covariance], row: list[float] | None
):
    out, plot = tmp_path / "runs" / "noise.json", tmp_path / "plots" / "noise.png"
    result = fit_noise(known, "--kind", kind, "--out", out, "--plot", plot, *COMMON)
    assert result.exit_code == 0, result.output
    noise = parse(str(out), 4)
    assert type(noise) is type_
    if row is None:
        assert isinstance(noise, SpectralAR1)
        torch.testing.assert_close(torch.as_tensor(noise.rho), torch.full((4,), 0.8).double(), rtol=0, atol=0.08)
    else:
        torch.testing.assert_close(noise.dense()[0], torch.tensor(row).double(), rtol=0, atol=0.03)
    assert set(json.loads(out.read_text())) >= {"type"}
    assert Image.open(plot).size[0] > 600
    for word in ("autocorrelation by lag", "by spatial frequency", "kappa", "chosen", f"--noise {out}"):
        assert word in " ".join(result.output.split())


def test_a_bundled_source(tmp_path: Path):
    out = tmp_path / "noise.json"
    result = fit_noise("moving-digits", "--frames", 6, "--size", 16, "--kind", "ar1", "--clips", 30, "--out", out)
    assert result.exit_code == 0, result.output
    noise = parse(str(out), 6)
    assert isinstance(noise, AR1)
    assert 0.3 < noise.rho < 0.99  # digits move by less than their width in a frame


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no-such-folder",), ("no-such-folder",)),
        (("{known}", "--kind", "pink"), ("'pink'", "blend:0.5")),
        (("{known}", "--kind", "blend:2"), ("'blend:2'",)),
        (("{known}", "--kind", "blend"), ("'blend'",)),
        (("{known}", "--shrinkage", 2), ("--shrinkage", "between 0 and 1")),
        (("{static}",), ("do not differ",)),
    ],
)
def test_mistakes_are_told_in_one_line(
    known: Path, tmp_path: Path, arguments: tuple[object, ...], words: tuple[str, ...]
):
    static = tmp_path / "static"
    for i in range(3):
        (static / str(i)).mkdir(parents=True)
        for k in range(4):
            Image.new("L", (8, 8), 77).save(static / str(i) / f"{k}.png")
    given = [str(a).format(known=known, static=static) for a in arguments]
    result = fit_noise(*given, "--out", tmp_path / "noise.json", *COMMON)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]
    assert not (tmp_path / "noise.json").exists()
