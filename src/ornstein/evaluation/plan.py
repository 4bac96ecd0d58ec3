"""The plan of an evaluation: what is measured, what it costs, and how much of it fits into a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ornstein.data import to_uint8
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.evaluation.facts import seconds_text
from ornstein.evaluation.held_out import CALLS, METHODS
from ornstein.evaluation.settings import FULL
from ornstein.oracles import GaussianMixture
from ornstein.process import Process
from ornstein.sampling import sample
from ornstein.schedules import Cosine
from ornstein.solvers import SOLVERS, Counted

__all__ = ["ENOUGH", "VARIATIONAL", "Costs", "Plan", "measure_costs", "sized"]

ENOUGH = 8  # images on either side, below which no figure says anything
VARIATIONAL = "ode-variational"
FIT_STEPS, FIT_BATCH = 300, 64  # of its dequantiser

_LEAST_SAMPLES = 64  # a seed, of a plan that is sized to a time
_LEAST_IMAGES = 16
_RESERVE = 0.75  # of the time, what is planned for: the measured costs are rough
_LIKELIHOOD = 0.4  # of that, the most that the likelihood may take
_MEASURE = 0.4  # seconds to spend on measuring a cost


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        count: samples for each seed, and held-out images to compare with at most.
        solvers, steps: every pair of them is a row.
        seeds: sets of samples.
        methods: likelihoods, names of `ornstein.evaluation.held_out.METHODS`.
        images: held-out images for the likelihood.
        batch: samples that go through the network at once.

    Raises:
        UserError: a value that cannot be, named by its option.
    """

    count: int = FULL["count"]
    solvers: tuple[str, ...] = FULL["solvers"]
    steps: tuple[int, ...] = FULL["steps"]
    seeds: int = FULL["seeds"]
    methods: tuple[str, ...] = FULL["methods"]
    images: int = FULL["images"]
    batch: int = 128

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            object.__setattr__(self, f.name, tuple(value) if isinstance(value, list) else value)
        for solver in self.solvers:
            if solver not in SOLVERS:
                raise UserError(f"unknown solver {solver!r}; known: {', '.join(SOLVERS)}")
        for method in self.methods:
            if method not in METHODS:
                raise UserError(f"unknown --likelihood {method!r}; known: {', '.join(METHODS)}, or none")
        if self.count < ENOUGH:
            raise UserError(f"-n must be at least {ENOUGH} samples, got {self.count}")
        if not self.solvers or not self.steps:
            raise UserError("give at least one of --solvers and one number of --steps")
        least = {"--steps": min(self.steps), "--seeds": self.seeds, "--images": self.images, "--batch": self.batch}
        for option, value in least.items():
            if value < 1:
                raise UserError(f"{option} must be at least 1, got {value}")

    def images_of(self, held_out: int) -> int:
        """Images whose likelihood is measured, of so many that are held out."""
        return min(self.images, held_out)

    def calls(self, held_out: int) -> int:
        """Network evaluations, one for each image, of the whole plan; a backward pass counts as two."""
        return self.likelihood_calls(held_out) + self.count * self.calls_a_sample()

    def likelihood_calls(self, held_out: int) -> int:
        """Network evaluations for the likelihood."""
        fit = 3 * FIT_BATCH * FIT_STEPS if VARIATIONAL in self.methods else 0
        return fit + self.images_of(held_out) * sum(CALLS[method] for method in self.methods)

    def calls_a_sample(self) -> int:
        """Network evaluations for one sample by every solver, number of steps and seed."""
        return self.seeds * sum(evaluations(solver, n) for solver in self.solvers for n in set(self.steps))

    def sets(self) -> int:
        """Sets of samples: solvers by numbers of steps by seeds."""
        return len(self.solvers) * len(set(self.steps)) * self.seeds

    def seconds(self, held_out: int, costs: Costs) -> float:
        """The time that the plan takes at measured costs."""
        return costs.call * self.calls(held_out) + costs.sample * self.count * self.sets()

    def line(self, held_out: int, costs: Costs) -> str:
        """The plan in one line: samples, held-out images, network evaluations and time."""
        parts = []
        if self.methods:
            parts.append(f"likelihood of {self.images_of(held_out):,} held-out images ({', '.join(self.methods)})")
        seeds = f" x {self.seeds} seeds" if self.seeds > 1 else ""
        solvers, steps = ", ".join(self.solvers), ", ".join(map(str, sorted(set(self.steps))))
        parts.append(f"{self.count:,} samples{seeds} by {solvers} with {steps} steps")
        parts.append(f"{min(self.count, held_out):,} of {held_out:,} held-out images to compare with")
        about = seconds_text(self.seconds(held_out, costs))
        return f"plan: {'; '.join(parts)}; {self.calls(held_out):,} network evaluations, about {about}"


@dataclass(frozen=True)
class Costs:
    """Seconds for one image: call, of an evaluation of the network; sample, to decode a sample and compare it."""

    call: float
    sample: float


