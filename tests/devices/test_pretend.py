"""The pretended GPU itself: it raises where CUDA does, counts syncs and copies, and computes what the CPU does."""

import copy

import pytest
import torch
from pretend import PretendedGPU
from torch import nn


def test_factories_copies_and_modules_move_to_it(gpu: PretendedGPU) -> None:
    x = torch.zeros(3, device="cuda")
    assert x.device == torch.device("cuda:0") and torch.ones(3).to("cuda").is_cuda
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to("cuda")
    assert all(t.is_cuda for t in (*net.parameters(), *net.buffers()))
    twin = copy.deepcopy(net)
    assert all(isinstance(p, nn.Parameter) and p.is_cuda for p in twin.parameters())
    assert torch.equal(net(torch.ones(2, 3, device="cuda")).cpu(), twin.cpu()(torch.ones(2, 3)))


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: x + y,
        lambda x, y: x @ y.T,
        lambda x, y: torch.where(x > 0, x, y),
        lambda x, y: torch.cat([x, y]),
        lambda x, y: y[x.long()],
        lambda x, y: nn.functional.embedding(y.long(), x),
        lambda x, y: torch.randn(2, device="cuda", generator=torch.Generator()),
        lambda x, y: torch.randn(2, generator=torch.Generator("cuda")),
        lambda x, y: x.numpy(),
    ],
)
def test_mixed_devices_raise(gpu: PretendedGPU, mix: object) -> None:
    x, y = torch.ones(2, 2, device="cuda"), torch.ones(2, 2)
    with pytest.raises((RuntimeError, TypeError), match=r"device|cuda"):
        mix(x, y)  # pyright: ignore[reportCallIssue]


def test_scalars_of_the_cpu_go_with_it(gpu: PretendedGPU) -> None:
    x = torch.ones(2, device="cuda")
    assert (x * torch.tensor(2.0)).tolist() == [2, 2]
    assert gpu.copies == 0


def test_syncs_and_copies_are_counted(gpu: PretendedGPU) -> None:
    x = torch.arange(4.0, device="cuda")
    assert (gpu.syncs, gpu.copies) == (0, 0)
    assert bool((x >= 0).all()) and float(x.sum()) == 6 and x.tolist() == [0, 1, 2, 3]
    assert gpu.syncs == 3
    x[x > 1], x.cpu(), x.nonzero()
    assert gpu.syncs == 6 and gpu.copies == 0
    torch.ones(2).to("cuda"), x[torch.tensor([0, 1])], torch.tensor([1.0, 2.0], device="cuda")
    assert gpu.syncs == 6 and gpu.copies == 3
    assert "test_pretend.py" in gpu.report()


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_a_training_step_is_that_of_the_cpu(gpu: PretendedGPU, options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 1, 3))
    x = torch.randn(2, 1, 6, 6)
    found = []
    for device in ("cpu", "cuda"):
        here = copy.deepcopy(net).to(device)
        optimizer = torch.optim.AdamW(here.parameters(), lr=0.1, **options)
        for _ in range(2):
            optimizer.zero_grad()
            here(x.to(device)).square().mean().backward()
            nn.utils.clip_grad_norm_(here.parameters(), 1.0)
            optimizer.step()
        found.append([p.detach().cpu() for p in here.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_computes_in_half_precision(gpu: PretendedGPU) -> None:
    layer = nn.Linear(3, 3).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert layer(torch.ones(1, 3, device="cuda")).dtype == torch.bfloat16


def test_generators_are_addressed_by_their_seed(gpu: PretendedGPU) -> None:
    draw = torch.Generator("cuda").manual_seed(3)
    a, b = (torch.randn(4, device="cuda", generator=draw) for _ in range(2))
    draw.manual_seed(4)
    c = torch.randn(4, device="cuda", generator=draw)
    draw = torch.Generator("cuda").manual_seed(3)
    assert torch.equal(a, torch.randn(4, device="cuda", generator=draw))
    assert not torch.equal(a, b) and not torch.equal(a, c)
