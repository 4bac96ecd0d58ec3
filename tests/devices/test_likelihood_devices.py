"""Likelihoods, oracles and evaluation on a GPU: images and labels on the CPU or there, results as of the CPU."""

from typing import Any

import pytest
import torch
from models import LABELS, image_model
from pretend import PretendedGPU

import ornstein as orn
from ornstein import likelihood
from ornstein.evaluation.features import open_features
from ornstein.evaluation.frechet import frechet_distance
from ornstein.evaluation.kernel import kernel_distance
from ornstein.oracles import GaussianMixture

PIXELS = torch.randint(0, 256, (4, 2, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
PLACES = [("cpu", "cpu"), ("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")]


def labels_at(device: str) -> Any:
    return LABELS.to(device)


@pytest.mark.parametrize("form", ["matching", "consistency", "continuous"])
@pytest.mark.parametrize("decoder", ["discrete", "vdm", "gaussian"])
def test_bounds(gpu: PretendedGPU, form: Any, decoder: Any) -> None:
    def total(model: orn.Denoiser, x0: torch.Tensor, labels: Any) -> torch.Tensor:
        return likelihood.vlb(model, x0, 6, form, decoder, batch=3, cond={"label": labels}).total.cpu()

    wanted = total(image_model(), PIXELS, LABELS)
    model = image_model().to("cuda")
    torch.testing.assert_close(total(model, PIXELS, LABELS.tolist()), wanted, rtol=1e-4, atol=1e-2)
    for images, labels in PLACES:
        found = total(model, PIXELS.to(images), labels_at(labels))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("settings", [{"solver": "rk4", "steps": 3}, {"solver": "rk45", "tolerance": 0.1}])
@pytest.mark.parametrize("dequantisation", ["none", "uniform"])
def test_the_flow(gpu: PretendedGPU, settings: dict[str, Any], dequantisation: Any) -> None:
    def value(model: orn.Denoiser, x0: torch.Tensor, labels: Any) -> torch.Tensor:
        common = {"probes": 1, "dequantisation": dequantisation, "cond": {"label": labels}}
        return likelihood.ode(model, x0[:2], "hutchinson", **settings, **common).value.cpu()  # pyright: ignore

    wanted = value(image_model(), PIXELS, LABELS[:2])
    model = image_model().to("cuda")
    for images, labels in PLACES[1:3]:
        found = value(model, PIXELS.to(images), labels_at(labels)[:2])
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-1)


@pytest.mark.parametrize(("settings", "calls_a_step"), [({"solver": "rk4", "steps": 6}, 4), ({"tolerance": 0.05}, 6)])
def test_the_flow_waits_once_a_step(gpu: PretendedGPU, settings: dict[str, Any], calls_a_step: int) -> None:
    model = image_model().to("cuda")
    gpu.reset()
    found = likelihood.ode(model, PIXELS, "hutchinson", probes=1, cond={"label": LABELS}, **settings)
    # a step is checked for values that are not finite; the labels and the results are read once each
    assert gpu.syncs <= int(found.evaluations.max()) // calls_a_step + 6, gpu.report()


def test_the_bound_waits_once_a_part(gpu: PretendedGPU) -> None:
    model = image_model().to("cuda")
    counted = []
    for steps in (6, 12):
        gpu.reset()
        likelihood.vlb(model, PIXELS, steps, cond={"label": LABELS})
        counted.append(gpu.syncs)
    assert counted[1] - counted[0] <= 6, gpu.report()


def test_a_dequantiser(gpu: PretendedGPU) -> None:
    model = image_model().to("cuda")
    cond = {"label": LABELS}
    q = likelihood.fit_dequantiser(model, PIXELS, steps=2, batch=2, cond=cond)
    for x0 in (PIXELS, PIXELS.to("cuda")):
        found = likelihood.ode(model, x0, "hutchinson", solver="rk4", steps=2, probes=1, dequantisation=q, cond=cond)
        assert bool(found.value.isfinite().all())


def test_oracles_compute_where_the_sample_is(gpu: PretendedGPU) -> None:
    draw = torch.Generator().manual_seed(0)
    mixture = GaussianMixture([0.4, 0.6], torch.randn(2, 3, generator=draw), torch.eye(3).expand(2, 3, 3))
    process = orn.Process(orn.schedules.Cosine())
    d = mixture.denoiser(process)
    x = torch.randn(4, 3, generator=draw, dtype=torch.float64)
    for t in (0.3, torch.tensor([0.1, 0.3, 0.7, 1.0])):
        wanted = d(x, t).x0
        torch.testing.assert_close(d(x.to("cuda"), t).x0.cpu(), wanted)
    torch.testing.assert_close(mixture.log_prob(x.to("cuda"), process, 0.3).cpu(), mixture.log_prob(x, process, 0.3))
    there = orn.sample(d, (4, 3), "flow-3m", 4, start=x.to("cuda"))
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), orn.sample(d, (4, 3), "flow-3m", 4, start=x))


@pytest.mark.parametrize("name", ["pixels", "conv"])
def test_evaluation_takes_samples_of_the_device(gpu: PretendedGPU, name: str) -> None:
    draw = torch.Generator().manual_seed(1)
    real = torch.randint(0, 256, (24, 2, 8, 8), generator=draw, dtype=torch.uint8)
    made = real.flip(0) // 2
    features = open_features(name, "cuda")(real)
    base, here, there = features(real), features(made), features(made.to("cuda"))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)
    distance, scores = frechet_distance(here, base), kernel_distance(here, base)
    assert frechet_distance(there, base.to("cuda")) == pytest.approx(distance, rel=1e-3, abs=1e-3)
    assert kernel_distance(there, base.to("cuda")).value == pytest.approx(scores.value, rel=1e-3, abs=1e-4)
