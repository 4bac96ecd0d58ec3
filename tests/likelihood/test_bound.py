"""The variational bound against closed forms: for Gaussian data every KL divergence of the chain is one."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from ornstein import Data, Denoiser, Process
from ornstein.likelihood import Bound, vlb
from ornstein.likelihood.bound import kl_step
from ornstein.noise import AR1, Identity, Matrix
from ornstein.oracles import GaussianMixture
from ornstein.schedules import Cosine, Discrete, LinearBeta, Schedule

SIGMA = torch.tensor([[0.6, -0.2], [-0.2, 0.3]], dtype=torch.float64)
GAUSS = GaussianMixture([1.0], [[0.3, -0.5]], SIGMA[None])
MIXTURE = GaussianMixture(
    [0.3, 0.7], [[1.0, 0.0], [-1.0, 0.5]], [[[0.2, 0.05], [0.05, 0.3]], [[0.3, 0.0], [0.0, 0.15]]]
)
CORRELATED = Process(LinearBeta(), AR1(2, 0.6))


def draws(mixture: GaussianMixture, n: int, seed: int = 0) -> Tensor:
    return mixture.sample(n, torch.Generator().manual_seed(seed))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_mean(values: Tensor, expected: float) -> float:
    """The mean is the expected one within four standard errors; returns the error."""
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - expected) < 4 * error, (float(values.mean()), expected, error)
    return error


def estimate(d: Any, x0: Tensor, *args: Any, **settings: Any) -> Bound:
    """The bound of many small samples at once."""
    return vlb(d, x0, *args, batch=6000, **settings)


def gap(p: Process, sigma: Tensor, mu: Tensor, steps: int, upper: bool) -> float:
    """E[bound] - entropy for data N(mu, sigma) and the exact denoiser, whose reverse means are exact.

    KL(p(x_T) || N(0, s_1^2 C)) + sum KL(p(x_{n-1}|x_n) || N(same mean, sigma_n^2 C)) + the same for the decoder.
    """
    c, t = p.noise.dense(), torch.arange(steps + 1, dtype=torch.float64) / steps
    a, s = p.schedule.alpha(t), p.schedule.sigma(t)
    m = [a[n] ** 2 * sigma + s[n] ** 2 * c for n in range(steps + 1)]
    zero = torch.zeros_like(mu)
    total = kl_divergence(MultivariateNormal(a[-1] * mu, m[-1]), MultivariateNormal(zero, s[-1] ** 2 * c))
    for n in range(1, steps + 1):
        ratio = a[n] / a[n - 1]
        true = m[n - 1] - ratio**2 * m[n - 1] @ torch.linalg.inv(m[n]) @ m[n - 1]
        beta = s[n] ** 2 - ratio**2 * s[n - 1] ** 2
        variance = beta if upper else beta * s[n - 1] ** 2 / s[n] ** 2
        variance = (s[1] / a[1]) ** 2 if n == 1 else variance
        model = MultivariateNormal(zero, variance * c)
        total = total + kl_divergence(MultivariateNormal(zero, (true + true.mT) / 2), model)
    return float(total)


def test_the_divergence_of_a_step_is_torch_s():
    noise, (m1, m2) = AR1(3, 0.5), (randn(4, 3), randn(4, 3, seed=1))
    v1, v2 = torch.tensor([[0.3]]).double(), randn(4, 3, seed=2).exp()
    root = torch.linalg.cholesky(noise.dense())
    for second in (v2, v1 * 1.7, v1):
        full = root @ torch.diag_embed(second.expand(4, 3)) @ root.mT
        truth = kl_divergence(MultivariateNormal(m1, v1 * noise.dense()), MultivariateNormal(m2, full))
        torch.testing.assert_close(kl_step(m1, v1.log(), m2, second.log(), noise), truth)
    independent = Independent(Normal(m1, v1.sqrt()), 1), Independent(Normal(m2, v2.sqrt()), 1)
    torch.testing.assert_close(kl_step(m1, v1.log(), m2, v2.log(), Identity()), kl_divergence(*independent))
    assert bool((kl_step(m1, v1.log(), m1, v1.log() + 1e-9, noise) >= 0).all())


def test_prior_is_the_divergence_of_the_last_marginal():
    x0 = randn(3, 2)
    a, s, c = CORRELATED.schedule.alpha(1.0), CORRELATED.schedule.sigma(1.0), CORRELATED.noise.dense()
    prior = vlb(GAUSS.denoiser(CORRELATED), x0, 3, decoder="gaussian").prior
    last = MultivariateNormal(torch.zeros(2).double(), s**2 * c)
    torch.testing.assert_close(prior, kl_divergence(MultivariateNormal(a * x0, s**2 * c), last))


@pytest.mark.parametrize("form", ["matching", "consistency"])
@pytest.mark.parametrize("variance", ["lower", "upper"])
@pytest.mark.parametrize(("schedule", "steps"), [(LinearBeta(), 3), (LinearBeta(), 12), (Cosine(-6.0), 7)])
def test_the_bound_of_a_gaussian_is_a_closed_form(form: Any, variance: Any, schedule: Schedule, steps: int):
    p = Process(schedule, AR1(2, 0.6))
    bound = estimate(GAUSS.denoiser(p), draws(GAUSS, 4000), steps, form, "gaussian", variance=variance)
    entropy = float(MultivariateNormal(GAUSS.means[0], SIGMA).entropy())
    assert_mean(bound.total, entropy + gap(p, SIGMA, GAUSS.means[0], steps, variance == "upper"))


def test_the_gap_closes_as_one_over_the_number_of_steps():
    """With the upper variance; the lower one keeps a gap on continuous data, and is not the default there."""
    d, x0 = GAUSS.denoiser(CORRELATED), draws(GAUSS, 6000)
    surprise = -GAUSS.log_prob(x0, CORRELATED, 0.0)
    exact = [gap(CORRELATED, SIGMA, GAUSS.means[0], n, True) for n in (8, 16, 32)]
    assert 0.4 < exact[1] / exact[0] < 0.6
    assert 0.4 < exact[2] / exact[1] < 0.6
    for steps, expected in zip((8, 16), exact[:2], strict=True):
        error = assert_mean(estimate(d, x0, steps, decoder="gaussian").total - surprise, expected)
        assert expected > 3 * error
    assert gap(CORRELATED, SIGMA, GAUSS.means[0], 256, False) > 0.5


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_tight_at_every_number_of_steps_where_the_data_are_the_noise(steps: int):
    """C = Sigma, variance preserving, variance beta: what is left is the decoder's a_1^2 and the prior's."""
    c = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    data, p = GaussianMixture([1.0], [[0.0, 0.0]], c[None]), Process(LinearBeta(), Matrix(c))
    x0, a2 = draws(data, 3000), float(p.schedule.alpha(1 / steps)) ** 2
    s2 = float(p.schedule.sigma(1.0)) ** 2
    left = (a2 - 1 - math.log(a2)) + (1 / s2 - 1 + math.log(s2))
    assert_mean(estimate(data.denoiser(p), x0, steps, decoder="gaussian").total + data.log_prob(x0, p, 0.0), left)
    assert left == pytest.approx(gap(p, c, torch.zeros(2).double(), steps, True), abs=1e-9)


@pytest.mark.parametrize("form", ["matching", "consistency", "continuous"])
def test_the_forms_agree_and_bound_the_mixture(form: Any):
    d, x0 = MIXTURE.denoiser(CORRELATED), draws(MIXTURE, 4000)
    above = estimate(d, x0, 30, form, "gaussian").total - d.log_prob(x0, 0.0).neg()
    error = float(above.std()) / math.sqrt(len(above))
    assert float(above.mean()) > -4 * error
    if form != "continuous":
        reference = estimate(d, x0, 30, "matching", "gaussian", seed=1).total + d.log_prob(x0, 0.0)
        assert_mean(above - reference, 0.0)
    else:
        assert float(above.mean()) < 0.1 + 4 * error


def test_consistency_has_the_larger_variance():
    d, x0 = MIXTURE.denoiser(CORRELATED), draws(MIXTURE, 1).expand(300, 2)
    spread = {form: float(estimate(d, x0, 50, form, "gaussian").total.std()) for form in ("matching", "consistency")}
    assert spread["consistency"] > 1.3 * spread["matching"]


def test_the_divergence_that_s3_writes_is_another_number():
    """KL(q(x_n|x_{n-1}) || p(x_n|x_{n+1})) takes x_n for independent of x_{n+1}: its sum is far above the bound."""
    p, steps = CORRELATED, 20
    d, x0 = MIXTURE.denoiser(p), draws(MIXTURE, 2000)
    literal = torch.zeros(2000, dtype=torch.float64)
    for n in range(1, steps):
        r, s, t = (n - 1) / steps, n / steps, (n + 1) / steps
        x_r = p.add_noise(x0, r, randn(2000, 2, seed=2 * n))
        x_t = p.transition(x_r, r, t).sample(randn(2000, 2, seed=2 * n + 1))
        posterior, step = p.posterior(x_t, d(x_t, t).x0, s, t), p.transition(x_r, r, s)
        up = p.transition(x_t, s, t).std
        literal += kl_step(step.mean, 2 * step.std.log(), posterior.mean, 2 * up.log(), p.noise)
    bound = estimate(d, x0, steps, "consistency", "gaussian")
    assert float(literal.mean()) > float(bound.diffusion.mean()) + 10


def test_the_continuous_form_is_a_closed_form_for_white_data():
    """1/2 int r e^l/(1 + r e^l) dl = 1/2 log((1 + r SNR_max)/(1 + r SNR_min)) a dimension."""
    r, steps = 0.4, 50
    data = GaussianMixture([1.0], torch.zeros(1, 3), r * torch.eye(3)[None])
    p = Process(Cosine(-8.0))
    low, high = (float(torch.exp(p.schedule.log_snr(t))) for t in (1.0, 1 / steps))
    bound = estimate(data.denoiser(p), draws(data, 3000), steps, "continuous", "gaussian", terms=8)
    assert_mean(bound.diffusion, 1.5 * math.log((1 + r * high) / (1 + r * low)))


def test_the_continuous_form_knows_only_the_ends_of_the_schedule():
    betas = torch.tensor([0.02, 0.3, 0.1, 0.4, 0.2, 0.5])
    one, other = Discrete(betas), Discrete(betas[[0, 4, 3, 5, 1, 2]])
    x0 = draws(MIXTURE, 20)
    values = [
        vlb(MIXTURE.denoiser(Process(schedule, AR1(2, 0.6))), x0, 6, "continuous", "gaussian", terms=16).diffusion
        for schedule in (one, other)
    ]
    torch.testing.assert_close(values[0], values[1], rtol=1e-9, atol=1e-9)
    assert float(values[0].abs().min()) > 0.1


@pytest.mark.parametrize("form", ["matching", "continuous"])
def test_some_of_the_terms_are_unbiased(form: Any):
    d, x0 = MIXTURE.denoiser(CORRELATED), draws(MIXTURE, 4000)
    full = estimate(d, x0, 25, form, "gaussian").diffusion
    assert_mean(estimate(d, x0, 25, form, "gaussian", terms=3, seed=1).diffusion - full, 0.0)


@pytest.mark.parametrize("form", ["matching", "consistency", "continuous"])
def test_numbers_do_not_depend_on_the_batch(form: Any):
    d, x0 = MIXTURE.denoiser(CORRELATED), draws(MIXTURE, 9)
    settings: dict[str, Any] = {"steps": 12, "form": form, "decoder": "gaussian", "draws": 2, "terms": 5}
    whole = vlb(d, x0, **settings).total
    torch.testing.assert_close(vlb(d, x0, batch=4, **settings).total, whole, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(vlb(d, x0[6:], first=6, batch=1, **settings).total, whole[6:], rtol=1e-11, atol=1e-11)
    assert bool((vlb(d, x0, seed=1, **settings).total != whole).all())


def test_draws_are_averaged():
    d, x0 = MIXTURE.denoiser(CORRELATED), draws(MIXTURE, 1).expand(400, 2)
    one, four = (float(estimate(d, x0, 8, decoder="gaussian", draws=k).total.var()) for k in (1, 4))
    assert 0.15 < four / one < 0.4


def test_images_and_clips_are_their_vectors():
    """White noise on (1, 2, 1) images, and AR1 over the frames of (1, 2, 1, 1) clips, against vectors of two."""
    x0 = draws(MIXTURE, 5)
    for shape in ((1, 2, 1), (1, 2, 1, 1)):
        p = Process(LinearBeta(), Identity() if len(shape) == 3 else AR1(2, 0.6))
        shaped = GaussianMixture(MIXTURE.weights, MIXTURE.means.reshape(2, *shape), MIXTURE.covs)
        flat = vlb(MIXTURE.denoiser(p), x0, 10, decoder="gaussian")
        whole = vlb(shaped.denoiser(p), x0.reshape(5, *shape), 10, decoder="gaussian")
        for a, b in zip(vars(flat).values(), vars(whole).values(), strict=True):
            assert a == b if isinstance(a, str) else torch.allclose(a, b, rtol=1e-10)


class Mean(nn.Module):
    """A float32 network: x0 of two-dimensional data, and a fixed place of the variance."""

    def __init__(self, place: float | None) -> None:
        super().__init__()
        self.layer, self.place = nn.Linear(2, 2), place

    def forward(self, x: Tensor, log_snr: Tensor, label: Tensor | None = None) -> Tensor:
        mean = self.layer(x) if label is None else self.layer(x) + label[:, None]
        return mean if self.place is None else torch.cat([mean, torch.full_like(mean, 2 * self.place - 1)], 1)


@pytest.mark.parametrize("form", ["matching", "consistency"])
def test_learned_variance_is_used_and_spans_both_bounds(form: Any):
    net, x0 = Mean(0.0), draws(GAUSS, 6).float()
    d = Denoiser(net, CORRELATED, "x0")
    values = {}
    for place in (0.0, 0.5, 1.0):
        net.place = place
        values[place] = vlb(d, x0, 5, form, "gaussian")
    net.place = None
    for place, name in ((0.0, "lower"), (1.0, "upper")):
        fixed = vlb(d, x0, 5, form, "gaussian", variance=name)  # type: ignore[arg-type]
        torch.testing.assert_close(values[place].diffusion, fixed.diffusion, rtol=1e-5, atol=1e-5)
    assert bool((values[0.5].diffusion != values[1.0].diffusion).all())
    assert values[0.5].total.dtype == torch.float64


def test_conditions_go_with_their_samples():
    d, x0 = Denoiser(Mean(None), CORRELATED, "x0"), draws(GAUSS, 5)
    label = torch.arange(5.0)
    whole = vlb(d, x0, 6, decoder="gaussian", cond={"label": label}, batch=2).total
    for i in (0, 3):
        alone = vlb(d, x0[i : i + 1], 6, decoder="gaussian", cond={"label": label[i : i + 1]}, first=i).total
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-5, atol=1e-5)


def test_the_network_is_left_as_it_was():
    d = Denoiser(Mean(None), CORRELATED, "x0").train()
    bound = vlb(d, draws(GAUSS, 2), 3, decoder="gaussian")
    assert d.training
    assert not bound.total.requires_grad


def test_pixels_of_a_known_distribution():
    """Four pictures of two pixels with given probabilities: the bound on -log p of each, to a tenth of a nat."""
    levels = torch.tensor([[0, 0], [255, 100], [30, 200], [128, 128]]).double() / 127.5 - 1
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    d = GaussianMixture(weights, levels, torch.zeros(4, 2, 2)).denoiser(Process(Cosine()))
    x0 = levels.repeat(50, 1)
    for decoder in ("discrete", "vdm"):
        bound = estimate(d, x0, 1000, decoder=decoder, terms=40)  # type: ignore[arg-type]
        above = bound.total.reshape(50, 4).mean(0) + weights.log()
        error = bound.total.reshape(50, 4).std(0) / 50**0.5
        assert bool((above > -4 * error).all())
        assert bool((above < 0.1 + 4 * error).all()), (decoder, above, error)


def test_parts_add_up():
    one = torch.ones(2)
    assert Bound(one, 2 * one, 4 * one, "gaussian").total.tolist() == [7.0, 7.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps, draws and terms must be at least 1, got 0"),
        ({"terms": 0}, "must be at least 1"),
        ({"form": "both"}, "unknown form 'both'; known: matching, consistency, continuous"),
        ({"decoder": "eight"}, "unknown decoder 'eight'; known: discrete, vdm, gaussian"),
        ({"decoder": "discrete"}, 'not 8-bit pixels.*decoder="gaussian"'),
        ({"variance": "middle"}, 'variance is "lower"'),
        ({"variance": "learned"}, "learned no variance"),
        ({"form": "continuous", "variance": "upper"}, "continuous form has no reverse variance"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"cond": {"label": torch.zeros(3)}}, r"cond\['label'\] has 3 rows for 2 samples"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        vlb(GAUSS.denoiser(CORRELATED), draws(GAUSS, 2), **({"steps": 3, "decoder": "gaussian"} | settings))


def test_bad_samples():
    d = Denoiser(Mean(None), CORRELATED, "x0", data=Data((2,)))
    cases = [
        (torch.zeros(0, 2), "at least one sample"),
        (torch.zeros(2, 3), r"made for samples of \(2,\), got \(3,\)"),
        (torch.tensor([[0.0, math.nan]]), "not finite"),
        (torch.zeros(2, 2, dtype=torch.uint8), "floating point in"),
    ]
    for x0, message in cases:
        with pytest.raises(ValueError, match=message):
            vlb(d, x0, 3, decoder="gaussian")
    broken = Denoiser(Mean(math.nan), CORRELATED, "x0")
    broken.net.layer.weight.data.fill_(math.nan)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="bound of 2 of 2 samples is not finite"):
        vlb(broken, torch.zeros(2, 2), 3, decoder="gaussian")
    singular = GaussianMixture([1.0], [[0.0, 0.0]], torch.eye(2)[None]).denoiser(Process(LinearBeta(), AR1(2, 1.0)))
    with pytest.raises(ValueError, match=r"singular.*floored"):
        vlb(singular, torch.zeros(1, 2).double(), 3, decoder="gaussian")
