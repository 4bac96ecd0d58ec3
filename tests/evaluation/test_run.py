"""The report after a training stays within its time, and says what it left out."""

import math
import time
from pathlib import Path

import pytest
import torch

import ornstein as orn
from ornstein.data import ImageSet
from ornstein.evaluation.run import STEPS, affordable, write_run_report

SHAPE = (1, 8, 8)


class Slow(torch.nn.Module):
    """A network that takes a time for each image."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor, log_snr: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        time.sleep(self.seconds * len(x))
        return torch.zeros_like(x)


def model(seconds: float, classes: tuple[str, ...] = ("a", "b")) -> orn.Denoiser:
    process = orn.Process(orn.schedules.Cosine())
    return orn.Denoiser(Slow(seconds), process, "v", data=orn.SampleSpec(SHAPE, classes))


def images(count: int, seed: int) -> ImageSet:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *SHAPE), generator=draw, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    return ImageSet("set", pixels, [str(i) for i in range(count)], [1] * count, labels, ["a", "b"])


def test_what_can_be_drawn_is_measured() -> None:
    each = 2e-3 * STEPS  # seconds a sample, and what the sampler adds
    count = affordable(model(2e-3), 8.0, 1000)
    assert 0.3 * 8 / each < count <= 8 / each
    assert affordable(model(2e-3), 8.0, 7) == 7
    assert affordable(model(10.0), math.inf, 1000) == 1000  # no limit, nothing to measure
    assert affordable(model(2e-3), 0.0, 1000) == 0


@pytest.mark.parametrize("each", [2e-4, 4e-3, 2e-2])
def test_a_report_stays_within_its_time(each: float, tmp_path: Path) -> None:
    """As planned it would take 1.4, 27 and 137 seconds: with less time it compares, scores and shows less."""
    planned = (100 + 20 + 128 + 2 * 128 * (5 + 20) / STEPS) * STEPS * each
    began = time.monotonic()
    scores = write_run_report(
        tmp_path, model(each), images(60, 0), images(20, 1), "run", {}, samples=128, quality_steps=(5, 20), seconds=8.0
    )
    assert time.monotonic() - began < 8.0 + 4.0  # scores and page on a busy machine
    page = (tmp_path / "report.html").read_text()
    if planned > 8:
        assert "To stay within 8 s this report leaves out" in page and "ornstein evaluate" in page
    else:
        assert "To stay within" not in page and "Quality against steps" in page
    assert (tmp_path / "samples.png").is_file()
    assert scores or each > 1e-2


def test_without_a_limit_nothing_is_left_out(tmp_path: Path) -> None:
    scores = write_run_report(tmp_path, model(0.0, ()), images(60, 0), images(20, 1), "run", {}, samples=16)
    page = (tmp_path / "report.html").read_text()
    assert "To stay within" not in page and "16 samples against the held-out images" in page and scores


def test_noise_is_called_noise(tmp_path: Path) -> None:
    """Pictures of two grey halves, and a model that has learned nothing."""
    flat = torch.full((40, *SHAPE), 60, dtype=torch.uint8)
    flat[::2, ..., :4] = 190
    flat[1::2, ..., 4:, :] = 190
    sets = [ImageSet("set", flat, [str(i) for i in range(40)], [1] * 40, torch.arange(40) % 2, ["a", "b"])] * 2
    scores = write_run_report(tmp_path, model(0.0), *sets, "run", {}, samples=64)
    assert "The samples are still noise" in (tmp_path / "report.html").read_text()
    (score,) = [score for score in scores if score.name == "Noise left in the samples"]
    assert float(str(score.value).rstrip("%")) > 80 and score.reference == "0.0% in training data"
