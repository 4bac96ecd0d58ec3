"""Objectives on a GPU: labels and times on the CPU, no wait for the device, gradients for every parameter."""

import pytest
import torch
from models import LABELS, image_model
from pretend import PretendedGPU

import ornstein as orn
from ornstein.objectives import OBJECTIVES, RunningLoss

DRAW = torch.Generator().manual_seed(0)
X0, Z = torch.rand(4, 2, 8, 8, generator=DRAW) * 2 - 1, torch.randn(4, 2, 8, 8, generator=DRAW)
T = torch.tensor([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("times", ["cpu", "cuda"])
@pytest.mark.parametrize("name", [*OBJECTIVES, "loss"])
def test_every_objective(gpu: PretendedGPU, name: str, times: str) -> None:
    model = image_model(learned_variance=name == "hybrid")
    objective = orn.Denoiser.loss if name == "loss" else OBJECTIVES[name]
    wanted = objective(model, X0, T, Z, label=LABELS).detach()
    model.to("cuda").train()
    x0, z, t = X0.to("cuda"), Z.to("cuda"), T.to(times)
    gpu.reset()
    loss = objective(model, x0, t, z, label=LABELS)
    loss.mean().backward()
    assert gpu.syncs == 0, gpu.report()
    torch.testing.assert_close(loss.detach().cpu(), wanted, rtol=1e-4, atol=1e-5)
    assert all(p.grad is not None and p.grad.is_cuda for p in model.parameters())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_times_in_proportion_to_the_loss(gpu: PretendedGPU, device: str) -> None:
    running = RunningLoss(4, warmup=1)
    for k in range(2):
        t, weight = running.sample(64, torch.Generator(device).manual_seed(k))
        assert t.device.type == weight.device.type == device
        running.update(t, 1 + t)
    assert float(running.count.sum()) == 128
