"""E28 and E29 on linear-Gaussian hierarchies: the bound against the marginal likelihood."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from ornstein.autoencoders import HierarchicalVAE, KLAutoencoder, Latents, drawn, path_rates
from ornstein.process import kl_gaussians


def matrix(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class Full:
    """N(mean, covariance) with any covariance, as a hierarchy asks for it."""

    mean: Tensor
    covariance: Tensor
    law: MultivariateNormal = field(init=False)

    def __post_init__(self) -> None:
        self.law = MultivariateNormal(self.mean, self.covariance)

    def sample(self, z: Tensor) -> Tensor:
        return self.mean + z @ torch.linalg.cholesky(self.covariance).mT

    def log_prob(self, x: Tensor) -> Tensor:
        return self.law.log_prob(x)

    def kl(self, other: "Full") -> Tensor:
        return kl_divergence(self.law, other.law)


def inverse(prior: Tensor, gain: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Of y = gain u + n, u ~ N(0, prior), n ~ N(0, noise): the map and covariance of p(u|y)."""
    back = prior @ gain.mT @ torch.linalg.inv(gain @ prior @ gain.mT + noise)
    return back, prior - back @ gain @ prior


class TwoLayers:
    """z_2 ~ N(0, I) in one dimension, z_1 = A z_2 + n in two, x = W z_1 + n in three; q linear, exact or not."""

    layers = 2

    def __init__(self, wrong: float) -> None:
        self.a, self.w = matrix(2, 1, seed=0), matrix(3, 2, seed=1)
        self.s1, self.s0 = torch.diag(torch.tensor([0.3, 0.5])).double(), 0.4 * torch.eye(3).double()
        self.prior1 = self.a @ self.a.mT + self.s1
        self.up1, self.cov1 = inverse(self.prior1, self.w, self.s0)
        self.up2, self.cov2 = inverse(torch.eye(1).double(), self.a, self.s1)
        self.q1, self.q2 = self.up1 + wrong * matrix(2, 3, seed=2), self.up2 + wrong * matrix(1, 2, seed=3)
        self.v1, self.v2 = (1 + wrong) * self.cov1, (1 + 2 * wrong) * self.cov2

    def infer(self, layer: int, below: Tensor) -> Full:
        return Full(below @ self.q1.mT, self.v1) if layer == 1 else Full(below @ self.q2.mT, self.v2)

    def generate(self, layer: int, above: Tensor) -> Full:
        assert layer == 1
        return Full(above @ self.a.mT, self.s1)

    def top(self, like: Tensor) -> Full:
        return Full(torch.zeros_like(like), torch.eye(1).double())

    def decoder(self, x: Tensor, z: Tensor) -> Tensor:
        return Full(z @ self.w.mT, self.s0).log_prob(x)

    def log_p(self, x: Tensor) -> Tensor:
        return MultivariateNormal(torch.zeros(3).double(), self.w @ self.prior1 @ self.w.mT + self.s0).log_prob(x)

    def gap(self, x: Tensor) -> Tensor:
        """KL(q(z_1|x) || p(z_1|x)) + E_q KL(q(z_2|z_1) || p(z_2|z_1)), the expectation by hand."""
        n = len(x)
        first = kl_gaussians(x @ self.q1.mT, self.v1.expand(n, 2, 2), x @ self.up1.mT, self.cov1.expand(n, 2, 2))
        d = self.q2 - self.up2
        moment = x @ self.q1.mT
        square = (moment @ d.mT).square().sum(1) + (d @ self.v1 @ d.mT).trace()
        ratio = self.v2 / self.cov2
        return first + (0.5 * (ratio - 1 - ratio.log()) + square[:, None] / (2 * self.cov2)).flatten(1).sum(1)


def bound(h: TwoLayers, x: Tensor, n: int = 40_000) -> Tensor:
    many = x.expand(n, -1)
    z, rates = path_rates(h, many, drawn(torch.Generator().manual_seed(0), torch.float64))
    return -h.decoder(many, z) + rates.sum(0)


