"""The models of the contrast under one interface: a training step, samples, and a likelihood where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ornstein import likelihood, schedules
from ornstein.contrast import adversarial
from ornstein.contrast.autoregressive import CausalTransformer, from_levels, raster, to_levels
from ornstein.contrast.networks import NOISE, PointNet, critic, fitted, generator_network, parameter_count
from ornstein.contrast.problems import Problem
from ornstein.contrast.settings import family
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.nets import UNet
from ornstein.objectives import low_discrepancy
from ornstein.process import Process
from ornstein.randomness import generator
from ornstein.sampling import sample
from ornstein.training.config import TrainConfig
from ornstein.training.optimizer import optimizer_of

__all__ = ["Autoregressive", "Diffusion", "Gan", "Model", "bits_per_dim", "build"]

_AT_ONCE = 500  # samples that are generated at once
_CACHED = 64  # and by an autoregressive model, whose keys and values then stay in the processor's cache


class Model(Protocol):
    """What the contrast asks of a model. Time is the share of the training that is over, in [0, 1]."""

    parameters: int
    evaluations: int
    """Evaluations of a network that a sample takes."""

    def step(self, time: float) -> dict[str, float]:
        """One training step: its losses by name."""
        ...

    def sample(self, n: int, seed: int) -> Tensor:
        """n samples (n, *) float32."""
        ...


@dataclass(frozen=True)
class Recipe:
    """The settings of a GAN in its paper.

    penalty: "gp" on lines between data and samples, "dragan" around the data; its weight on points and on images.
    """

    loss: adversarial.Loss = "non-saturating"
    rate: float = 2e-4
    point_rates: tuple[float, float] | None = None  # of generator and critic
    betas: tuple[float, float] = (0.5, 0.999)
    rmsprop: bool = False
    critic_steps: int = 1
    clip: float | None = None
    penalty: Literal["gp", "dragan"] | None = None
    weights: tuple[float, float] = (0.0, 0.0)
    spectral: bool = False
    norm: Literal["batch", "none"] = "none"
    slope: float = 0.2


RECIPES: dict[str, Recipe] = {
    # Goodfellow et al. 2014 with the networks and Adam of DCGAN; on points the settings of Metz et al. 2017
    "gan": Recipe(norm="batch", point_rates=(1e-3, 1e-4)),
    "unrolled": Recipe(norm="batch", point_rates=(1e-3, 1e-4)),
    # Arjovsky et al. 2017, algorithm 1
    "wgan-clip": Recipe("wasserstein", 5e-5, rmsprop=True, critic_steps=5, clip=0.01, norm="batch"),
    # Gulrajani et al. 2017, algorithm 1; weight 0.1 on points as in the authors' experiments
    "wgan-gp": Recipe("wasserstein", 1e-4, None, (0.5, 0.9), critic_steps=5, penalty="gp", weights=(0.1, 10.0)),
    # Miyato et al. 2018, section 4
    "sn-gan": Recipe("hinge", 2e-4, None, (0.0, 0.9), critic_steps=5, spectral=True, slope=0.1),
    # Kodali et al. 2017
    "dragan": Recipe(penalty="dragan", weights=(10.0, 10.0), point_rates=(1e-3, 1e-4)),
}

_BATCH = {True: 128, False: 64}  # points, images


def build(model: str, problem: Problem, seed: int) -> Model:
    """An untrained model by name, its weights drawn by the seed.

    Raises:
        UserError: there is no such model, or the samples cannot be divided into its patches.
    """
    kind, number = family(model)
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(int(generator(seed, "contrast", "weights").initial_seed()) % 2**63)
        if kind == "diffusion":
            return Diffusion(problem, seed)
        if kind in ("autoregressive", "patchwise"):
            if kind == "patchwise" and any(side % number for side in problem.shape[-2:]):
                raise UserError(f"{model}: samples of {problem.shape} cannot be divided into patches of {number}")
            return Autoregressive(problem, seed, number if kind == "patchwise" else 1)
        return Gan(problem, seed, RECIPES[kind], number if kind == "unrolled" else None)


def bits_per_dim(model: Model, problem: Problem, seed: int = 0) -> dict[str, float]:
    """Bits/dim of held-out samples: "exact" of an autoregressive model, "bound" and "ode" of a diffusion model.

    Raises:
        UserError: the model is a GAN, which has no likelihood.
    """
    if isinstance(model, Autoregressive | Diffusion):
        return model.bits_per_dim(problem, seed)
    raise UserError("a GAN has no likelihood: it generates samples without a density")


class Gan:
    """Generator and critic, trained in turn; `unroll` is K, and None for a generator that sees the critic as it is."""

    evaluations = 1

    def __init__(self, problem: Problem, seed: int, recipe: Recipe, unroll: int | None = None) -> None:
        self.problem, self.recipe, self.unroll = problem, recipe, unroll

        def networks(width: int) -> tuple[nn.Module, nn.Module]:
            return (
                generator_network(problem.shape, width),
                critic(problem.shape, width, recipe.norm, recipe.slope),
            )

        width = fitted(networks, target_parameters(problem), range(8, 257))
        self.generator, self.critic = networks(width)
        self.parameters = parameter_count(self.generator, self.critic)
        if recipe.spectral:
            adversarial.spectrally_normalised(self.critic)
        rates = (recipe.rate, recipe.rate)
        if problem.points and recipe.point_rates is not None:
            rates = recipe.point_rates
        self.optimizers = [self._optimizer(*pair) for pair in zip((self.generator, self.critic), rates, strict=True)]
        self.draw = generator(seed, "contrast", "gan")
        self.weight = recipe.weights[not problem.points]

    def _optimizer(self, net: nn.Module, rate: float) -> torch.optim.Optimizer:
        if self.recipe.rmsprop:
            return torch.optim.RMSprop(net.parameters(), rate)
        return torch.optim.Adam(net.parameters(), rate, self.recipe.betas)

    def step(self, time: float) -> dict[str, float]:
        for _ in range(self.recipe.critic_steps - 1):
            self._critic_step()
        real, critic_value = self._critic_step()
        fake = self.generator(torch.randn(len(real), NOISE, generator=self.draw))
        scores = self.critic(fake) if self.unroll is None else self._unrolled_scores(real, fake, self.unroll)
        value = adversarial.generator_loss(self.recipe.loss, scores)
        _advance(self.optimizers[0], value)
        return {"critic": float(critic_value.detach()), "generator": float(value.detach())}

    def _critic_step(self) -> tuple[Tensor, Tensor]:
        """The data of the step, and the critic's loss without its penalty."""
        recipe, real = self.recipe, self.problem.draw(_BATCH[self.problem.points], self.draw)
        with torch.no_grad():
            fake = self.generator(torch.randn(len(real), NOISE, generator=self.draw))
        value = adversarial.critic_loss(recipe.loss, self.critic(real), self.critic(fake))
        _advance(self.optimizers[1], value + self._penalty(real, fake))
        if recipe.clip is not None:
            adversarial.clip_weights(self.critic, recipe.clip)
        return real, value

    def _penalty(self, real: Tensor, fake: Tensor) -> Tensor | float:
        if self.recipe.penalty is None:
            return 0.0
        if self.recipe.penalty == "gp":
            points = adversarial.interpolated(real, fake, self.draw)
        else:
            points = adversarial.dragan_points(real, draw=self.draw)
        return self.weight * adversarial.gradient_penalty(self.critic, points)

    def _unrolled_scores(self, real: Tensor, fake: Tensor, steps: int) -> Tensor:
        """D_K(G(z)), the critic after K more steps of Adam on this batch."""
        critic, optimizer = self.critic, self.optimizers[1]

        def loss(parameters: Mapping[str, Tensor]) -> Tensor:
            outputs = (functional_call(critic, dict(parameters), (x,)) for x in (real, fake))
            return adversarial.critic_loss(self.recipe.loss, *outputs)

        named = dict(critic.named_parameters())
        known = {name: optimizer.state[p] for name, p in named.items() if p in optimizer.state}
        moments = {name: (s["exp_avg"], s["exp_avg_sq"]) for name, s in known.items()}
        count = int(next(iter(known.values()))["step"]) if known else 0
        rate = optimizer.param_groups[0]["lr"]
        after = adversarial.unrolled(loss, named, moments, count, steps, rate, self.recipe.betas)
        return functional_call(critic, after, (fake,))

    def sample(self, n: int, seed: int) -> Tensor:
        draw = generator(seed, "contrast", "samples")
        self.generator.eval()
        with torch.no_grad():
            z = torch.randn(n, NOISE, generator=draw)
            out = torch.cat([self.generator(part) for part in z.split(_AT_ONCE)])
        self.generator.train()
        return out

    def gradient_norm(self) -> float:
        """The mean of ||grad D(x)|| on training data: 1 is what the penalties ask for."""
        draw = generator(0, "contrast", "norms")
        return float(adversarial.gradient_norms(self.critic, self.problem.draw(256, draw)).mean())


