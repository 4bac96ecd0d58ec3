"""A denoiser reads its network's output as E[x_0 | x_t]: a network that knows the truth must give the exact answer."""

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from ornstein import Denoiser, Process
from ornstein.denoiser import Kind
from ornstein.noise import AR1, Identity
from ornstein.oracles import GaussianMixture
from ornstein.schedules import EDM, Cosine, Discrete, LinearBeta, Rectified

KINDS: tuple[Kind, ...] = ("x0", "eps", "v", "score", "flow", "edm")
DATA_STD = 0.7


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Fixed(nn.Module):
    """Returns `output` and remembers what it was called with."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output
        self.seen: list[Any] = []

    def forward(self, x: Tensor, log_snr: Tensor, **cond: Any) -> Tensor:
        self.seen = [x, log_snr, cond]
        return self.output


def targets(p: Process, x0: Tensor, c_z: Tensor, t: float) -> dict[str, Tensor]:
    """What a network of each kind has to say when x_0 and R z are known; "edm" from Karras et al. 2022, eq. 7."""
    a, s = float(p.schedule.alpha(t)), float(p.schedule.sigma(t))
    a_dot, s_dot = float(p.schedule.alpha_dot(t)), float(p.schedule.sigma_dot(t))
    # With y = x_t/a = x_0 + (s/a) R z, the model of Karras et al. at noise level sigma = s/a.
    sigma, y = s / a, x0 + s / a * c_z
    skip = DATA_STD**2 / (sigma**2 + DATA_STD**2)
    out = sigma * DATA_STD / math.sqrt(DATA_STD**2 + sigma**2)
    return {
        "x0": x0,
        "eps": c_z,
        "v": a * c_z - s * x0,
        "score": -p.noise.solve(c_z) / s,
        "flow": a_dot * x0 + s_dot * c_z,
        "edm": (x0 - skip * y) / out,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [Process(LinearBeta(), AR1(3, 0.6)), Process(EDM(), AR1(3, -0.4)), Process(Cosine())])
def test_a_network_that_knows_the_truth(kind: Kind, p: Process):
    t, x0, z = 0.4, randn(2, 3), randn(2, 3, seed=1)
    x_t, c_z = p.add_noise(x0, t, z), p.noise.color(z)
    net = Fixed(targets(p, x0, c_z, t)[kind])
    denoiser = Denoiser(net, p, prediction=kind, data_std=DATA_STD)
    prediction = denoiser(x_t, t)
    torch.testing.assert_close(prediction.x0, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prediction.eps, c_z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prediction.score, -p.noise.solve(c_z) / p.schedule.sigma(t), rtol=1e-8, atol=1e-8)
    times = torch.full((2,), t, dtype=torch.float64)
    assert denoiser.loss(x0, times, z).abs().max() < 1e-15
    assert (denoiser.loss(x0 + 0.1, times, z + 0.3) > 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_minimiser_of_the_loss_is_the_conditional_mean(kind: Kind):
    """With E[target | x_t] for its output a network gives E[x_0 | x_t]: every kind is linear in x_0 given x_t."""
    p, t = Process(LinearBeta(0.1, 8.0), AR1(2, 0.5)), 0.5
    mixture = GaussianMixture([0.3, 0.7], [[1.0, 0.0], [-1.0, 0.5]], 0.2 * torch.eye(2).expand(2, 2, 2))
    exact = mixture.denoiser(p)

    class Expected(nn.Module):
        def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
            a, s = p.schedule.alpha(t), p.schedule.sigma(t)
            scale = torch.sqrt(a**2 * DATA_STD**2 + s**2) if kind == "edm" else 1.0
            x0 = exact(x * scale, t).x0
            return targets(p, x0, (x * scale - a * x0) / s, t)[kind]

    x = randn(6, 2)
    prediction = Denoiser(Expected(), p, prediction=kind, data_std=DATA_STD)(x, t)
    torch.testing.assert_close(prediction.x0, exact(x, t).x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prediction.score, exact(x, t).score, rtol=1e-9, atol=1e-9)


def test_loss_of_eps_is_l_simple():
    """E10: the mean over elements of || R z - eps_theta(x_t) ||^2, with the time of each sample its own."""
    p, t = Process(Discrete([0.1, 0.3, 0.2, 0.5]), AR1(3, 0.5)), torch.tensor([0.25, 1.0], dtype=torch.float64)
    x0, z = randn(2, 2, 3, 2, 1), randn(2, 2, 3, 2, 1, seed=1)

    class Square(nn.Module):
        def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
            return x**2 + log_snr.reshape(-1, 1, 1, 1, 1)

    expected = []
    for b, n in ((0, 1), (1, 4)):
        abar = math.prod(1 - beta for beta in [0.1, 0.3, 0.2, 0.5][:n])
        eps = torch.einsum("ij,cjhw->cihw", torch.linalg.cholesky(p.noise.dense()), z[b])
        x_t = math.sqrt(abar) * x0[b] + math.sqrt(1 - abar) * eps
        expected.append(((x_t**2 + math.log(abar / (1 - abar)) - eps) ** 2).mean())
    loss = Denoiser(Square(), p, prediction="eps").loss(x0, t, z)
    torch.testing.assert_close(loss, torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_loss_weights():
    """Of the same error in x_0, each kind's loss is ||error||^2 times a known weight; "score" carries s^2 (E16)."""
    p, t = Process(LinearBeta()), 0.3
    a, s = float(p.schedule.alpha(t)), float(p.schedule.sigma(t))
    a_dot, s_dot = float(p.schedule.alpha_dot(t)), float(p.schedule.sigma_dot(t))
    x0, z, error = randn(2, 5), randn(2, 5, seed=1), randn(2, 5, seed=2)
    x_t = p.add_noise(x0, t, z)
    wrong = targets(p, x0 + error, (x_t - a * (x0 + error)) / s, t)
    d2 = a**2 * DATA_STD**2 + s**2
    weights: dict[Kind, float] = {
        "x0": 1.0,
        "eps": (a / s) ** 2,
        "score": (a / s) ** 2,  # (a/s^2)^2 times s^2
        "v": (a * a / s + s) ** 2,
        "flow": (a_dot - s_dot * a / s) ** 2,
    }
    for kind, weight in weights.items():
        loss = Denoiser(Fixed(wrong[kind]), p, prediction=kind).loss(x0, torch.full((2,), t, dtype=torch.float64), z)
        torch.testing.assert_close(loss, weight * error.square().mean(1), rtol=1e-9, atol=1e-9)
    skip, out = a * DATA_STD**2 / d2, s * DATA_STD / math.sqrt(d2)
    output = (x0 + error - skip * x_t) / out
    denoiser = Denoiser(Fixed(output), p, prediction="edm", data_std=DATA_STD)
    loss = denoiser.loss(x0, torch.full((2,), t, dtype=torch.float64), z)
    torch.testing.assert_close(loss, error.square().mean(1) * d2 / (s * DATA_STD) ** 2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [EDM(), LinearBeta(), Cosine()], ids=str)
