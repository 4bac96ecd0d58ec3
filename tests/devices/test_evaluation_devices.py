"""Evaluation, reports and benchmarks of models on a GPU: class-conditional, of clips, and autoencoders."""

from pathlib import Path

import pytest
import torch
from models import CLASSES, filled
from pretend import PretendedGPU

import ornstein as orn
from ornstein.autoencoders import AUTOENCODERS
from ornstein.cli.bench import timed
from ornstein.data import ImageSet, open_clips
from ornstein.evaluation import Plan, evaluate_model, measure, open_features
from ornstein.evaluation import held_out as likelihoods
from ornstein.evaluation.few_steps import Way, quality_by_steps
from ornstein.evaluation.plan import measure_costs
from ornstein.evaluation.run import write_run_report
from ornstein.evaluation.run_autoencoder import write_autoencoder_report
from ornstein.evaluation.run_clips import write_clip_report
from ornstein.nets import UNet, VideoUNet


def images(count: int, seed: int) -> ImageSet:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=draw, dtype=torch.uint8)
    names = [f"{seed}-{i}" for i in range(count)]
    return ImageSet("set", pixels, names, [1] * count, labels=torch.arange(count) % 3, classes=list(CLASSES))


def model() -> orn.Denoiser:
    """A class-conditional model of images (1, 8, 8), on the CPU."""
    net = filled(UNet(1, 8, 3, width=16, multipliers=(1, 1), depths=(1, 1), attention=(4,)))
    return orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=orn.SampleSpec((1, 8, 8), CLASSES)).eval()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Likelihoods of few terms."""
    monkeypatch.setattr(likelihoods, "STEPS", 6)
    monkeypatch.setattr(likelihoods, "LEVELS", 4)
    monkeypatch.setattr(likelihoods, "TOLERANCE", 1.0)
    monkeypatch.setattr(measure, "FIT_STEPS", 2)


def test_an_evaluation_is_that_of_the_cpu(gpu: PretendedGPU, short: None) -> None:
    plan = Plan(
        12, ("flow-3m", "ddim"), (2,), seeds=1, methods=("vlb", "continuous", "ode", "ode-variational"), images=9
    )
    held_out, train, results = images(12, 0), images(20, 1), []
    for device in ("cpu", "cuda"):
        d = model().to(device)
        assert measure_costs(d, 8, open_features("conv")(held_out.images)).call > 0
        results.append(evaluate_model(d, plan, held_out, train, open_features("conv")))
    cpu, cuda = results
    assert cuda.left_out == () and len(cuda.bits) == 4
    for one, other in zip(cpu.bits, cuda.bits, strict=True):
        assert other.mean == pytest.approx(one.mean, rel=1e-3), one.method
    for one, other in zip(cpu.rows, cuda.rows, strict=True):
        assert other.frechet.mean == pytest.approx(one.frechet.mean, rel=0.02)
    assert cuda.samples.device.type == "cpu"


def test_the_report_of_a_training(gpu: PretendedGPU, tmp_path: Path) -> None:
    settings = {"samples": 16, "quality_steps": (2,)}
    scores = write_run_report(tmp_path, model().to("cuda"), images(40, 1), images(12, 0), "run", {}, **settings)
    assert {"k-NN agreement", "Exact copies"} <= {score.name for score in scores}
    bounded = write_run_report(tmp_path, model().to("cuda"), images(40, 1), images(12, 0), "run", {}, seconds=1.0)
    assert isinstance(bounded, list)


def test_the_report_of_a_training_on_clips(gpu: PretendedGPU, tmp_path: Path) -> None:
    net = filled(VideoUNet(1, 16, 4, width=16, multipliers=(1, 1), depths=(1, 1), attention=(8,)))
    d = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=orn.SampleSpec((1, 4, 16, 16))).to("cuda")
    clips = open_clips("bouncing-balls", frames=4, size=16)
    scores = write_clip_report(tmp_path, d.eval(), clips, clips, "clips", {}, samples=16)
    assert "Flicker" in {score.name for score in scores}


@pytest.mark.parametrize("kind", ["kl", "vq", "ae"])
def test_the_report_of_an_autoencoder(gpu: PretendedGPU, tmp_path: Path, kind: str) -> None:
    autoencoder = AUTOENCODERS[kind](1, 8, width=16, depths=(1, 1, 1)).to("cuda").eval()
    scores, _ = write_autoencoder_report(tmp_path, autoencoder, images(20, 1), images(12, 0), "autoencoder", {})
    assert {"PSNR", "SSIM"} <= {score.name for score in scores}


def test_the_comparison_with_a_teacher(gpu: PretendedGPU) -> None:
    d, held_out = model().to("cuda"), images(12, 0)
    rows = quality_by_steps(d, [Way("ddim", d, 2, "ddim")], held_out.images, open_features("conv")(held_out.images), 8)
    assert len(rows) == 1 and rows[0]["steps"] == 2


def test_a_benchmark_of_a_model_with_classes(gpu: PretendedGPU) -> None:
    timing = timed(model().to("cuda"), "ddim", 2, 4)
    assert timing.calls == 2 and 0 < timing.network < timing.total
