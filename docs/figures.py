"""The figures of `docs/from-the-equations`: each is made by the code that the page is about.

python docs/figures.py                    # all of them, two minutes on one core
python docs/figures.py forward guidance   # some
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import ornstein as orn
from ornstein.autoencoders import DiffusionChain, addressed
from ornstein.contrast.models import build
from ornstein.contrast.problems import Problem, open_problem
from ornstein.contrast.training import score
from ornstein.faces.world import FaceWorld, attributes, identities, render
from ornstein.inverse import DDNM, DPS, Matrix, Moments, invert, twisted

FOLDER = Path(__file__).parent / "images" / "course"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_bumps() -> orn.oracles.GaussianMixture:
    """Data of one dimension: a third of it about -1.2, the rest about 0.9."""
    return orn.oracles.GaussianMixture([1 / 3, 2 / 3], [[-1.2], [0.9]], [[[0.04]], [[0.09]]])


def three_in_the_plane() -> orn.oracles.GaussianMixture:
    means = [[-1.0, 0.6], [1.0, 0.6], [0.0, -1.0]]
    covs = [[[0.08, 0.05], [0.05, 0.08]], [[0.08, -0.05], [-0.05, 0.08]], [[0.15, 0.0], [0.0, 0.03]]]
    return orn.oracles.GaussianMixture([0.3, 0.3, 0.4], means, covs)


def picture(axes: Axes, x: Tensor, title: str = "") -> None:
    """An image (C, H, W) in [-1, 1]; what lies beyond is cut off."""
    shown = ((x.clamp(-1, 1) + 1) / 2).permute(1, 2, 0)
    axes.imshow(shown.squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)


def forward() -> Figure:
    """Three schedules, and one image at five times (E2)."""
    figure = plt.figure(figsize=(8, 4.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.5, 1])
    left, right = above.subplots(1, 2)
    t = torch.linspace(1e-3, 1, 400, dtype=torch.float64)
    schedules = {
        "Cosine": orn.schedules.Cosine(),
        "LinearBeta": orn.schedules.LinearBeta(),
        "Rectified": orn.schedules.Rectified(),
    }
    for name, schedule in schedules.items():
        (line,) = left.plot(t, schedule.alpha(t), label=name)
        left.plot(t, schedule.sigma(t), color=line.get_color(), linestyle=":")
        right.plot(t[:-1], schedule.log_snr(t[:-1]), color=line.get_color())
    left.set(xlabel="t", title="a(t), and dotted s(t)")
    right.set(xlabel="t", title="log-SNR", ylim=(-11, 14))
    left.legend()
    world = FaceWorld(people=8, photos=1, size=64, seed=3)
    image = world.batch([2])[0]
    process = orn.Process(orn.schedules.Cosine())
    z = torch.randn(image.shape, generator=seeded())
    for axes, at in zip(below.subplots(1, 5), (0.0, 0.25, 0.5, 0.75, 1.0), strict=True):
        picture(axes, process.add_noise(image, at, z)[0], f"t = {at}")
    return figure


def posterior() -> Figure:
    """q(x_s | x_t, x_0) for one x_t, as s goes down to the data (E6)."""
    figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
    process, t = orn.Process(orn.schedules.Cosine()), 0.7
    x_t, x_0 = torch.tensor([[1.2]], dtype=torch.float64), torch.tensor([[-0.8]], dtype=torch.float64)
    grid = torch.linspace(-2, 2.5, 800, dtype=torch.float64)[:, None]
    for s in (0.68, 0.6, 0.5, 0.35, 0.2, 0.05):
        law = process.posterior(x_t, x_0, s, t)
        density = orn.Gaussian(law.mean.expand(len(grid), 1), law.std, law.noise).log_prob(grid).exp()
        axes.plot(grid[:, 0], density, label=f"s = {s}")
    for value, name in ((x_t, "$x_t$"), (x_0, "$x_0$")):
        axes.axvline(float(value), color="0.4", linestyle=":", linewidth=1)
        axes.annotate(name, (float(value) + 0.03, 6.6))
    axes.set(xlabel="$x_s$", title="the bridge from $x_t$ = 1.2 at t = 0.7 to $x_0$ = −0.8", ylim=(0, 7.2))
    axes.legend(loc="upper center", ncols=2)
    return figure


def objectives() -> Figure:
    """What each loss makes of an error in x_0, by noise level (E10, E13, E17)."""
    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    level = torch.linspace(-9, 9, 200, dtype=torch.float64)
    schedule = orn.schedules.Cosine()
    snr = level.exp()
    weights = {
        "bound, per unit of log-SNR (E17): SNR/2": snr / 2,
        "noise (E10): SNR": snr,
        "v: 1 + SNR": 1 + snr,
        "x0: 1": torch.ones_like(snr),
        "min-SNR, γ = 5": snr.clamp(max=5),
    }
    density = -1 / torch.autograd.functional.jacobian(lambda u: schedule.log_snr(u).sum(), schedule.time(level))
    for name, weight in weights.items():
        through_time = 1.0 if name.startswith("bound") else density
        axes.semilogy(level, weight * through_time, "--" if name.startswith("v") else "-", label=name)
    axes.set(xlabel="log-SNR λ", title="weight of ‖x₀ − x̂₀‖² at a noise level, for t uniform on the cosine schedule")
    axes.set(ylim=(1e-5, 1e4), xlim=(-9, 9))
    axes.legend()
    return figure


def sde() -> Figure:
    """The forward SDE, the reverse SDE and the probability-flow ODE between the same marginals (E18-E20)."""
    figure, panels = plt.subplots(1, 3, figsize=(8, 3), sharey=True, layout="constrained")
    mixture, process = two_bumps(), orn.Process(orn.schedules.LinearBeta())
    d = mixture.denoiser(process)
    times, grid = torch.linspace(0, 1, 101, dtype=torch.float64), torch.linspace(-3, 3, 200, dtype=torch.float64)
    density = torch.stack([d.log_prob(grid[:, None], t).exp() for t in times.clamp(min=1e-3)], 1)
    paths = {"forward SDE (E18)": [mixture.sample(12, seeded())]}
    (states,) = paths.values()
    for k, (s, t) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        states.append(process.transition(states[-1], s, t).sample(torch.randn(12, 1, generator=seeded(k)).double()))
    start = torch.randn(12, 1, generator=seeded(5), dtype=torch.float64)
    for name, solver in (("reverse SDE (E19)", "euler-maruyama"), ("probability-flow ODE (E20)", "heun")):
        seen: list[Tensor] = []
        orn.sample(d, (12, 1), solver, grid=times.flip(0), start=start, callback=lambda s, seen=seen: seen.append(s.x))
        paths[name] = seen[::-1]
    for axes, (name, path) in zip(panels, paths.items(), strict=True):
        axes.pcolormesh(times, grid, density.sqrt(), cmap="Blues", shading="gouraud", rasterized=True)
        axes.plot(times, torch.stack(path)[..., 0], color="#c0392b", linewidth=0.8, alpha=0.8)
        axes.set(xlabel="t", title=name, ylim=(-3, 3))
    return figure


def solvers() -> Figure:
    """The error of solvers against evaluations, on a mixture whose solution is known to 1e-9 (E20, E24)."""
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    d = three_in_the_plane().denoiser(orn.Process(orn.schedules.Cosine(), orn.noise.AR1(2, 0.7)))
    start = d.process.prior((200, 2), dtype=torch.float64).sample(torch.randn(200, 2, generator=seeded()).double())
    run = partial(orn.sample, d, (200, 2), start=start)
    truth = run(solver="dpmpp-3m", steps=1500)
    for name, each in {"ddim": 1, "dpmpp-2m": 1, "dpmpp-3m": 1, "unipc": 1, "heun": 2}.items():
        counts = [5, 8, 12, 20, 32, 50, 80]
        errors = [float((run(solver=name, steps=n // each) - truth).square().mean().sqrt()) for n in counts]
        axes.loglog([n // each * each for n in counts], errors, marker="o", markersize=3, label=name)
    axes.set(xlabel="evaluations of the denoiser", title="root mean square error at t = 0")
    axes.set_xticks([5, 10, 20, 50, 80], ["5", "10", "20", "50", "80"])
    axes.minorticks_off()
    axes.legend()
    return figure


def variance() -> Figure:
    """The variance of the reverse step between its bounds, and what the bound gains (E9)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    mixture, process, steps = two_bumps(), orn.Process(orn.schedules.Cosine()), 10
    d, x0 = mixture.denoiser(process), mixture.sample(1500, seeded())
    table = orn.likelihood.fit_variance(d, x0)
    at = torch.arange(2, steps + 1) / steps
    laws = {"lower β̃": [], "analytic": [], "upper β": []}
    for t in at.tolist():
        s = t - 1 / steps
        x_t = process.add_noise(x0[:1], t, torch.zeros_like(x0[:1]))
        prediction = d(x_t, t)
        laws["lower β̃"].append(float(process.posterior(x_t, x_t, s, t).std))
        laws["upper β"].append(float(process.transition(x_t, s, t).std))
        laws["analytic"].append(float(table.log_variance(prediction, s).flatten()[0].div(2).exp()))
    for (name, values), style in zip(laws.items(), (":", "-", "--"), strict=True):
        left.plot(at, values, style, marker="o", markersize=3, label=name)
    left.set(xlabel="t of the step t → t − 0.1", title="standard deviation of the reverse step", ylim=(0, 1.05))
    left.legend()
    exact = float(-mixture.log_prob(x0, process, 0.0).mean())
    counts = [5, 10, 20, 50]
    for name, which, style in (("lower β̃", "lower", ":"), ("analytic", table, "-"), ("upper β", "upper", "--")):
        gaps = [
            float(orn.likelihood.vlb(d, x0, n, decoder="gaussian", variance=which).total.mean()) - exact for n in counts
        ]
        right.semilogx(counts, gaps, style, marker="o", markersize=3, label=name)
    right.set(xlabel="steps of the chain", title="bound − (−log p), nats", ylim=(0, None))
    right.set_xticks(counts, [str(n) for n in counts])
    right.minorticks_off()
    return figure