@cache
def evaluations(solver: str, steps: int) -> int:
    """Network evaluations for one sample, counted on a Gaussian."""
    counted = Counted(GaussianMixture([1.0], [[0.0]], [[[1.0]]]).denoiser(Process(Cosine())))  # pyright: ignore
    sample(counted, (1, 1), solver, steps)
    return counted.calls


def measure_costs(d: Denoiser, batch: int, extract: Callable[[Tensor], Tensor]) -> Costs:
    """Measure both costs on this machine, in less than a second or by two evaluations of the network.

    Args:
        d: the model.
        batch: samples that go through the network at once; fewer are used if that is slow.
        extract: uint8 images to the features they are compared in.

    Raises:
        ValueError: the model diverges in a single step.
    """
    assert d.data is not None
    shape = d.data.shape
    latest = [torch.empty(0)]

    def draw(count: int) -> float:
        labels = d.data.labels(count) if d.data is not None else None
        try:
            latest[0] = sample(d, (count, *shape), "ddim", 1, cond={"label": labels}, batch=count)
        except ValueError as error:
            raise ValueError(f"ddim with 1 steps: {error}") from error
        return float(latest[0].flatten()[0])  # waits for the device

    count, call = 1, 0.0
    draw(1)  # the first call sets up caches and threads
    while True:
        call = _timed(partial(draw, count)) / count
        if count == batch or 4 * count * call > _MEASURE:
            break
        count = min(batch, 4 * count)
    return Costs(call, _timed(lambda: extract(to_uint8(d.decode(latest[0])).cpu())) / len(latest[0]))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def sized(given: Mapping[str, Any], held_out: int, costs: Costs, seconds: float | None) -> Plan:
    """The largest plan that fits into a time.

    What is given stays. Of the rest, the number of samples goes first: as many as there are held-out images, between 64
    and 2,000, halved until at least one row fits; then as many solvers, numbers of steps and seeds as fit. The
    likelihood takes at most two fifths of the time.

    Args:
        given: fields of the plan that are settled.
        held_out: how many images are held out.
        costs: measured costs.
        seconds: the time; None for the full plan.
    """
    given = dict(given)
    if seconds is None:
        return Plan(**given)
    planned = _RESERVE * seconds
    count = min(FULL["count"], max(_LEAST_SAMPLES, held_out))
    counts = [count >> k for k in range(12) if count >> k > _LEAST_SAMPLES] + [_LEAST_SAMPLES, 32, 16, ENOUGH]
    smallest = Plan(**(_BREADTHS[-1] | {"count": ENOUGH, "methods": ()} | given))
    likelihood = _likelihood(given, held_out, costs, min(_LIKELIHOOD * planned, planned - _samples(smallest, costs)))
    left = planned - costs.call * Plan(**(_BREADTHS[-1] | likelihood | given)).likelihood_calls(held_out)
    for count in counts:
        for breadth in _BREADTHS:
            plan = Plan(**({"count": count} | breadth | likelihood | given))
            if _samples(plan, costs) <= left:
                return plan
    smallest_of_all: dict[str, Any] = _BREADTHS[-1] | {"count": ENOUGH} | likelihood | given
    return Plan(**smallest_of_all)


# From the full plan down to a single set of samples.
_BREADTHS: tuple[dict[str, Any], ...] = (
    {"solvers": FULL["solvers"], "steps": FULL["steps"], "seeds": FULL["seeds"]},
    {"solvers": FULL["solvers"], "steps": (5, 10, 20), "seeds": 3},
    {"solvers": FULL["solvers"], "steps": (10, 20), "seeds": 3},
    {"solvers": FULL["solvers"], "steps": (10, 20), "seeds": 2},
    {"solvers": FULL["solvers"][:1], "steps": (10, 20), "seeds": 2},
    {"solvers": FULL["solvers"][:1], "steps": (20,), "seeds": 2},
    {"solvers": FULL["solvers"][:1], "steps": (20,), "seeds": 1},
)


def _samples(plan: Plan, costs: Costs) -> float:
    return plan.count * (costs.call * plan.calls_a_sample() + costs.sample * plan.sets())


def _likelihood(given: Mapping[str, Any], held_out: int, costs: Costs, seconds: float) -> dict[str, Any]:
    """Methods and images of the likelihood that fit: cheaper methods if the usual ones would leave few images."""
    most = min(FULL["images"], held_out)
    for methods in (FULL["methods"], ("continuous", "ode"), ("continuous",)):
        plan = Plan(**({"methods": methods, "images": 1} | dict(given)))
        each = costs.call * sum(CALLS[method] for method in plan.methods)
        fit = costs.call * plan.likelihood_calls(held_out) - each * plan.images_of(held_out)
        images = int((seconds - fit) / each) if each else most
        if images >= min(_LEAST_IMAGES, most) or "methods" in given:
            return {"methods": methods, "images": max(1, min(most, images))}
    return {"methods": () if images < 1 else ("continuous",), "images": max(1, images)}
