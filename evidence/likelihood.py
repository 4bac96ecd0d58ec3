"""The likelihoods measured on data whose log p is known: `make evidence-likelihood`, under two minutes on one core.

Writes docs/likelihood.png (the spread of one draw of each form of the bound, and the gap of each variance against the
number of steps) and prints the tables of docs/likelihood.md.
"""

import argparse
import math
import time
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import torch
from matplotlib import pyplot as plt

from ornstein import Process
from ornstein.likelihood import fit_variance, ode, vlb
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture, Oracle
from ornstein.schedules import LinearBeta

MIXTURE = GaussianMixture(
    [0.3, 0.7], [[1.0, 0.0], [-1.0, 0.5]], [[[0.2, 0.05], [0.05, 0.3]], [[0.3, 0.0], [0.0, 0.15]]]
)
FORMS = ("matching", "consistency", "continuous")
STEPS = (5, 10, 20, 50, 100, 200)
SAMPLES = 20000


def draw(seed: int) -> torch.Tensor:
    return MIXTURE.sample(SAMPLES, torch.Generator().manual_seed(seed))


def spreads(d: Oracle) -> dict[str, list[float]]:
    """Standard deviation over noise of the bound of one sample, nats: every term drawn once, and one term alone."""
    x0 = draw(0)[:1].expand(1000, 2)
    out: dict[str, list[float]] = {}
    for form in FORMS:
        for terms, label in ((None, "all terms"), (1, "one term")):
            bounds = [vlb(d, x0, n, form, "gaussian", terms=terms, batch=1000) for n in STEPS]
            out[f"{form}, {label}"] = [float(b.total.std()) for b in bounds]
    return out


def gaps(d: Oracle) -> dict[str, list[tuple[float, float]]]:
    """Mean and standard error over the data of the bound less -log p, nats."""
    x0 = draw(1)
    surprise = -d.log_prob(x0, 0.0)
    table = fit_variance(d, draw(2), batch=SAMPLES)
    out: dict[str, list[tuple[float, float]]] = {}
    for name, variance in (("beta~ (lower)", "lower"), ("beta (upper)", "upper"), ("analytic", table)):
        above = [vlb(d, x0, n, decoder="gaussian", variance=variance, batch=SAMPLES).total - surprise for n in STEPS]
        out[name] = [(float(a.mean()), float(a.std()) / math.sqrt(SAMPLES)) for a in above]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/likelihood.png"))
    figure_path = parser.parse_args().out
    torch.set_num_threads(1)  # the tensors are small: a second thread would only wait
    began = time.perf_counter()
    d = MIXTURE.denoiser(Process(LinearBeta(), AR1(2, 0.6)))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    print("standard deviation of one draw of the bound, nats; steps:", *STEPS)
    for name, values in spreads(d).items():
        print(f"  {name:24}", *(f"{v:8.2f}" for v in values))
        form, label = name.split(", ")
        left.loglog(STEPS, values, "o-" if label == "all terms" else "o--", color=f"C{FORMS.index(form)}", label=name)
    left.set(xlabel="steps of the chain", ylabel="standard deviation of one draw, nats")
    left.legend(fontsize=8)
    print("bound less -log p, nats; steps:", *STEPS)
    for name, pairs in gaps(d).items():
        print(f"  {name:24}", *(f"{mean:8.3f}±{error:.3f}" for mean, error in pairs))
        means, errors = zip(*pairs, strict=True)
        right.errorbar(STEPS, means, yerr=errors, marker="o", label=f"variance {name}")
    right.set(xlabel="steps of the chain", ylabel="bound less -log p, nats", xscale="log")
    right.set_yscale("symlog", linthresh=0.1)
    right.axhline(0, color="grey", lw=0.8)
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(figure_path, dpi=110)
    print("log p by the flow, largest error in nats/dim; RK4 steps:", 16, 32, 64, 128)
    x0 = draw(3)[:64]
    truth = d.log_prob(x0, 0.0)
    results = [ode(d, x0, steps=n, prior=lambda x: d.log_prob(x, 1.0)).value for n in (16, 32, 64, 128)]
    print(" " * 26, *(f"{float((r - truth).abs().max()) / 2:.1e}" for r in results))
    print(f"wrote {figure_path} in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