def noise() -> Figure:
    """Covariances over frames, a row of pixels of noise from each as it goes through time, and the data's (E5)."""
    figure, panels = plt.subplots(2, 4, figsize=(8, 4), width_ratios=[1, 1, 1, 1.5], layout="constrained")
    frames = 16
    clips = orn.data.open_clips("moving-digits", frames=frames, size=16).batch(range(256))[0]
    laws = {
        "Identity": orn.noise.Identity(),
        "AR1, ρ = 0.9": orn.noise.AR1(frames, 0.9),
        "Toeplitz, fitted": orn.noise.fit_toeplitz(clips),
    }
    z = torch.randn(1, 1, frames, 1, frames, generator=seeded(1))
    curve = figure.add_subplot(panels[0, 3].get_gridspec()[:, 3])
    for above, below, (name, law) in zip(panels[0], panels[1], laws.items(), strict=False):
        matrix = torch.eye(frames) if isinstance(law, orn.noise.Identity) else law.dense()
        above.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        above.set(xticks=[], yticks=[], title=name)
        picture(below, law.color(z)[0, :, :, 0] / 2.5)
        below.set(xlabel="pixels of a row", ylabel="frames")
        curve.plot(matrix[0], label=name)
    curve.plot(orn.noise.ClipStatistics.of(clips).correlation(), "k.", label="the clips")
    curve.set(xlabel="frames apart", title="correlation", ylim=(-0.25, 1.05))
    curve.legend()
    for axes in panels[:, 3]:
        axes.remove()
    return figure


