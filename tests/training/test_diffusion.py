"""Schedule, prediction and times of a training: which pairs go together, and Ho et al.'s algorithms to the letter."""

import math

import pytest
import torch

import ornstein as orn
from ornstein import schedules
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.objectives import RunningLoss
from ornstein.process import Process
from ornstein.randomness import generator, normal
from ornstein.training import TrainConfig
from ornstein.training.config import TIME_SAMPLINGS
from ornstein.training.diffusion import check_diffusion, check_pair
from ornstein.training.objective import TimeSampling
from ornstein.training.settings import PREDICTIONS, SCHEDULES, Settings
from running import ornstein, refused

T = 1000
BETAS = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
ABAR = torch.cumprod(1 - BETAS, 0)


def eps_net(net, x, abar):
    """The network at a step of the chain: it is told the log-SNR."""
    return net(x, (abar / (1 - abar)).log().float().expand(len(x)))


def algorithm_1(net, images, seed, steps, batch, rate):
    """Ho et al. 2020, algorithm 1: n ~ U{1..T}, a step on ||eps - eps_net(sqrt(abar) x0 + sqrt(1-abar) eps, n)||^2."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    losses = []
    for k in range(steps):
        x0 = images.batch(orn.data.batch_indices(len(images), batch, k, seed))[0]
        draw = torch.Generator().manual_seed(generator(seed, "train", k).initial_seed())
        n = torch.randint(1, T + 1, (batch,), generator=draw)
        eps = torch.randn(x0.shape, generator=draw)
        abar = ABAR[n - 1].float().view(-1, 1, 1, 1)
        x = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
        loss = (eps - eps_net(net, x, ABAR[n - 1])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def algorithm_2(net, betas, shape, seed, upper):
    """Ho et al. 2020, algorithm 2, with sigma^2 = beta (upper) or beta~ (E9)."""
    index, abars = torch.arange(shape[0]), torch.cumprod(1 - betas, 0).tolist()
    x = normal(shape, seed, index, 0).double()
    for k, n in enumerate(range(len(betas), 0, -1)):
        beta, abar, before = float(betas[n - 1]), abars[n - 1], abars[n - 2] if n > 1 else 1.0
        with torch.no_grad():
            eps = eps_net(net, x.float(), torch.tensor(abar)).double()
        x = (x - beta / math.sqrt(1 - abar) * eps) / math.sqrt(1 - beta)
        if n > 1:
            sigma = math.sqrt(beta if upper else beta * (1 - before) / (1 - abar))
            x = x + sigma * normal(shape, seed, index, k + 1).double()
    return x


@pytest.fixture
def ddpm_run(tmp_path, toy):
    """Four steps of `--schedule ddpm --prediction eps` on stripes, and the network that they began with."""
    images = toy.Images(labelled=False)
    denoiser = toy.denoiser(classes=0, dropout=0.0)
    settings = Settings(data="digits", schedule="ddpm", prediction="eps", steps=4).settled(8, cpu=True)
    assert settings.time_sampling == "steps"
    d = Denoiser(denoiser.net, Process(schedules.parse("ddpm")), "eps")
    start = {name: value.clone() for name, value in d.net.state_dict().items()}
    config = TrainConfig(
        steps=4, batch=8, warmup=0, ema=0, clip=1e9, weight_decay=0, learning_rate=1e-3, precision="float32",
        time_sampling=settings.time_sampling,
    )  # fmt: skip
    return images, d, start, config, tmp_path / "run"


def test_ddpm_trains_by_algorithm_1(ddpm_run, monkeypatch):
    images, d, start, config, out = ddpm_run
    monkeypatch.setattr(TrainConfig, "learning_rate_at", lambda self, step, progress: self.learning_rate)
    losses = [state.loss for state in orn.training.train(d, images, config, out)]
    trained = {name: value.clone() for name, value in d.net.state_dict().items()}
    d.net.load_state_dict(start)
    expected = algorithm_1(d.net.train(), images, config.seed, 4, 8, 1e-3)
    assert losses == pytest.approx(expected, rel=2e-5)
    moved = max(float((trained[k] - start[k]).abs().max()) for k in start)
    apart = max(float((trained[k] - value).abs().max()) for k, value in d.net.state_dict().items())
    assert moved > 1e-3
    assert apart < 0.02 * moved


@pytest.mark.parametrize(
    ("solver", "length"), [pytest.param("ddpm", 1000, marks=pytest.mark.slow), ("ddpm", 60), ("ddpm-upper", 60)]
)
def test_ddpm_samples_by_algorithm_2(solver: str, length: int):
    d = Denoiser(Small(), Process(schedules.parse(f"ddpm:{length}")), "eps")
    made = orn.sample(d, (2, 1, 4, 4), solver=solver, steps=length, seed=5)
    betas = torch.linspace(0.1 / length, 20 / length, length, dtype=torch.float64)
    expected = algorithm_2(d.net, betas, (2, 1, 4, 4), 5, upper=solver == "ddpm-upper")
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


class Small(torch.nn.Module):
    """A network of two convolutions that looks at the log-SNR."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.into, self.out = torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.out(torch.tanh(self.into(x) + log_snr.view(-1, 1, 1, 1) / 10)))


