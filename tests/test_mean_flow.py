"""Distillation by the identity of MeanFlow: on a Gaussian the exact mean velocity satisfies it, and only that."""

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein import Data, Denoiser, Process
from ornstein.few_steps.consistency import mean_velocity, position, scaled
from ornstein.few_steps.mean_flow import MeanFlow, along
from ornstein.nets import UNet
from ornstein.process import expand
from ornstein.schedules import Cosine, LinearBeta, Rectified

VARIANCES = torch.tensor([0.6, 0.2, 0.05], dtype=torch.float64)
GAUSS = orn.oracles.GaussianMixture([1.0], [[0.0, 0.0, 0.0]], torch.diag(VARIANCES)[None])


class Teacher(nn.Module):
    """E[x_0 | x_t] of the Gaussian, as a network."""

    def __init__(self, p: Process) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        return GAUSS.denoiser(self.p)(x, self.p.schedule.time(log_snr).clamp(0, 1)).x0


class Exact:
    """A student whose DDIM step from any time of a step ends on the flow of the Gaussian, by its closed form."""

    def __init__(self, p: Process, ends: Tensor, off: float = 0.0) -> None:
        self.process, self.ends, self.off, self.net = p, ends, off, nn.Identity()

    def __call__(self, x: Tensor, t: Tensor):
        p, s = self.process, self.ends[(self.ends[:, None] >= t.detach() - 1e-12).sum(0)]

        def size(t: Tensor) -> Tensor:
            return (expand(p.schedule.alpha(t), x) ** 2 * VARIANCES + expand(p.schedule.sigma(t), x) ** 2).sqrt()

        w = mean_velocity(p, x, t, x * size(s) / size(t), s) + self.off * expand(position(p, t), x) ** 2
        return p.convert(x, t, x0=scaled(p, x, t) - expand(position(p, t), x) * w)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("schedule", [Cosine(), LinearBeta(), Rectified()], ids=lambda s: type(s).__name__)
def test_the_mean_velocity_of_a_gaussian_is_its_own_target(schedule, steps):
    p = Process(schedule)
    objective = MeanFlow(Denoiser(Teacher(p), p, "x0"), steps)
    draw = torch.Generator().manual_seed(0)
    x0, z = GAUSS.sample(64, draw), torch.randn(64, 3, generator=draw, dtype=torch.float64)
    t = torch.linspace(0.02, 0.995, 64, dtype=torch.float64)
    for off in (0.0, 0.3):
        student = Exact(p, objective.own, off)
        x, at, w = objective.target(student, x0, t, z, {})  # pyright: ignore[reportArgumentType]
        out = student(x, at)
        gap = float((w - (out.eps - out.x0)).abs().max())
        assert gap < 1e-7 if off == 0 else gap > 0.05  # of another velocity it is another


def test_the_derivative_through_a_network_is_that_of_differences():
    torch.manual_seed(0)
    net = UNet(channels=2, size=8, classes=3, width=8, multipliers=(1, 2), depths=(1, 1), attention=(4,)).double()
    with torch.no_grad():
        for parameter in net.parameters():  # the head begins at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    d = Denoiser(net, Process(Cosine()), "v", data=Data((2, 8, 8))).eval()
    y, w = torch.randn(2, 3, 2, 8, 8, dtype=torch.float64)
    u, cond, h = (
        torch.tensor([0.1, 0.5, 0.95], dtype=torch.float64),
        {"label": torch.tensor([0, 2, -1])},
        1e-4,
    )  # the log-SNR is embedded in float32

    def velocity(y: Tensor, u: Tensor) -> Tensor:
        t = d.process.schedule.time(-2 * torch.logit(u))
        out = d(y * expand(d.process.schedule.alpha(t) + d.process.schedule.sigma(t), y), t, **cond)
        return out.eps - out.x0

    with torch.no_grad():
        difference = (velocity(y + h * w, u + h) - velocity(y - h * w, u - h)) / (2 * h)
        found = along(d, y, u, w, cond)
    assert found == pytest.approx(difference, rel=1e-3, abs=1e-4 * float(difference.abs().max()))
