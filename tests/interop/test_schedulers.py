"""Every scheduler of diffusers that has a marginal: its own numbers, from our schedule, and back."""

import copy
import inspect
from typing import Any

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.errors import UserError
from ornstein.schedules import EDM, VE, Cosine, Discrete, Rectified

diffusers = pytest.importorskip("diffusers")

from ornstein.interop.schedulers import Reading, read, scheduler_for, start_of, times_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

CHAINS = [
    "DDPMScheduler", "DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler", "LMSDiscreteScheduler",
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler", "LCMScheduler", "TCDScheduler",
    "CogVideoXDDIMScheduler", "UnCLIPScheduler",
]  # fmt: skip
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def make(name: str, **options: Any) -> Any:
    """The scheduler with those of the options that it knows; None if it does not know one that matters."""
    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    if any(option not in known for option in options if option not in ("beta_start", "beta_end")):
        return None
    try:
        return cls(**{k: v for k, v in options.items() if k in known})
    except (NotImplementedError, ValueError):
        return None  # a combination that it refuses itself


def distinct(values: Any) -> torch.Tensor:
    """Falling, each once; the finite ones: between its last levels a scheduler of two evaluations writes nan."""
    return torch.tensor(sorted({float(v) for v in values if v == v}, reverse=True), dtype=torch.float64)


def compare_steps(scheduler: Any, reading: Reading, steps: int, rounded: float, **options: Any) -> None:
    """Noise levels and timesteps of `steps` steps are those of the scheduler to the rounding of float32."""
    times = torch.tensor(times_of(scheduler, steps, **options), dtype=torch.float64)
    theirs = copy.deepcopy(scheduler)
    theirs.set_timesteps(**(options if "sigmas" in options else {"num_inference_steps": steps} | options))
    schedule = reading.schedule
    assert float(times[0]) <= 1 and bool((times.diff() < 0).all())
    told = reading.timesteps(schedule.log_snr(times[times > 0])).double()
    if hasattr(theirs, "sigmas"):
        levels = distinct(theirs.sigmas)
        if schedule.zero_terminal_snr and isinstance(schedule, Discrete) and times[0] == 1:
            assert float(levels[0]) >= 4095
            times, levels, told = times[1:], levels[1:], told[1:]
        ours = schedule.sigma(times) / (1 if isinstance(schedule, Rectified) else schedule.alpha(times))
        torch.testing.assert_close(ours, levels, rtol=5e-4, atol=1e-12)
        # Heun and KDPM2 evaluate between their steps too: what they are told at their own levels is among them
        at = distinct(theirs.timesteps)
        gap = (told[:, None] - at[None]).abs().amin(1)[: len(times) - 1]
        assert float(gap.max()) <= rounded, gap
    else:
        own = reading.timesteps(schedule.log_snr(times[:-1])).double()
        asked = distinct(theirs.timesteps)
        torch.testing.assert_close(own, asked[: len(own)], rtol=0, atol=1e-3)
        assert len(asked) - len(own) <= 1  # a scheduler that ends at 1/T and calls the network there again
        end = float(getattr(theirs, "final_alpha_cumprod", 1.0))
        torch.testing.assert_close(float(schedule.alpha(times[-1])) ** 2, end, rtol=1e-6, atol=0)


def same_chain(scheduler: Any, reading: Reading) -> None:
    assert isinstance(reading.schedule, Discrete)
    t = torch.arange(1, len(reading.schedule.steps) + 1, dtype=torch.float64) / len(reading.schedule.steps)
    abar = scheduler.alphas_cumprod.double()
    if reading.schedule.zero_terminal_snr:  # some write 2^-24 for 0, to have a finite noise level
        assert float(abar[-1]) <= 2**-24
        abar[-1] = 0
    torch.testing.assert_close(reading.schedule.alpha(t) ** 2, abar, rtol=2e-5, atol=1e-9)
    torch.testing.assert_close(reading.schedule.sigma(t) ** 2, 1 - abar, rtol=2e-3, atol=0)  # theirs in float32
    assert torch.equal(reading.timesteps(reading.schedule.log_snr(t)), torch.arange(len(t)).float())