def test_names_are_those_of_the_modules_that_import_torch():
    assert set(SCHEDULES) == set(schedules.NAMED)
    assert set(PREDICTIONS) == {"x0", "eps", "v", "flow", "edm"}
    assert TIME_SAMPLINGS[0] == "uniform"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cosine", schedules.Cosine()),
        ("cosine:-14", schedules.Cosine(-14.0)),
        ("cosine-zero", schedules.Cosine(None)),
        ("linear:0.2,15", schedules.LinearBeta(0.2, 15.0)),
        ("ddpm", schedules.Discrete.linear(1000)),
        ("ddpm:1000,1e-4,0.01", schedules.Discrete.linear(1000, 1e-4, 0.01)),
        ("ddpm-zero", schedules.Discrete.linear(1000).zero_terminal()),
        ("ddpm-cosine:50", schedules.Discrete.cosine(50)),
        ("rectified:3", schedules.Rectified(3.0)),
        ("edm:0.01,20,5", schedules.EDM(0.01, 20.0, 5.0)),
        ("ve:0.02,30", schedules.VE(0.02, 30.0)),
    ],
)
def test_a_schedule_by_name(text: str, expected: schedules.Schedule):
    assert schedules.parse(text) == expected
    assert schedules.from_config(schedules.to_config(schedules.parse(text))) == expected


def test_a_shifted_cosine_keeps_its_end():
    shifted, plain = schedules.parse("cosine:-10,-2"), schedules.Cosine()
    assert float(shifted.log_snr(1.0)) == pytest.approx(-10)
    t = torch.linspace(0.1, 0.5, 5, dtype=torch.float64)
    torch.testing.assert_close(shifted.log_snr(t), plain.log_snr(t) - 2, rtol=0, atol=0.04)


def test_a_shorter_ddpm_chain_reaches_the_same_noise():
    ends = [float(schedules.parse(f"ddpm:{n}").log_snr(1.0)) for n in (200, 1000, 4000)]
    assert max(ends) - min(ends) < 1
    assert ends[1] == pytest.approx(math.log(ABAR[-1] / (1 - ABAR[-1])))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("linea", "unknown; known: cosine"),
        ("rectified:0", "shift must be positive"),
        ("rectified:a", "rectified:SHIFT"),
        ("edm:1,2,3,4", "too many numbers"),
        ("ddpm:0", "whole number of steps"),
        ("ddpm:2.5", "whole number of steps"),
        ("ddpm:1e9", "whole number of steps"),
        ("ddpm:10", "betas must lie in"),
        ("cosine-zero:1", "too many numbers"),
        ("ve:nan,3", "sigma_min < sigma_max"),
        ("", "unknown"),
    ],
)
def test_a_schedule_that_cannot_be(text: str, words: str):
    with pytest.raises(UserError, match=words):
        check_diffusion(Settings(data="digits", schedule=text))


