"""What correlated noise costs: every covariance against white noise, in one process.

    python benchmarks/noise.py [--repeats 41] [--threads 1] [--device cuda]
    python benchmarks/noise.py --flow                    # what the motion of clips costs a training

The yardstick is torch.randn and one read and write of the tensor (a clone), taken in turns with each candidate, so
that a busy machine slows both. Printed are the medians, and the median of the ratios of each turn. The
first table is for short axes, where a matrix product is cheapest; the second for 4096 frames, where nothing may grow
with their square but what the documentation says does; the third compares ways to colour a short axis, and is why it
is done as it is.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from tables import Table
from torch import Tensor

from ornstein.data import open_clips
from ornstein.data.flow import FlowFile, estimate_flow
from ornstein.denoiser import Denoiser
from ornstein.nets import VideoUNet
from ornstein.noise import AR1, OU, Covariance, Kronecker, LowRank, Mixed, SpectralAR1, Toeplitz, Warped, carry
from ornstein.process import Process
from ornstein.schedules import Cosine
from ornstein.training import TrainConfig
from ornstein.training.task import Diffusion

CLIP = (8, 3, 16, 64, 64)
LONG = (1, 3, 4096, 8, 8)
BOUND, WARPED_BOUND = 1.3, 5.0
FLOW_BOUND, EPOCHS = 0.2, 10  # of a training step, over so many epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=41)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--flow", action="store_true", help="measure flow estimation against a training step, and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    Console().print(f"torch {torch.__version__} on {arguments.device}, {arguments.threads} threads, float32")
    if arguments.flow:
        flow_costs(arguments.repeats).show()
        return
    for table in costs(arguments.repeats, torch.device(arguments.device)):
        table.show()


def costs(repeats: int, device: torch.device) -> list[Table]:
    """The three tables."""
    clock = Clock(repeats, device)
    return [_short(clock), _long(clock), _candidates(clock)]


class Clock:
    """Times a function against the yardstick, one after the other, `repeats` times."""

    def __init__(self, repeats: int, device: torch.device) -> None:
        self.repeats, self.device = repeats, device

    def _seconds(self, f: Callable[[], object]) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        f()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def against_white(self, f: Callable[[], object], shape: tuple[int, ...]) -> tuple[float, float, float]:
        """Median milliseconds of f and of the yardstick for a tensor of `shape`, and the median of their ratios."""
        times: list[tuple[float, float]] = []
        for _ in range(self.repeats + 2):
            white = self._seconds(lambda: torch.randn(shape, device=self.device).clone())
            times.append((self._seconds(f), white))
        own, white = zip(*times[2:], strict=True)
        ratio = statistics.median(a / b for a, b in times[2:])
        return 1000 * statistics.median(own), 1000 * statistics.median(white), ratio


def _table(title: str, rows: list[tuple[str, tuple[float, float, float], str]]) -> Table:
    table = Table(title, ["", "ms", "randn + copy, ms", "ratio", ""])
    for name, times, note in rows:
        table.add(name, *times, note)
    return table


def _short(clock: Clock) -> Table:
    frames, height, width = CLIP[2:]
    lags = torch.arange(frames, dtype=torch.float64)
    warped = Warped(_turning(frames, height, width))
    bounded: list[Covariance] = [AR1(frames, 0.9), Mixed(frames, 0.5), Toeplitz(1 / (1 + lags)), warped]
    others: list[Covariance] = [
        OU(lags, 0.1),
        LowRank(torch.ones(frames), torch.ones(frames, 2)),
        Kronecker(AR1(frames, 0.9), (AR1(height, 0.5), AR1(width, 0.5))),
        SpectralAR1(frames, [0.9, 0.5, 0.1], size=(height, width)),
    ]
    rows = []
    for c in (*bounded, *others):
        times = clock.against_white(lambda c=c: c.sample(CLIP, device=clock.device), CLIP)
        bound = WARPED_BOUND if c is warped else BOUND
        note = "" if c not in bounded else "ok" if times[2] <= bound else "TOO SLOW"
        rows.append((type(c).__name__, times, note))
    return _table(f"sample {CLIP}: at most {BOUND} where marked, {WARPED_BOUND:g} of Warped", rows)


def flow_costs(repeats: int) -> Table:
    """Flow of a batch against a training step on it, for two sizes of clips; medians of processor time."""
    table = Table(
        f"the motion of a batch of 8 clips of 8 frames, ms; share of a training step over {EPOCHS} epochs: at most "
        f"{FLOW_BOUND:.0%}",
        ["pixels a side", "step with white noise", "fitting, once a clip", "reading", "carrying noise", "share", ""],
    )
    for size in (16, 32):
        clips = open_clips("drifting-textures", 8, size)
        rows = torch.arange(8)
        x0 = clips.batch(rows)[0]
        net = VideoUNet.preset("xs", channels=1, size=size, frames=8)
        task = Diffusion(Denoiser(net, Process(Cosine())), TrainConfig(steps=1, batch=8))
        optimizer = torch.optim.AdamW(net.parameters())

        def step() -> None:
            task.loss(x0, None, torch.Generator().manual_seed(0), 0.0)[0].backward()  # noqa: B023
            optimizer.step()  # noqa: B023
            optimizer.zero_grad()  # noqa: B023

        with tempfile.TemporaryDirectory() as folder:
            kept = FlowFile(clips, "dis", Path(folder))
            flow = kept(rows)
            spent = {
                "step": step,
                "fit": lambda: estimate_flow(x0),  # noqa: B023
                "read": lambda: kept(rows),  # noqa: B023
                "carry": lambda: carry(flow, 1, torch.randn, 0.1),  # noqa: B023
            }
            ms = {name: 1000 * _busy(f, repeats) for name, f in spent.items()}
        share = (ms["fit"] / EPOCHS + ms["read"]) / ms["step"]
        note = "ok" if share <= FLOW_BOUND else "TOO SLOW"
        table.add(size, *ms.values(), f"{share:.1%}", note)
    return table


def _busy(f: Callable[[], object], repeats: int) -> float:
    """Median seconds of processor time."""
    f()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        f()
        times.append(time.process_time() - began)
    return statistics.median(times)


def _turning(frames: int, height: int, width: int) -> Tensor:
    """The flow (F - 1, 2, H, W) of a picture that turns by 2 degrees a frame about its middle."""
    angle = torch.deg2rad(torch.tensor(2.0))
    y, x = torch.meshgrid(torch.arange(height) - height / 2, torch.arange(width) - width / 2, indexing="ij")
    cosine, sine = angle.cos() - 1, angle.sin()
    return torch.stack([x * cosine - y * sine, x * sine + y * cosine]).expand(frames - 1, -1, -1, -1)


def _long(clock: Clock) -> Table:
    frames = LONG[2]
    lags = torch.arange(frames, dtype=torch.float64)
    rows = []
    toeplitz = Toeplitz(1 / (1 + lags))
    x = torch.randn(LONG, device=clock.device)
    each: list[Covariance] = [
        AR1(frames, 0.9),
        OU(lags, 0.1),
        Mixed(frames, 0.5),
        LowRank(torch.ones(frames), torch.ones(frames, 2)),
        SpectralAR1(frames, [0.9, 0.5, 0.1], size=LONG[3:]),
        toeplitz,
    ]
    for c in each:
        operations: dict[str, Callable[[], object]] = {
            "sample": lambda c=c: c.sample(LONG, device=clock.device),
            "matvec": lambda c=c: c.matvec(x),
            "mahalanobis": lambda c=c: c.mahalanobis(x),
            "logdet": lambda c=c: c.logdet(LONG),
        }
        if c is toeplitz:
            operations["color (quadratic)"] = lambda c=c: c.color(x)
        for name, f in operations.items():
            f()  # what is made once
            times = clock.against_white(f, LONG)
            rows.append((f"{type(c).__name__}.{name}", times, ""))
    return _table(f"{LONG}: {frames} frames", rows)


def _candidates(clock: Clock) -> Table:
    """Ways to colour a short axis."""
    batch, channels, frames, height, width = CLIP
    root = AR1(frames, 0.9).color(torch.eye(frames, dtype=torch.float64)).mT.float().to(clock.device).contiguous()
    z = torch.randn(batch * channels, frames, height * width, device=clock.device)

    def recursion() -> Tensor:
        x = z.clone()
        for k in range(1, frames):
            x[:, k].mul_(0.436).add_(x[:, k - 1], alpha=0.9)
        return x

    def frames_first() -> Tensor:
        return (root @ z.movedim(1, 0).reshape(frames, -1)).reshape(frames, batch * channels, -1).movedim(0, 1)

    def fourier() -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(z, 2 * frames, dim=1), dim=1)[:, :frames]

    ways = {
        "one batched product": lambda: root @ z,
        "recursion over frames in place": recursion,
        "frames moved first, one product": frames_first,
        "FFT of a circulant embedding": fourier,
    }
    rows = []
    for name, f in ways.items():
        times = clock.against_white(f, CLIP)
        rows.append((name, times, ""))
    return _table("colour alone, 16 frames", rows)


if __name__ == "__main__":
    main()