def test_edm_preconditioning_keeps_unit_variance(schedule: EDM | LinearBeta | Cosine):
    """The network's input and target have unit variance for data of std data_std, at every time; by Monte Carlo."""
    p, n = Process(schedule), 40_000
    x0, z = DATA_STD * randn(n, 1), randn(n, 1, seed=1)
    for t in (0.05, 0.5, 1.0):
        net = Fixed(torch.zeros(n, 1, dtype=torch.float64))
        denoiser = Denoiser(net, p, prediction="edm", data_std=DATA_STD)
        target_square = denoiser.loss(x0, torch.full((n,), t, dtype=torch.float64), z).mean()
        assert abs(float(target_square) - 1) < 4 * math.sqrt(2 / n)
        assert abs(float(net.seen[0].square().mean()) - 1) < 4 * math.sqrt(2 / n)


def test_edm_is_v_with_the_sign_turned():
    """At data_std 1 and a^2 + s^2 = 1."""
    x, output, p = randn(2, 3), randn(2, 3, seed=1), Process(Cosine())
    edm = Denoiser(Fixed(output), p, prediction="edm", data_std=1.0)(x, 0.3)
    v = Denoiser(Fixed(-output), p, prediction="v")(x, 0.3)
    torch.testing.assert_close(edm.x0, v.x0)


