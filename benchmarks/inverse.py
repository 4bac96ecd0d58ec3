"""Posterior sampling against the closed form (E39): the bias of every method, of ours and of azula.

    python benchmarks/inverse.py bias [-n 4000]
    python benchmarks/inverse.py particles [-n 9000]    # the method that is exact as they grow
    python benchmarks/inverse.py peers [-n 4000]        # pip install --no-deps azula einops

Results are kept in --out, and not measured again: it can be stopped and continued.

The data are signals of 16 numbers: one Gaussian, or a mixture of three, both smooth along the signal. For
y = A x + noise their posterior is a mixture in closed form, and samples of a method are compared with it: the distance
of the means over the norm of the exact one, and that of the covariances (Frobenius) over the norm of the exact one.
Each of n samples starts from its own noise; "exact draws" is the error of as many draws from the posterior itself.
"Easy" is a measurement after which one of the three is left, "hard" one after which several are, or little is known.

The start of every sample is noise whose mean and covariance over all samples are exactly those of the prior.

`peers` gives every method of azula, on its schedules and with its samplers, the same denoiser, the same y and as much
work as our recommended method: a call of the denoiser counts 1, a product with its derivative 2. The best of theirs, by
the mean of both errors of a sixteenth of the samples, is run again beside ours, from the same starts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tables import Table
from torch import Tensor

import ornstein as orn
from ornstein import edit
from ornstein.inverse import METHODS, Blur, Mask, Matrix, Moments, Operator, downsampling, repaint, sensing, twisted
from ornstein.noise import AR1, Identity
from ornstein.oracles import GaussianMixture
from ornstein.process import Prediction
from ornstein.schedules import Times
from ornstein.store import atomic_write
from ornstein.wrapper import Wrapper

N, STEPS = 16, (20, 100)
PARTICLES = 16
COUNTS = (4, 16, 32)  # of particles
AT_ONCE = 500  # samples, each with its particles
NOISES = (("white noise", Identity()), ("AR(1) noise, 0.8", AR1(N, 0.8)))
ITERATIONS = 8  # of conjugate gradients: as many as numbers are measured, or nearly
ANCESTRAL = ("dps", "pigdm", "ddrm", "ddnm", "diffpir")


def smooth(length: float) -> Tensor:
    i = torch.arange(N, dtype=torch.float64)
    return torch.exp(-(i[:, None] - i).abs() / length) + 0.02 * torch.eye(N, dtype=torch.float64)


def priors() -> dict[str, GaussianMixture]:
    draw = torch.Generator().manual_seed(1)
    wave = torch.randn(3, 1, N, generator=draw, dtype=torch.float64)
    kernel = torch.tensor([[[0.25, 0.5, 0.25]]], dtype=torch.float64)
    means = 0.6 * torch.nn.functional.conv1d(wave, kernel, padding=1)[:, 0]
    covs = torch.stack([0.1 * smooth(3.0), 0.1 * smooth(8.0), 0.05 * smooth(2.0)])
    one = GaussianMixture([1.0], torch.full((1, N), 0.5, dtype=torch.float64), 0.3 * smooth(6.0)[None])
    return {"Gaussian": one, "mixture": GaussianMixture([0.5, 0.3, 0.2], means, covs)}


def known(every: int, first: int) -> Tensor:
    mask = torch.zeros(N)
    mask[:first] = 1
    if every:
        mask[::every] = 1
    return mask


@dataclass(frozen=True)
class Task:
    """A measurement of a signal: its operator, y, and the exact posterior."""

    name: str
    prior: GaussianMixture
    A: Operator
    noise_std: float
    seed: int = 5

    @property
    def y(self) -> Tensor:
        draw = torch.Generator().manual_seed(self.seed)
        exact = self.A.linear(self.prior.sample(1, draw).double().reshape(1, *self.A.shape))
        return self.A.linear(self.A.pinv(exact + self.noise_std * torch.randn(exact.shape, generator=draw).double()))

    @property
    def posterior(self) -> GaussianMixture:
        units = torch.eye(N, dtype=torch.float64).reshape(N, *self.A.shape)
        matrix = self.A.linear(units).flatten(1).mT
        rows = matrix.abs().sum(1) > 0
        return self.prior.posterior(matrix[rows], self.y.flatten()[rows], self.noise_std)


def moments_of(mixture: GaussianMixture) -> tuple[Tensor, Tensor]:
    weights, means = mixture.weights, mixture.means.flatten(1)
    mean = weights @ means
    gap = means - mean
    return mean, torch.einsum("k,kij->ij", weights, mixture.covs + gap[:, :, None] * gap[:, None])


def off(x: Tensor, mixture: GaussianMixture) -> tuple[float, float]:
    """The errors of mean and covariance of samples (n, *), relative."""
    mean, cov = moments_of(mixture)
    x = x.flatten(1).double()
    return float((x.mean(0) - mean).norm() / mean.norm()), float((torch.cov(x.mT) - cov).norm() / cov.norm())


def start(p: orn.Process, n: int, shape: tuple[int, ...]) -> Tensor:
    """Noise (n, *) at t = 1 whose mean and covariance are exactly those of the prior: no error of the draw in them."""
    z = torch.randn(n, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z = z - z.mean(0)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(z.mT)), z.mT, upper=False).mT
    return p.prior((n, *shape), dtype=torch.float64).sample(z.reshape(n, *shape))


def sampled(method: str, d: Any, task: Task, steps: int, x: Tensor, by: str | None = None) -> Tensor:
    """Samples of one of our methods, as `ornstein.edit.restore` runs it."""
    kind = METHODS[{"repaint": "ddnm", "twisted": "moments"}.get(method, method)]
    settings = {"iterations": ITERATIONS} if kind is Moments else {}
    posterior = kind(d, task.A, task.y, task.noise_std, **settings)
    solver: Any = "ddpm" if method in ANCESTRAL else by
    if method in ("repaint", "twisted"):
        solver = repaint if method == "repaint" else partial(twisted, particles=PARTICLES)
    return orn.sample(posterior, x.shape, solver=solver, steps=steps, start=x, batch=len(x))


class Kept:
    """Results by name, in a JSON file; after so many processor seconds the next one ends the program."""

    def __init__(self, path: Path, seconds: float | None) -> None:
        self.path, self.seconds = path, seconds
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        if name not in self.values:
            if self.seconds is not None and time.process_time() > self.seconds:
                sys.exit(f"{len(self.values)} results in {self.path}: call again to continue")
            self.values[name] = measure()
            atomic_write(self.path, json.dumps(self.values, indent=1).encode())
        return self.values[name]


def bias(n: int, most: int, kept: Kept) -> list[Table]:
    """Each method at 20 and 100 steps, under white and AR(1) noise."""
    data = priors()
    tasks = [
        Task("Gaussian, easy", data["Gaussian"], Mask(known(3, 3), (N,)), 0.05),
        Task("Gaussian, hard", data["Gaussian"], Mask(known(0, 3), (N,)), 0.3),
        Task("mixture, easy", data["mixture"], Mask(known(3, 3), (N,)), 0.05),
        Task("mixture, hard", data["mixture"], sensing(3, (N,), 3), 0.3),
    ]
    out = []
    for title, noise in NOISES:
        p = orn.Process(orn.schedules.Cosine(), noise=noise)
        columns = ["method", *(f"{task.name}, {steps}" for task in tasks for steps in STEPS)]
        table = Table(f"Bias of mean / covariance in %, {title}", columns)
        table.add("exact draws", *(cell(off(draws(task, n), task.posterior)) for task in tasks for _ in STEPS))
        for method in edit.METHODS_OF_EDITS:
            count = min(n, most) if method == "twisted" else n
            cells = []
            for task, steps in itertools.product(tasks, STEPS):
                d = task.prior.denoiser(p)

                def measure(d: Any = d, task: Task = task, steps: int = steps, m: str = method, k: int = count) -> Any:
                    return off(sampled(m, d, task, steps, start(d.process, k, task.A.shape)), task.posterior)

                cells.append(cell(kept(f"{title}, {method}, {task.name}, {steps} steps, {count}", measure)))
            table.add(method, *cells)
        out.append(table)
    return out


def particles(n: int, kept: Kept) -> Table:
    """`twisted` with more and more particles on the hard mixture, by so many samples that their own noise is small."""
    task = Task("mixture, hard", priors()["mixture"], sensing(3, (N,), 3), 0.3)
    table = Table("twisted, mixture, hard: mean / covariance off by %", ["particles", *(title for title, _ in NOISES)])
    table.add("exact draws", *[cell(off(draws(task, n), task.posterior))] * len(NOISES))
    for count in COUNTS:
        cells = []
        for title, noise in NOISES:
            p = orn.Process(orn.schedules.Cosine(), noise=noise)

            def measure(p: orn.Process = p, count: int = count) -> tuple[float, float]:
                posterior = Moments(task.prior.denoiser(p), task.A, task.y, task.noise_std, iterations=ITERATIONS)
                solver: Any = partial(twisted, particles=count)
                parts = []
                for i, part in enumerate(start(p, n, task.A.shape).split(AT_ONCE)):
                    options = {"steps": STEPS[-1], "start": part, "batch": len(part), "first": i * AT_ONCE}
                    parts.append(orn.sample(posterior, part.shape, solver=solver, **options))
                return off(torch.cat(parts), task.posterior)

            cells.append(cell(kept(f"{title}, {count} particles, {n}", measure)))
        table.add(str(count), *cells)
    return table


def draws(task: Task, n: int) -> Tensor:
    return task.posterior.sample(n, torch.Generator().manual_seed(3))


def cell(errors: tuple[float, float]) -> str:
    return (
        " / ".join(f"{100 * e:.1f}" if e < 1 else f"{100 * e:.0f}" for e in errors)
        if math.isfinite(sum(errors))
        else "-"
    )


# -- beside azula --


class _Tap(torch.autograd.Function):
    """x as it is; a product with the derivative behind it is counted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: list[float]) -> Tensor:
        ctx.count = count
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.count[0] += 2
        return grads[0], None


