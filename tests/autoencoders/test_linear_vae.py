"""E27 where all of it is a closed form: the VAE itself, with linear maps for its networks.

x = W z + b + scale n and q(z|x) = N(A x + a, diag(d^2)): p(x) and p(z|x) are Gaussians, and the bound of any such q
falls short of log p(x) by KL(q(z|x) || p(z|x)).
"""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ornstein.autoencoders import VAE, Latents, drawn
from ornstein.process import kl_gaussians

N, LATENT, SCALE = 4, 2, 0.6


def matrix(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Encode(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor, log_std: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.log_std = (nn.Parameter(v.clone()) for v in (weight, bias, log_std))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1) @ self.weight.mT + self.bias
        return torch.cat([mean, self.log_std.expand_as(mean)], 1)


class Decode(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.weight.mT + self.bias).unflatten(1, (1, 2, 2))


class Linear:
    """The model, its exact p(x) and p(z|x), and its bound integrated by hand."""

    def __init__(self, w: Tensor, a: Tensor, offset: Tensor, std: Tensor) -> None:
        self.w, self.b, self.a, self.offset, self.std = w, matrix(N, seed=9), a, offset, std
        self.model = VAE(1, 2, latent_channels=LATENT, width=16)
        self.model.encoder, self.model.decoder = Encode(a, offset, std.log()), Decode(w, self.b)  # type: ignore[assignment]
        self.model.double()
        self.model.scale.data.mul_(math.log(SCALE) / float(self.model.log_scale.detach()))

    def log_p(self, x: Tensor) -> Tensor:
        covariance = self.w @ self.w.mT + SCALE**2 * torch.eye(N)
        return MultivariateNormal(self.b, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        covariance = torch.linalg.inv(torch.eye(LATENT) + self.w.mT @ self.w / SCALE**2)
        return (x - self.b) @ self.w @ covariance / SCALE**2, covariance.expand(len(x), -1, -1)

    def gap(self, x: Tensor) -> Tensor:
        q = torch.diag(self.std**2).expand(len(x), -1, -1)
        return kl_gaussians(x @ self.a.mT + self.offset, q, *self.posterior(x))

    def elbo(self, x: Tensor) -> Tensor:
        """E_q log p(x|z) - KL(q(z|x) || N(0, I)), the expectation by hand."""
        mean = x @ self.a.mT + self.offset
        spread = (self.w @ torch.diag(self.std**2) @ self.w.mT).trace()
        square = (x - mean @ self.w.mT - self.b).square().sum(1) + spread
        likelihood = -0.5 * (square / SCALE**2 + N * math.log(2 * math.pi * SCALE**2))
        return likelihood - 0.5 * (self.std**2 - 1 - 2 * self.std.log() + mean**2).sum(1)


def some(seed: int) -> Linear:
    return Linear(
        matrix(N, LATENT, seed=seed),
        0.4 * matrix(LATENT, N, seed=seed + 1),
        0.3 * matrix(LATENT, seed=seed + 2),
        matrix(LATENT, seed=seed + 3).mul(0.4).sub(1).exp(),
    )


def exact() -> Linear:
    """W with orthogonal columns: the posterior has a diagonal covariance, and q can be it."""
    w = torch.linalg.qr(matrix(N, LATENT, seed=0)).Q * torch.tensor([1.5, 0.7], dtype=torch.float64)
    variance = 1 / (1 + w.square().sum(0) / SCALE**2)
    a = variance[:, None] * w.mT / SCALE**2
    return Linear(w, a, -a @ matrix(N, seed=9), variance.sqrt())


def images(x: Tensor) -> Tensor:
    return x.unflatten(1, (1, 2, 2))


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_the_gap_is_the_divergence_from_the_posterior(seed: int):
    linear, x = some(seed), matrix(6, N, seed=5)
    gap = linear.gap(x)
    assert bool((gap > 0.05).all())
    torch.testing.assert_close(linear.log_p(x) - linear.elbo(x), gap)


@pytest.mark.parametrize("seed", [0, 10])
def test_the_model_s_bound_is_that_in_expectation(seed: int):
    """By Jensen's inequality, E_q[log p(x, z)/q(z|x)]; by the reverse divergence, log p(x) - KL(q || p(z|x))."""
    linear, x = some(seed), matrix(1, N, seed=6)
    many = images(x.expand(20_000, -1))
    terms = linear.model(many, drawn(torch.Generator().manual_seed(0), torch.float64))
    bound = (linear.model.log_density(many, terms.reconstruction) - terms.rates.sum(0)).detach()
    error = float(bound.std()) / len(bound) ** 0.5
    assert error < 0.01 * float(linear.gap(x))
    assert abs(float(bound.mean()) - float(linear.elbo(x))) < 4 * error
    assert abs(float(bound.mean()) - float(linear.log_p(x) - linear.gap(x))) < 4 * error


def test_the_exact_posterior_leaves_no_gap_and_no_noise():
    """Then log p(x, z) - log q(z|x) is log p(x) at every z, and the mean of the bound is log p(x)."""
    linear, x = exact(), matrix(5, N, seed=7)
    torch.testing.assert_close(linear.gap(x), torch.zeros(5).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(linear.elbo(x), linear.log_p(x))
    model = linear.model
    q = model.encode(images(x))
    for seed in range(3):
        z = q.sample(matrix(5, LATENT, seed=seed))
        joint = model.log_density(images(x), model.decode(z)) + Latents.standard(z).log_prob(z)
        torch.testing.assert_close((joint - q.log_prob(z)).detach(), linear.log_p(x))


def test_the_reparameterised_gradient_is_that_of_the_closed_form():
    linear, x = some(0), matrix(1, N, seed=6)
    encode = linear.model.encoder
    linear.offset.requires_grad_()
    linear.std.requires_grad_()
    by_mean, by_std = torch.autograd.grad(linear.elbo(x).sum(), (linear.offset, linear.std))
    truth = torch.cat([by_mean, by_std * linear.std]).detach()
    draw, found = torch.Generator().manual_seed(1), []
    many = images(x.expand(400, -1))
    for _ in range(60):
        terms = linear.model(many, drawn(draw, torch.float64))
        bound = (linear.model.log_density(many, terms.reconstruction) - terms.rates.sum(0)).mean()
        found.append(torch.cat(torch.autograd.grad(bound, (encode.bias, encode.log_std))))  # type: ignore[arg-type]
    estimates = torch.stack(found)
    error = estimates.std(0) / len(found) ** 0.5
    assert bool((error < 0.1 * truth.abs().max()).all())
    assert bool(((estimates.mean(0) - truth).abs() < 4 * error).all())
