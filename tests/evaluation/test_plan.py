"""Plans that fit into a time, and what they cost."""

import dataclasses
import time

import pytest
import torch

import ornstein as orn
from ornstein.evaluation import held_out as held_out_module
from ornstein.evaluation import settings
from ornstein.evaluation.features import open_features
from ornstein.evaluation.plan import Costs, Plan, evaluations, measure_costs, sized
from ornstein.solvers import SOLVERS


def test_names_that_are_listed_without_torch_are_those_that_exist():
    assert settings.METHODS == tuple(held_out_module.METHODS) == tuple(held_out_module.CALLS)
    defaults = Plan()
    assert {f.name: getattr(defaults, f.name) for f in dataclasses.fields(Plan) if f.name != "batch"} == settings.FULL


def test_evaluations_are_those_of_the_solver():
    assert evaluations("ddim", 7) == 7
    assert evaluations("heun", 3) == 5  # two a step, one in the last
    assert evaluations("flow-3m", 4) == 4


def test_the_full_plan_of_a_small_run_was_over_a_million_evaluations():
    """The count by hand: likelihoods of 30 images, then 2,000 samples by 2 solvers, 85 steps and 3 seeds."""
    full = Plan()
    of_an_image = held_out_module.CALLS["vlb"] + held_out_module.CALLS["ode"]
    assert full.calls(30) == 30 * of_an_image + 2000 * 2 * 85 * 3
    small = sized({}, 30, Costs(1e-3, 1e-4), 180.0)
    assert small.calls(30) < 150_000


@pytest.mark.parametrize("call", [1e-6, 1e-4, 1e-3, 1e-2, 5e-2, 0.3])
@pytest.mark.parametrize("held_out", [8, 30, 700, 10_000])
def test_a_sized_plan_fits_and_leaves_little_unused(call, held_out):
    costs = Costs(call, call / 2)
    plan = sized({}, held_out, costs, 180.0)
    assert plan.seconds(held_out, costs) <= 180
    assert plan.count <= 2000 and plan.images_of(held_out) <= held_out
    longer = sized({}, held_out, costs, 1800.0)
    assert longer.calls(held_out) >= plan.calls(held_out)
    if plan.calls(held_out) < Plan().calls(held_out) and plan.count < max(64, min(2000, held_out)):
        assert plan.seconds(held_out, costs) > 30  # what is left would not hold the next larger plan


def test_what_is_given_stays_and_the_rest_is_sized():
    costs = Costs(1e-2, 1e-3)
    plan = sized({"count": 1000, "steps": (10, 50)}, 5000, costs, 180.0)
    assert plan.count == 1000 and plan.steps == (10, 50)
    assert plan.seeds == 1 and len(plan.solvers) == 1  # the rest is as small as it can be
    assert sized({"methods": ()}, 500, costs, 180.0).methods == ()
    given = sized({"methods": ("vlb",), "images": 200}, 500, costs, 60.0)
    assert given.methods == ("vlb",) and given.images == 200
    assert sized({"seeds": 2}, 30, costs, None) == dataclasses.replace(Plan(), seeds=2)


def test_a_model_that_is_too_slow_gets_the_smallest_plan():
    plan = sized({}, 100, Costs(60.0, 1.0), 60.0)
    assert (plan.count, plan.seeds, plan.solvers, plan.methods) == (8, 1, (settings.SOLVER,), ())


def test_the_line_says_samples_images_evaluations_and_time():
    plan = Plan(count=64, solvers=("ddim",), steps=(20,), seeds=2, methods=("vlb",), images=10)
    line = plan.line(30, Costs(0.01, 0.0))
    for words in ("likelihood of 10 held-out images (vlb)", "64 samples x 2 seeds by ddim with 20 steps"):
        assert words in line
    assert "30 of 30 held-out images" in line
    assert f"{10 * 1000 + 64 * 2 * 20:,} network evaluations, about 2 min 6 s" in line and "\n" not in line


def test_costs_are_measured():
    class Slow(torch.nn.Module):
        def forward(self, x, log_snr, label=None):
            time.sleep(0.004 * len(x))
            return x

    d = orn.Denoiser(Slow(), orn.Process(orn.schedules.Cosine()), "x0", data=orn.SampleSpec((1, 8, 8)))
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
    began = time.monotonic()
    costs = measure_costs(d, 128, open_features("pixels")(images))
    assert time.monotonic() - began < 10
    assert 0.004 <= costs.call < 0.1 and 0 < costs.sample < 0.1


def test_every_solver_has_a_count():
    assert {solver: evaluations(solver, 2) for solver in SOLVERS if solver != "rk45"}.keys() == SOLVERS.keys() - {
        "rk45"
    }
    assert all(evaluations(solver, 2) >= 2 for solver in SOLVERS)