@dataclass(frozen=True)
class Counted(Wrapper):
    """A denoiser that counts its work: 1 a call, 2 a product with its derivative."""

    denoiser: Any
    work: list[float]

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        self.work[0] += 1
        out = self.denoiser(x_t, t, **cond)
        return self.process.convert(x_t, t, x0=_Tap.apply(out.x0, self.work))


Run = Callable[[Any, Task, int, Tensor], Tensor]


def theirs() -> Iterator[tuple[str, Run]]:
    """Every posterior method of azula, with its samplers: (name, run(d, task, steps, start))."""
    from azula import denoise, noise, sample
    from azula.guidance import diffpir, dps, jfps, mmps, pgdm, tmpd
    from azula.linalg.covariance import IsotropicCovariance

    class Mean(torch.nn.Module):
        def __init__(self, d: Any, schedule: Any) -> None:
            super().__init__()
            self.schedule, self.d = schedule, d

        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Any:
            p = self.d.process
            a, s = (float(v) for v in self.schedule(t))
            own = float(p.schedule.time(torch.tensor(2 * math.log(a / s), dtype=torch.float64)).clamp(0, 1))
            of_a, of_s = (float(v) for v in p.coefficients(own, x.double()))
            scale = math.sqrt(of_a**2 + of_s**2) / math.sqrt(a**2 + s**2)
            return denoise.DiracPosterior(mean=self.d(x * scale, own).x0)

    def isotropic(variance: float) -> Any:
        return IsotropicCovariance(torch.tensor(variance, dtype=torch.float64))

    # zAB and xEAB, its VP schedule, MMPS by ancestral steps and the others by other steps were behind in the first task
    schedules = {"cosine": noise.CosineSchedule(), "rectified": noise.RectifiedSchedule()}
    samplers: dict[str, Callable[..., Any]] = {"DDPM": sample.DDPMSampler, "DDIM": sample.DDIMSampler}
    for kind in ("zEAB", "REAB"):
        samplers[f"{kind} 2"] = partial(getattr(sample, f"{kind}Sampler"), order=2)

    def begin(x: Tensor, schedule: Any) -> Tensor:
        a, s = (float(v) for v in schedule(torch.ones((), dtype=torch.float64)))
        return x * math.sqrt(a**2 + s**2)

    def wrapped(make: Callable[[Any, Task], Any], sampler: Any, schedule: Any) -> Run:
        def run(d: Any, task: Task, steps: int, x: Tensor) -> Tensor:
            solve = sampler(make(Mean(d, schedule), task), steps=steps, silent=True, dtype=torch.float64)
            return solve(begin(x, schedule))

        return run

    def stepping(make: Callable[..., Any], schedule: Any) -> Run:
        def run(d: Any, task: Task, steps: int, x: Tensor) -> Tensor:
            torch.manual_seed(0)  # theirs draws from the global generator
            solve = make(Mean(d, schedule), task, steps=steps, silent=True, dtype=torch.float64)
            return solve(begin(x, schedule))

        return run

    denoisers: dict[str, Callable[[Any, Task], Any]] = {
        "DiffPIR": lambda d, k: diffpir.DiffPIRDenoiser(d, k.y, k.A.linear, k.noise_std**2),
        "DiffPIR 1": lambda d, k: diffpir.DiffPIRDenoiser(d, k.y, k.A.linear, k.noise_std**2, lmbda=1.0, iterations=5),
        "TMPD": lambda d, k: tmpd.TMPDenoiser(d, k.y, k.A.linear, k.noise_std**2),
    }
    for iterations, solver in ((1, "gmres"), (3, "gmres"), (3, "cg"), (8, "cg")):
        denoisers[f"MMPS {solver} {iterations}"] = lambda d, k, i=iterations, s=solver: mmps.MMPSDenoiser(
            d, k.y, k.A.linear, isotropic(k.noise_std**2), s, i
        )
    for iterations in (5,):
        denoisers[f"JFPS {iterations}"] = lambda d, k, i=iterations: jfps.JFPSDenoiser(
            d, k.y, k.A.linear, isotropic(k.noise_std**2), isotropic(0.3), "cg", i
        )  # fmt: skip
    for (name, make), (how, sampler), (grid, schedule) in itertools.product(
        denoisers.items(), samplers.items(), schedules.items()
    ):
        if (how == "DDPM") == name.startswith("MMPS"):
            continue
        yield f"{name}, {how}, {grid}", wrapped(make, sampler, schedule)
    for grid, schedule in schedules.items():
        for zeta in (0.1, 0.3, 1.0):
            yield (
                f"DPS {zeta:g}, {grid}",
                stepping(lambda d, k, z=zeta, **o: dps.DPSSampler(d, k.y, k.A.linear, z, **o), schedule),
            )
        for eta in (0.0, 1.0):
            yield (
                f"PGDM eta {eta:g}, {grid}",
                stepping(lambda d, k, e=eta, **o: pgdm.PGDMSampler(d, k.y, k.A.linear, k.A.pinv, eta=e, **o), schedule),
            )


