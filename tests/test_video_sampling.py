"""Known frames and long clips, against the exact conditional laws of Gaussian clips."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein.nets import VideoUNet, frames_known
from ornstein.noise import AR1, Identity, Kronecker, Matrix, Mixed, SpectralAR1, Toeplitz
from ornstein.sampling import sample
from ornstein.solvers import SOLVERS
from ornstein.video import GivenFrames, _WindowNoise, sample_given, sample_long


@dataclass
class GaussianClips:
    """The exact E[x_0 | x_t, known x_0] where each pixel is N(0, sigma) over frames; asked in float64."""

    process: orn.Process
    sigma: Tensor

    def __call__(self, x_t, t, /, known=None, known_mask=None, shift=0.0):
        a, s = (float(c) for c in self.process.coefficients(t, x_t[:1, :1, :1, :1, :1]))
        frames = len(self.sigma)
        noise = self.process.noise
        c = torch.eye(frames, dtype=torch.float64) if isinstance(noise, Identity) else noise.dense()
        look = a * torch.eye(frames, dtype=torch.float64)
        seen, error = x_t.double(), s**2 * c
        if known is not None and known_mask is not None:
            at = known_mask[0].nonzero()[:, 0]
            look = torch.cat([look, torch.eye(frames, dtype=torch.float64)[at]])
            seen = torch.cat([seen, known[:, :, at].double()], dim=2)
            error = torch.block_diag(error, torch.zeros(len(at), len(at), dtype=torch.float64))
        gain = self.sigma @ look.mT @ torch.linalg.pinv(look @ self.sigma @ look.mT + error, rtol=1e-13, hermitian=True)
        x0 = (gain @ seen.flatten(3)).view_as(x_t).to(x_t)
        return self.process.convert(x_t, t, x0=x0)


def oracle(noise, rho=0.9, frames=5):
    return GaussianClips(orn.Process(orn.schedules.Cosine(), noise), AR1(frames, rho).dense())


def covariance(clips: Tensor) -> Tensor:
    """Over frames, of all pixels of all clips: about a known mean of zero."""
    x = clips.double().movedim(2, 0).flatten(1)
    return x @ x.mT / x.shape[1]


NOISES = [Identity(), AR1(5, 0.5), AR1(5, 0.95), Toeplitz(torch.tensor([1.0, 0.6, 0.5, 0.1, 0.0]))]


@pytest.mark.parametrize(
    ("noise", "solver", "steps"), [*((noise, "heun", 24) for noise in NOISES), (NOISES[1], "ddpm", 120)]
)
def test_prediction_and_interpolation_have_the_conditional_law(noise, solver, steps):
    d = oracle(noise)
    for mask in (frames_known(5, 2), frames_known(5, 1, 1)):
        known = torch.full((1, 1, 5, 72, 72), torch.nan)
        values = torch.tensor([0.8, -0.5])
        known[:, :, mask] = values.view(1, 1, 2, 1, 1).expand(1, 1, 2, 72, 72)
        x = sample_given(d, known, mask, solver=solver, steps=steps)
        assert torch.equal(x[:, :, mask], known[:, :, mask])
        sigma, free = d.sigma, ~mask
        gain = sigma[free][:, mask] @ torch.linalg.inv(sigma[mask][:, mask])
        mean, rest = gain @ values.double(), sigma[free][:, free] - gain @ sigma[mask][:, free]
        new = x[:, :, free]
        torch.testing.assert_close(new.double().mean((0, 1, 3, 4)), mean, atol=0.03, rtol=0)
        gap = covariance(new - mean.view(1, 1, -1, 1, 1)) - rest
        assert gap.abs().max() < 0.04, gap


@pytest.mark.parametrize(
    ("noise", "solver", "steps"), [*((noise, "heun", 24) for noise in NOISES), (NOISES[1], "ddpm", 250)]
)
def test_long_markov_clips_have_their_law_over_all_frames(noise, solver, steps):
    d = oracle(noise)
    x = sample_long(d, (1, 1, 11, 72, 72), window=5, overlap=2, solver=solver, steps=steps, seed=3)
    assert x.shape == (1, 1, 11, 72, 72)
    gap = covariance(x) - AR1(11, 0.9).dense()
    assert gap.abs().max() < 0.06, gap


def test_with_noise_of_the_data_a_deterministic_clip_is_its_noise():
    # C = Sigma: without known frames the flow stands still, and with them it leads to the same clip.
    d = oracle(AR1(5, 0.9))
    x = sample_long(d, (1, 1, 13, 32, 32), window=5, overlap=1, solver="heun", steps=40)
    noise = window_noise(d.process.noise, (1, 1, 5, 32, 32), 1, torch.float32)
    e = [d.process.noise.color(noise(k, 0)) for k in range(3)]
    torch.testing.assert_close(x, torch.cat([e[0], e[1][:, :, 1:], e[2][:, :, 1:]], dim=2), atol=0.02, rtol=0)


def test_the_first_window_is_a_plain_sample_and_batches_do_not_matter():
    d = oracle(AR1(5, 0.6))
    whole = sample_long(d, (5, 2, 9, 4, 4), 5, 2, solver="ddpm", steps=6, seed=8)
    assert torch.equal(whole[:, :, :5], sample(d, (5, 2, 5, 4, 4), solver="ddpm", steps=6, seed=8))
    torch.testing.assert_close(sample_long(d, (5, 2, 9, 4, 4), 5, 2, solver="ddpm", steps=6, seed=8, batch=2), whole)
    part = sample_long(d, (2, 2, 9, 4, 4), 5, 2, solver="ddpm", steps=6, seed=8, first=3)
    torch.testing.assert_close(part, whole[3:])
    shorter = sample_long(d, (5, 2, 7, 4, 4), 5, 2, solver="ddpm", steps=6, seed=8)
    torch.testing.assert_close(shorter, whole[:, :, :7])


def test_callbacks_see_every_state_of_every_batch_and_window():
    d, states = oracle(AR1(5, 0.6)), []
    mask = frames_known(5, 2)
    made = sample_given(d, torch.zeros(3, 1, 5, 4, 4), mask, "ddim", 2, batch=2, first=4, callback=states.append)
    assert [(s.first, s.step, s.steps) for s in states] == [
        (4, 0, 2),
        (4, 1, 2),
        (4, 2, 2),
        (6, 0, 2),
        (6, 1, 2),
        (6, 2, 2),
    ]
    assert torch.equal(states[-1].x[:, :, ~mask], made[2:, :, ~mask])
    states.clear()
    made = sample_long(d, (3, 1, 7, 4, 4), 5, 3, "ddim", 2, batch=2, callback=states.append)
    of_batch = [(step, 4) for step in (0, 1, 2, 2, 3, 4)]
    assert [(s.step, s.steps) for s in states] == 2 * of_batch
    assert [s.first for s in states] == [0] * 6 + [2] * 6
    assert torch.equal(states[8].x, made[2:, :, :5]) and torch.equal(states[-1].x[:, :, 3:], made[2:, :, 5:])


def test_shared_frames_have_the_same_noise_in_every_step_of_both_windows():
    d, drawn = oracle(AR1(5, 0.7)), []

    def spy(denoiser, x, times, noise):
        drawn.append([x, *(denoiser.process.noise.color(noise(k)) for k in range(3))])
        return SOLVERS["ddpm"](denoiser, x, times, noise)

    sample_long(d, (2, 1, 11, 4, 4), 5, 2, solver=spy, steps=6)
    assert len(drawn) == 3
    for before, after in pairwise(drawn):
        for old, new in zip(before, after, strict=True):
            torch.testing.assert_close(new[:, :, :2], old[:, :, -2:])
            assert (new[:, :, 2:] - old[:, :, :3]).abs().min() > 0


def window_noise(noise, shape, overlap, dtype=torch.float64):
    return _WindowNoise(noise, shape, overlap, 0, torch.arange(shape[0]), torch.empty(0, dtype=dtype))


@pytest.mark.parametrize("noise", [*NOISES, Mixed(5, 0.4), Matrix(Mixed(5, 0.3).dense())], ids=str)
def test_new_noise_is_the_gaussian_conditional_of_the_dense_matrix(noise):
    o = 2
    continued = window_noise(noise, (1, 1, 5, 90, 90), o)
    c = torch.eye(5, dtype=torch.float64) if isinstance(noise, Identity) else noise.dense()
    gain = c[o:, :o] @ torch.linalg.inv(c[:o, :o])
    # how the new frames follow the old ones, by what a unit change of one old frame does to them
    for frame in range(o):
        fresh = continued(0, 0)
        old = torch.zeros(1, 1, o, 90, 90, dtype=torch.float64)
        change = old.clone()
        change[:, :, frame] = 1
        moved = noise.color(continued._continued(fresh, change)) - noise.color(continued._continued(fresh, old))
        torch.testing.assert_close(moved[0, 0, o:, 0, 0], gain[:, frame])
    white = [continued(k, 0) for k in range(3)]
    e = [noise.color(z) for z in white]
    torch.testing.assert_close(e[2][:, :, :o], e[1][:, :, -o:])
    assert (covariance(white[2]) - torch.eye(5, dtype=torch.float64)).abs().max() < 0.05
    innovation = e[2][:, :, o:] - (gain @ e[2][:, :, :o].flatten(3)).view(1, 1, 3, 90, 90)
    assert (covariance(innovation) - (c[o:, o:] - gain @ c[:o, o:])).abs().max() < 0.05
    both = covariance(torch.cat([e[1], innovation], dim=2))
    assert both[:5, 5:].abs().max() < 0.05  # independent of all that the window before saw


@pytest.mark.parametrize(
    "noise",
    [
        SpectralAR1(5, torch.linspace(0.95, 0.1, 6), size=(8, 8)),
        Kronecker(AR1(5, 0.8), (AR1(8, 0.5), AR1(8, 0.3))),
    ],
    ids=["spectral", "kronecker"],
)
def test_noise_over_frames_and_pixels_goes_on_as_well(noise):
    continued = window_noise(noise, (60, 3, 5, 8, 8), 2)
    white = [continued(k, 4) for k in range(3)]
    for before, after in pairwise(white):
        torch.testing.assert_close(noise.color(after)[:, :, :2], noise.color(before)[:, :, -2:])
    assert (covariance(white[2]) - torch.eye(5, dtype=torch.float64)).abs().max() < 0.05


def test_singular_noise_goes_on_too():
    frozen = Mixed(5, 1.0)  # one noise for all frames
    continued = window_noise(frozen, (2, 1, 5, 4, 4), 2)
    e = [frozen.color(continued(k, 0)) for k in range(3)]
    torch.testing.assert_close(e[2][:, :, 4], e[0][:, :, 0])


def test_noise_that_cannot_go_on_is_refused():
    d = oracle(Matrix(torch.diag(torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0]))))
    with pytest.raises(ValueError, match="depends on the lag alone"):
        sample_long(d, (1, 1, 9, 4, 4), 5, 2)
    with pytest.raises(ValueError, match="with a causal root"):
        window_noise(Kronecker(AR1(5, 0.8), (AR1(8, 0.5), AR1(8, 0.3)), white=0.2), (1, 1, 5, 8, 8), 2)
    d = oracle(AR1(5, 0.5))
    for window, overlap in ((5, 0), (5, 5), (10, 2)):
        with pytest.raises(ValueError, match="1 <= overlap < window <= F"):
            sample_long(d, (1, 1, 9, 4, 4), window, overlap)
    with pytest.raises(ValueError, match="unknown solver 'magic'"):
        sample_long(d, (1, 1, 9, 4, 4), 5, 2, solver="magic")


def small_net(**settings):
    torch.manual_seed(0)
    net = VideoUNet(1, 8, 4, width=16, multipliers=(1, 2), depths=(1, 1), attention=(4,), conditioning=True, **settings)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return orn.Denoiser(net, orn.Process(orn.schedules.Cosine(), AR1(4, 0.7))).eval()


def test_a_network_is_told_of_known_frames_and_guided_with_them():
    d = small_net(classes=3)
    known = torch.rand(3, 1, 4, 8, 8)
    mask = frames_known(4, 1)
    label = torch.tensor([0, 1, 2])
    settings = {"steps": 3, "seed": 5, "guidance": 2.0, "cond": {"label": label}}
    x = sample_given(d, known, mask, **settings)
    assert torch.equal(x[:, :, 0], known[:, :, 0]) and x[:, :, 1:].isfinite().all()
    torch.testing.assert_close(sample_given(d, known, mask, batch=2, **settings), x)
    other = sample_given(d, known + mask[:, None, None], mask, **settings)
    assert (other - x)[:, :, 1:].abs().max() > 1e-4
    # the rest of what is given is not looked at
    torch.testing.assert_close(sample_given(d, known.where(mask[:, None, None], 7.0), mask, **settings), x)
    long = sample_long(d, (2, 1, 7, 8, 8), 4, 1, steps=3, guidance=2.0, cond={"label": label[:2]})
    assert long.shape == (2, 1, 7, 8, 8)


def test_given_frames_are_the_prediction_on_known_frames_at_every_time():
    d = small_net()
    known, x_t = torch.rand(2, 1, 4, 8, 8), torch.randn(2, 1, 4, 8, 8)
    mask = torch.tensor([[True, False, False, True], [False, True, False, False]])
    for t in (1.0, 0.4, 0.0):
        prediction = GivenFrames(d, known, mask)(x_t, t)
        a, s = d.process.coefficients(t, x_t)
        rows = mask[:, None, :, None, None].expand_as(x_t)
        assert torch.equal(prediction.x0[rows], known[rows]) and prediction.eps.isfinite().all()
        if t > 0:
            torch.testing.assert_close((a * prediction.x0 + s * prediction.eps), x_t, atol=1e-5, rtol=1e-5)


def test_wrong_masks():
    d, known = small_net(), torch.rand(2, 1, 4, 8, 8)
    with pytest.raises(ValueError, match="which of their frames are known"):
        GivenFrames(d, known, torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="must be bool"):
        GivenFrames(d, known, torch.ones(2, 4))
    with pytest.raises(ValueError, match="x_t has shape"):
        GivenFrames(d, known, torch.ones(2, 4, dtype=torch.bool))(known[:1], 0.5)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        sample_given(d, known, frames_known(4, 1), batch=0)
