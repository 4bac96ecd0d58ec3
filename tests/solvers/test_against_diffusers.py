"""Agreement with diffusers where the methods are the same, and end-point errors beside its best where they are not."""

import pytest
import torch
from torch import Tensor

from ornstein import Process
from ornstein.oracles import GaussianMixture
from ornstein.schedules import Discrete
from ornstein.solvers import SOLVERS, ddim, ddpm, grids

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # theirs, of numpy

CHAIN = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
# The data of the comparison: the mean and the variances are far from the noise's, and the exact end point is known.
DATA = GaussianMixture([1.0], [[0.3, -0.5, 0.1]], torch.diag(torch.tensor([0.25, 1.0, 4.0]))[None])


@pytest.fixture(scope="module")
def process() -> Process:
    return Process(Discrete.linear(1000))


def white(step: int, draw: int = 0) -> Tensor:
    return torch.randn(64, 3, generator=torch.Generator().manual_seed(step + 1), dtype=torch.float64)


def in_float64(scheduler):
    """Its table of abar in the precision of ours: rounded to float32 it costs 5e-5 over a thousand noisy steps."""
    scheduler.betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def run(scheduler, d, x: Tensor, steps: int | None = None) -> Tensor:
    """A scheduler's first steps on the exact noise prediction; its timestep k is our t = (k + 1)/1000."""
    for k in scheduler.timesteps[:steps]:
        x = scheduler.step(d(x, (int(k) + 1) / 1000).eps, k, x).prev_sample
    return x


@pytest.fixture(scope="module")
def best(process: Process) -> dict[int, float]:
    """The smallest RMS end-point error of diffusers' multistep schedulers by number of steps."""
    d, x = DATA.denoiser(process), white(-1)
    exact = DATA.ode_map(x, process, 1.0, 0.0)
    errors: dict[int, list[float]] = {}
    for steps in (5, 10, 20, 50):
        for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"):
            for spacing in ("linspace", "trailing"):
                for order in (2, 3):
                    scheduler = getattr(diffusers, name)(**CHAIN, timestep_spacing=spacing, solver_order=order)
                    scheduler.set_timesteps(steps)
                    end = run(scheduler, d, x)
                    assert end.dtype == torch.float64
                    errors.setdefault(steps, []).append(float((end - exact).square().mean().sqrt()))
    return {steps: min(values) for steps, values in errors.items()}


def test_the_reference_schedulers_reach_their_known_errors(best: dict[int, float]):
    """The figures that the schedulers are known for on these data: a handicap would show here."""
    for steps, known in {5: 0.22, 10: 0.057, 20: 0.012, 50: 0.0008}.items():
        assert best[steps] == pytest.approx(known, rel=0.15)


@pytest.mark.parametrize("steps", [5, 10, 20, 50])
@pytest.mark.parametrize("name", ["dpmpp-2m", "dpmpp-3m"])
def test_end_point_error_is_no_worse_than_the_best(process: Process, best: dict[int, float], name: str, steps: int):
    x = white(-1)
    times = grids.make("logistic", process.schedule, (1.0, 0.0), steps)
    *_, end = SOLVERS[name](DATA.denoiser(process), x, times, white)
    error = float((end - DATA.ode_map(x, process, 1.0, 0.0)).square().mean().sqrt())
    assert error <= best[steps]


@pytest.mark.parametrize("steps", [20, 1000])
def test_ddim_agrees_with_diffusers(process: Process, steps: int):
    scheduler = in_float64(
        diffusers.DDIMScheduler(**CHAIN, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    )
    scheduler.set_timesteps(steps)
    times = [*((int(k) + 1) / 1000 for k in scheduler.timesteps), 0.0]
    d, x = DATA.denoiser(process), white(-1)
    *_, ours = ddim(d, x, grids.make(times, process.schedule, (1.0, 0.0), steps), white)
    torch.testing.assert_close(ours, run(scheduler, d, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise_agrees_with_diffusers(process: Process, eta: float):
    scheduler = in_float64(
        diffusers.DDIMScheduler(**CHAIN, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    )
    scheduler.set_timesteps(20)
    times = [*((int(k) + 1) / 1000 for k in scheduler.timesteps), 0.0]
    d = DATA.denoiser(process)
    theirs = white(-1)
    states = ddim(d, theirs, grids.make(times, process.schedule, (1.0, 0.0), 20), white, eta=eta)
    for step, (k, ours) in enumerate(zip(scheduler.timesteps, states, strict=True)):
        eps = d(theirs, (int(k) + 1) / 1000).eps
        theirs = scheduler.step(eps, k, theirs, eta=eta, variance_noise=white(step)).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [20, 1000])
@pytest.mark.parametrize(("variance", "theirs"), [("lower", "fixed_small"), ("upper", "fixed_large")])
def test_ddpm_agrees_with_diffusers(
    process: Process, steps: int, variance, theirs: str, monkeypatch: pytest.MonkeyPatch
):
    scheduler = in_float64(
        diffusers.DDPMScheduler(**CHAIN, clip_sample=False, variance_type=theirs, timestep_spacing="trailing")
    )
    scheduler.set_timesteps(steps)
    drawn = iter(range(steps))
    module = diffusers.schedulers.scheduling_ddpm
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: white(next(drawn)))
    times = [*((int(k) + 1) / 1000 for k in scheduler.timesteps), 0.0]
    # Where the last step skips, their "fixed_large" adds beta's noise to the data: the steps before it are compared.
    compared = steps - 1 if variance == "upper" else steps
    d, x = DATA.denoiser(process), white(-1)
    states = list(ddpm(d, x, grids.make(times, process.schedule, (1.0, 0.0), steps), white, variance=variance))
    torch.testing.assert_close(states[compared - 1], run(scheduler, d, x, compared), rtol=0, atol=1e-5)
    assert next(drawn, steps) >= steps - 1  # the noise was theirs as well as ours