REFUSED = {
    **{(s, "eps"): "is 0/0" for s in ("cosine-zero", "rectified", "ddpm-zero")},
    ("ddpm-zero", "flow"): "infinite",
    **{(s, p): "grows with the noise" for s in ("edm", "ve") for p in ("v", "flow")},
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_pair_works_or_is_refused_with_the_reason(name: str, prediction: str):
    schedule = schedules.parse(name)
    if (name, prediction) in REFUSED:
        with pytest.raises(UserError, match=REFUSED[name, prediction]):
            check_pair(name, schedule, prediction)
        return
    check_pair(name, schedule, prediction)
    # the truth about x0, put in as the network's output, comes back at every time, the last one too
    p = Process(schedule)
    x0, z = torch.randn(2, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([1e-4, 0.01, 0.1, 0.3, 0.5, 0.8, 0.99, 1.0], dtype=torch.float64)
    d = Denoiser(torch.nn.Identity(), p, prediction)  # pyright: ignore[reportArgumentType]
    x_t = p.add_noise(x0, t, z)
    truth = p.convert(x_t, t, x0=x0)
    output = d._preconditioning.target(x_t, t, x0) if prediction == "edm" else getattr(truth, prediction)
    d.net = Fixed(output)
    torch.testing.assert_close(d(x_t, t).x0, x0, rtol=0, atol=1e-6)
    assert bool(output.isfinite().all())


class Fixed(torch.nn.Module):
    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        return self.output


@pytest.mark.parametrize(
    ("text", "prediction", "words"),
    [
        ("edm:0.002,1", "edm", "more noise"),
        ("ddpm:1000,1e-5,1e-4", "eps", "more noise"),
        ("cosine:-40", "eps", "multiplies the error"),
        ("cosine:-80", "eps", "is 0/0"),
    ],
)
def test_numbers_of_a_schedule_that_cannot_work(text: str, prediction: str, words: str):
    with pytest.raises(UserError, match=words):
        check_pair(text, schedules.parse(text), prediction)


def test_what_goes_with_a_schedule_by_default():
    found = {}
    for name in SCHEDULES:
        settings = Settings(data="digits", schedule=name).settled(8, cpu=True)
        check_diffusion(settings)
        found[name] = (settings.predicted, settings.time_sampling)
    assert found == {
        "cosine": ("v", None), "cosine-zero": ("v", None), "linear": ("v", None), "ddpm": ("eps", "steps"),
        "ddpm-zero": ("v", None), "ddpm-cosine": ("eps", "steps"), "rectified": ("flow", None),
        "edm": ("edm", "log-normal"), "ve": ("edm", None),
    }  # fmt: skip


def test_distributions_of_times():
    n, draw = 20_000, lambda: torch.Generator().manual_seed(2)
    steps, weights = TimeSampling("steps", None, schedules.parse("ddpm")).draw(n, draw())
    assert weights is None
    counts = torch.bincount((steps.double() * T).round().long(), minlength=T + 1)
    assert counts[0] == 0
    assert (counts[1:] > 0).all()
    assert float(((counts[1:] - 20.0) ** 2 / 20).sum()) == pytest.approx(T, abs=5 * math.sqrt(2 * T))  # chi squared
    logit, _ = TimeSampling("logit-normal:0.5,0.8", None, schedules.Rectified()).draw(n, draw())
    level = torch.logit(logit.double())
    assert float(level.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(level.std()) == pytest.approx(0.8, abs=0.03)
    edm = schedules.EDM()
    noise, _ = TimeSampling("log-normal", None, edm).draw(n, draw())
    log_std = edm.sigma(noise.double()).log()
    assert float(log_std.mean()) == pytest.approx(-1.2, abs=0.05)
    assert float(log_std.std()) == pytest.approx(1.2, abs=0.05)


def test_importance_sampling_learns_where_the_loss_is_and_keeps_its_mean():
    sampling = TimeSampling("importance", None, schedules.Cosine())
    loss = lambda t: 0.01 + 10 * (t > 0.75)  # noqa: E731
    for k in range(60):
        t, _ = sampling.draw(64, torch.Generator().manual_seed(k))
        figures = sampling.figures(t, loss(t))
        kept = sampling.learn({"loss": 1.0} | {name: float(value) for name, value in figures.items()}, 1)
        assert kept == {"loss": 1.0}
    t, weight = sampling.draw(4000, torch.Generator().manual_seed(99))
    assert float((t > 0.75).float().mean()) > 0.9
    assert weight is not None
    assert float((weight * loss(t)).mean()) == pytest.approx(2.51, rel=0.02)
    again = TimeSampling("importance", None, schedules.Cosine())
    again.load_state(sampling.to_state())
    one, other = (each.draw(64, torch.Generator().manual_seed(1))[0] for each in (again, sampling))
    assert torch.equal(one, other)


def test_importance_sums_over_parts_are_those_of_the_batch():
    whole, parts = (TimeSampling("importance", None, schedules.Cosine()) for _ in range(2))
    t = torch.rand(32, generator=torch.Generator().manual_seed(1))
    loss = 1 + t
    whole.learn({k: float(v) for k, v in whole.figures(t, loss).items()}, 1)
    halves = [parts.figures(t[rows], loss[rows]) for rows in (slice(0, 16), slice(16, 32))]
    parts.learn({k: float((halves[0][k] + halves[1][k]) / 2) for k in halves[0]}, 2)
    plain = RunningLoss()
    plain.update(t, loss)
    for each in (whole, parts):
        assert each.running is not None
        torch.testing.assert_close(each.running.square, plain.square)
        assert torch.equal(each.running.count, plain.count)


@pytest.mark.parametrize(
    ("text", "objective", "words"),
    [
        ("gauss", None, "unknown"),
        ("logit-normal:1", None, "standard deviation"),
        ("logit-normal:0,-1", None, "standard deviation"),
        ("steps:0,1", None, "no other name"),
        ("uniform", "vlb-x0", "times of its own"),
        ("logit-normal", "continuous", "uniform times"),
    ],
)
def test_a_time_sampling_that_cannot_be(text: str, objective: str | None, words: str):
    with pytest.raises(UserError, match=words):
        TimeSampling(text, objective, schedules.Cosine())


def test_the_command_refuses_before_it_reads_the_data(tmp_path):
    command = ("train", "--data", tmp_path / "nothing here", "--out", tmp_path / "run", "--schedule")
    refused(ornstein(*command, "sigmoid"), "schedule 'sigmoid' is unknown")
    refused(ornstein(*command, "rectified", "--prediction", "eps"), "eps cannot work with --schedule rectified")
    refused(ornstein(*command, "edm", "--prediction", "flow"), "grows with the noise")
    refused(ornstein(*command, "cosine", "--prediction", "w"), "w")
    refused(ornstein(*command, "cosine", "--model", "vae", "--dropout", "0.1"), "--dropout is for diffusion models")
    assert not (tmp_path / "run").exists()