def _advance(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the loss; none if the loss is not finite, so that the weights stay what they were."""
    parameters = optimizer.param_groups[0]["params"]
    if not bool(loss.isfinite()):
        return
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


class Autoregressive:
    """A causal transformer over the levels of the numbers of a sample; `patch` > 1 generates patches at once."""

    def __init__(self, problem: Problem, seed: int, patch: int = 1) -> None:
        self.problem = problem
        self.order = raster(problem.shape, patch if not problem.points else 1)
        length = math.prod(problem.shape)
        group = 1 if patch == 1 else patch if problem.points else patch**2 * problem.shape[0]

        def network(width: int) -> tuple[CausalTransformer]:
            return (CausalTransformer(length, problem.levels, group, width, depth=2 if problem.points else 3),)

        width = fitted(network, target_parameters(problem), range(16, 257, 4))
        (self.net,) = network(width)
        self.parameters, self.evaluations = parameter_count(self.net), self.net.evaluations
        self.optimizer = torch.optim.AdamW(self.net.parameters(), 3e-3, (0.9, 0.95), weight_decay=0.01)
        self.draw = generator(seed, "contrast", "autoregressive")

    def levels(self, x: Tensor) -> Tensor:
        """The levels of samples (B, *) in the order of generation, (B, N)."""
        return to_levels(x.flatten(1)[:, self.order], self.problem.levels)

    def step(self, time: float) -> dict[str, float]:
        index = self.levels(self.problem.draw(256 if self.problem.points else 32, self.draw))
        logits = self.net(index)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), index.flatten())
        _set_rate(self.optimizer, 3e-3, time)
        _advance(self.optimizer, loss)
        return {"loss": float(loss.detach())}

    def sample(self, n: int, seed: int, cache: bool = True) -> Tensor:
        draw = generator(seed, "contrast", "samples")
        u = torch.rand(n, len(self.order), generator=draw)
        with torch.no_grad():
            index = torch.cat([self.net.sample(part, cache)[0] for part in u.split(_CACHED)])
        x = torch.empty(n, len(self.order))
        x[:, self.order] = from_levels(index, self.problem.levels)
        if self.problem.points:  # a bin is an interval: a point anywhere in it
            x += (torch.rand(x.shape, generator=draw) - 0.5) * (2 / self.problem.levels)
        return x.reshape(n, *self.problem.shape)

    def bits_per_dim(self, problem: Problem, seed: int) -> dict[str, float]:
        with torch.no_grad():
            nats = torch.cat([-self.net.log_prob(self.levels(x)) for x in problem.held_out.split(128)])
        return {"exact": float(likelihood.bits_per_dim(nats.mean(), (len(self.order),), None))}


@dataclass
class Diffusion:
    """A denoiser with the library's own process, loss, solver and likelihoods; sampled with averaged weights."""

    problem: Problem
    seed: int
    evaluations: int = 20
    denoiser: Denoiser = field(init=False)

    def __post_init__(self) -> None:
        net = denoiser_network(self.problem)
        self.denoiser = Denoiser(net, Process(schedules.Cosine()), "v")
        self.average = {name: p.detach().clone() for name, p in net.named_parameters()}
        self.parameters = parameter_count(net)
        # those of the library's own training: Muon for networks of images
        self.rate = 2e-3 if self.problem.points else 1e-2
        kind = "adamw" if self.problem.points else "muon"
        config = TrainConfig(optimizer=kind, learning_rate=self.rate, weight_decay=0.0, precision="float32")
        self.optimizer = optimizer_of(net, config)
        self.draw = generator(self.seed, "contrast", "diffusion")
        self.count = 0

    def step(self, time: float) -> dict[str, float]:
        n = 512 if self.problem.points else 48
        x0 = self.problem.spread(self.problem.draw(n, self.draw), self.draw)
        z = torch.randn(x0.shape, generator=self.draw)
        loss = self.denoiser.loss(x0, low_discrepancy(n, self.draw), z).mean()
        _set_rate(self.optimizer, self.rate, time)
        _advance(self.optimizer, loss)
        self.count += 1
        keep = min(0.999, self.count / (self.count + 10))
        with torch.no_grad():
            for name, p in self.denoiser.net.named_parameters():
                self.average[name].lerp_(p, 1 - keep)
        return {"loss": float(loss.detach())}

    def averaged(self) -> Callable[[], None]:
        """Put the averaged weights into the network; call the result to put the trained ones back."""
        own = {name: p.detach().clone() for name, p in self.denoiser.net.named_parameters()}
        _copy(self.average, self.denoiser.net)
        return lambda: _copy(own, self.denoiser.net)

    def sample(self, n: int, seed: int) -> Tensor:
        back = self.averaged()
        x = sample(self.denoiser, (n, *self.problem.shape), steps=self.evaluations, seed=seed, batch=_AT_ONCE)
        back()
        # a pixel is a level, as in the data
        return x if self.problem.points else from_levels(to_levels(x, self.problem.levels), self.problem.levels)

    def bits_per_dim(self, problem: Problem, seed: int) -> dict[str, float]:
        back = self.averaged()
        x = problem.spread(problem.held_out, generator(seed, "contrast", "bins")).double()
        bound = likelihood.vlb(self.denoiser, x, decoder="gaussian", terms=200, seed=seed).total
        divergence = "exact" if problem.points else "hutchinson"
        flow = likelihood.ode(self.denoiser, x, divergence, probes=1, tolerance=1e-3, seed=seed, batch=256)
        back()
        shape = (x[0].numel(),)
        bits = (likelihood.bits_per_dim(nats.mean(), shape, problem.levels) for nats in (bound, -flow.value))
        return dict(zip(("bound", "ode"), map(float, bits), strict=True))


def _copy(weights: dict[str, Tensor], net: nn.Module) -> None:
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(weights[name])


def _set_rate(optimizer: torch.optim.Optimizer, rate: float, time: float) -> None:
    """Warm-up over the first 2 % of the training, then a half cosine down to 2 % of the rate."""
    shape = min(1.0, (time + 1e-3) / 0.02) * (0.51 + 0.49 * math.cos(math.pi * min(1.0, time)))
    for group in optimizer.param_groups:
        group["lr"] = rate * shape


def denoiser_network(problem: Problem) -> nn.Module:
    """The network of the diffusion model, whose number of parameters all models have within 10 %."""
    if problem.points:
        return PointNet(problem.shape[0])
    channels, size, _ = problem.shape
    levels = int(math.log2(size)) - 1
    return UNet(channels, size, width=16, multipliers=(1, *[2] * (levels - 1)), depths=(1,) * levels, attention=(4,))


def target_parameters(problem: Problem) -> int:
    """Parameters that every model has, within 10 %."""
    with torch.device("meta"):
        return parameter_count(denoiser_network(problem))


def describe(model: Any) -> str:
    """What the networks are, for the report."""
    if isinstance(model, Gan):
        parts = (parameter_count(model.generator), parameter_count(model.critic))
        return f"generator {parts[0]:,}, critic {parts[1]:,}"
    return type(model.net if isinstance(model, Autoregressive) else model.denoiser.net).__name__
