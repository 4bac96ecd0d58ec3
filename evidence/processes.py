"""Memory of a training and bytes between its processes: computed from the model, and measured with 1 and 2 processes.

Measured are the tensors that a training holds after a step, by kind; the file of its state; and what goes over the
loopback device a step, less what it carries of itself meanwhile, with two processes over gloo: each with all of the
model, and split by FSDP. Activations are the tensors that a forward pass keeps for the backward pass, and the growth of
the process while it keeps them. Prints the tables of docs/training.md.

    python evidence/processes.py
"""

import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch

import ornstein as orn
from ornstein import sharding
from ornstein.nets import UNet
from ornstein.training import TrainConfig
from ornstein.training.loop import _Run
from ornstein.training.state import STATE
from ornstein.training.task import Diffusion

SIDE, STEPS = 16, 10


class Noise:
    """Images that cost nothing."""

    def __len__(self) -> int:
        return 64

    def batch(self, indices: torch.Tensor, /) -> tuple[torch.Tensor, None]:
        return torch.zeros(len(indices), 3, SIDE, SIDE), None


def denoiser(preset: str, side: int = SIDE) -> orn.Denoiser:
    torch.manual_seed(0)
    net = UNet.preset(preset, channels=3, size=side, classes=0)
    return orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), prediction="v")


def loopback() -> int:
    """Bytes received on the loopback device so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[0])
    raise SystemExit("no loopback device to measure on")


def size(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def measure(out: Path) -> str:
    """A few steps; what is held, and what went over the wire."""
    config = TrainConfig(steps=STEPS + 1, batch=2, precision="float32", checkpoint_every=10**6)
    run = _Run(Diffusion(denoiser("xs"), config), Noise(), config, out)
    run.begin(resume=False)
    gradients: list[int] = []
    real = run.optimizer.step

    def step(*arguments):
        gradients.append(size(sharding.parts([p.grad for p in run.parameters if p.grad is not None])))
        return real(*arguments)

    run.optimizer.step = step
    states = run.steps()
    next(states)  # with what is sent once
    began, before = time.monotonic(), loopback()
    for _ in range(STEPS - 1):
        next(states)
    wire, seconds = (loopback() - before) / (STEPS - 1), time.monotonic() - began
    moments = size(sharding.parts([t for each in run.optimizer.state.values() for t in each.values()]))
    for _ in states:
        pass
    if run.processes.rank:
        return ""
    own, averages = sharding.parts(run.parameters), sharding.parts(run.averages)
    held = [size(own), gradients[-1], moments, size(averages)]
    file = (out / STATE).stat().st_size
    idle = loopback()
    time.sleep(seconds)
    idle = (loopback() - idle) / (STEPS - 1)
    name = f"{run.processes.world}{' split' if run.processes.split else ''}"
    numbers = [name, *(f"{n / 1e6:.2f}" for n in [*held, file, max(0.0, wire - idle)])]
    return "| measured, " + " | ".join(map(str, numbers)) + " |"


def main() -> None:
    torch.set_num_threads(1)
    print("MB; xs at 3 channels, computed from its parameters, then measured with 1 and 2 processes:\n")
    print("| processes | weights | gradients | moments | average | state file | between processes, a step |")
    print("|---|---|---|---|---|---|---|")
    p = sum(t.numel() for t in denoiser("xs").parameters()) * 4 / 1e6
    for world in (1, 2):
        # a ring: each process sends 2 (W - 1)/W of the gradient
        wire = 2 * (world - 1) * p
        print(f"| computed, {world} | {p:.2f} | {p:.2f} | {2 * p:.2f} | {p:.2f} | {4 * p:.2f} | {wire:.2f} |")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder:
        for world, split in ((1, False), (2, False), (2, True)):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = str(probe.getsockname()[1])
            children = []
            for rank in range(world):
                pid = os.fork()
                if pid == 0:
                    if world > 1:
                        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
                        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                        os.environ |= {"ACCELERATE_USE_FSDP": str(split).lower()}
                    text = measure(Path(folder) / f"{world}{split}")
                    if text:
                        print(text, flush=True)
                    os._exit(0)
                children.append(pid)
            for pid in children:
                os.waitpid(pid, 0)
    print("\n| net | parameters | held by each process, MB | its gradient, MB |\n|---|---|---|---|")
    for preset in ("xs", "s", "m", "l"):
        n = sum(t.numel() for t in denoiser(preset).parameters())
        print(f"| {preset} | {n:,} | {20 * n / 1e6:,.0f} | {4 * n / 1e6:,.0f} |")
    print("\n| net | 16x16 | 32x32 | 64x64 | grown by, 64x64 |\n|---|---|---|---|---|")
    for preset in ("xs", "s", "m", "l"):
        kept = [activations(preset, side, 2)[0] / 2 for side in (16, 32, 64)]
        print(
            f"| {preset} | {' | '.join(f'{n / 1e6:.1f}' for n in kept)} | {activations(preset, 64, 16)[1] / 16e6:.1f} |"
        )


def activations(preset: str, side: int, batch: int) -> tuple[int, int]:
    """Bytes that a forward pass of float32 keeps for the backward pass, and by which the process has grown."""
    d = denoiser(preset, side)
    known = {p.untyped_storage().data_ptr() for p in d.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(batch, 3, side, side)
    d.loss(x[:1], torch.full((1,), 0.5), x[:1]).sum().backward()  # what is allocated once
    before = resident()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = d.loss(x, torch.full((batch,), 0.5), x).sum()
    grown = resident() - before
    loss.backward()
    return sum(kept.values()), grown


def resident() -> int:
    """Memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