@pytest.mark.parametrize("wrong", [0.0, 0.2])
def test_two_layers_fall_short_by_the_divergence_from_the_posterior(wrong: float):
    h, x = TwoLayers(wrong), matrix(1, 3, seed=4)
    values = bound(h, x)
    error = float(values.std()) / len(values) ** 0.5
    assert error < 0.02
    expected = float(h.gap(x))
    assert expected == pytest.approx(0.0, abs=1e-12) if wrong == 0 else expected > 0.1
    assert abs(float(values.mean() + h.log_p(x)) - expected) < 4 * error


def test_the_divergence_that_s3_writes_is_no_bound_s_term():
    """KL(q(z_1|x) || p(z_1|z_2)) takes z_1 for independent of the z_2 made from it: a gap where q is exact."""
    h, x = TwoLayers(0.0), matrix(1, 3, seed=4).expand(4000, -1)
    q = h.infer(1, x)
    z = q.sample(matrix(4000, 2, seed=5))
    above = h.infer(2, z)
    literal = q.kl(h.generate(1, above.sample(matrix(4000, 1, seed=6)))) + above.kl(h.top(above.mean))
    assert float((literal - h.decoder(x, z) + h.log_p(x)).mean()) > 0.3


def model(layers: int) -> HierarchicalVAE:
    torch.manual_seed(0)
    made = HierarchicalVAE(1, 8, layers=layers, width=16, depths=(1, 1, 1)).double()
    with torch.no_grad():  # zero-initialised layers would hide what the layers say
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return made


def test_one_layer_is_the_vae():
    hierarchy, x = model(1), matrix(3, 1, 8, 8, seed=0)
    vae = KLAutoencoder(1, 8, width=16, depths=(1, 1, 1)).double()
    vae.load_state_dict(hierarchy.state_dict())
    z = matrix(3, 4, 4, 4, seed=1)
    one, other = (m(x, lambda layer, shape: z) for m in (hierarchy, vae))
    torch.testing.assert_close(one.rates, other.rates)
    torch.testing.assert_close(one.reconstruction, other.reconstruction)


@pytest.mark.parametrize("layers", [2, 4])
def test_the_hierarchical_vae_s_rates_are_e29_term_by_term(layers: int):
    h, x = model(layers), matrix(3, 1, 8, 8, seed=0)
    noise = [matrix(3, *shape, seed=l) for l, shape in enumerate(h.layer_shapes)]
    terms = h(x, lambda layer, shape: noise[layer - 1])
    q = [h.encode(x)]
    z = [q[0].sample(noise[0])]
    for l in range(1, layers):
        q.append(Latents.of(h.up[l - 1](z[-1])))
        z.append(q[-1].sample(noise[l]))
    for l in range(layers - 1):
        expected = q[l].log_prob(z[l]) - Latents.of(h.down[l](z[l + 1])).log_prob(z[l])
        torch.testing.assert_close(terms.rates[l], expected)
    torch.testing.assert_close(terms.rates[-1], q[-1].kl())
    torch.testing.assert_close(terms.reconstruction, h.decode(z[0]))
    assert terms.rates.shape == (layers, 3)


def test_layers_are_halved_down_to_two_pixels():
    assert model(4).layer_shapes == [(4, 4, 4), (4, 2, 2), (4, 2, 2), (4, 2, 2)]
    assert HierarchicalVAE(3, 24, layers=3, width=16).layer_shapes == [(4, 12, 12), (4, 6, 6), (4, 3, 3)]


def test_ancestral_samples_come_down_layer_by_layer():
    h = model(3)
    noise = [matrix(2, *shape, seed=l) for l, shape in enumerate(h.layer_shapes)]
    z = noise[2]
    for l in (1, 0):
        z = Latents.of(h.down[l](z)).sample(noise[l])
    torch.testing.assert_close(h.sample(2, lambda layer, shape: noise[layer - 1]), h.decode(z))


def test_a_hierarchy_has_layers():
    with pytest.raises(ValueError, match="at least 1 layer, got 0"):
        HierarchicalVAE(1, 8, layers=0)
