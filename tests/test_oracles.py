"""The exact oracles against dense Gaussians, autograd, Monte Carlo and a fine integration of the ODE."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ornstein import Process
from ornstein.noise import AR1, Covariance, Identity, Matrix
from ornstein.oracles import GaussianMixture
from ornstein.process import linear_marginal
from ornstein.schedules import EDM, VE, Cosine, Discrete, LinearBeta, Rectified, Schedule

N = 3


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariances(k: int, n: int, seed: int = 5) -> Tensor:
    a = randn(k, n, n, seed=seed)
    return a @ a.mT / n + 0.05 * torch.eye(n, dtype=torch.float64)


WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
MEANS, COVS = randn(3, N, seed=1), covariances(3, N)
MIXTURE = GaussianMixture(WEIGHTS, MEANS, COVS)
ONE = GaussianMixture([1.0], MEANS[:1], COVS[:1])
PROCESSES = [
    Process(LinearBeta(), AR1(N, 0.7)),
    Process(Cosine(), Identity()),
    Process(VE(0.01, 5.0), AR1(N, -0.5)),
    Process(EDM(), Matrix(covariances(1, N, seed=9)[0])),
    Process(Rectified(), AR1(N, 0.7)),
    Process(Discrete.linear(100), AR1(N, 0.3)),
]
each = pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p.schedule).__name__)


def dense(noise: Covariance, n: int = N) -> Tensor:
    return noise.dense() if not isinstance(noise, Identity) else torch.eye(n, dtype=torch.float64)


def marginal(p: Process, t: float) -> MixtureSameFamily:
    """p_t = sum_k pi_k N(a mu_k, a^2 Sigma_k + s^2 C)."""
    a, s = float(p.schedule.alpha(t)), float(p.schedule.sigma(t))
    components = MultivariateNormal(a * MEANS, a**2 * COVS + s**2 * dense(p.noise))
    return MixtureSameFamily(Categorical(WEIGHTS), components)


@each
@pytest.mark.parametrize("t", [0.0, 0.02, 0.5, 1.0])
def test_log_prob(p: Process, t: float):
    x = randn(6, N, seed=2) * 2
    torch.testing.assert_close(MIXTURE.log_prob(x, p, t), marginal(p, t).log_prob(x), rtol=1e-9, atol=1e-9)


@each
@pytest.mark.parametrize("t", [0.02, 0.5, 0.98])
def test_score_is_the_gradient_of_log_prob_and_tweedie_holds(p: Process, t: float):
    x = randn(6, N, seed=2).requires_grad_()
    score = torch.autograd.grad(marginal(p, t).log_prob(x).sum(), x)[0]
    x = x.detach()
    prediction = MIXTURE.denoiser(p)(x, t)
    torch.testing.assert_close(prediction.score, score, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(prediction.C_score, score @ dense(p.noise), rtol=1e-7, atol=1e-7)
    a, s = p.schedule.alpha(t), p.schedule.sigma(t)
    torch.testing.assert_close(prediction.x0, (x + s**2 * score @ dense(p.noise)) / a, rtol=1e-7, atol=1e-7)
    exact = torch.autograd.grad(MIXTURE.log_prob(x.requires_grad_(), p, t).sum(), x)[0]
    torch.testing.assert_close(exact, score, rtol=1e-8, atol=1e-8)


@each
@pytest.mark.parametrize("t", [0.02, 0.5, 1.0])
def test_denoiser_is_the_dense_posterior_mean(p: Process, t: float):
    a, s, x = float(p.schedule.alpha(t)), float(p.schedule.sigma(t)), randn(6, N, seed=2)
    means, joint = [], []
    for k in range(3):
        m = a**2 * COVS[k] + s**2 * dense(p.noise)
        means.append(MEANS[k] + (x - a * MEANS[k]) @ (a * COVS[k] @ torch.linalg.inv(m)).mT)
        joint.append(WEIGHTS[k].log() + MultivariateNormal(a * MEANS[k], m).log_prob(x))
    each_mean, share = torch.stack(means, 1), torch.stack(joint, 1).softmax(1)
    oracle = MIXTURE.denoiser(p)
    torch.testing.assert_close(oracle(x, t).x0, (share[..., None] * each_mean).sum(1), rtol=1e-8, atol=1e-8)
    for k in range(3):
        torch.testing.assert_close(oracle(x, t, label=torch.full((6,), k)).x0, each_mean[:, k], rtol=1e-8, atol=1e-8)


def test_denoiser_against_importance_sampling():
    """E[x_0 | x_t] as the mean of draws of x_0 weighed by q(x_t | x_0), within 4 of its standard errors."""
    p, t, n = PROCESSES[0], 0.4, 200_000
    x_t = torch.tensor([[0.4, -0.2, 0.9]], dtype=torch.float64)
    x0 = MIXTURE.sample(n, generator=torch.Generator().manual_seed(0))
    a, s = p.schedule.alpha(t), p.schedule.sigma(t)
    weight = MultivariateNormal(torch.zeros(N).double(), s**2 * dense(p.noise)).log_prob(x_t - a * x0).softmax(0)
    mean = weight @ x0
    error = torch.sqrt((weight[:, None] ** 2 * (x0 - mean) ** 2).sum(0))
    assert error.max() < 0.02
    assert ((MIXTURE.denoiser(p)(x_t, t).x0[0] - mean).abs() < 4 * error).all()


def test_sample_has_the_mixture_s_moments():
    n = 100_000
    x = MIXTURE.sample(n, generator=torch.Generator().manual_seed(0))
    mean = WEIGHTS @ MEANS
    second = torch.einsum("k,kij->ij", WEIGHTS, COVS + MEANS[:, :, None] * MEANS[:, None, :])
    covariance = second - mean[:, None] * mean
    assert ((x.mean(0) - mean).abs() < 4 * torch.sqrt(covariance.diagonal() / n)).all()
    products = x[:, :, None] * x[:, None, :]
    assert ((products.mean(0) - second).abs() < 4 * products.std(0) / math.sqrt(n)).all()
    assert torch.equal(x, MIXTURE.sample(n, generator=torch.Generator().manual_seed(0)))


def rk4(velocity: Callable[[Tensor, float], Tensor], x: Tensor, t: float, s: float, steps: int) -> Tensor:
    h = (s - t) / steps
    for i in range(steps):
        u = t + i * h
        k1 = velocity(x, u)
        k2 = velocity(x + h / 2 * k1, u + h / 2)
        k3 = velocity(x + h / 2 * k2, u + h / 2)
        k4 = velocity(x + h * k3, min(max(u + h, 0.0), 1.0))
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


@pytest.mark.parametrize("p", [q for q in PROCESSES if not isinstance(q.schedule, Discrete)], ids=str)
@pytest.mark.parametrize("times", [(0.95, 0.1), (0.2, 0.7)])
def test_ode_map_integrates_the_probability_flow(p: Process, times: tuple[float, float]):
    """E20: dx/dt = f x - 1/2 g^2 C grad log p_t, the score by dense algebra, not from the oracle."""
    mean, cov = MEANS[0], COVS[0]

    def velocity(x: Tensor, t: float) -> Tensor:
        a, s = p.schedule.alpha(t), p.schedule.sigma(t)
        score = -(x - a * mean) @ torch.linalg.inv(a**2 * cov + s**2 * dense(p.noise))
        return p.schedule.drift(t) * x - 0.5 * p.schedule.g2(t) * score @ dense(p.noise)

    x = randn(4, N, seed=3)
    expected = rk4(velocity, x, *times, steps=800)
    torch.testing.assert_close(ONE.ode_map(x, p, *times), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ONE.denoiser(p)(x, 0.4).flow, velocity(x, 0.4), rtol=1e-8, atol=1e-8)


@each
def test_ode_map_is_a_semigroup_and_carries_the_density(p: Process):
    x = randn(4, N, seed=3)
    there = ONE.ode_map(x, p, 0.9, 0.4)
    torch.testing.assert_close(ONE.ode_map(there, p, 0.4, 0.05), ONE.ode_map(x, p, 0.9, 0.05), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ONE.ode_map(there, p, 0.4, 0.9), x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ONE.ode_map(x, p, 0.9, 0.9), x)
    # Change of variables: log p_t(x) = log p_s(y) + log |det dy/dx|, the map being affine.
    unit = torch.eye(N, dtype=torch.float64)
    jacobian = ONE.ode_map(unit, p, 0.9, 0.4) - ONE.ode_map(torch.zeros_like(unit), p, 0.9, 0.4)
    change = torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(ONE.log_prob(x, p, 0.9), ONE.log_prob(there, p, 0.4) + change, rtol=1e-8, atol=1e-8)


def test_ode_map_with_a_time_for_each_sample():
    p, x, t = PROCESSES[0], randn(3, N), torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    moved = ONE.ode_map(x, p, t, 0.1)
    for b in range(3):
        torch.testing.assert_close(moved[b : b + 1], ONE.ode_map(x[b : b + 1], p, float(t[b]), 0.1))


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), Discrete.linear(100)], ids=str)
def test_noise_like_the_data_gives_no_flow(schedule: Schedule):
    """C = Sigma and a^2 + s^2 = 1: the marginal is constant and the flow zero. With C = I it is not."""
    c = AR1(N, 0.7)
    data, x = GaussianMixture([1.0], torch.zeros(1, N), c.dense()[None]), randn(4, N)
    p = Process(schedule, c)
    for t in (0.01, 0.5, 0.99):
        assert data.denoiser(p)(x, t).flow.abs().max() < 1e-10
        torch.testing.assert_close(data.ode_map(x, p, t, 0.3), x)
        assert data.denoiser(Process(schedule))(x, t).flow.abs().max() > 1e-4


def test_a_mode_s_log_snr_is_shifted():
    """The mode k of C^-1 Sigma with eigenvalue r_k has SNR a^2 r_k/s^2: its gain is sigmoid(lambda + log r_k)/a."""
    c, t = AR1(N, 0.7), 0.4
    p, cov = Process(LinearBeta(), c), COVS[0]
    values, vectors = torch.linalg.eig(torch.linalg.inv(c.dense()) @ cov)
    r, left = values.real, vectors.real  # C^-1 Sigma u = r u, so Sigma u = r C u: x = C u is a mode of x_t
    x0 = GaussianMixture([1.0], torch.zeros(1, N), cov[None]).denoiser(p)((c.dense() @ left).mT.contiguous(), t).x0
    gain = torch.sigmoid(p.schedule.log_snr(t) + r.log()) / p.schedule.alpha(t)
    torch.testing.assert_close(x0, gain[:, None] * (c.dense() @ left).mT, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [0.1, 0.6, 1.0])
def test_correlated_noise_is_white_noise_in_whitened_coordinates(t: float):
    """C-diffusion on x is I-diffusion on R^-1 x; the log densities differ by half log det C."""
    c, x = AR1(N, 0.7), randn(5, N)
    root = torch.linalg.cholesky(c.dense())
    inverse = torch.linalg.inv(root)
    white = GaussianMixture(WEIGHTS, MEANS @ inverse.mT, inverse @ COVS @ inverse.mT)
    p, q = Process(LinearBeta(), c), Process(LinearBeta())
    y = x @ inverse.mT
    torch.testing.assert_close(MIXTURE.denoiser(p)(x, t).x0, white.denoiser(q)(y, t).x0 @ root.mT, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        MIXTURE.log_prob(x, p, t),
        white.log_prob(y, q, t) - 0.5 * torch.linalg.slogdet(c.dense())[1],
        rtol=1e-9,
        atol=1e-9,
    )
    z = randn(5, N, seed=8)
    torch.testing.assert_close(p.add_noise(x, t, z), q.add_noise(y, t, z) @ root.mT)


@pytest.mark.parametrize("rho", [1.0, -1.0])
@pytest.mark.parametrize("schedule", [LinearBeta(), Rectified()], ids=str)
def test_null_modes_of_singular_noise(schedule: Schedule, rho: float):
    """AR1 with |rho| = 1 has two null directions of three: there x_t = a x_0 exactly, along the flow too."""
    p = Process(schedule, AR1(N, rho))
    oracle, x, z = MIXTURE.denoiser(p), randn(4, N), randn(4, N, seed=1)
    range_ = torch.tensor([1.0, rho, 1.0], dtype=torch.float64)
    null = torch.eye(N, dtype=torch.float64) - range_[:, None] * range_ / N
    for t in (0.3, 0.9):
        a = p.schedule.alpha(t)
        x_t = p.add_noise(x, t, z)
        torch.testing.assert_close(x_t @ null, a * x @ null)
        torch.testing.assert_close(oracle(x_t, t).x0 @ null, x @ null, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(ONE.ode_map(x, p, 0.0, t) @ null, a * x @ null, rtol=1e-8, atol=1e-8)
        assert (ONE.ode_map(x, p, 0.0, t) - a * x).abs().max() > 1e-2
        # The data have a density in every direction, so x_t has one, though its kernel has none.
        torch.testing.assert_close(oracle.log_prob(x, t), marginal(p, t).log_prob(x), rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match=r"singular.*floored"):
        _ = oracle(x, 0.5).score


def test_singular_noise_at_zero_snr():
    """x_1 = R z says nothing of x_0: the mean of the data; the null directions have no density there."""
    p = Process(Rectified(), AR1(N, 1.0))
    x = p.noise.color(randn(4, N))
    torch.testing.assert_close(MIXTURE.denoiser(p)(x, 1.0).x0, (WEIGHTS @ MEANS).expand(4, N))
    for call in (lambda: MIXTURE.log_prob(x, p, 1.0), lambda: ONE.ode_map(x, p, 1.0, 0.5)):
        with pytest.raises(ValueError, match="direction without variance"):
            call()


@pytest.mark.parametrize("noise", [Identity(), AR1(N, 0.7)], ids=str)
def test_point_masses(noise: Covariance):
    """Sigma = 0: x_0_hat is the softmax mean of the points, p_t a mixture of N(a mu_k, s^2 C)."""
    p, x = Process(LinearBeta(), noise), randn(5, N)
    points = GaussianMixture(WEIGHTS, MEANS, torch.zeros(3, N, N))
    for t in (1e-3, 0.3, 1.0):
        a, s = p.schedule.alpha(t), p.schedule.sigma(t)
        kernels = MultivariateNormal(a * MEANS, s**2 * dense(noise).expand(3, N, N))
        joint = WEIGHTS.log() + kernels.log_prob(x[:, None])
        torch.testing.assert_close(points.denoiser(p)(x, t).x0, joint.softmax(1) @ MEANS, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(points.log_prob(x, p, t), joint.logsumexp(1), rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match="direction without variance"):
        points.log_prob(x, p, 0.0)
    assert torch.equal(points.denoiser(p)(x, 0.0).x0, x)


def test_data_on_a_line():
    """A covariance of rank one: off the line x_0_hat does not move, along it it is the scalar posterior mean."""
    direction = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    line = GaussianMixture([1.0], MEANS[:1], (direction[:, None] * direction)[None])
    p, x, t = Process(LinearBeta(), Identity()), randn(5, N), 0.4
    a, s = p.schedule.alpha(t), p.schedule.sigma(t)
    weight = a * (x - a * MEANS[0]) @ direction / (a**2 * direction @ direction + s**2)
    torch.testing.assert_close(line.denoiser(p)(x, t).x0, MEANS[0] + weight[:, None] * direction, rtol=1e-9, atol=1e-9)


def test_samples_of_any_shape_and_dtype():
    shape = (2, 3, 1, 2)  # a clip: noise over its three frames
    means, cov = randn(2, *shape), covariances(2, 12)
    p = Process(LinearBeta(), AR1(3, 0.6))
    pair = torch.eye(2, dtype=torch.float64)
    c = torch.kron(pair, torch.kron(p.noise.dense(), pair))
    mixture, x, t = GaussianMixture([0.4, 0.6], means, cov), randn(5, *shape, seed=4), 0.5
    a, s = p.schedule.alpha(t), p.schedule.sigma(t)
    components = MultivariateNormal(a * means.flatten(1), a**2 * cov + s**2 * c)
    expected = MixtureSameFamily(Categorical(torch.tensor([0.4, 0.6]).double()), components).log_prob(x.flatten(1))
    torch.testing.assert_close(mixture.log_prob(x, p, t), expected, rtol=1e-8, atol=1e-8)
    assert mixture.sample(3).shape == (3, *shape)
    exact = mixture.denoiser(p)(x, t)
    single = mixture.denoiser(p)(x.float(), t)
    assert exact.x0.shape == x.shape
    assert single.x0.dtype == single.score.dtype == torch.float32
    torch.testing.assert_close(single.x0, exact.x0.float(), rtol=1e-5, atol=1e-5)


ZERO, EYE = torch.zeros(1, 2), torch.eye(2)[None]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianMixture([0.5, 0.4], torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2)), "sum to 1"),
        (lambda: GaussianMixture([-0.5, 1.5], torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2)), "numbers >= 0"),
        (lambda: GaussianMixture([math.nan], ZERO, EYE), "sum to 1"),
        (lambda: GaussianMixture([0.5, 0.5], ZERO, EYE), "weights must be 1 numbers"),
        (lambda: GaussianMixture([1.0], torch.zeros(1), EYE), r"means must have shape \(components, \*sample\)"),
        (lambda: GaussianMixture([1.0], ZERO, torch.eye(2)), r"covs must have shape \(1, 2, 2\), got \(2, 2\)"),
        (lambda: GaussianMixture([1.0], ZERO, -EYE), "smallest eigenvalue is -1"),
        (lambda: GaussianMixture([1.0], ZERO, torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])), "symmetric"),
        (lambda: GaussianMixture([1.0], ZERO * math.nan, EYE), "must be finite"),
        (lambda: GaussianMixture([1.0], ZERO, EYE * math.inf), "must be finite"),
        (lambda: MIXTURE.ode_map(randn(1, N), PROCESSES[0], 0.5, 0.1), "one Gaussian is a closed form.* has 3"),
        (lambda: MIXTURE.log_prob(randn(1, 4), PROCESSES[0], 0.5), r"lives on \(3,\), the sample has \(4,\)"),
        (lambda: MIXTURE.log_prob(randn(1, N), PROCESSES[0], 1.5), "times lie in"),
        (lambda: MIXTURE.denoiser(Process(LinearBeta(), AR1(4, 0.5))), "acts on an axis of 4"),
        (
            lambda: MIXTURE.denoiser(PROCESSES[0])(randn(2, N), 0.5, label=torch.tensor([0, 3])),
            "label must name one of 3 components for each of 2 samples",
        ),
        (lambda: MIXTURE.denoiser(PROCESSES[0])(randn(2, N), 0.5, label=torch.tensor([0])), "label must name"),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("seed", range(5))
def test_a_direction_without_any_variance_is_refused(seed: int):
    """Data and noise both on one line: rounding must not pass for a variance."""
    line = randn(N, 1, seed=seed)
    c = line @ line.mT
    with pytest.raises(ValueError, match="share a direction without variance"):
        GaussianMixture([1.0], torch.zeros(1, N), 2 * c[None]).denoiser(Process(LinearBeta(), Matrix(c)))


def test_posterior_given_a_linear_observation():
    """E39 against Bayes' rule on a grid: p(x_0 | y) is p(x_0) N(y; A x_0, s^2 I), normalised."""
    data = GaussianMixture([0.6, 0.4], [[1.0, -0.5], [-1.0, 0.8]], covariances(2, 2))
    a, std = torch.tensor([[0.7, -0.4]], dtype=torch.float64), 0.3
    y = torch.tensor([0.5], dtype=torch.float64)
    posterior = data.posterior(a, y, std)
    axis = torch.linspace(-9, 9, 601, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    p = Process(LinearBeta())
    joint = data.log_prob(x, p, 0.0) + torch.distributions.Normal(x @ a[0], std).log_prob(y)
    area = float(axis[1] - axis[0]) ** 2
    expected = joint - torch.logsumexp(joint, 0) - math.log(area)
    near = expected > -12
    torch.testing.assert_close(posterior.log_prob(x[near], p, 0.0), expected[near], rtol=1e-6, atol=1e-6)


def test_posterior_of_one_gaussian_and_of_any_shape():
    cov, mean = covariances(1, 6)[0], randn(1, 1, 2, 3)
    data = GaussianMixture([1.0], mean, cov[None])
    a, y, std = randn(4, 1, 2, 3, seed=5), randn(2, 2, seed=6), 0.4
    posterior = data.posterior(a, y, std)
    m = a.flatten(1)
    precision = torch.linalg.inv(cov) + m.mT @ m / std**2  # the information form
    torch.testing.assert_close(posterior.covs[0], torch.linalg.inv(precision), rtol=1e-8, atol=1e-9)
    shift = torch.linalg.solve(cov, mean.flatten()) + m.mT @ y.flatten() / std**2
    torch.testing.assert_close(posterior.means[0], torch.linalg.solve(precision, shift), rtol=1e-8, atol=1e-9)
    assert posterior.sample_shape == (1, 2, 3)
    kept = data.posterior(m[:1], y.flatten()[:1], 0.0)  # without noise the observation holds exactly
    torch.testing.assert_close((kept.sample(5).flatten(1) @ m[0]), y.flatten()[0].expand(5), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("a", "y", "std", "message"),
    [
        (torch.ones(2, 4), torch.ones(2), 0.1, r"A is \(M, 3\)"),
        (torch.ones(3), torch.ones(1), 0.1, r"A is \(M, 3\)"),
        (torch.ones(2, 3), torch.ones(3), 0.1, "2 numbers, but y has 3"),
        (torch.ones(2, 3), torch.ones(2), -0.1, "standard deviation"),
        (torch.ones(2, 3), torch.ones(2), math.nan, "standard deviation"),
        (torch.ones(2, 3), torch.ones(2), 0.0, "must be invertible"),
    ],
)
def test_posteriors_that_do_not_exist(a: Tensor, y: Tensor, std: float, message: str):
    with pytest.raises(ValueError, match=message):
        MIXTURE.posterior(a, y, std)


def test_the_marginal_of_a_linear_observation():
    """Bishop 2006, eq. 2.115 (S4): mean A m + b, covariance A S A^T + L, against draws and through Bayes' rule."""
    cov, mean = covariances(1, 3)[0], randn(3)
    a, b, noise = randn(2, 3, seed=4), randn(2, seed=5), torch.diag(torch.tensor([0.2, 0.5])).double()
    m, s = linear_marginal(mean, cov, a, noise, b)
    n = 200_000
    g = torch.Generator().manual_seed(0)
    x = MultivariateNormal(mean, cov).mean + torch.randn(n, 3, generator=g).double() @ torch.linalg.cholesky(cov).mT
    y = x @ a.mT + b + torch.randn(n, 2, generator=g).double() * noise.diagonal().sqrt()
    assert bool(((y.mean(0) - m).abs() < 5 * torch.sqrt(s.diagonal() / n)).all())
    spread = torch.sqrt((s.diagonal()[:, None] * s.diagonal() + s**2) / n)
    assert bool(((torch.cov(y.T) - s).abs() < 5 * spread).all())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_keeps_the_marginals(eta: float):
    """S4's induction: x_t ~ q(x_t | x_0) and E24's step from it give x_s ~ q(x_s | x_0), for every eta."""
    p, (t, s) = Process(LinearBeta(), AR1(3, 0.6)), (0.7, 0.3)
    x0, c = randn(3), p.noise.dense()
    a_t, s_t, a_s, s_s = (float(f(u)) for u in (t, s) for f in (p.schedule.alpha, p.schedule.sigma))
    sigma = eta * s_s / s_t * math.sqrt(1 - a_t**2 / a_s**2)
    keep = math.sqrt(s_s**2 - sigma**2) / s_t  # x_s = a_s x_0 + keep (x_t - a_t x_0) + sigma R z
    matrix, offset = keep * torch.eye(3).double(), (a_s - keep * a_t) * x0
    mean, cov = linear_marginal(a_t * x0, s_t**2 * c, matrix, sigma**2 * c, offset)
    torch.testing.assert_close(mean, a_s * x0)
    torch.testing.assert_close(cov, s_s**2 * c)


def test_repr():
    assert repr(MIXTURE) == "GaussianMixture(3 components, samples of (3,))"
    assert repr(ONE).startswith("GaussianMixture(1 component,")
    assert "tensor" not in repr(MIXTURE.denoiser(PROCESSES[0]))