def hierarchy() -> Figure:
    """Diffusion as a hierarchical VAE: the bound against its number of layers, and what each layer costs (E29)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    mixture = three_in_the_plane()
    d, x = mixture.denoiser(orn.Process(orn.schedules.Cosine())), mixture.sample(1500, seeded())
    exact = float(-mixture.log_prob(x, d.process, 0.0).mean())
    counts = [2, 3, 5, 10, 20, 50]
    noise = addressed(0, torch.arange(len(x)), dtype=torch.float64)
    totals = [float(DiffusionChain(d, n).bound(x, noise).total.mean()) for n in counts]
    left.semilogx(counts, totals, marker="o", markersize=3, label="bound of L layers")
    left.axhline(exact, color="0.4", linestyle=":", label="−log p(x), exact")
    left.set(xlabel="layers L", title="nats")
    left.set_xticks(counts, [str(n) for n in counts])
    left.minorticks_off()
    left.legend()
    rates = DiffusionChain(d, 20).bound(x, noise).rates.mean(1)
    right.bar(torch.arange(1, len(rates) + 1), rates, color="#4c72b0")
    right.set(xlabel="layer l (1 next to the data)", title="nats of each of 20 layers")
    return figure


def guidance() -> Figure:
    """Samples of one component of a mixture, by scale of guidance."""
    figure, panels = plt.subplots(1, 4, figsize=(8, 2.3), sharex=True, sharey=True, layout="constrained")
    mixture = three_in_the_plane()
    d, label = mixture.denoiser(orn.Process(orn.schedules.Cosine())), torch.zeros(400, dtype=torch.long)
    everything = mixture.sample(1500, seeded())
    for axes, scale in zip(panels, (0.0, 1.0, 2.0, 4.0), strict=True):
        x = orn.sample(d, (400, 2), "dpmpp-2m", 30, guidance=scale, cond={"label": label})
        axes.scatter(*everything.T, s=1, color="0.8")
        axes.scatter(*x.T, s=2, color="#c0392b")
        axes.set(title=f"scale {scale:g}", xlim=(-2.2, 2), ylim=(-1.8, 2), aspect="equal")
    return figure


def inverse() -> Figure:
    """A measurement of a mixture, its exact posterior, and samples of four methods (E39)."""
    figure, panels = plt.subplots(1, 5, figsize=(8.5, 2.1), sharex=True, sharey=True, layout="constrained")
    mixture, p = three_in_the_plane(), orn.Process(orn.schedules.Cosine())
    A, y, std = torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.tensor([[0.1]], dtype=torch.float64), 0.35
    side = torch.linspace(-2.2, 2.0, 120, dtype=torch.float64)
    at = torch.cartesian_prod(side, side)
    prior, exact = (
        torch.exp(each.log_prob(at, p, 0.0)).reshape(120, 120).T for each in (mixture, mixture.posterior(A, y[0], std))
    )
    d, start = mixture.denoiser(p), torch.randn(400, 2, generator=seeded(), dtype=torch.float64)
    panels[0].contourf(side, side, prior, levels=6, cmap="Greys")
    panels[0].plot(side, y[0] - side, "--", color="#c0392b", linewidth=1)
    ways = {"moments": 20, "DPS": 100, "replacement": 100, "particles": 40}
    kinds = {"moments": Moments, "DPS": DPS, "replacement": DDNM, "particles": Moments}
    for axes, (name, steps) in zip(panels[1:], ways.items(), strict=True):
        solver = partial(twisted, particles=16) if name == "particles" else None if name == "moments" else "ddpm"
        posterior = kinds[name](d, Matrix(A, (2,)), y, std)
        x = orn.sample(posterior, (400, 2), solver, steps, start=start, batch=400)
        axes.contourf(side, side, exact, levels=6, cmap="Blues")
        axes.scatter(*x.T, s=2, color="#c0392b")
        axes.set(title=name)
    panels[0].set(title="data, y", xlim=(-2.2, 2), ylim=(-2.2, 2))
    for axes in panels:
        axes.set_aspect("equal")
    return figure


def inversion() -> Figure:
    """The error of a round trip by steps: up by DDIM and down by a solver, and the fixed point (E25)."""
    figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
    mixture = three_in_the_plane()
    d = mixture.denoiser(orn.Process(orn.schedules.Cosine()))
    x0, counts = mixture.sample(100, seeded()), [5, 8, 12, 20, 32, 50]
    for name, colour in (("ddim", "#4e79a7"), ("flow-3m", "#c0392b")):
        up = [orn.sample(d, x0.shape, name, n, start=orn.invert(d, x0, n)) for n in counts]
        axes.loglog(counts, [float((x - x0).square().mean().sqrt()) for x in up], "o--", markersize=3, color=colour,
                    label=f"{name}, DDIM up")  # fmt: skip
        found = [invert(d, x0, name, n, tolerance=1e-9) for n in counts]
        axes.loglog(counts, [float(each.error.square().mean().sqrt()) for each in found], "o-", markersize=3,
                    color=colour, label=f"{name}, fixed point")  # fmt: skip
    axes.set(xlabel="steps", title="root mean square error of a round trip")
    axes.set_xticks([5, 10, 20, 50], ["5", "10", "20", "50"])
    axes.minorticks_off()
    axes.legend(ncol=2)
    return figure


def swap() -> Figure:
    """What the swap is shown and what it has to answer, on faces that are nobody's."""
    figure, panels = plt.subplots(1, 5, figsize=(8, 2), layout="constrained")
    people, states = identities(8, seed=0), attributes(8, seed=0)
    source, target = (render(people[[k]], states[[k]], 96) for k in (0, 4))
    truth = render(people[[0]], states[[4]], 96)
    mask = target.mask.reshape(1, 1, 96, 96).float()
    blurred = torch.nn.functional.interpolate(
        torch.nn.functional.avg_pool2d(target.image, 12), size=96, mode="bilinear", align_corners=False
    )
    shown = target.image * (1 - mask) + blurred * mask
    titles = ("source", "target", "target, face to 8×8", "mask", "truth")
    for axes, image, title in zip(
        panels,
        (source.image, target.image, shown, mask.expand(-1, 3, -1, -1) * 2 - 1, truth.image),
        titles,
        strict=True,
    ):
        picture(axes, image[0], title)
    return figure


