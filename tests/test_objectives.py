"""Every objective against its closed form: for Gaussian data and the exact denoiser all of them are traces."""

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from ornstein import Denoiser, Process, objectives
from ornstein.likelihood import vlb
from ornstein.noise import AR1
from ornstein.objectives import OBJECTIVES, RunningLoss, Uncertainty, explicit_score_matching, score_matching
from ornstein.oracles import GaussianMixture
from ornstein.process import Prediction
from ornstein.schedules import Cosine, Discrete, LinearBeta, Rectified

SIGMA = torch.tensor([[0.6, -0.2], [-0.2, 0.3]], dtype=torch.float64)
GAUSS = GaussianMixture([1.0], [[0.3, -0.5]], SIGMA[None])
P = Process(LinearBeta(0.1, 12.0), AR1(2, 0.6))
STEPS = 20


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draws(n: int) -> Tensor:
    return GAUSS.sample(n, torch.Generator().manual_seed(0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def closed_forms(t: float) -> dict[str, float]:
    a, s, c = float(P.schedule.alpha(t)), float(P.schedule.sigma(t)), P.noise.dense()
    cov = SIGMA - a**2 * SIGMA @ torch.linalg.inv(a**2 * SIGMA + s**2 * c) @ SIGMA  # of x_0 given x_t
    plain, white = float(torch.trace(cov)) / 2, float(torch.trace(torch.linalg.solve(c, cov))) / 2
    snr = a**2 / s**2
    h = 1e-6
    fall = -float(torch.exp(P.schedule.log_snr(t + h)) - torch.exp(P.schedule.log_snr(t - h))) / (2 * h)
    a_s, s_s = float(P.schedule.alpha(t - 1 / STEPS)), float(P.schedule.sigma(t - 1 / STEPS))
    alpha_n, abar, before = (a / a_s) ** 2, a**2, a_s**2
    beta = 1 - alpha_n
    lower = (1 - before) / (1 - abar) * beta
    assert s_s**2 == pytest.approx(1 - before)
    return {
        "simple": snr * plain,
        "score-matching": snr * plain,
        "vlb-x0": before * beta**2 / (1 - abar) ** 2 / (2 * lower) * white,
        "vlb-eps": beta / (2 * alpha_n * (1 - before)) * snr * white,
        "continuous": 0.5 * fall * white,
        "min-snr": min(snr, 5.0) * plain,
        "soft-min-snr": snr * 5 / (snr + 5) * plain,
        "sigmoid": 0.5 * fall * white / (1 + math.exp(math.log(snr) - 2)),
        "edm": (4 + snr) * plain,
    }


@pytest.mark.parametrize("t", [0.1, 0.35, 0.9])
@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n != "hybrid"])
def test_closed_form(name: str, t: float):
    n = 20000
    settings: dict[str, Any] = {"steps": STEPS} if name.startswith("vlb") else {}
    times = torch.full((n,), t, dtype=torch.float64)
    loss = OBJECTIVES[name](GAUSS.denoiser(P), draws(n), times, randn(n, 2, seed=1), **settings)
    assert loss.shape == (n,)
    error = float(loss.std()) / math.sqrt(n)
    assert error < 0.03 * float(loss.mean())
    assert abs(float(loss.mean()) - closed_forms(t)[name]) < 4 * error


class Linear(nn.Module):
    """x0 and, with `wide`, a place of the variance, from one linear layer."""

    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 6 if wide else 3, dtype=torch.float64)

    def forward(self, x: Tensor, log_snr: Tensor, label: Tensor | None = None) -> Tensor:
        return self.layer(x if label is None else x + label[:, None])


def gradient(d: Denoiser, loss: Tensor) -> Tensor:
    d.zero_grad()
    loss.mean().backward()
    return cast(Tensor, cast(Linear, d.net).layer.weight.grad).clone()


BATCH = (randn(8, 3), torch.linspace(0.1, 1.0, 8).double(), randn(8, 3, seed=1))


@pytest.mark.parametrize("noise", [AR1(3, 0.7), AR1(3, 1.0)])
def test_score_matching_with_the_variance_for_weight_is_l_simple(noise: AR1):
    """E16 = E10 for lambda = s^2, value and gradient, under any C, also a singular one."""
    d = Denoiser(Linear(), Process(LinearBeta(), noise), "x0")
    x0, t, z = BATCH
    simple, matched = objectives.simple(d, x0, t, z), objectives.score_matching(d, x0, t, z)
    torch.testing.assert_close(simple, matched)
    torch.testing.assert_close(gradient(d, simple), gradient(d, matched))
    double = objectives.score_matching(d, x0, t, z, weight=lambda u: 2 * LinearBeta().sigma(u) ** 2)
    torch.testing.assert_close(double, 2 * simple)
    eps = Denoiser(Linear(), d.process, "eps")
    torch.testing.assert_close(objectives.simple(eps, x0, t, z), eps.loss(x0, t, z))


