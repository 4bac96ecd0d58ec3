"""Adversarial objectives against closed forms (E34)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ornstein.contrast import adversarial
from ornstein.contrast.models import Gan, build
from ornstein.contrast.networks import critic, generator_network, parameter_count
from ornstein.contrast.problems import open_problem


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_losses_are_those_of_the_papers() -> None:
    real, fake = torch.randn(50, generator=seeded(1)).double(), torch.randn(40, generator=seeded(2)).double()
    d_real, d_fake = torch.sigmoid(real), torch.sigmoid(fake)
    expected = -(d_real.log().mean() + (1 - d_fake).log().mean())
    for loss in ("minimax", "non-saturating"):
        torch.testing.assert_close(adversarial.critic_loss(loss, real, fake), expected)
    torch.testing.assert_close(adversarial.generator_loss("minimax", fake), (1 - d_fake).log().mean())
    torch.testing.assert_close(adversarial.generator_loss("non-saturating", fake), -d_fake.log().mean())
    torch.testing.assert_close(adversarial.critic_loss("wasserstein", real, fake), fake.mean() - real.mean())
    hinge = (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
    torch.testing.assert_close(adversarial.critic_loss("hinge", real, fake), hinge)
    for loss in ("wasserstein", "hinge"):
        torch.testing.assert_close(adversarial.generator_loss(loss, fake), -fake.mean())
    with pytest.raises(ValueError, match="unknown loss 'lsgan'"):
        adversarial.critic_loss("lsgan", real, fake)  # pyright: ignore[reportArgumentType]


def test_minimax_saturates_where_the_critic_is_sure_and_non_saturating_does_not() -> None:
    fake = torch.tensor([-12.0], dtype=torch.float64, requires_grad=True)
    slopes = [
        float(torch.autograd.grad(adversarial.generator_loss(loss, fake), fake)[0])
        for loss in ("minimax", "non-saturating")
    ]
    assert slopes[0] == pytest.approx(-1 / (1 + math.exp(12)))  # -sigmoid(D)
    assert slopes[1] == pytest.approx(-1 / (1 + math.exp(-12)))  # sigmoid(D) - 1


def test_the_optimal_critic_gives_the_jensen_shannon_divergence() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.1, 0.3, 0.6]).double()
    logit = (p / q).log()  # the optimal critic of Goodfellow et al. 2014, proposition 1
    m = (p + q) / 2
    divergence = 0.5 * ((p * (p / m).log()).sum() + (q * (q / m).log()).sum())
    value = (p * torch.nn.functional.softplus(-logit)).sum() + (q * torch.nn.functional.softplus(logit)).sum()
    assert float(value) == pytest.approx(float(2 * math.log(2) - 2 * divergence))
    counts = (p * 10).round().long(), (q * 10).round().long()
    real, fake = (torch.repeat_interleave(logit, n) for n in counts)
    torch.testing.assert_close(adversarial.critic_loss("minimax", real, fake), value)


@pytest.mark.parametrize("norm", [0.3, 1.0, 2.5])
def test_the_penalty_of_a_linear_critic_is_known_at_every_point(norm: float) -> None:
    w = torch.randn(3, 4, 4, generator=seeded(), dtype=torch.float64)
    w = norm * w / w.norm()

    def linear(x: Tensor) -> Tensor:
        return (x * w).flatten(1).sum(1)

    x, other = (torch.randn(6, 3, 4, 4, generator=seeded(k), dtype=torch.float64) for k in (1, 2))
    for points in (x, adversarial.interpolated(x, other, seeded()), adversarial.dragan_points(x, draw=seeded())):
        torch.testing.assert_close(adversarial.gradient_penalty(linear, points), torch.tensor((norm - 1) ** 2).double())
        torch.testing.assert_close(adversarial.gradient_norms(linear, points), torch.full((6,), norm).double())


def test_the_penalty_of_a_quadratic_critic_and_its_gradient() -> None:
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(20, 5, generator=seeded(), dtype=torch.float64)
    value = adversarial.gradient_penalty(lambda y: scale / 2 * y.square().sum(1), x)  # its gradient is scale x
    lengths = x.norm(dim=1)
    torch.testing.assert_close(value, (scale * lengths - 1).square().mean())
    (slope,) = torch.autograd.grad(value, scale)
    torch.testing.assert_close(slope, (2 * (scale.detach() * lengths - 1) * lengths).mean())


def test_points_of_dragan_lie_around_the_data_and_those_of_wgan_between() -> None:
    real = torch.randn(20_000, 2, generator=seeded(), dtype=torch.float64) * 3
    offset = adversarial.dragan_points(real, 0.5, seeded(1)) - real
    assert float(offset.std()) == pytest.approx(0.5 * float(real.std()), rel=0.02)
    assert abs(float(offset.mean())) < 0.03
    # at a critic D = |x|^2/2 the expected penalty is E(|x + delta| - 1)^2, |x + delta| Rayleigh with this scale
    s = float((real.var() * 1.25).sqrt())
    expected = 2 * s**2 - 2 * s * math.sqrt(math.pi / 2) + 1
    found = adversarial.gradient_penalty(lambda y: y.square().sum(1) / 2, real + offset)
    assert float(found.detach()) == pytest.approx(expected, rel=0.05)
    fake = torch.zeros(len(real), 2, dtype=torch.float64)
    between = adversarial.interpolated(real, fake, seeded(2))
    share = between / real
    torch.testing.assert_close(share[:, 0], share[:, 1])
    assert float(share.min()) >= 0 and float(share.max()) <= 1 and abs(float(share.mean()) - 0.5) < 0.01


def test_clipping_bounds_every_weight_and_the_slope() -> None:
    net = critic((2,), 16)
    adversarial.clip_weights(net, 0.01)
    assert all(float(p.abs().max()) <= 0.01 for p in net.parameters())
    assert max(float(p.abs().max()) for p in net.parameters()) == pytest.approx(0.01)  # some weight was larger
    norms = adversarial.gradient_norms(net, torch.randn(100, 2, generator=seeded()))
    widths = [p.shape for p in net.parameters() if p.ndim == 2]
    assert float(norms.max()) <= math.prod(0.01 * math.sqrt(a * b) for a, b in widths)  # Frobenius norms


@pytest.mark.parametrize("shape", [(2,), (3, 8, 8)])
def test_spectral_normalisation_against_the_svd(shape: tuple[int, ...]) -> None:
    net = adversarial.spectrally_normalised(critic(shape, 8))
    x = torch.randn(4, *shape, generator=seeded())
    for _ in range(60):  # one power iteration a call
        net(x)
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers) >= 3
    for layer in layers:
        original = layer.parametrizations.weight.original.flatten(1)  # pyright: ignore[reportAttributeAccessIssue]
        largest = torch.linalg.svdvals(original)[0]
        torch.testing.assert_close(layer.weight.flatten(1), original / largest, rtol=2e-3, atol=2e-4)
        assert float(torch.linalg.svdvals(layer.weight.flatten(1))[0]) == pytest.approx(1, abs=2e-3)


def test_unrolled_steps_are_those_of_adam() -> None:
    target = torch.randn(5, 3, generator=seeded(), dtype=torch.float64)
    start = {"w": torch.randn(5, 3, generator=seeded(1), dtype=torch.float64), "b": torch.ones(3, dtype=torch.float64)}

    def loss(p: dict[str, Tensor]) -> Tensor:
        return (p["w"] * p["b"] - target).pow(4).sum()

    own = {name: nn.Parameter(p.clone()) for name, p in start.items()}
    optimizer = torch.optim.Adam(own.values(), 0.01, (0.5, 0.9))
    for step in range(7):
        if step == 3:
            moments = {
                n: (optimizer.state[p]["exp_avg"].clone(), optimizer.state[p]["exp_avg_sq"].clone())
                for n, p in own.items()
            }
            middle = {n: p.detach().clone().requires_grad_() for n, p in own.items()}
        optimizer.zero_grad()
        loss(own).backward()
        optimizer.step()
    after = adversarial.unrolled(loss, middle, moments, 3, 4, 0.01, (0.5, 0.9))  # pyright: ignore[reportArgumentType]
    for name, p in own.items():
        torch.testing.assert_close(after[name].detach(), p.detach(), rtol=1e-9, atol=1e-9)
    fresh = adversarial.unrolled(loss, {n: p.requires_grad_() for n, p in start.items()}, {}, 0, 0, 0.01, (0.5, 0.9))  # pyright: ignore[reportArgumentType]
    assert all(fresh[name] is p for name, p in start.items())


def test_the_gradient_passes_through_the_unrolled_steps() -> None:
    """One step of a scalar critic: d/dg of D_1 against finite differences."""

    def final(g: Tensor) -> Tensor:
        theta = {"w": torch.tensor(0.3, dtype=torch.float64, requires_grad=True)}
        moments = {"w": (torch.tensor(0.2).double(), torch.tensor(0.5).double())}
        after = adversarial.unrolled(lambda p: (p["w"] * g - 1).square(), theta, moments, 4, 3, 0.1, (0.5, 0.9))
        return after["w"] * g

    g = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(final(g), g)
    h = 1e-6
    numeric = (final(g.detach() + h) - final(g.detach() - h)) / (2 * h)
    assert float(slope) == pytest.approx(float(numeric), rel=1e-6)
    assert abs(float(slope) - 0.3) > 0.05  # without the steps it would be near the weight itself


@pytest.mark.parametrize("data", ["gaussians-8", "digits"])
def test_no_unrolled_steps_are_the_plain_gan_bit_for_bit(data: str) -> None:
    problem = open_problem(data)
    plain, zero, two = (build(name, problem, 3) for name in ("gan", "unrolled-0", "unrolled-2"))
    assert isinstance(plain, Gan) and isinstance(zero, Gan) and isinstance(two, Gan)
    for _ in range(4):
        losses = plain.step(0.0)
        assert zero.step(0.0) == losses
        assert two.step(0.0) != losses
    for net in ("generator", "critic"):
        for a, b in zip(getattr(plain, net).parameters(), getattr(zero, net).parameters(), strict=True):
            assert torch.equal(a, b)
    assert parameter_count(two.generator, two.critic) == plain.parameters


def test_critics_have_no_batch_norm_where_the_gradient_of_each_sample_counts() -> None:
    problem = open_problem("digits")
    for name in ("wgan-gp", "dragan", "sn-gan"):
        model = build(name, problem, 0)
        assert isinstance(model, Gan)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.critic.modules())


def test_generators_make_samples_of_the_shape() -> None:
    for shape in ((2,), (1, 8, 8), (3, 16, 16)):
        net = generator_network(shape, 8).eval()
        assert net(torch.randn(5, 64, generator=seeded())).shape == (5, *shape)
        assert critic(shape, 8)(torch.randn(5, *shape, generator=seeded())).shape == (5, 1)
