"""`sample` and `invert`: addressed noise, conditions, guidance, callbacks and errors, through the public functions."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from ornstein import Denoiser, Process
from ornstein.errors import UserError
from ornstein.guidance import ClassifierFree
from ornstein.nets import UNet
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture
from ornstein.process import Prediction
from ornstein.request import SOLVER, STEPS
from ornstein.sampling import State, invert, sample
from ornstein.schedules import Cosine, LinearBeta
from ornstein.solvers import SOLVERS, ddim

GAUSS = GaussianMixture([1.0], [[0.3, -0.5, 0.1]], [[[1.0, 0.4, 0.1], [0.4, 0.6, -0.2], [0.1, -0.2, 0.8]]])
MIXTURE = GaussianMixture(
    [0.5, 0.3, 0.2],
    [[1.0, -0.5, 0.2], [-1.0, 0.4, 1.0], [0.3, 1.0, -1.2]],
    [
        [[0.2, 0.08, 0.0], [0.08, 0.2, 0.0], [0.0, 0.0, 0.2]],
        [[0.2, 0.0, 0.1], [0.0, 0.1, 0.0], [0.1, 0.0, 0.2]],
        [[0.06, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 0.4]],
    ],
)
P = Process(LinearBeta(), AR1(3, 0.7))
ORACLE = MIXTURE.denoiser(P)
each = pytest.mark.parametrize("solver", SOLVERS)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


def network(classes: int = 0, dropout: float = 0.0) -> Denoiser:
    """A small convolutional network whose every layer does something: the layers that start at zero are drawn."""
    torch.manual_seed(0)
    net = UNet(1, 8, classes, width=32, multipliers=(1, 2), depths=(1, 1), attention=(4,), dropout=dropout)
    for parameter in net.parameters():
        if bool((parameter == 0).all()):
            nn.init.normal_(parameter, std=0.05)
    return Denoiser(net, Process(Cosine()), prediction="v")


# ---- addressed noise ------------------------------------------------------------------------------------------------


@each
def test_a_sample_is_the_same_in_any_batch(solver: str):
    start = randn(64, 3)
    whole = sample(ORACLE, (64, 3), solver=solver, steps=6, start=start)
    assert whole.dtype == torch.float64
    for batch in (1, 5, 64):
        parts = sample(ORACLE, (64, 3), solver=solver, steps=6, start=start, batch=batch)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def net() -> Denoiser:
    return network()


@each
def test_an_image_of_a_network_is_the_same_in_any_batch(net: Denoiser, solver: str):
    whole = sample(net, (64, 1, 8, 8), solver=solver, steps=3)
    # A network rounds by the shape of its batch. Three steps overshoot with some solvers, to values of 100 with iPNDM:
    # hence relative to the largest. The steps that rk45 chooses move with the rounding, within its tolerance of 1e-3.
    close = {"rtol": 0, "atol": (1e-4 if solver == "rk45" else 1e-5) * max(1.0, float(whole.abs().max()))}
    assert whole.dtype == torch.float32 and float(whole.std()) > 0.1
    assert not torch.allclose(whole[0], whole[1], atol=0.1)
    parts = sample(net, (64, 1, 8, 8), solver=solver, steps=3, batch=5)
    torch.testing.assert_close(parts, whole, **close)
    alone = sample(net, (8, 1, 8, 8), solver=solver, steps=3, batch=1)
    torch.testing.assert_close(alone, whole[:8], **close)
    seventh = sample(net, (1, 1, 8, 8), solver=solver, steps=3, first=7)
    torch.testing.assert_close(seventh, whole[7:8], **close)


@each
def test_first_continues_the_numbering(solver: str):
    whole = sample(ORACLE, (9, 3), solver=solver, steps=5)
    rest = sample(ORACLE, (5, 3), solver=solver, steps=5, first=4, batch=2)
    torch.testing.assert_close(rest, whole[4:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_seeds_differ_and_repeat(solver: str):
    one, again, other = (sample(ORACLE, (6, 3), solver=solver, steps=5, seed=s) for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert bool(((one - other).abs().amax(1) > 1e-3).all())


@pytest.mark.parametrize("solver", ["ddpm", "euler-maruyama", "langevin"])
def test_seeds_differ_in_the_noise_of_the_steps(solver: str):
    start = randn(6, 3)
    one, other = (sample(ORACLE, (6, 3), solver=solver, steps=5, seed=s, start=start) for s in (0, 1))
    assert bool(((one - other).abs().amax(1) > 1e-3).all())


def test_no_draw_is_used_twice():
    """The start, the noise of every step and every draw within a step are white and uncorrelated."""
    drawn: list[Tensor] = []

    def collecting(d, x, times, noise):
        drawn.extend([x / float(P.schedule.sigma(1.0)), *(noise(k, draw) for k in range(3) for draw in range(2))])
        yield x

    identity = MIXTURE.denoiser(Process(LinearBeta()))
    sample(identity, (4000, 3), solver=collecting, grid=[1.0, 0.0])
    correlation = torch.corrcoef(torch.stack([z.flatten() for z in drawn]))
    torch.testing.assert_close(correlation, torch.eye(7), rtol=0, atol=5 / 12000**0.5)
    for z in drawn:
        assert abs(float(z.mean())) < 5 / 12000**0.5 and abs(float(z.var()) - 1) < 0.06


def test_ancestral_samples_have_the_law_of_the_data():
    x = sample(GAUSS.denoiser(P), (4000, 3), solver="ddpm", steps=100)
    assert bool(((x.mean(0) - GAUSS.means[0]).abs() < 5 * x.std(0) / 4000**0.5).all())
    torch.testing.assert_close(torch.cov(x.mT).double(), GAUSS.covs[0], rtol=0, atol=0.1)


def test_the_start_is_the_prior_of_its_time():
    """The state at times[0] is s R z: its covariance s^2 C, and z ~ N(0, I) by sample number."""
    states: list[State] = []
    with pytest.warns(UserWarning, match=r"starts at t = 0.4.*give start=process.add_noise"):
        sample(ORACLE, (4000, 3), steps=1, times=(0.4, 0.0), callback=states.append)
    s = float(P.schedule.sigma(0.4))
    torch.testing.assert_close(torch.cov(states[0].x.mT), s**2 * P.noise.dense().float(), rtol=0, atol=0.1)
    assert float(states[0].x.mean(0).abs().max()) < 0.1


# ---- states and callbacks -------------------------------------------------------------------------------------------


def test_callback_sees_every_state():
    states: list[State] = []
    out = sample(ORACLE, (5, 3), solver="heun", steps=7, times=(0.9, 0.1), callback=states.append, batch=3, first=10)
    runs = {10: states[:8], 13: states[8:]}
    assert len(states) == 16
    for first, run in runs.items():
        assert [state.step for state in run] == list(range(8))
        assert {(state.steps, state.first, len(state.x)) for state in run} == {(7, first, 3 if first == 10 else 2)}
        times = [state.t for state in run]
        assert (times[0], times[-1]) == (0.9, 0.1) and times == sorted(times, reverse=True) and len(set(times)) == 8
    assert torch.equal(torch.cat([states[7].x, states[15].x]), out)


def test_start_is_used_and_left_alone():
    start = randn(4, 3)
    kept, states = start.clone(), []
    out = sample(ORACLE, (4, 3), solver="euler", steps=3, start=start, callback=states.append)
    assert torch.equal(states[0].x, kept) and torch.equal(start, kept)
    assert out.dtype == torch.float64
    assert sample(ORACLE, (4, 3), steps=3, start=start.float()).dtype == torch.float32


def test_parts_of_a_way_make_the_whole():
    """times=(1, t) and then (t, 0) on parts of one grid is the whole grid: a one-step solver has no memory."""
    grid = [1.0, 0.7, 0.4, 0.2, 0.0]
    start = randn(3, 3)
    middle = sample(ORACLE, (3, 3), "ddim", grid=grid[:3], start=start)
    parts = sample(ORACLE, (3, 3), "ddim", grid=grid[2:], start=middle)
    torch.testing.assert_close(parts, sample(ORACLE, (3, 3), "ddim", grid=grid, start=start), rtol=0, atol=1e-12)


def test_a_solver_of_ones_own():
    start = randn(3, 3)
    ours = sample(ORACLE, (3, 3), solver=partial(ddim, eta=1.0), steps=5, start=start)
    torch.testing.assert_close(ours, sample(ORACLE, (3, 3), solver="ddpm", steps=5, start=start), rtol=0, atol=1e-12)


def test_samples_of_other_ranks():
    """Clips (B, C, F, H, W) with noise over their frames; the closed form for C = Sigma and zero mean: x stays."""
    shape = (2, 1, 3, 2, 2)
    noise = AR1(3, 0.7)
    c = noise.matvec(torch.eye(12, dtype=torch.float64).reshape(12, *shape[1:])).reshape(12, 12)
    data = GaussianMixture([1.0], torch.zeros(shape)[:1], c[None])
    start = randn(*shape)
    out = sample(data.denoiser(Process(LinearBeta(), noise)), shape, solver="heun", steps=4, start=start)
    torch.testing.assert_close(out, start, rtol=0, atol=1e-12)


# ---- conditions and guidance ----------------------------------------------------------------------------------------


def test_conditions_are_sliced_with_their_samples():
    labels, start = torch.tensor([0, 1, 2, 2, 1, 0, 1]), randn(7, 3)
    out = sample(ORACLE, (7, 3), steps=8, start=start, cond={"label": labels}, batch=3)
    for k in range(3):
        rows = labels == k
        alone = GaussianMixture([1.0], MIXTURE.means[k : k + 1], MIXTURE.covs[k : k + 1]).denoiser(P)
        expected = sample(alone, (int(rows.sum()), 3), steps=8, start=start[rows])
        torch.testing.assert_close(out[rows], expected, rtol=0, atol=1e-9)


def test_guidance_is_classifier_free_guidance():
    labels, start = torch.tensor([0, 1, 2, 0]), randn(4, 3)
    common = {"shape": (4, 3), "steps": 6, "start": start, "cond": {"label": labels}}
    guided = sample(ORACLE, guidance=2.5, batch=3, **common)
    torch.testing.assert_close(guided, sample(ClassifierFree(ORACLE, 2.5), **common), rtol=0, atol=1e-12)
    plain = sample(ORACLE, **common)
    assert rms(guided - plain) > 0.01
    for scale in (None, 1, 1.0):
        assert torch.equal(sample(ORACLE, guidance=scale, **common), plain)
    unconditional = sample(ORACLE, (4, 3), steps=6, start=start)
    torch.testing.assert_close(sample(ORACLE, guidance=0.0, **common), unconditional, rtol=0, atol=1e-9)


def test_a_condition_that_is_none_is_no_condition():
    start = randn(4, 3)
    plain = sample(ORACLE, (4, 3), steps=3, start=start)
    assert torch.equal(sample(ORACLE, (4, 3), steps=3, start=start, cond={"label": None}), plain)
    assert torch.equal(sample(ORACLE, (4, 3), steps=3, start=start, cond={}), plain)


def test_labels_of_a_network():
    net = network(classes=3)
    labels = torch.tensor([0, 1, 2, 0, 1])
    whole = sample(net, (5, 1, 8, 8), steps=2, cond={"label": labels}, guidance=2.0)
    parts = sample(net, (5, 1, 8, 8), steps=2, cond={"label": labels}, guidance=2.0, batch=2)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    assert rms(whole - sample(net, (5, 1, 8, 8), steps=2, cond={"label": labels.flip(0) * 0})) > 1e-4


# ---- the network's mode and gradients -------------------------------------------------------------------------------


def modes(d: nn.Module) -> list[bool]:
    return [module.training for module in d.modules()]


def test_dropout_is_off_and_every_mode_is_given_back():
    net = network(classes=2, dropout=0.5)
    inner = net.net
    assert isinstance(inner, UNet)
    net.train()
    inner.encoder.eval()  # a frozen part
    before = modes(net)
    assert len(set(before)) == 2
    arguments = {"shape": (2, 1, 8, 8), "steps": 2, "cond": {"label": torch.tensor([0, 1])}, "guidance": 2.0}
    one, again = sample(net, **arguments), sample(net, **arguments)
    assert torch.equal(one, again)
    assert modes(net) == before
    seen = []
    sample(net, callback=lambda state: seen.append(any(modes(net))), **arguments)
    assert not any(seen)

    def stop(state: State) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(net, callback=stop, **arguments)
    assert modes(net) == before
    invert(net, torch.zeros(2, 1, 8, 8), steps=2)
    assert modes(net) == before


def test_a_network_in_evaluation_mode_stays_in_it():
    net = network()
    net.net.eval()  # the wrapper around it is made in training mode, as every module is
    sample(net, (1, 1, 8, 8), steps=1)
    assert not any(modes(net.net))


def test_no_gradients_are_kept():
    net, start = network(), torch.zeros(2, 1, 8, 8, requires_grad=True)
    states: list[State] = []
    out = sample(net, (2, 1, 8, 8), steps=2, start=start, callback=states.append)
    back = invert(net, start, steps=2)
    assert not out.requires_grad and not back.requires_grad
    assert not any(state.x.requires_grad for state in states[1:])
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.is_grad_enabled()


# ---- inversion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [GAUSS, MIXTURE], ids=["gaussian", "mixture"])
def test_inversion_returns_the_image_at_order_one(data: GaussianMixture):
    d, x0 = data.denoiser(P), data.sample(16, torch.Generator().manual_seed(0))
    steps, errors = [40, 80, 160, 320], []
    for n in steps:
        back = sample(d, x0.shape, steps=n, start=invert(d, x0, steps=n))
        errors.append(rms(back - x0))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert errors[-1] < 0.02
    assert orders[-1] == pytest.approx(1, abs=0.15) and min(orders) > 0.7


def test_inversion_is_the_exact_map_in_the_limit():
    d, x0 = GAUSS.denoiser(P), GAUSS.sample(16, torch.Generator().manual_seed(1))
    exact = GAUSS.ode_map(x0, P, 0.0, 1.0)
    errors = [rms(invert(d, x0, steps=n) - exact) for n in (50, 100, 200, 400)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert errors[-1] < 0.01 and orders[-1] == pytest.approx(1, abs=0.15)


def test_inversion_takes_conditions():
    labels, x0 = torch.tensor([0, 1, 2]), MIXTURE.means.clone()
    out = invert(ORACLE, x0, steps=20, cond={"label": labels})
    for k in range(3):
        alone = GaussianMixture([1.0], MIXTURE.means[k : k + 1], MIXTURE.covs[k : k + 1]).denoiser(P)
        torch.testing.assert_close(out[k : k + 1], invert(alone, x0[k : k + 1], steps=20), rtol=0, atol=1e-9)
    assert rms(out - invert(ORACLE, x0, steps=20)) > 1e-3
    with pytest.raises(ValueError, match=r"cond\['label'\] has 2 rows for 3 samples"):
        invert(ORACLE, x0, cond={"label": labels[:2]})


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"solver": "eular"},
            "unknown solver 'eular'; known: ddpm, ddpm-upper, ddim, euler, heun, rk4, euler-maruyama, langevin, ",
        ),
        ({"grid": "cosine"}, "unknown grid 'cosine'; known: logistic, uniform"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"times": (0.0, 0.0)}, "times go from one to another"),
        ({"shape": (3,)}, r"a shape is that of a batch of samples, \(B, ...\), got \(3,\)"),
        ({"shape": (0, 3)}, r"got \(0, 3\)"),
        ({"start": torch.zeros(3, 3)}, r"start has shape \(3, 3\), but samples of \(4, 3\) were requested"),
        ({"guidance": 2.0}, "guidance needs a condition"),
        ({"guidance": 2.0, "cond": {"label": None}}, "guidance needs a condition"),
        ({"cond": {"label": torch.zeros(3, dtype=torch.long)}}, r"cond\['label'\] has 3 rows for 4 samples"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"times": (0.0, 1.0), "solver": "ddpm"}, "starts at the data, t = 0, needs the data: give start="),
        ({"times": (0.0, 1.0), "solver": "ddpm", "start": torch.zeros(4, 3)}, "runs down in t"),
        ({"grid": [1.0, math.nan, 0.0]}, "strictly one way"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        sample(ORACLE, **{"shape": (4, 3), "steps": 2, **arguments})
    assert "\n" not in str(caught.value)


def test_a_diverging_solver_names_the_time():
    class Exploding:
        process = P

        def __call__(self, x_t: Tensor, t: float):
            return P.convert(x_t, t, x0=x_t * (math.inf if t < 0.6 else 1.0))

    grid = [1.0, 0.75, 0.5, 0.25, 0.0]
    with pytest.raises(ValueError, match=r"diverged: values that are not finite at t = 0\.25"):
        sample(Exploding(), (2, 3), grid=grid)
    with pytest.raises(ValueError, match=r"diverged: values that are not finite at t = 0\.5"):
        invert(Exploding(), torch.ones(2, 3), grid=grid)


def test_lists_are_conditions_of_one_entry_a_sample() -> None:
    seen: list[object] = []

    class Words:
        process = Process(LinearBeta())

        def __call__(self, x_t: torch.Tensor, t: float, /, *, words: list[str]) -> Prediction:
            seen.append(words)
            return self.process.convert(x_t, t, x0=torch.zeros_like(x_t))

    sample(Words(), (3, 2), steps=1, cond={"words": ["a", "b", "c"]}, batch=2)
    assert seen == [["a", "b"], ["c"]]
    with pytest.raises(ValueError, match="2 rows for 3 samples"):
        sample(Words(), (3, 2), steps=1, cond={"words": ["a", "b"]})


@pytest.mark.parametrize("times", [(1.0, 0.0), (0.98, 0.0)])
def test_no_warning_if_the_first_state_is_practically_noise(times, recwarn):
    sample(ORACLE, (2, 3), steps=1, times=times)
    sample(ORACLE, (2, 3), steps=1, times=(0.4, 0.0), start=torch.zeros(2, 3))
    assert not recwarn


def test_a_list_of_numbers_is_a_condition_for_each_sample():
    seen: list[torch.Tensor] = []

    class Labels:
        process = P

        def __call__(self, x_t, t, /, label):
            seen.append(label)
            return self.process.convert(x_t, t, x0=torch.zeros_like(x_t))

    sample(Labels(), (3, 3), steps=1, cond={"label": [4, 5, 6]}, batch=2)
    assert [each.tolist() for each in seen] == [[4, 5], [6]] and seen[0].dtype == torch.int64


def test_the_default_is_that_of_the_command_line():
    start = randn(2, 3)
    by_name = sample(ORACLE, (2, 3), SOLVER, STEPS, "logistic", start=start)
    assert (SOLVER, STEPS) == ("flow-3m", 20) and torch.equal(sample(ORACLE, (2, 3), start=start), by_name)


def test_a_precision_may_be_a_name():
    net = torch.nn.Conv2d(1, 1, 3, padding=1)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.dtypes = net, set()

        def forward(self, x, log_snr):
            out = self.conv(x)
            self.dtypes.add(out.dtype)
            return out

    d = Denoiser(Net(), Process(LinearBeta()), "x0")
    sample(d, (1, 1, 4, 4), steps=1, precision="bf16")
    assert d.net.dtypes == {torch.bfloat16} and d.precision is None
    with pytest.raises(UserError, match="unknown precision 'half'"):
        sample(d, (1, 1, 4, 4), steps=1, precision="half")


def test_running_up_from_the_data_asks_for_the_data() -> None:
    oracle = GaussianMixture([1.0], [[0.0]], [[[1.0]]]).denoiser(Process(LinearBeta()))
    with pytest.raises(ValueError, match="give start="):
        sample(oracle, (3, 1), times=(0.0, 1.0))