@pytest.mark.parametrize("variance", ["lower", "upper"])
def test_the_two_forms_of_a_term_are_one(variance: Any):
    d, (x0, t, z) = Denoiser(Linear(), Process(LinearBeta(), AR1(3, 0.7)), "x0"), BATCH
    by_x0, by_eps = (f(d, x0, t, z, steps=10, variance=variance) for f in (objectives.vlb_x0, objectives.vlb_eps))
    torch.testing.assert_close(by_x0[1:], by_eps[1:])
    assert bool(by_x0[1:].isfinite().all())
    if variance == "lower":
        assert bool(by_x0[0].isinf())  # n = 1


def test_the_white_noise_identity():
    """E14: with d = R z the Mahalanobis norm is ||z - z_hat||^2, and the weight that of S2."""
    noise, steps = AR1(3, 0.7), 5
    betas = torch.tensor([0.1, 0.3, 0.2, 0.4, 0.5]).double()
    d, (x0, _, z), n = Denoiser(Linear(), Process(Discrete(betas), noise), "x0"), BATCH, 3
    t = torch.full((8,), n / steps).double()
    error = noise.color(z) - d(d.process.add_noise(x0, t, z), t).eps
    quadratic = torch.einsum("bi,ij,bj->b", error, torch.linalg.inv(noise.dense()), error)
    before = float(torch.prod(1 - betas[: n - 1]))
    weight = float(betas[n - 1] / (2 * (1 - betas[n - 1]) * (1 - before)))
    torch.testing.assert_close(objectives.vlb_eps(d, x0, t, z, steps=steps), weight * quadratic / 3)


def test_the_terms_of_a_chain_sum_to_the_bound():
    n, steps = 20000, 6
    d, x0 = GAUSS.denoiser(P), draws(n)
    times = objectives.step_times(n, steps, generator())
    assert sorted(set((times * steps).round().int().tolist())) == [2, 3, 4, 5, 6]
    terms = (steps - 1) * 2 * objectives.vlb_x0(d, x0, times, randn(n, 2, seed=2), steps=steps)
    bound = vlb(d, x0, steps, decoder="gaussian", variance="lower", batch=n).diffusion
    spread = math.sqrt(float(terms.var() + bound.var()) / n)
    assert abs(float(terms.mean() - bound.mean())) < 4 * spread


def test_continuous_is_the_bound_s_integral():
    """Between t = 1/steps and 1, as in `vlb`; the first part of the integral is the decoder's."""
    n, steps = 20000, 10
    d, x0 = GAUSS.denoiser(P), draws(n)
    t = (1 / steps + (1 - 1 / steps) * objectives.uniform(n, generator())).clamp(max=1)
    own = (1 - 1 / steps) * 2 * objectives.continuous(d, x0, t, randn(n, 2, seed=2))
    bound = vlb(d, x0, steps, "continuous", decoder="gaussian", terms=8, batch=n).diffusion
    assert abs(float(own.mean() - bound.mean())) < 4 * math.sqrt(float(own.var() + bound.var()) / n)