SLOW = ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DDIMParallelScheduler", "TCDScheduler")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CHAINS])
def test_chains(name: str) -> None:
    """Betas of all kinds, predictions, spacings, and noise levels spaced by every rule; with and without zero SNR."""
    plain = [
        *({"beta_schedule": beta} for beta in ("scaled_linear", "squaredcos_cap_v2")),
        *({"prediction_type": kind} for kind in ("epsilon", "v_prediction", "sample")),
    ]
    zero = [{"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}]
    spaced = [{"timestep_spacing": s, "steps_offset": o} for s in ("linspace", "leading", "trailing") for o in (0, 1)]
    sigmas = [{rule: True} for rule in SIGMAS]
    short = [{"trained_betas": np.linspace(1e-3, 0.05, 100), "num_train_timesteps": 100}]
    ends = [{"set_alpha_to_one": True}, {"set_alpha_to_one": False}, {"final_sigmas_type": "sigma_min"}]
    read_ones = 0
    for options in [{}, *plain, *zero, *spaced, *sigmas, *short, *ends]:
        scheduler = make(name, **options)
        if scheduler is None:
            continue
        before, count = dict(scheduler.config), scheduler.num_inference_steps
        reading = read(scheduler)
        kinds = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
        assert (reading.prediction, reading.clock) == (
            kinds[scheduler.config.get("prediction_type", "epsilon")],
            "chain",
        )
        same_chain(scheduler, reading)
        if name != "LCMScheduler" or len(reading.schedule.steps) == 1000:  # it takes some 50 of 1000
            # some tell the network the whole number below a level between two steps
            whole = name == "LMSDiscreteScheduler" or options.keys() & set(SIGMAS)
            compare_steps(scheduler, reading, 6, 1.0 if whole else 2e-2)
        assert (dict(scheduler.config), scheduler.num_inference_steps) == (before, count)  # it is left as it was
        config = {**before, "_class_name": name}
        assert read(config) == reading
        back = read(scheduler_for(reading))
        assert (back.prediction, back.clock, back.length, back.clip) == (
            reading.prediction, reading.clock, reading.length, reading.clip,
        )  # fmt: skip
        assert isinstance(back.schedule, Discrete) and isinstance(reading.schedule, Discrete)
        torch.testing.assert_close(back.schedule.steps, reading.schedule.steps, rtol=1e-6, atol=0)
        read_ones += 1
    assert read_ones >= 3


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"]
)
def test_straight_paths(name: str, shift: float) -> None:
    scheduler = getattr(diffusers, name)(shift=shift)
    reading = read(scheduler)
    assert reading == Reading(Rectified(shift), "flow", "path", 1000)
    compare_steps(scheduler, reading, 4, 1e-3)
    assert read(scheduler_for(reading)) == reading
    # diffusers' own marginal: u eps + (1 - u) x0
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    u = reading.schedule.sigma(t)
    torch.testing.assert_close(reading.schedule.alpha(t), 1 - u)
    torch.testing.assert_close(reading.timesteps(reading.schedule.log_snr(t)).double(), 1000 * u, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rule", [{}, *({name: True} for name in SIGMAS[:3]), {"shift_terminal": 0.1}])
def test_straight_paths_of_other_spacings(rule: dict[str, Any]) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0, **rule)
    compare_steps(scheduler, read(scheduler), 6, 1e-3)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shifts(kind: str) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    mu, sigmas = 1.15, np.linspace(1.0, 1 / 5, 5)
    reading = read(scheduler, mu)
    assert reading.schedule == Rectified(mu if kind == "linear" else float(np.exp(mu)))
    compare_steps(scheduler, reading, 5, 1e-3, mu=mu)
    compare_steps(scheduler, reading, 5, 1e-3, mu=mu, sigmas=sigmas)
    # equal steps in t of the shifted schedule are the scheduler's own
    times = times_of(scheduler, 5, mu=mu, sigmas=sigmas)
    torch.testing.assert_close(torch.tensor(times), torch.linspace(1, 0, 6), rtol=0, atol=1e-6)
    assert read(scheduler).schedule == Rectified()
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler does not take 5 steps"):
        times_of(scheduler, 5)


@pytest.mark.parametrize(
    "name",
    ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
     "SASolverScheduler"],
)  # fmt: skip
def test_solvers_on_straight_paths(name: str) -> None:
    scheduler = getattr(diffusers, name)(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    reading = read(scheduler)
    assert reading == Reading(Rectified(3.0), "flow", "path", 1000)
    compare_steps(scheduler, reading, 4, 1.0)  # they cut the timesteps to whole numbers
    broken = getattr(diffusers, name)(prediction_type="flow_prediction")
    with pytest.raises(UserError, match=f"{name} cannot be expressed: prediction_type 'flow_prediction'"):
        read(broken)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
@pytest.mark.parametrize("levels", [(0.002, 80.0, 0.5), (0.3, 500.0, 1.0)])
def test_noise_levels(name: str, spacing: str, levels: tuple[float, float, float]) -> None:
    low, high, std = levels
    scheduler = getattr(diffusers, name)(sigma_min=low, sigma_max=high, sigma_data=std, sigma_schedule=spacing)
    reading = read(scheduler)
    assert (reading.prediction, reading.clock, reading.data_std) == ("edm", "log", std)
    assert isinstance(reading.schedule, EDM if spacing == "karras" else VE)
    torch.testing.assert_close(float(reading.schedule.sigma(1.0)), high, rtol=1e-12, atol=0)
    compare_steps(scheduler, reading, 5, 1e-5)
    assert read(scheduler_for(reading)).schedule.sigma(1.0) == pytest.approx(high, rel=1e-12)
    # the network's input and output are scaled as theirs
    sigma, x, out = 1.7, torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    seen: list[torch.Tensor] = []

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
            seen.extend((x, reading.timesteps(log_snr)))
            return out

    d = orn.Denoiser(Net(), orn.Process(reading.schedule), reading.prediction, data_std=std)
    t = float(reading.schedule.time(-2 * np.log(sigma)))
    torch.testing.assert_close(d(x, t).x0, scheduler.precondition_outputs(x, out, torch.tensor(sigma)))
    torch.testing.assert_close(seen[0], scheduler.precondition_inputs(x, torch.tensor(sigma)))
    torch.testing.assert_close(seen[1], scheduler.precondition_noise(sigma).expand(2))


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.EDMEulerScheduler(0.002, 120.0, 1.0, prediction_type="v_prediction"),
        diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
            use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0, timestep_type="continuous",
        ),
    ],
    ids=["EDM", "Euler"],
)  # fmt: skip
def test_noise_levels_with_v(scheduler: Any) -> None:
    high = scheduler.config["sigma_max"]
    reading = read(scheduler)
    assert isinstance(reading.schedule, Cosine) and (reading.prediction, reading.clock) == ("v", "log")
    torch.testing.assert_close(float(reading.schedule.log_snr(1.0)), -2 * float(np.log(high)), rtol=1e-9, atol=0)
    compare_steps(scheduler, reading, 5, 1e-5)
    assert read(scheduler_for(reading)) == reading