def test_what_the_network_sees():
    p, x = Process(LinearBeta()), torch.randn(2, 3)
    net = Fixed(torch.zeros(2, 3))
    Denoiser(net, p)(x, 0.4, label=torch.tensor([1, 2]))
    seen_x, log_snr, cond = net.seen
    assert torch.equal(seen_x, x)
    assert log_snr.shape == (2,)
    assert log_snr.dtype == torch.float32
    torch.testing.assert_close(log_snr, p.schedule.log_snr(0.4).float().expand(2))
    assert cond["label"].tolist() == [1, 2]
    Denoiser(net, p)(x, torch.tensor([0.4, 0.9]))
    torch.testing.assert_close(net.seen[1], p.schedule.log_snr(torch.tensor([0.4, 0.9])))
    assert net.seen[2] == {}


def test_half_precision_output_is_read_in_the_sample_s_dtype():
    prediction = Denoiser(Fixed(torch.ones(2, 3, dtype=torch.bfloat16)), Process(Cosine()))(torch.randn(2, 3), 0.5)
    assert prediction.x0.dtype == prediction.eps.dtype == prediction.v.dtype == torch.float32


def test_conditions():
    class Labelled(nn.Module):
        def forward(self, x: Tensor, log_snr: Tensor, label: Tensor | None = None) -> Tensor:
            return x

    assert Denoiser(Labelled(), Process(Cosine())).conditions == ("label",)


def test_gradients_reach_the_network():
    net = nn.Sequential()
    layer = nn.Linear(3, 3, dtype=torch.float64)
    net.forward = lambda x, log_snr: layer(x)  # type: ignore[method-assign]
    Denoiser(net, Process(Cosine(), AR1(3, 0.5))).loss(
        randn(2, 3), torch.tensor([0.2, 0.7]), randn(2, 3)
    ).sum().backward()
    gradient = cast(Tensor, layer.weight.grad)
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().sum()) > 0


ZERO = [Cosine(None), Rectified(), Discrete.linear(10).zero_terminal()]


@pytest.mark.parametrize("schedule", ZERO, ids=lambda s: type(s).__name__)
def test_zero_terminal_snr(schedule: Cosine | Rectified | Discrete):
    net, p = Fixed(torch.ones(1, 3)), Process(schedule)
    for kind in ("eps", "score"):
        with pytest.raises(ValueError, match=r"zero terminal SNR.*carries no information on x_0; predict v, x0"):
            Denoiser(net, p, prediction=kind)
    for kind in ("v", "x0", "edm"):
        assert bool(Denoiser(net, p, prediction=kind)(torch.ones(1, 3), 1.0).x0.isfinite().all())


def test_flow_is_refused_where_it_is_infinite():
    net = Fixed(torch.ones(1, 3))
    with pytest.raises(ValueError, match="flow of this schedule is infinite at t = 1"):
        Denoiser(net, Process(Discrete.linear(10).zero_terminal()), prediction="flow")
    for schedule in (Rectified(), Cosine(None)):
        assert bool(Denoiser(net, Process(schedule), prediction="flow")(torch.ones(1, 3), 1.0).x0.isfinite().all())


def test_bad_arguments():
    net, p = Fixed(torch.ones(1, 2)), Process(Cosine(), Identity())
    with pytest.raises(ValueError, match="unknown prediction 'noise'; known: x0, eps, v, score, flow, edm"):
        Denoiser(net, p, prediction=cast(Kind, "noise"))
    for std in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="data_std"):
            Denoiser(net, p, data_std=std)
    with pytest.raises(ValueError, match=r"network returned shape \(1, 2\) for a sample of \(1, 3\)"):
        Denoiser(net, p)(torch.ones(1, 3), 0.5)
    with pytest.raises(ValueError, match="times lie in"):
        Denoiser(net, p)(torch.ones(1, 2), 1.5)