def test_hybrid_moves_the_variance_alone():
    """E15: the gradient of the mean is that of L_simple; the variance's channels get that of the bound's term."""
    d, (x0, _, z) = Denoiser(Linear(wide=True), Process(LinearBeta(), AR1(3, 0.7)), "x0"), BATCH
    t = torch.arange(1, 9).double() / 10
    hybrid = objectives.hybrid(d, x0, t, z, steps=10)
    simple = objectives.simple(d, x0, t, z)
    both, alone = gradient(d, hybrid), gradient(d, simple)
    torch.testing.assert_close(both[:3], alone[:3])
    assert float(alone[3:].abs().max()) == 0
    assert float(both[3:].abs().max()) > 0
    term = (hybrid - simple) / (0.001 * 10)
    assert float(term[0].detach()) == 0  # n = 1 belongs to the decoder
    p = d.process
    for i in (1, 5):
        one, s = t[i : i + 1], float(t[i]) - 0.1
        x_t = p.add_noise(x0[i : i + 1], one, z[i : i + 1])
        prediction = d(x_t, one)
        root = torch.linalg.cholesky(p.noise.dense())
        truth, model = p.posterior(x_t, x0[i : i + 1], s, one), p.posterior(x_t, prediction.x0, s, one)
        variance = root @ torch.diag(prediction.log_variance(s)[0].exp()) @ root.mT
        normal = torch.distributions.MultivariateNormal
        kl = torch.distributions.kl_divergence(
            normal(truth.mean[0], truth.std.squeeze() ** 2 * p.noise.dense()), normal(model.mean[0], variance)
        )
        torch.testing.assert_close(term[i], kl / 3)
    with pytest.raises(ValueError, match="learned no variance"):
        objectives.hybrid(Denoiser(Linear(), p, "x0"), x0, t, z, steps=10)


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n != "hybrid"])
def test_conditions_and_clips(name: str):
    """A clip of 3 frames is judged as the vector of its frames; conditions reach the network."""

    class Clip(Linear):
        def forward(self, x: Tensor, log_snr: Tensor, label: Tensor | None = None) -> Tensor:
            return super().forward(x.flatten(1), log_snr, label).reshape(x.shape)

    x0, t, z = BATCH
    p, label = Process(LinearBeta(), AR1(3, 0.6)), torch.arange(8).double()
    flat = OBJECTIVES[name](Denoiser(Linear(), p, "x0"), x0, t.clamp(min=0.2), z, label=label)
    shape = (8, 1, 3, 1, 1)
    clip = OBJECTIVES[name](
        Denoiser(Clip(), p, "x0"), x0.reshape(shape), t.clamp(min=0.2), z.reshape(shape), label=label
    )
    torch.testing.assert_close(clip, flat)
    bare = OBJECTIVES[name](Denoiser(Linear(), p, "x0"), x0, t.clamp(min=0.2), z)
    assert not torch.allclose(flat, bare)


@pytest.mark.parametrize("name", ["simple", "continuous", "min-snr", "soft-min-snr", "sigmoid", "edm"])
def test_finite_at_a_zero_terminal_snr(name: str):
    d = Denoiser(Linear(), Process(Rectified(), AR1(3, 0.6)), "v")
    x0, _, z = BATCH
    assert bool(OBJECTIVES[name](d, x0, torch.ones(8).double(), z).isfinite().all())


def test_uncertainty_is_at_its_best_the_log_of_the_loss():
    d, (x0, t, z) = Denoiser(Linear(), Process(Cosine()), "x0"), BATCH
    plain = objectives.edm(d, x0, t, z).detach()
    best = objectives.edm(d, x0, t, z, uncertainty=lambda _: plain.log())
    torch.testing.assert_close(best, 1 + plain.log())
    for shift in (-0.3, 0.3):
        assert bool((objectives.edm(d, x0, t, z, uncertainty=lambda _, s=shift: plain.log() + s) > best).all())
    head = Uncertainty()
    torch.testing.assert_close(objectives.edm(d, x0, t, z, uncertainty=head), plain)
    objectives.edm(d, x0, t, z, uncertainty=head).mean().backward()
    assert float(cast(Tensor, head.linear.weight.grad).abs().sum()) > 0


def test_uniform_times():
    for draw in (objectives.uniform, objectives.low_discrepancy):
        t = draw(4000, generator())
        assert bool(((t > 0) & (t <= 1)).all())
        counts = torch.histc(t, 10, 0, 1)
        assert float((counts - 400).abs().max()) < 80
        assert torch.equal(t, draw(4000, generator()))
    t = objectives.low_discrepancy(16, generator()).sort().values
    torch.testing.assert_close(t.diff(), torch.full((15,), 1 / 16).double())


def test_log_normal_times():
    schedule = Cosine(-14.0)
    level = -0.5 * schedule.log_snr(objectives.log_normal(20000, schedule, generator(), mean=-0.5, std=0.8))
    assert float(level.mean()) == pytest.approx(-0.5, abs=0.03)
    assert float(level.std()) == pytest.approx(0.8, abs=0.03)


def test_the_running_loss_draws_where_the_loss_is_and_stays_unbiased():
    def loss(t: Tensor) -> Tensor:
        return 0.1 + 5 * t**3

    state = RunningLoss(bins=8, warmup=4)
    for seed in range(20):
        t, weight = state.sample(64, generator(seed))
        if seed == 0:
            assert bool((weight == 1).all())
        state.update(t, loss(t))
    p = state.probabilities()
    assert float(p.sum()) == pytest.approx(1)
    middle = (torch.arange(8).double() + 0.5) / 8
    expected = 0.95 * loss(middle) / loss(middle).sum() + 0.05 / 8
    torch.testing.assert_close(p, expected, rtol=0.25, atol=0.01)
    t, weight = state.sample(4096, generator(100))
    assert float((weight * loss(t)).mean()) == pytest.approx(0.1 + 5 / 4, rel=0.01)
    assert float((weight * loss(t)).var()) < 0.3 * float(loss(objectives.uniform(4096, generator())).var())


