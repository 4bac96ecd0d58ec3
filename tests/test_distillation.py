"""What a student learns against closed forms: for Gaussian data the teacher is linear, and so is its exact student."""

import warnings
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein import Data, Denoiser, Process
from ornstein.denoiser import Distilled, mean_square
from ornstein.errors import UserError
from ornstein.few_steps.consistency import Consistency, joined, mean_velocity, robust
from ornstein.few_steps.distillation import check_teacher, follow, labels_of, leading_to, student_times
from ornstein.noise import AR1, Covariance, Identity
from ornstein.oracles import GaussianMixture
from ornstein.process import Prediction
from ornstein.schedules import VE, Cosine, LinearBeta, Rectified, Schedule
from ornstein.solvers import ddim

SIGMA = torch.tensor([[0.5, 0.2, -0.1], [0.2, 0.3, 0.05], [-0.1, 0.05, 0.2]], dtype=torch.float64)
NOISES = [Identity(), AR1(3, 0.7)]
GAUSS = GaussianMixture([1.0], [[0.0, 0.0, 0.0]], SIGMA[None])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def no_noise(step: int, draw: int = 0) -> Tensor:
    raise AssertionError


def flow_matrix(noise: Covariance, p: Process, t: float, s: float) -> Tensor:
    """x_s = F x_t of E20 for N(0, SIGMA): F = R U diag((M_s/M_t)^1/2) U^T R^-1, U of R^-1 SIGMA R^-T."""
    root = torch.linalg.cholesky(noise.dense()) if not isinstance(noise, Identity) else torch.eye(3).double()
    inverse = torch.linalg.inv(root)
    values, u = torch.linalg.eigh(inverse @ SIGMA @ inverse.mT)
    m_t, m_s = (p.schedule.alpha(v) ** 2 * values + p.schedule.sigma(v) ** 2 for v in (t, s))
    return root @ u @ torch.diag((m_s / m_t).sqrt()) @ u.mT @ inverse


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), Cosine(None), VE(), Rectified()], ids=repr)
def test_the_step_of_the_target_ends_where_it_should(schedule: Schedule) -> None:
    """E31 inverts the DDIM step, from pure noise and into the data as well; rows at their own times are the same."""
    p = Process(schedule, AR1(3, 0.7))
    ends = {}
    for t, s in ((1.0, 0.6), (0.6, 0.59), (0.6, 0.1), (0.3, 0.0)):
        x_t, x_s = draw(5, 3, seed=1) * float(schedule.sigma(t)), draw(5, 3, seed=2)
        aim = leading_to(p, x_t, t, x_s, s)

        class Says:
            process = p

            def __call__(self, x: Tensor, t: object, /) -> Prediction:
                return aim  # noqa: B023

        (end,) = ddim(Says(), x_t, torch.tensor([t, s], dtype=torch.float64), no_noise)
        torch.testing.assert_close(end, x_s, rtol=1e-9, atol=1e-9)
        ends[t, s] = (x_t, x_s, aim)
    times = torch.tensor(list(ends), dtype=torch.float64)
    x_t, x_s, aims = zip(*ends.values(), strict=True)
    together = leading_to(
        p, torch.stack([x[0] for x in x_t]), times[:, 0], torch.stack([x[0] for x in x_s]), times[:, 1]
    )
    torch.testing.assert_close(together.x0, torch.stack([aim.x0[0] for aim in aims]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise", NOISES, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_exact_student_of_a_gaussian(noise: Covariance, steps: int) -> None:
    """Its prediction is the matrix (F - r I)/(a_s - r a_t), and N steps of DDIM with it are the whole flow."""
    p = Process(LinearBeta(), noise)
    x = start = p.prior((6, 3), dtype=torch.float64).sample(draw(6, 3))
    for t, s in pairwise(student_times(p, steps)):
        aim = leading_to(p, x, t, GAUSS.ode_map(x, p, t, s), s)
        a_t, a_s = float(p.schedule.alpha(t)), float(p.schedule.alpha(s))
        r = float(p.schedule.sigma(s) / p.schedule.sigma(t))
        matrix = (flow_matrix(noise, p, t, s) - r * torch.eye(3).double()) / (a_s - r * a_t)
        torch.testing.assert_close(aim.x0, x @ matrix.mT, rtol=1e-8, atol=1e-9)
        x = a_s * aim.x0 + float(p.schedule.sigma(s)) * aim.eps
    torch.testing.assert_close(x, start @ flow_matrix(noise, p, 1.0, 0.0).mT, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("noise", NOISES, ids=repr)
def test_of_two_steps_of_ddim_it_is_the_target_of_progressive_distillation(noise: Covariance) -> None:
    """For a linear teacher E[x_0 | x_t] = G_t x_t with G_t = a SIGMA (a^2 SIGMA + s^2 C)^-1, in dense matrices."""
    p, unit = Process(LinearBeta(), noise), torch.eye(3, dtype=torch.float64)
    c = unit if isinstance(noise, Identity) else noise.dense()

    def step(t: float, s: float) -> Tensor:
        (a_t, s_t), (a_s, s_s) = ((float(p.schedule.alpha(v)), float(p.schedule.sigma(v))) for v in (t, s))
        gain = a_t * SIGMA @ torch.linalg.inv(a_t**2 * SIGMA + s_t**2 * c)
        return a_s * gain + s_s / s_t * (unit - a_t * gain)

    t, m, s, x = 0.8, 0.6, 0.3, draw(4, 3)
    *_, end = ddim(GAUSS.denoiser(p), x, torch.tensor([t, m, s], dtype=torch.float64), no_noise)
    r = float(p.schedule.sigma(s) / p.schedule.sigma(t))
    target = (step(m, s) @ step(t, m) - r * unit) / float(p.schedule.alpha(s) - r * p.schedule.alpha(t))
    torch.testing.assert_close(leading_to(p, x, t, end, s).x0, x @ target.mT, rtol=1e-9, atol=1e-9)


class Exact(nn.Module):
    """A network that says the v of the exact denoiser, and by label of one shifted; A is what training may change."""

    def __init__(self, p: Process) -> None:
        super().__init__()
        self.p, self.config = p, {"classes": 2}
        self.A = nn.Parameter(torch.zeros(3, 3))

    def forward(self, x: Tensor, log_snr: Tensor, label: Tensor | None = None) -> Tensor:
        v = GAUSS.denoiser(self.p)(x, self.p.schedule.time(log_snr.double()).clamp(0, 1)).v
        shift = 0.0 if label is None else 0.3 * (label + 1)[:, None]
        return v + shift + x @ self.A.mT


def model(noise: Covariance, classes: tuple[str, ...] = ()) -> Denoiser:
    p = Process(Cosine(), noise)
    return Denoiser(Exact(p), p, "v", data=Data((3,), classes))


@pytest.mark.parametrize("noise", NOISES, ids=repr)
def test_trajectories_follow_the_flow(noise: Covariance) -> None:
    d = model(noise)
    for steps in (1, 3, 4):
        states = torch.cat(list(follow(d, steps, 40, 1.0, seed=0, batch=16)))
        assert states.shape == (40, steps + 1, 3)
        for k, t in enumerate(student_times(d.process, steps)):
            exact = GAUSS.ode_map(states[:, 0], d.process, 1.0, t)
            torch.testing.assert_close(states[:, k], exact, rtol=0, atol=5e-3)


def test_trajectories_are_addressed() -> None:
    d = model(AR1(3, 0.7), ("a", "b"))
    whole = torch.cat(list(follow(d, 2, 30, 1.0, seed=0, batch=30)))
    rest = torch.cat(list(follow(d, 2, 30, 1.0, seed=0, batch=7, first=11)))
    torch.testing.assert_close(whole[11:], rest, rtol=1e-5, atol=1e-5)
    other = torch.cat(list(follow(d, 2, 30, 1.0, seed=1, batch=30)))
    assert not torch.allclose(other[:, 0], whole[:, 0])


def test_guidance_is_followed_and_some_have_no_class() -> None:
    """Every tenth round of the classes is without one, where guidance has nothing to lean to."""
    d = model(Identity(), ("a", "b"))
    labels = labels_of(d, torch.arange(40))
    assert labels is not None and labels[:4].tolist() == [0, 1, 0, 1] and labels[18:20].tolist() == [-1, -1]
    assert int((labels == -1).sum()) == 4
    plain, guided = (torch.cat(list(follow(d, 2, 40, w, seed=0, batch=40))) for w in (1.0, 3.0))
    assert torch.allclose(plain[labels == -1], guided[labels == -1], atol=1e-5)
    assert not torch.allclose(plain[labels == 1, -1], guided[labels == 1, -1], atol=0.1)
    x = plain[:2, 0]
    end = orn.sample(d, (2, 3), "dpmpp-3m", 20, start=x, guidance=3.0, cond={"label": torch.tensor([0, 1])})
    torch.testing.assert_close(guided[:2, -1], end, rtol=1e-4, atol=1e-4)


def test_a_distilled_model_is_sampled_by_its_own_steps() -> None:
    d = model(AR1(3, 0.7))
    few = Distilled(student_times(d.process, 2), 3.0)
    student = Denoiser(d.net, d.process, "v", data=d.data, distilled=few)
    times: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = orn.sample(student, (4, 3), callback=lambda state: times.append(state.t))
        assert tuple(times) == few.times
        assert torch.equal(own, orn.sample(d, (4, 3), solver="ddim", grid=few.times))
        assert torch.equal(own, orn.sample(student, (4, 3), "ddim", 2))
        assert torch.equal(own, orn.sample(student, (4, 3), grid=few.times))
    with pytest.warns(UserWarning, match="distilled for 2 steps of ddim"):
        other = orn.sample(student, (4, 3), steps=5)
    assert torch.equal(other, orn.sample(d, (4, 3), "ddim", 5))
    with pytest.warns(UserWarning, match="distilled for 2 steps"):
        orn.sample(student, (4, 3), solver="dpmpp-3m")
    with pytest.raises(ValueError, match="has no likelihood"):
        orn.likelihood.vlb(student, torch.zeros(2, 3), 3, decoder="gaussian")
    with pytest.raises(ValueError, match="guidance built in, 3"):
        orn.sample(student, (4, 3), guidance=2.0)


def test_what_cannot_be_distilled() -> None:
    class Foreign(Exact):
        def forward(self, x: Tensor, log_snr: Tensor, scene: Tensor | None = None) -> Tensor:  # pyright: ignore
            return x

    d = model(Identity())
    for steps in (0, -1, 11):
        with pytest.raises(UserError, match=f"1 to 10 steps, not {steps}"):
            student_times(d.process, steps)
    student = Denoiser(d.net, d.process, "v", data=d.data, distilled=Distilled((1.0, 0.0)))
    for wrong, guidance, words in (
        (d, 2.0, "without classes"),
        (student, 1.0, "already distilled, to 1 step of"),
        (Denoiser(d.net, d.process, "v"), 1.0, "no sample spec"),
        (Denoiser(Foreign(d.process), d.process, "v", data=d.data), 1.0, "it needs scene"),
        (model(Identity(), ("a", "b")), -1.0, "of 0 or more"),
        (model(Identity(), ("a", "b")), float("nan"), "of 0 or more"),
    ):
        with pytest.raises(UserError, match=words):
            check_teacher(wrong, guidance)
    with pytest.raises(ValueError, match="s >= t"):
        leading_to(d.process, draw(2, 3), 0.5, draw(2, 3), 0.5)
    for times in ((1.0,), (0.9, 0.0), (1.0, 0.5), (1.0, 0.5, 0.5, 0.0), (0.0, 1.0)):
        with pytest.raises(ValueError, match="fall from 1 to 0"):
            Distilled(times)


def exact_velocity(p: Process, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The mean velocity of the flow of GAUSS from (x_t, t) to s, row by row, in closed form."""
    ends = [GAUSS.ode_map(x[None], p, float(a), float(b))[0] for x, a, b in zip(x_t, t, s, strict=True)]
    return mean_velocity(p, x_t, t, torch.stack(ends), s)


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(None), VE(), Rectified()], ids=repr)
def test_mean_velocities_of_the_parts_make_that_of_the_whole(schedule: Schedule) -> None:
    """E31, consistency, on the exact flow of a Gaussian: from pure noise, into the data, and with nothing after r."""
    p = Process(schedule, AR1(3, 0.7))
    t, r, s = torch.tensor([[1.0, 0.7, 0.3], [0.6, 0.4, 0.0], [0.5, 0.2, 0.2], [0.3, 0.0, 0.0]]).double().T
    x_t = draw(4, 3) * p.schedule.sigma(t)[:, None]
    ends = [GAUSS.ode_map(x[None], p, float(a), float(b))[0] for x, a, b in zip(x_t, t, r, strict=True)]
    first, rest = exact_velocity(p, x_t, t, r), exact_velocity(p, torch.stack(ends)[:2], r[:2], s[:2])
    rest = torch.cat([rest, torch.full((2, 3), torch.nan, dtype=torch.float64)])  # not used, whatever it is
    torch.testing.assert_close(joined(p, t, r, s, first, rest), exact_velocity(p, x_t, t, s), rtol=1e-9, atol=1e-9)


class Mean(nn.Module):
    """The exact student of GAUSS: v of the x0 whose DDIM step ends where the flow does, and a fault added to it."""

    def __init__(self, p: Process, times: tuple[float, ...], fault: float = 0.0) -> None:
        super().__init__()
        self.p, self.times, self.fault, self.config = p, torch.tensor(times).double(), fault, {}

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        t = self.p.schedule.time(log_snr.double()).clamp(0, 1)
        s = torch.stack([self.times[self.times < each - 1e-6].max() for each in t])
        w = exact_velocity(self.p, x, t, s)
        a, std = (f(t)[:, None] for f in (self.p.schedule.alpha, self.p.schedule.sigma))
        x0 = (x - std * w) / (a + std)
        return a * (x - a * x0) / std - std * x0 + self.fault


@pytest.mark.parametrize("steps", [1, 2])
def test_the_loss_of_the_exact_student_vanishes(steps: int) -> None:
    """As the teacher's steps become shorter, with their order of 2 in the error, and not that of another student."""
    p = Process(Cosine(), AR1(3, 0.7))
    times = student_times(p, steps)
    teacher = Denoiser(Exact(p).double(), p, "v", data=Data((3,)))
    student = Denoiser(Mean(p, times), p, "v", data=Data((3,)))
    wrong = Denoiser(Mean(p, times, 0.1), p, "v", data=Data((3,)))
    x0, z = GAUSS.sample(48, torch.Generator().manual_seed(1)), draw(48, 3, seed=2)
    t = torch.arange(1, 49) / 48
    losses = [
        float(Consistency(teacher, steps, nodes=nodes)(student, x0, t, z, norm=mean_square).mean()) for nodes in (8, 16)
    ]
    assert losses[0] < 1e-4 and losses[1] < losses[0] / 8  # squared errors of order 2: a sixteenth
    assert float(Consistency(teacher, steps, nodes=16)(wrong, x0, t, z, norm=mean_square).mean()) > 20 * losses[1]


def test_a_step_of_no_length_moves_nothing() -> None:
    """The boundary condition holds for any network: the step from t to s ends at x_t as s goes to t, to t = 0 too."""
    p = Process(Cosine())
    d, x = Denoiser(Exact(p).double(), p, "v"), draw(4, 3)
    for t in (1e-4, 0.5):
        (end,) = ddim(d, x, torch.tensor([t, t * (1 - 1e-6)], dtype=torch.float64), no_noise)
        torch.testing.assert_close(end, x, rtol=0, atol=1e-4)


def test_which_nodes_are_learned_and_where_each_step_ends() -> None:
    """The nodes hold the student's own times; the robust loss is a square near 0 and the size far away."""
    d = model(Identity())
    for steps in (1, 2, 3, 4):
        made = Consistency(d, steps)
        assert made.times[:: made.often].tolist() == pytest.approx(student_times(d.process, steps), abs=1e-12)
        assert len(made.times) - 1 >= 8
    error = torch.tensor([[1e-4, -1e-4], [30.0, 30.0]])
    small, large = robust(error, torch.ones(2)).tolist()
    assert small == pytest.approx(1e-8 / 0.06, rel=1e-2) and large == pytest.approx(30.0, rel=2e-3)