def collapse() -> Figure:
    """Modes of a ring over training: a plain GAN, an unrolled one, and diffusion (E34)."""
    problem = open_problem("gaussians-8")
    trainings = {"gan": (500, 1500, 2500, 4000), "unrolled-5": (100, 300, 600, 1200), "diffusion": (50, 150, 400, 1200)}
    figure, panels = plt.subplots(3, 4, figsize=(8, 6.2), sharex=True, sharey=True, layout="constrained")
    for row, (name, at) in zip(panels, trainings.items(), strict=True):
        model, done = build(name, problem, 0), 0
        for axes, steps in zip(row, at, strict=True):
            for step in range(done, steps):
                model.step(step / at[-1])
            done = steps
            x = model.sample(1000, 0)
            scattered(
                axes, problem, x, f"{steps} steps, reverse KL {score(problem, x, distances=False).reverse_kl:.2g}"
            )
        row[0].set_ylabel(name)
    return figure


def patches() -> Figure:
    """The dependence that is lost if both coordinates of a point are drawn at once (E35)."""
    problem = open_problem("gaussians-8")
    figure, panels = plt.subplots(1, 3, figsize=(8, 2.9), sharex=True, sharey=True, layout="constrained")
    for axes, (name, steps) in zip(
        panels, {"autoregressive": 600, "patchwise-2": 600, "diffusion": 1200}.items(), strict=True
    ):
        model = build(name, problem, 0)
        for step in range(steps):
            model.step(step / steps)
        x = model.sample(1000, 0)
        good = score(problem, x, distances=False).good
        scattered(axes, problem, x, f"{name}: {model.evaluations} evaluations, {good:.0%} good")
    return figure


def scattered(axes: Axes, problem: Problem, x: Tensor, title: str) -> None:
    axes.scatter(*problem.held_out.T, s=1, color="0.75")
    axes.scatter(*x.T, s=1, color="#c0392b")
    axes.set(title=title, xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal", xticks=[], yticks=[])


FIGURES: dict[str, Callable[[], Figure]] = {
    f.__name__: f
    for f in (
        forward,
        posterior,
        objectives,
        sde,
        solvers,
        variance,
        noise,
        hierarchy,
        guidance,
        inverse,
        inversion,
        swap,
        collapse,
        patches,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    names = parser.parse_args().names or list(FIGURES)
    if unknown := [name for name in names if name not in FIGURES]:
        parser.error(f"no figure {unknown[0]!r}; there are {', '.join(FIGURES)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for name in names:
            figure = FIGURES[name]()
            figure.savefig(FOLDER / f"{name}.png", dpi=150, metadata={"Software": None})
            plt.close(figure)
            print(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
