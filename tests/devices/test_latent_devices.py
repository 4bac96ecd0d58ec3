"""Autoencoders, latents, distillation and tuning on a GPU, with everything of the user's on the CPU."""

import copy
from pathlib import Path

import pytest
import torch
from models import filled, image_model
from pretend import PretendedGPU

import ornstein as orn
from ornstein.autoencoders import AUTOENCODERS, Autoencoder, DiffusionChain, addressed, drawn
from ornstein.autoencoders.latent import LatentSpace, joint_bound
from ornstein.autoencoders.vq import VQAutoencoder
from ornstein.few_steps.distillation import follow
from ornstein.few_steps.tuning import judged, trajectories, tune
from ornstein.nets import UNet

DRAW = torch.Generator().manual_seed(0)
X = torch.randint(0, 256, (4, 1, 8, 8), generator=DRAW) / 127.5 - 1


def autoencoder(kind: str) -> Autoencoder:
    torch.manual_seed(0)
    model = AUTOENCODERS[kind](1, 8, width=16, depths=(1, 1, 1))
    filled(model)
    with torch.no_grad():
        model.scale.fill_(-0.2)
    if isinstance(model, VQAutoencoder):
        model.codebook.entries.copy_(torch.randn(model.codebook.entries.shape))
    return model.eval()


def space_of(kind: str) -> LatentSpace:
    c = autoencoder(kind).latent_shape[0]
    return LatentSpace(autoencoder(kind), torch.full((c,), 0.1), torch.full((c,), 1.5), Path("nowhere"), "")


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_images_latents_and_noise_on_the_cpu(gpu: PretendedGPU, kind: str) -> None:
    here, there = autoencoder(kind), autoencoder(kind).to("cuda")
    index = torch.arange(4)
    torch.testing.assert_close(there.encode(X).mean.cpu(), here.encode(X).mean, rtol=1e-4, atol=1e-5)
    z = torch.randn(4, *here.latent_shape, generator=torch.Generator().manual_seed(1))
    assert there.decode(z).is_cuda
    torch.testing.assert_close(there.decode(z).cpu(), here.decode(z), rtol=1e-4, atol=1e-4)
    if kind == "ae":
        return
    bounds = [model.bound(X, addressed(0, index)).total.cpu() for model in (here, there)]
    torch.testing.assert_close(bounds[1], bounds[0], rtol=1e-4, atol=1e-2)
    samples = [model.sample(4, addressed(0, index)).cpu() for model in (here, there)]
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-4, atol=1e-4)
    assert there.sample(4, drawn(torch.Generator().manual_seed(0))).is_cuda
    assert there.sample(4, drawn(torch.Generator("cuda").manual_seed(0))).is_cuda


@pytest.mark.parametrize("kind", ["kl", "vae", "vq"])
def test_the_autoencoder_follows_to_the_device_and_not_back(gpu: PretendedGPU, kind: str) -> None:
    space = space_of(kind)
    wanted = [each.cpu() for each in space.encode(X)]
    y = wanted[0]
    images = space.decode(y)
    assert space.decode(y.to("cuda")).is_cuda and space.autoencoder.device.type == "cuda"
    torch.testing.assert_close(space.decode(y.to("cuda")).cpu(), images, rtol=1e-4, atol=1e-4)
    # of the CPU: to the autoencoder and back, which stays where it is fast
    assert space.decode(y).device.type == "cpu" and space.autoencoder.device.type == "cuda"
    for mine, other in zip(space.encode(X), wanted, strict=True):
        assert mine.device.type == "cpu"
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_the_joint_bound(gpu: PretendedGPU, where: str) -> None:
    def prior(y: torch.Tensor, first: int) -> torch.Tensor:
        return 0.5 * y.to(where).double().square().flatten(1).sum(1)

    wanted = joint_bound(space_of("kl"), X, lambda y, first: 0.5 * y.square().flatten(1).sum(1), batch=3).total
    space = space_of("kl")
    space.autoencoder.to("cuda")
    for x in (X, X.to("cuda")):
        torch.testing.assert_close(joint_bound(space, x, prior, batch=3).total, wanted, rtol=1e-5, atol=1e-2)


def test_a_latent_model_samples_and_decodes(gpu: PretendedGPU) -> None:
    space = space_of("kl")
    net = filled(UNet(4, 4, 2, width=16, multipliers=(1,), depths=(1,), attention=()))
    data = orn.Data((4, 4, 4), ("a", "b"))
    model = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), data=data, space=space).to("cuda").eval()
    images = model.decode(orn.sample(model, (2, 4, 4, 4), "flow-3m", 4, cond={"label": [0, 1]}))
    assert images.is_cuda and images.shape == (2, 1, 8, 8)


def test_diffusion_as_a_hierarchy(gpu: PretendedGPU) -> None:
    x = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    wanted = DiffusionChain(image_model(), 4).bound(x, addressed(0, torch.arange(2))).total
    there = DiffusionChain(image_model().to("cuda"), 4)
    noise = addressed(0, torch.arange(2), device="cuda")
    torch.testing.assert_close(there.bound(x.to("cuda"), noise).total.cpu(), wanted, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_trajectories_of_a_teacher(gpu: PretendedGPU, guidance: float) -> None:
    wanted = torch.cat(list(follow(image_model(), 2, 5, guidance, 0, 3)))
    states = list(follow(image_model().to("cuda"), 2, 5, guidance, 0, 3))
    assert all(each.is_cuda for each in states)
    torch.testing.assert_close(torch.cat(states).cpu(), wanted, rtol=1e-3, atol=1e-3)


def test_solvers_are_tuned_on_the_device(gpu: PretendedGPU) -> None:
    here, there = image_model(), image_model().to("cuda")
    found = []
    for model in (here, there):
        parts = trajectories(model, 4, batch=2)
        found.append(judged(tune(parts, 3, 6), parts))
        assert parts[0][1].device == parts[0][2].device == next(model.parameters()).device
    assert found[1].error == pytest.approx(found[0].error, rel=0.05)
    assert orn.sample(there, (2, 2, 8, 8), found[1], cond={"label": [0, 1]}).is_cuda


def test_a_student_learns_on_the_device(gpu: PretendedGPU) -> None:
    from ornstein.training.distil import Distillation, new_student

    teacher = image_model()
    states = torch.cat(list(follow(teacher, 2, 4, 1.0, 0, 4)))
    task = Distillation(new_student(copy.deepcopy(teacher), 2), {})
    labels = torch.tensor([0, 1, 2, 0])
    wanted, _ = task.loss(states, labels, torch.Generator().manual_seed(0), 0.0)
    task.model.to("cuda").train()
    given = states.to("cuda")
    gpu.reset()
    loss, _ = task.loss(given, labels, torch.Generator("cuda").manual_seed(0), 0.0)
    loss.backward()
    assert gpu.syncs == 0, gpu.report()
    torch.testing.assert_close(loss.detach().cpu(), wanted.detach(), rtol=1e-4, atol=1e-4)