def peers(n: int, work: int, kept: Kept, solver: str | None = None) -> Table:
    """Six tasks, one run: ours beside the best of azula's, and its best of each method."""
    data = priors()
    kernel = torch.tensor([[0.1, 0.2, 0.4, 0.2, 0.1]])
    wide = (1, 1, N)
    tasks = [
        Task("fill, Gaussian", data["Gaussian"], Mask(known(3, 3), (N,)), 0.05),
        Task("sensing, Gaussian", data["Gaussian"], sensing(5, (N,), 3), 0.1),
        Task("fill, mixture", data["mixture"], Mask(known(3, 3), (N,)), 0.05),
        Task("blur, mixture", data["mixture"], Blur(kernel, wide), 0.2),
        Task("4 times smaller, mixture", data["mixture"], Matrix(means_of_four(), (N,)), 0.1),
        Task("noise, mixture", data["mixture"], Mask(torch.ones(N), (N,)), 0.5),
    ]
    p = orn.Process(orn.schedules.Cosine())
    columns = ["task", "ours (moments)", "steps", "best of azula", "which", "steps of it", "exact draws"]
    table = Table(f"Mean / covariance off by %, at {work} evaluations", columns)
    won = 0
    for task in tasks:
        if task.A.shape != (N,):
            task = replace(task, prior=shaped(task.prior, task.A.shape))
        d, x = task.prior.denoiser(p), start(p, n, task.A.shape)
        key = f"{task.name}, {work} evaluations"
        name = "ours" if solver is None else f"ours by {solver}"
        own = kept(f"{key}, {name}, {n}", partial(run_at, partial(ours, by=solver), d, task, work, x))
        few, found = start(p, n // 16, task.A.shape), []
        for name, run in theirs():
            errors, _ = kept(f"{key}, {name}, {len(few)}", partial(run_at, run, d, task, work, few))
            if math.isfinite(sum(errors)):
                found.append((sum(errors), name, run))
        _, name, run = min(found, key=lambda each: each[0])
        best = kept(f"{key}, {name}, {n}", partial(run_at, run, d, task, work, x))
        won += sum(own[0]) < sum(best[0])
        row = [task.name, cell(own[0]), own[1], cell(best[0]), name, best[1]]
        table.add(*row, cell(off(draws(task, n), task.posterior)))
    table.note = f"Ours is nearer in {won} of {len(tasks)} tasks."
    return table


def ours(d: Any, task: Task, steps: int, x: Tensor, by: str | None = None) -> Tensor:
    return sampled("moments", d, task, steps, x, by)


def means_of_four() -> Tensor:
    return downsampling(4, (1, 4, N), "area").columns.float()


def shaped(prior: GaussianMixture, shape: tuple[int, ...]) -> GaussianMixture:
    return GaussianMixture(prior.weights, prior.means.reshape(-1, *shape), prior.covs)


def run_at(run: Run, d: Any, task: Task, work: int, x: Tensor) -> tuple[tuple[float, float], int]:
    """The errors of a method with as many steps as the work allows, and how many these are."""
    count = [0.0]
    few = x[:8]
    run(Counted(d, count), task, 4, few)
    two = count[0]
    count[0] = 0.0
    run(Counted(d, count), task, 8, few)
    a_step = (count[0] - two) / 4
    steps = max(2, int((work - (two - 4 * a_step)) / a_step))
    return off(run(d, task, steps, x), task.posterior), steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bias", "particles", "peers"))
    parser.add_argument("-n", type=int, default=4000, help="samples of each method")
    parser.add_argument(
        "--most", type=int, default=1000, help="samples of twisted, which has as many times 16 particles"
    )
    parser.add_argument("--work", type=int, default=300, help="evaluations a sample, for peers")
    parser.add_argument("--solver", help="of ours, for peers, in the place of the default one")
    parser.add_argument("--out", type=Path, default=Path("runs/inverse.json"), help="file of the results")
    parser.add_argument("--seconds", type=float, help="processor seconds after which to stop")
    asked = parser.parse_args()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    kept = Kept(asked.out, asked.seconds)
    tables = {
        "bias": lambda: bias(asked.n, asked.most, kept),
        "particles": lambda: [particles(asked.n, kept)],
        "peers": lambda: [peers(asked.n, asked.work, kept, asked.solver)],
    }
    for table in tables[asked.what]():
        print(table.markdown())


if __name__ == "__main__":
    main()
