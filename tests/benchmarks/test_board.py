"""The quality board: its loss against closed forms, and whether the peers' networks are read as they were trained."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ornstein as orn

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from board import held_out_loss
from peer_recipes import AzulaNet, OfLevel, nearest

BOARD = Path(__file__).parents[2] / "benchmarks" / "board.py"


class Pictures:
    """Sixty pictures of noise of variance 0.09."""

    def __init__(self) -> None:
        self.x0 = 0.3 * torch.randn((60, 1, 8, 8), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.x0)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.x0[indices], None


class Exact(nn.Module):
    """The best v of white pictures of variance 0.09 at unit variance: x0 = 0.09 a x / (0.09 a^2 + s^2)."""

    def forward(self, x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        a, s = (each.sqrt().view(-1, 1, 1, 1) for each in (log_snr.sigmoid(), (-log_snr).sigmoid()))
        return (a * x - 0.09 * a * x / (0.09 * a**2 + s**2)) / s


def test_the_loss_of_the_exact_denoiser_is_its_posterior_variance_under_any_process() -> None:
    kept, cosine = Pictures(), orn.schedules.Cosine()
    t = (torch.arange(60).double() + 0.5) / 60
    a, s = cosine.alpha(t), cosine.sigma(t)
    expected = float((0.09 / (0.09 * a**2 + s**2)).mean())  # E|x0 - E[x0|x]|^2 / s^2
    losses = []
    for schedule in (cosine, orn.schedules.Discrete(cosine.betas(1000))):
        d = orn.Denoiser(Exact(), orn.Process(schedule), "v", data=orn.Data((1, 8, 8)))
        losses.append(held_out_loss(d, kept))  # pyright: ignore[reportArgumentType]
    # 60 x 64 numbers, each squared error chi-squared: a relative deviation of sqrt(2/3840) = 2.3 %, five of them
    assert losses[0] == pytest.approx(expected, rel=0.12)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # the chain ends at finite levels


def test_a_chain_is_asked_at_the_step_of_the_level_and_signs_are_turned() -> None:
    seen: list[torch.Tensor] = []

    class Net(nn.Module):
        def forward(self, x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            seen.append(k)
            return x

    levels = torch.tensor([3.0, 1.0, -1.0, -3.0])
    wrapped = OfLevel(Net(), lambda v: (levels > v[:, None]).sum(1).clamp(max=3), -1.0)
    x = torch.ones(4, 1, 2, 2)
    assert torch.equal(wrapped(x, torch.tensor([3.0, 1.0, -3.0, -9.0])), -x)
    assert seen[0].tolist() == [0, 1, 3, 3]


def test_the_nearest_width() -> None:
    assert nearest(110, range(1, 30), lambda width: nn.Linear(width, width, bias=False)) == 10


def test_azula_is_read_as_its_own_denoiser() -> None:
    azula = pytest.importorskip("azula.denoise")
    from azula.noise import VPSchedule  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    net = AzulaNet(1, 16)
    theirs = azula.KarrasDenoiser(net, VPSchedule())
    ours = orn.Denoiser(OfLevel(net, lambda v: -v / 2, -1.0), orn.Process(orn.schedules.Cosine()), "v")
    t = torch.tensor([0.2, 0.5, 0.8])
    a, s = theirs.schedule(t)
    x = torch.randn(3, 1, 8, 8)
    own = ours.process.schedule.time(2 * torch.log(a / s).double())
    with torch.no_grad():
        torch.testing.assert_close(ours(x, own).x0, theirs(x, t).mean, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_board_trains_scores_and_does_not_repeat(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    options = "--data digits --minutes 0.02 --clock processor --only ours,plain --count 40"
    command = [sys.executable, str(BOARD), *options.split(), "--out", str(tmp_path), "--report", str(table)]
    subprocess.run(command, check=True, capture_output=True)
    written = table.read_text()
    for words in ("| ours |", "| plain |", "ours by the best peer", "Fréchet, conv", "Fréchet, pixels"):
        assert words in written
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    subprocess.run(command, check=True, capture_output=True)
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    assert json.loads((tmp_path / "ours-scores.json").read_text())["steps"] > 0
