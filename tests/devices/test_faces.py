"""Face swaps with the networks on a GPU and everything else left on the CPU, as a user would give it."""

import pytest
import torch
from pretend import PretendedGPU
from torch import Tensor

import ornstein as orn
from ornstein.faces import conditions
from ornstein.faces.identity import Distillation, IdentityNet, agreement, augmented
from ornstein.faces.photos import Photos, SourceFaces
from ornstein.faces.swap.sampling import FaceModel, swap_crops
from ornstein.faces.train.objective import FaceSettings, FaceTask
from ornstein.faces.world import cases, world_photos
from ornstein.faces.world.demo import swap_cases
from ornstein.faces.world.training import WorldTask, relit_denoiser
from ornstein.nets import FaceUNet

SIZE = 32
SHAPE = {"width": 16, "multipliers": (1, 2), "depths": (1, 1), "attention": (8,)}


def photos() -> Photos:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8)
    masks = torch.full((8, 1, SIZE, SIZE), 255, dtype=torch.uint8)
    landmarks = torch.rand(8, 5, 2, generator=draw) * SIZE
    return Photos(images, masks, landmarks, torch.arange(8) // 2, torch.randn(8, 6, generator=draw))


def model() -> FaceModel:
    torch.manual_seed(0)
    net = FaceUNet(3, SIZE, conditions.CHANNELS, 6, **SHAPE)
    torch.nn.init.normal_(net.head[2].weight, std=0.1)
    spec = orn.SampleSpec((3, SIZE, SIZE))
    denoiser = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=spec)
    return FaceModel(denoiser, IdentityNet(6, width=8, multipliers=(1, 2)).eval())


def faces(n: int) -> tuple[Tensor, Tensor, Tensor, SourceFaces]:
    source = photos().faces(torch.arange(n))
    target = photos().faces(torch.arange(n, 2 * n))
    return target.image, target.mask, target.landmarks, source


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strength": 0.5, "towards": 0.02},
        {"strength": 1.5, "own": torch.zeros(3, 6)},
        {"start": torch.zeros(3, 3, SIZE, SIZE), "guidance": 1.0, "batch": 2},
    ],
)
def test_crops_are_swapped_as_on_the_cpu(gpu: PretendedGPU, settings: dict) -> None:
    given = faces(3)
    plain = swap_crops(model(), *given, steps=3, **settings)
    there = swap_crops(model().to("cuda"), *given, steps=3, **settings)
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), plain, atol=1e-4, rtol=1e-4)


def test_a_step_of_sampling_waits_once_at_most(gpu: PretendedGPU) -> None:
    there, given = model().to("cuda"), faces(3)
    counts = []
    for steps in (4, 9):
        gpu.reset()
        swap_crops(there, *given, steps=steps)
        counts.append(gpu.syncs)
    assert counts[1] - counts[0] <= 5, gpu.report()


def test_the_relit_network_swaps_rendered_faces(gpu: PretendedGPU) -> None:
    torch.manual_seed(0)
    train = world_photos(64, SIZE, 0)
    recogniser = IdentityNet(train.embeddings.shape[1], width=8, multipliers=(1, 2)).eval()
    there = FaceModel(relit_denoiser(train), recogniser).to("cuda")
    swaps = swap_cases(there, cases(2, SIZE, 1))
    assert swaps.device.type == "cpu" and swaps.shape == (2, 3, SIZE, SIZE)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_the_recogniser_learns_on_the_gpu(gpu: PretendedGPU, where: str) -> None:
    """The random generator may be on either device."""
    torch.manual_seed(0)
    net, data = IdentityNet(6, width=8, multipliers=(1, 2)).to("cuda"), photos()
    task = Distillation(net, data)
    images, rows = data.batch(torch.arange(4))
    draw = torch.Generator(where).manual_seed(0)
    loss, _ = task.loss(images.to("cuda"), rows, draw, 0.0)
    loss.backward()
    assert net.out.weight.grad is not None and net.out.weight.grad.device.type == "cuda"
    assert agreement(net.eval(), data)["top1"] >= 0
    assert augmented(images.to("cuda"), draw).device.type == "cuda"


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_the_swap_learns_on_the_gpu(gpu: PretendedGPU, where: str) -> None:
    there, data = model().to("cuda"), photos()
    task = FaceTask(there.denoiser, there.recogniser, data, FaceSettings(begins=0.0))
    images, rows = data.batch(torch.arange(4))
    loss, _ = task.loss(images.to("cuda"), rows, torch.Generator(where).manual_seed(0), 0.5)
    loss.backward()
    assert all(p.grad is None or p.grad.device.type == "cuda" for p in there.denoiser.parameters())
    assert float(loss.detach().cpu()) > 0


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_the_relit_network_learns_on_the_gpu(gpu: PretendedGPU, where: str) -> None:
    torch.manual_seed(0)
    data = world_photos(64, SIZE, 0)
    recogniser = IdentityNet(data.embeddings.shape[1], width=8, multipliers=(1, 2))
    task = WorldTask(relit_denoiser(data).to("cuda"), recogniser.to("cuda"), data, threads=2)
    images, rows = data.batch(torch.arange(4))
    loss, _ = task.loss(images.to("cuda"), rows, torch.Generator(where).manual_seed(0), 0.0)
    loss.backward()
    assert float(loss.detach().cpu()) > 0
