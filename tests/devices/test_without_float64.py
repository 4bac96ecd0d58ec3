"""A device without float64, as Apple's MPS: the float64 arithmetic of all that computes there is done on the CPU."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from models import LABELS, clip_model, image_model
from pretend import PretendedGPU
from test_sampling_devices import NOISES, SHAPE, STEPS
from test_training_devices import Images, config

import ornstein as orn
from ornstein import likelihood, video
from ornstein.autoencoders import AUTOENCODERS, AutoencoderLoss
from ornstein.evaluation.features import open_features
from ornstein.evaluation.frechet import frechet_distance
from ornstein.evaluation.kernel import kernel_distance
from ornstein.few_steps.distillation import follow
from ornstein.few_steps.tuning import judged, trajectories, tune
from ornstein.nets import frames_known
from ornstein.oracles import GaussianMixture
from ornstein.solvers import SOLVERS
from ornstein.training import run_task, train
from ornstein.training.autoencoder import Autoencoding
from ornstein.training.distil import Distillation, new_student

PIXELS = torch.randint(0, 256, SHAPE, generator=torch.Generator().manual_seed(0)) / 127.5 - 1


@pytest.fixture(autouse=True)
def mps(gpu: PretendedGPU, monkeypatch: pytest.MonkeyPatch) -> PretendedGPU:
    gpu.without_float64(monkeypatch)
    return gpu


def test_the_device_refuses_float64() -> None:
    x = torch.zeros(2, device="cuda")
    for make in (x.double, lambda: torch.zeros(2, dtype=torch.float64).to("cuda"), lambda: x.to(torch.complex128)):
        with pytest.raises(TypeError, match="has no float64"):
            make()
    assert (x * torch.tensor(2.0, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize("solver", [pytest.param(n, marks=pytest.mark.slow) if n == "rk45" else n for n in SOLVERS])
def test_samples(solver: str) -> None:
    x = orn.sample(image_model().to("cuda"), SHAPE, solver, STEPS, cond={"label": LABELS}, guidance=1.5)
    wanted = orn.sample(image_model(), SHAPE, solver, STEPS, cond={"label": LABELS}, guidance=1.5)
    torch.testing.assert_close(x.cpu(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
def test_clips(noise: Any) -> None:
    d, clips = clip_model(noise).to("cuda"), torch.zeros(2, 2, 4, 8, 8)
    cond = {"label": [0, 1]}
    assert orn.sample(d, clips.shape, "ddpm", 2, cond=cond).is_cuda
    assert video.sample_given(d, clips, frames_known(4, 2), "flow-3m", 2, cond=cond).is_cuda
    noise.solve(clips.to("cuda")), noise.mahalanobis(clips.to("cuda"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("objective", [None, "hybrid", "edm", "continuous"])
def test_a_training(tmp_path: Path, optimizer: str, objective: str | None) -> None:
    model = image_model(learned_variance=objective == "hybrid").to("cuda")
    assert len(list(train(model, Images(), config(optimizer=optimizer, objective=objective), tmp_path))) == 4


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_an_autoencoder(tmp_path: Path, kind: str) -> None:
    model = AUTOENCODERS[kind](1, 8, width=16, depths=(1, 1, 1))
    loss = AutoencoderLoss(model, free_bits=0.1, adversarial_weight=0.1, adversarial_start=0.0).to("cuda")
    assert len(list(run_task(Autoencoding(loss), Images(labels=False, channels=1), config(), tmp_path))) == 4
    if kind != "ae":
        assert model.sample(2, orn.autoencoders.addressed(0, torch.arange(2), device="cuda")).is_cuda


@pytest.mark.slow
def test_few_steps() -> None:
    teacher = image_model().to("cuda")
    parts = trajectories(teacher, 4, batch=2)
    assert judged(tune(parts, 3, 4), parts).error > 0
    states = torch.cat(list(follow(teacher, 2, 4, 2.0, 0, 4)))
    task = Distillation(new_student(copy.deepcopy(teacher), 2), "")
    loss, _ = task.loss(states, LABELS, torch.Generator("cuda").manual_seed(0), 0.0)
    loss.backward()


@pytest.mark.parametrize("decoder", ["discrete", "vdm", "gaussian"])
def test_bounds(decoder: Any) -> None:
    d = image_model().to("cuda")
    for form in ("matching", "consistency", "continuous"):
        assert likelihood.vlb(d, PIXELS, 6, form, decoder, cond={"label": LABELS}).total.isfinite().all()  # pyright: ignore


def test_flows() -> None:
    d, cond = image_model().to("cuda"), {"label": LABELS[:2]}
    for settings in ({"solver": "rk4", "steps": 3}, {"tolerance": 0.1, "dequantisation": "uniform"}):
        found = likelihood.ode(d, PIXELS[:2].to("cuda"), "hutchinson", probes=1, cond=cond, **settings)  # pyright: ignore
        assert found.value.isfinite().all()


def test_oracles_and_distances() -> None:
    mixture = GaussianMixture([0.4, 0.6], torch.randn(2, 3), torch.eye(3).expand(2, 3, 3))
    d = mixture.denoiser(orn.Process(orn.schedules.Cosine()))
    assert d(torch.randn(4, 3).to("cuda"), 0.5).x0.is_cuda
    for name in ("pixels", "conv"):
        real, other = (torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8) for _ in range(2))
        extract = open_features(name, torch.device("cuda"))(real)
        features = [extract(real), extract(other)]
        frechet_distance(*features), kernel_distance(*features)
