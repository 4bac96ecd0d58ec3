"""Preconditioning by modes: for Gaussian data the optimum is no network at all, and the target has the law of noise."""

import math

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein.denoiser import Denoiser
from ornstein.nets import VideoUNet
from ornstein.noise import AR1, Covariance, Identity, Kronecker, Matrix, Mixed, Toeplitz, log_snr_shift
from ornstein.oracles import GaussianMixture
from ornstein.preconditioning import Preconditioning
from ornstein.process import Process
from ornstein.schedules import EDM, VE, Cosine, LinearBeta, Rectified, Schedule, Shifted

L, STD = 4, 0.6
SIGMA = Toeplitz([1.0, 0.8, 0.5, 0.3])
NOISES = [
    Identity(),
    AR1(L, 0.6),
    Mixed(L, -0.2),
    Matrix(torch.block_diag(torch.tensor([[2.0, 0.3], [0.3, 1.0]]), torch.tensor([[1.0, -0.5], [-0.5, 0.7]]))),
]
SCHEDULES = [Cosine(None), LinearBeta(), EDM(), Rectified(), Shifted(Cosine(), -1.2)]


class Zero(nn.Module):
    """Says nothing, and remembers what it saw."""

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        self.seen = x
        return torch.zeros_like(x)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(noise: Covariance) -> Tensor:
    return torch.eye(L, dtype=torch.float64) if isinstance(noise, Identity) else noise.dense()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_without_a_network_it_is_the_oracle_of_gaussian_data(noise: Covariance, schedule: Schedule):
    p = Process(schedule, noise)
    d = Denoiser(Zero(), p, "edm", data_std=STD, data_covariance=SIGMA)
    exact = GaussianMixture([1.0], torch.zeros(1, L), STD**2 * SIGMA.dense()[None]).denoiser(p)
    x = randn(3, L)
    for t in (0.02, 0.5, 1.0, torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)):
        torch.testing.assert_close(d(x, t).x0, exact(x, t).x0, rtol=1e-9, atol=1e-10)
    plain = Denoiser(Zero(), p, "edm", data_std=STD)
    assert (plain(x, 0.5).x0 - exact(x, 0.5).x0).abs().max() > 1e-3  # scalars are not enough


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("t", [0.01, 0.4, 1.0])
def test_input_and_target_have_the_covariance_of_the_noise(noise: Covariance, schedule: Schedule, t: float):
    """Exactly: both are linear in the unit vectors that data and noise are made of. In R^-1 the target is white."""
    p = Process(schedule, noise)
    preconditioning = Preconditioning(p, STD, SIGMA)
    units = torch.eye(2 * L, dtype=torch.float64)
    x0, z = STD * SIGMA.color(units[:, :L].contiguous()), units[:, L:].contiguous()
    x_t = p.add_noise(x0, t, z)
    seen, target = preconditioning.network_input(x_t, t), preconditioning.target(x_t, t, x0)
    torch.testing.assert_close(seen.mT @ seen, dense(noise), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(target.mT @ target, dense(noise), rtol=1e-7, atol=1e-8)
    assert (seen.mT @ target).abs().max() < 1e-8  # nothing of the target can be told from the input
    white = noise.whiten(target)
    torch.testing.assert_close(white.mT @ white, torch.eye(L, dtype=torch.float64), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(preconditioning.x0(x_t, t, target), x0, rtol=1e-9, atol=1e-9)


def test_data_like_the_noise_need_scalars_only():
    """Sigma = data_std^2 C: Karras et al. 2022, table 1, the same as without a data covariance."""
    x, output, t = randn(2, 3, L, 2, 2), randn(2, 3, L, 2, 2, seed=1), torch.tensor([0.3, 0.8], dtype=torch.float64)
    p = Process(LinearBeta(), SIGMA)
    by_mode, plain = Preconditioning(p, STD, Toeplitz(SIGMA.first_row)), Preconditioning(p, STD)
    torch.testing.assert_close(by_mode.network_input(x, t), plain.network_input(x, t))
    torch.testing.assert_close(by_mode.x0(x, t, output), plain.x0(x, t, output))
    torch.testing.assert_close(by_mode.target(x, t, output), plain.target(x, t, output))
    a, s = float(p.schedule.alpha(0.3)), float(p.schedule.sigma(0.3))
    level = s / a  # x_t/a is Karras' sample at this noise level
    expected = STD**2 / (level**2 + STD**2) * x[0] / a + level * STD / math.hypot(level, STD) * output[0]
    torch.testing.assert_close(plain.x0(x, t, output)[0], expected)


def test_each_pixel_of_a_clip_is_a_vector_of_frames():
    clip = randn(2, 3, L, 2, 2)
    vectors = clip.movedim(2, -1).reshape(-1, L)
    preconditioning = Preconditioning(Process(Cosine(), AR1(L, 0.5)), STD, SIGMA)
    expected = preconditioning.network_input(vectors, 0.4).reshape(2, 3, 2, 2, L).movedim(-1, 2)
    torch.testing.assert_close(preconditioning.network_input(clip, 0.4), expected)
    assert preconditioning.network_input(clip.float(), 0.4).dtype == torch.float32


def test_the_loss_of_no_network_is_the_target_s_variance():
    d = Denoiser(Zero(), Process(Cosine(), AR1(L, 0.6)), "edm", data_std=STD, data_covariance=SIGMA)
    n = 20_000
    x0 = STD * SIGMA.color(randn(n, L))
    for t in (0.05, 0.5, 1.0):
        loss = d.loss(x0, torch.full((n,), t, dtype=torch.float64), randn(n, L, seed=1))
        assert abs(float(loss.mean()) - 1) < 4 * float(loss.std()) / math.sqrt(n)


def test_it_is_saved_with_the_model(tmp_path):
    net = VideoUNet.preset("xs", channels=1, size=8, frames=L)
    d = Denoiser(net, Process(Shifted(Cosine(), 0.7), AR1(L, 0.6)), "edm", 0.4, data_covariance=SIGMA).eval()
    d.save(tmp_path / "model")
    again = orn.load(tmp_path / "model")
    assert again.data_covariance == SIGMA
    assert again.process == d.process
    x = randn(1, 1, L, 8, 8).float()
    assert torch.equal(again(x, 0.5).x0, d(x, 0.5).x0)


@pytest.mark.parametrize(
    ("noise", "data", "message"),
    [
        (AR1(L, 0.5), AR1(3, 0.5), "over 3 frames, the noise over 4"),
        (AR1(L, 1.0), SIGMA, r"singular.*floored"),
        (AR1(L, 0.5), Mixed(L, 1.0), r"singular.*floored"),
        (AR1(L, 0.5), Identity(), "takes covariances over frames"),
        (Kronecker(AR1(L, 0.5), AR1(4, 0.5)), SIGMA, "takes covariances over frames"),
    ],
)
def test_covariances_that_do_not_fit(noise: Covariance, data: Covariance, message: str):
    with pytest.raises(ValueError, match=message):
        Denoiser(Zero(), Process(Cosine(), noise), "edm", data_covariance=data)


def test_other_mistakes():
    with pytest.raises(ValueError, match=r'preconditions the prediction "edm", not \'v\''):
        Denoiser(Zero(), Process(Cosine()), "v", data_covariance=SIGMA)
    with pytest.raises(ValueError, match=r"acts on 4 frames, the sample \(2, 5\) has another"):
        Denoiser(Zero(), Process(Cosine()), "edm", data_covariance=SIGMA)(randn(2, 5), 0.5)
    with pytest.raises(ValueError, match="preserves variance"):
        Shifted(VE(), 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="must be finite"):
        Shifted(Cosine(), math.inf)


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_a_centred_schedule_has_the_modes_of_the_data_about_its_middle(noise: Covariance):
    """lambda + log r_k has the mean lambda of the schedule: read off the gains of the exact denoiser."""
    shift, plain = log_snr_shift(noise, SIGMA, (L,)), LinearBeta()
    ratio = torch.linalg.eigvals(torch.linalg.solve(dense(noise), SIGMA.dense())).real
    assert shift == pytest.approx(float(ratio.log().mean()))
    p, t = Process(Shifted(plain, -shift), noise), 0.3
    exact = GaussianMixture([1.0], torch.zeros(1, L), SIGMA.dense()[None]).denoiser(p)
    gains = torch.linalg.eigvals(exact(torch.eye(L, dtype=torch.float64), t).x0).real * p.schedule.alpha(t)
    torch.testing.assert_close(
        gains.logit().sort().values, (p.schedule.log_snr(t) + ratio.log()).sort().values, rtol=1e-8, atol=1e-8
    )
    assert float(gains.logit().mean()) == pytest.approx(float(plain.log_snr(t)), abs=1e-9)
    # The same as noise of covariance e^shift C under the schedule itself, but for the scale of x_t.
    louder = Process(plain, Matrix(math.exp(shift) * dense(noise)))
    assert log_snr_shift(louder.noise, SIGMA, (L,)) == pytest.approx(0, abs=1e-12)
    x = randn(3, L)
    scale = float(plain.alpha(t) / p.schedule.alpha(t))
    same = GaussianMixture([1.0], torch.zeros(1, L), SIGMA.dense()[None]).denoiser(louder)(scale * x, t).x0
    torch.testing.assert_close(exact(x, t).x0, same, rtol=1e-9, atol=1e-10)


def test_the_shift_of_clips_counts_every_element():
    noise, data = Kronecker(AR1(L, 0.5), AR1(4, 0.3)), SIGMA
    shape = (3, L, 2, 2)
    assert log_snr_shift(noise, data, shape) == pytest.approx(
        (12 * data.axis_logdet() - noise.logdet(shape)) / math.prod(shape)
    )