def test_bad_arguments():
    d, (x0, t, z) = Denoiser(Linear(), Process(LinearBeta()), "x0"), BATCH
    cases = [
        (lambda: objectives.min_snr(d, x0, t, z, gamma=0.0), "gamma must be positive, got 0"),
        (lambda: objectives.edm(d, x0, t, z, data_std=-1.0), "data_std must be positive"),
        (lambda: objectives.vlb_x0(d, x0, t, z, steps=0), "at least one step, got 0"),
        (lambda: objectives.vlb_x0(d, x0, t, z, steps=5), "draw the times of a chain with `step_times`"),
        (lambda: objectives.vlb_x0(d, x0, t, z, steps=20, variance=cast(Any, "x")), 'variance is "lower"'),
        (lambda: objectives.step_times(4, 1), "from its second step on, got 1"),
        (lambda: objectives.log_normal(4, Cosine(), std=0.0), "std must be positive"),
        (lambda: RunningLoss(bins=0), "bins >= 1"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_weighted_norm_is_the_divergence_of_the_step(n: int):
    """E14: beta_n/(2 alpha_n (1 - abar_{n-1})) ||z - z_hat||^2 is the KL of E6 with x_0 and with x0_hat, in nats."""
    noise, betas = AR1(3, 0.7), torch.tensor([0.1, 0.3, 0.2, 0.4, 0.5], dtype=torch.float64)
    d, (x0, _, z) = Denoiser(Linear(), Process(Discrete(betas), noise), "x0"), BATCH
    t = torch.full((8,), n / 5, dtype=torch.float64)
    x_t = d.process.add_noise(x0, t, z)
    alpha, abar, before = float(1 - betas[n - 1]), float((1 - betas[:n]).prod()), float((1 - betas[: n - 1]).prod())
    mean, other = (
        math.sqrt(before) * (1 - alpha) / (1 - abar) * x + math.sqrt(alpha) * (1 - before) / (1 - abar) * x_t
        for x in (x0, d(x_t, t).x0)
    )
    covariance = (1 - before) / (1 - abar) * (1 - alpha) * noise.dense()
    normal = torch.distributions.MultivariateNormal
    kl = torch.distributions.kl_divergence(normal(mean, covariance), normal(other, covariance))
    torch.testing.assert_close(3 * objectives.vlb_eps(d, x0, t, z, steps=5), kl)


def test_explicit_and_denoising_score_matching_differ_by_a_constant():
    """S1; Vincent 2011: their difference is E||C grad log q(x_t|x_0) - C grad log p_t||^2, whatever the denoiser.

    Monte Carlo over the same draws. The difference of the two has a cross term with zero mean, so the standard error of
    its mean bounds the deviation: 5 of them.
    """
    mixture = GaussianMixture([0.5, 0.5], [[1.0, 0.0], [-1.0, 0.4]], 0.2 * torch.eye(2).expand(2, 2, 2))
    p, n = Process(LinearBeta(), AR1(2, 0.6)), 100_000
    exact = mixture.denoiser(p)
    g = torch.Generator().manual_seed(0)
    x0, z = mixture.sample(n, g), torch.randn(n, 2, generator=g, dtype=torch.float64)
    t = torch.full((n,), 0.3, dtype=torch.float64)
    constant = score_matching(exact, x0, t, z)

    class Wrong:
        """A denoiser that is off by a function of x_t."""

        process = p

        def __init__(self, size: float) -> None:
            self.size = size

        def __call__(self, x_t: Tensor, t: Tensor, /) -> Prediction:
            return p.convert(x_t, t, x0=exact(x_t, t).x0 + self.size * torch.sin(3 * x_t))

    assert float(explicit_score_matching(exact, x0, t, z, exact=exact).max()) < 1e-20
    for size in (0.3, -1.0):
        d = Wrong(size)
        explicit = explicit_score_matching(d, x0, t, z, exact=exact)
        assert float(explicit.mean()) > 0.01
        rest = score_matching(d, x0, t, z) - explicit - constant
        assert abs(float(rest.mean())) < 5 * float(rest.std()) / math.sqrt(n)
        assert float(rest.std()) > 0.01  # only the means agree
