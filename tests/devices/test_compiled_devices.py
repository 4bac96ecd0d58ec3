"""CUDA graphs write every result of a network to the same memory: what a solver holds must not change."""

from typing import Any

import pytest
import torch
from pretend import PretendedGPU

import ornstein as orn
from ornstein.compiling import compile_network


class Graphed(torch.nn.Module):
    """A network whose results share one buffer, as those of a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.3))
        self.shared: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        out = torch.tanh(self.weight * x + 0.1 * log_snr.clamp(-20, 20).view(-1, 1, 1, 1))
        if not getattr(self, "reuses_output", False):
            return out
        self.shared = torch.empty_like(out) if self.shared is None else self.shared
        return self.shared.copy_(out)


@pytest.mark.parametrize("solver", ["ddim", "flow-3m", "dpmpp-3m", "ipndm", "unipc"])
@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "score", "flow", "edm"])
def test_samples_of_graphs_are_those_of_the_network(
    gpu: PretendedGPU, monkeypatch: pytest.MonkeyPatch, prediction: Any, solver: str
) -> None:
    modes = []
    monkeypatch.setattr(Graphed, "compile", lambda self, mode, dynamic: modes.append(mode))
    schedule = orn.schedules.Cosine() if prediction in ("eps", "score") else orn.schedules.Rectified()
    model = orn.Denoiser(Graphed(), orn.Process(schedule), prediction).to("cuda").eval()

    def run() -> torch.Tensor:
        return orn.sample(model, (2, 1, 4, 4), solver, 6)

    wanted = run().cpu()
    compile_network(model, run)
    assert modes == ["reduce-overhead"]
    assert torch.equal(run().cpu(), wanted)


def test_on_a_cpu_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graphed, "compile", lambda self, mode, dynamic: None)
    model = orn.Denoiser(Graphed(), orn.Process(orn.schedules.Cosine()))
    compile_network(model, lambda: None)
    assert model.net.reuses_output is False
