"""Noise with the power of clips by spatial frequency (E41)."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ornstein.cli import app
from ornstein.noise import (
    AR1,
    ClipStatistics,
    Identity,
    Kronecker,
    Mixed,
    SingularCovarianceError,
    Spectrum,
    from_config,
    parse,
    to_config,
)
from ornstein.noise.spectral import radial_bands


def test_the_fit_is_the_power_of_the_clips() -> None:
    draw = torch.Generator().manual_seed(0)
    radius = torch.fft.fftfreq(12)[:, None].hypot(torch.fft.fftfreq(12)[None])
    true = Spectrum((1 / (0.05 + radius)).double())
    clips = true.sample((400, 1, 3, 12, 12), draw, torch.float64) + 3.0  # a still image is no power
    fitted = ClipStatistics.of(clips).equal_snr(0.0)
    half = radial_bands(12, 12, 6)
    for band in half.unique():
        inside = half == band
        wanted, found = (torch.as_tensor(c.power)[:, :7][inside].mean() for c in (true, fitted))
        assert float(found / wanted) == pytest.approx(1, abs=0.12)  # bands have few modes
    floor = ClipStatistics.of(clips).equal_snr(0.1)
    assert float(torch.as_tensor(floor.power).min()) >= 0.1
    with pytest.raises(ValueError, match="shrinkage"):
        ClipStatistics.of(clips).equal_snr(2.0)


@pytest.mark.parametrize("kind", ["equal-snr", "blue"])
def test_fit_noise_writes_it(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "noise.json"
    line = f"fit-noise drifting-textures --frames 3 --size 16 --clips 20 --kind {kind} --out {out}"
    assert CliRunner().invoke(app, line.split()).exit_code == 0
    noise = from_config(json.loads(out.read_text()))
    assert isinstance(noise, Spectrum) and noise.frame == (16, 16)
    power = torch.as_tensor(noise.power)
    low, high = float(power[0, 1]), float(power[0, 8])
    assert (low < high) == (kind == "blue")
    x = torch.randn(2, 1, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(noise.whiten(noise.color(x)), x)


POWER = torch.tensor([[3.0, 1.0, 0.5, 1.0], [0.7, 0.2, 0.4, 0.3], [0.9, 0.1, 0.6, 0.1], [0.7, 0.3, 0.4, 0.2]]).double()


@pytest.mark.parametrize("white", [0.0, 0.3])
@pytest.mark.parametrize("time", [AR1(3, 0.8), None])
def test_a_product_with_a_spectrum_is_its_dense_matrix(white: float, time: AR1 | None) -> None:
    c = Kronecker(time, Spectrum(POWER), white)
    frames = 1 if time is None else 3
    over_frames = torch.eye(1).double() if time is None else time.dense()
    wanted = (1 - white) * torch.kron(over_frames, Spectrum(POWER).dense()) + white * torch.eye(16 * frames)
    torch.testing.assert_close(c.dense(), wanted)
    x = torch.randn(2, 1, frames, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = x.flatten(1)
    torch.testing.assert_close(c.matvec(x).flatten(1), flat @ wanted)
    torch.testing.assert_close(c.solve(x).flatten(1), torch.linalg.solve(wanted, flat.mT).mT)
    torch.testing.assert_close(c.whiten(c.color(x)), x)
    root = c.color(torch.eye(16 * frames).double().view(-1, 1, frames, 4, 4)).flatten(1)
    torch.testing.assert_close(root.mT @ root, wanted)
    shape = (2, frames, 4, 4)
    assert c.logdet(shape) == pytest.approx(2 * float(torch.linalg.slogdet(wanted)[1]))
    torch.testing.assert_close(c.floored(0.2).dense(), 0.8 * wanted + 0.2 * torch.eye(16 * frames))
    assert from_config(json.loads(json.dumps(to_config(c)))) == c


def test_a_product_with_a_spectrum_refuses_what_does_not_fit() -> None:
    c = Kronecker(AR1(3, 0.8), Spectrum(POWER))
    with pytest.raises(ValueError, match="frames of its size"):
        c.color(torch.zeros(1, 1, 3, 4, 5))
    none = Kronecker(AR1(3, 0.8), Spectrum(torch.tensor([[1.0, 0.0], [0.0, 0.0]])))
    with pytest.raises(SingularCovarianceError):
        none.whiten(torch.zeros(1, 1, 3, 2, 2))
    assert none.floored(0.1).whiten(torch.ones(1, 1, 3, 2, 2)).isfinite().all()


def test_a_product_as_a_text(tmp_path: Path) -> None:
    file = tmp_path / "power.json"
    file.write_text(json.dumps(to_config(Spectrum(POWER))))
    assert parse(f"ar1:0.9 x {file}", 3) == Kronecker(AR1(3, 0.9), Spectrum(POWER))
    assert parse(f"white x {file}", 3) == Kronecker(None, Spectrum(POWER))
    file.write_text(json.dumps(to_config(Mixed(3, 0.5))))
    for wrong in (f"ar1:0.9 x {file}", f"warped x {file}", f"ar1:0.9 x {tmp_path}/none.json", "ar1:0.9 x "):
        with pytest.raises(ValueError, match=r"spectrum over pixels|cannot be read"):
            parse(wrong, 3)
    assert parse("white", 3) == Identity()


def test_fit_noise_writes_a_product(tmp_path: Path) -> None:
    out = tmp_path / "noise.json"
    line = f"fit-noise drifting-textures --frames 3 --size 16 --clips 20 --kind ar1-equal-snr --out {out}"
    assert CliRunner().invoke(app, line.split()).exit_code == 0
    noise = parse(str(out), 3)
    assert isinstance(noise, Kronecker) and isinstance(noise.time, AR1) and isinstance(noise.space, Spectrum)
    with pytest.raises(ValueError, match="made for 3 frames"):
        parse(str(out), 4)