def test_a_variance_that_explodes() -> None:
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0)
    reading = read(scheduler)
    assert (reading.prediction, reading.clock) == ("score", "sigma") and isinstance(reading.schedule, VE)
    times = torch.tensor(times_of(scheduler, 6), dtype=torch.float64)
    theirs = copy.deepcopy(scheduler)
    theirs.set_timesteps(6)
    theirs.set_sigmas(6)
    torch.testing.assert_close(reading.schedule.sigma(times[:-1]), theirs.sigmas.double(), rtol=1e-4, atol=0)
    assert times[-1] == 0
    again = read(scheduler_for(reading))
    assert again.schedule.sigma(0.5) == pytest.approx(float(reading.schedule.sigma(0.5)), rel=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "linspace"},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"prediction_type": "sample", "beta_schedule": "scaled_linear"},
    ],
    ids=str,
)
def test_the_same_trajectory_as_eulers(options: dict[str, Any]) -> None:
    """k-diffusion's Euler is DDIM: the same end from the same noise, at the scheduler's times and its own start."""
    torch.manual_seed(0)
    scheduler = diffusers.EulerDiscreteScheduler(**options)
    reading, x = read(scheduler), torch.randn(2, 3, 4, 4)

    def model(x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * (1 + k.reshape(-1, 1, 1, 1) / 700).cos()) + 0.1 * torch.roll(x, 1, -1)

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
            return model(x, reading.timesteps(log_snr))

    steps = 6
    scheduler.set_timesteps(steps)
    state = x * scheduler.init_noise_sigma
    for k in scheduler.timesteps:
        out = model(scheduler.scale_model_input(state, k), k.expand(2))
        state = scheduler.step(out, k, state).prev_sample
    d = orn.Denoiser(Net(), orn.Process(reading.schedule), reading.prediction)
    start = start_of(scheduler, steps) * x
    own = orn.sample(d, x.shape, "ddim", grid=times_of(scheduler, steps), start=start)
    torch.testing.assert_close(own, state, rtol=0, atol=2e-4 * float(state.abs().max()))
    assert float((own - x).abs().max()) > 0.3


