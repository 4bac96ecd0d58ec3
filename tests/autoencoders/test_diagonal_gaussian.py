"""Diagonal Gaussians against torch's distributions (E26)."""

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from ornstein.autoencoders import Latents


def gaussian(seed: int) -> tuple[Latents, Independent]:
    draw = torch.Generator().manual_seed(seed)
    mean, std = (torch.randn(5, 2, 3, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    return Latents(mean, std.exp()), Independent(Normal(mean, std.exp()), 3)


def test_density_divergence_and_entropy_are_torch_s():
    (q, truth), (p, other) = gaussian(0), gaussian(1)
    standard = Independent(Normal(torch.zeros_like(q.mean), torch.ones_like(q.std)), 3)
    torch.testing.assert_close(q.log_prob(p.mean), truth.log_prob(p.mean))
    torch.testing.assert_close(q.kl(p), kl_divergence(truth, other))
    torch.testing.assert_close(q.kl(), kl_divergence(truth, standard))
    torch.testing.assert_close(q.kl(Latents.standard(q.mean)), q.kl())
    torch.testing.assert_close(q.entropy(), truth.entropy())


def test_samples_are_reparameterised():
    q, _ = gaussian(0)
    mean, std, noise = q.mean.requires_grad_(), q.std.requires_grad_(), torch.randn_like(q.mean)
    z = Latents(mean, std).sample(noise)
    torch.testing.assert_close(z, mean + std * noise)
    by_mean, by_std = torch.autograd.grad(z.sum(), (mean, std))
    torch.testing.assert_close(by_mean, torch.ones_like(mean))
    torch.testing.assert_close(by_std, noise)


def test_no_noise_costs_infinitely_much():
    point = Latents(torch.zeros(2, 3), torch.zeros(2, 3))
    assert point.kl().tolist() == [torch.inf, torch.inf]
    assert point.entropy().tolist() == [-torch.inf, -torch.inf]
    assert torch.equal(point.sample(torch.randn(2, 3)), point.mean)


def test_a_network_s_output_is_mean_and_clamped_log_std():
    raw: Tensor = torch.tensor([[1.0, 2.0, 0.0, 100.0]])
    q = Latents.of(raw)
    assert q.mean.tolist() == [[1.0, 2.0]]
    torch.testing.assert_close(q.std, torch.tensor([[0.0, 5.0]]).exp())
    assert bool(Latents.of(torch.full((1, 2), -1e9)).std.gt(0).all())
