"""Noise with the power of clips by spatial frequency (E41)."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ornstein.cli import app
from ornstein.noise import ClipStatistics, Spectrum, from_config
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