def test_what_is_refused_is_named() -> None:
    cases = {
        "CMStochasticIterativeScheduler": "end of a trajectory",
        "SCMScheduler": "end of a trajectory",
        "IPNDMScheduler": "without any signal",
        "DDPMWuerstchenScheduler": "a time of its own",
        "HeliosScheduler": "stages",
    }
    for name, why in cases.items():
        with pytest.raises(UserError, match=f"{name} cannot be expressed: .*{why}"):
            read(getattr(diffusers, name)())
    with pytest.raises(UserError, match="invert_sigmas"):
        read(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    with pytest.raises(UserError, match=r"DDPMScheduler.*thresholding"):
        read(diffusers.DDPMScheduler(thresholding=True))
    with pytest.raises(UserError, match=r"sigma_data 0\.5"):
        read(diffusers.EDMEulerScheduler(prediction_type="v_prediction"))
    with pytest.raises(UserError, match="goes back to more noise"):
        times_of(diffusers.DDIMInverseScheduler(), 5)
    with pytest.raises(UserError, match=r"begins at a noise level of 700, but its schedule ends at 157\.4"):
        times_of(diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, sigma_max=700.0), 5)
    with pytest.raises(UserError, match="os is not a scheduler"):
        read({"_class_name": "os"})
    with pytest.raises(UserError, match="diffusers has no 'NoneSuchScheduler'"):
        read({"_class_name": "NoneSuchScheduler"})
    with pytest.raises(UserError, match="DDIMScheduler does not take this config"):
        read({"_class_name": "DDIMScheduler", "beta_schedule": "none such"})
    with pytest.raises(UserError, match="DDIMScheduler does not take 2000 steps"):
        times_of(diffusers.DDIMScheduler(), 2000)
    with pytest.raises(UserError, match="no scheduler of diffusers means the prediction 'score' on Cosine"):
        scheduler_for(Reading(Cosine(), "score", "chain"))


def test_every_scheduler_of_the_library_is_read_or_refused_by_name() -> None:
    read_ones = []
    for name in sorted(n for n in dir(diffusers) if n.endswith("Scheduler")):
        try:
            scheduler = getattr(diffusers, name)()
        except (TypeError, ImportError):  # it has no defaults, or needs a package that is not here
            continue
        try:
            read(scheduler)
        except UserError as error:
            assert str(error).startswith(f"{name} cannot be expressed: ")
        else:
            read_ones.append(name)
    assert len(read_ones) >= 28
