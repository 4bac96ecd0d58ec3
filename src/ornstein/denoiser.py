"""A denoiser: the network's output read as E[x_0 | x_t], the canonical prediction (E8)."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from ornstein.noise import Covariance
from ornstein.preconditioning import Preconditioning
from ornstein.process import Prediction, Process, check_times
from ornstein.schedules import Times

Kind = Literal["x0", "eps", "v", "score", "flow", "edm"]


class Denoises(Protocol):
    """What samplers and likelihoods need: a process, and E[x_0 | x_t] in all its forms; learned or exact."""

    @property
    def process(self) -> Process: ...

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction: ...


class Space(Protocol):
    """What the samples of a latent model stand for: images of `shape` (C, H, W), through a decoder."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def decode(self, y: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] from samples of the model (B, *)."""
        ...

    def to_config(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Data:
    """What the samples are: their shape without the batch, (C, H, W), the class names, the value range."""

    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    value_range: tuple[float, float] = (-1.0, 1.0)

    def labels(self, n: int) -> Tensor | None:
        """Classes (n,) of n samples, each class in turn; None where there are none."""
        return torch.arange(n) % len(self.classes) if self.classes else None


@dataclass(frozen=True)
class Distilled:
    """What a distilled model was made for: steps of `solver` at these `times`, from 1 to 0, and no other.

    At each of them it answers with the x0 whose DDIM step ends where its teacher's flow does (E31), which is not
    E[x_0 | x_t]. `guidance` is the scale of classifier-free guidance under which its teacher was followed. Raises
    ValueError for times that do not fall from 1 to 0.
    """

    times: tuple[float, ...]
    guidance: float = 1.0
    solver: ClassVar[str] = "ddim"

    def __post_init__(self) -> None:
        fall = all(a > b for a, b in pairwise(self.times))
        if len(self.times) < 2 or not fall or (self.times[0], self.times[-1]) != (1.0, 0.0):
            raise ValueError(f"a distilled model's times fall from 1 to 0, got {self.times}")

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    def __str__(self) -> str:
        return f"{self.steps} step{'s' * (self.steps > 1)} of {self.solver}"


class Denoiser(nn.Module):
    """Reads `net(x, log_snr, **cond)` as E[x_0 | x_t] and everything linear in it (E8).

    `prediction` says what the network's output stands for: "x0", "eps", "v", "score", "flow", or "edm", the
    preconditioned residual of Karras et al. (2022, eq. 7) for data of standard deviation `data_std`, for any schedule:
    with d = sqrt(a^2 data_std^2 + s^2), x0 = (a data_std^2/d^2) x + (s data_std/d) net(x/d, log_snr). At data_std 1 and
    a^2 + s^2 = 1 it is "v" with the sign turned. With `data_covariance`, the covariance Sigma of the data over frames
    in units of data_std^2, it acts mode by mode of C^-1 Sigma: see `Preconditioning`.

    Conditions (`label`, ...) go to the network as they are; a call without them is the unconditional prediction.

    A network that returns twice the channels of x, (B, 2C, *), has learned the variance of the reverse steps too (E9):
    its second half is 2v - 1, v the place of the log variance between log beta~ and log beta (Nichol & Dhariwal 2021,
    eq. 15); see `Prediction.log_variance`.

    `data` describes the samples and is stored with the model, and so is `space` where the samples are latents: `decode`
    makes images of them. `distilled` says that it is a model of few steps, and of which.

    Raises ValueError for an unknown prediction, for "eps" and "score" with a zero terminal SNR: at t = 1 they say
    nothing of x_0; and for "flow" where it is infinite there.
    """

    def __init__(
        self,
        net: nn.Module,
        process: Process,
        prediction: Kind = "v",
        data_std: float = 0.5,
        data: Data | None = None,
        data_covariance: Covariance | None = None,
        space: Space | None = None,
        distilled: Distilled | None = None,
    ) -> None:
        super().__init__()
        if prediction not in get_args(Kind):
            raise ValueError(f"unknown prediction {prediction!r}; known: {', '.join(get_args(Kind))}")
        if prediction in ("eps", "score") and process.schedule.zero_terminal_snr:
            raise ValueError(
                f"prediction {prediction!r} with a zero terminal SNR: at t = 1 the sample is all noise, so its noise "
                "says nothing of x_0; predict v, x0 or flow, or give the schedule a terminal SNR"
            )
        if prediction == "flow" and not bool(process.schedule.alpha_dot(1.0).isfinite()):
            raise ValueError("the flow of this schedule is infinite at t = 1 (zero terminal SNR); predict v or x0")
        if not 0 < data_std < math.inf:
            raise ValueError(f"data_std is a standard deviation, got {data_std}")
        if data_covariance is not None and prediction != "edm":
            raise ValueError(f'a data covariance preconditions the prediction "edm", not {prediction!r}')
        self.net = net
        self.process = process
        self.prediction: Kind = prediction
        self.data_std = data_std
        self.data = data
        self.space = space
        self.distilled = distilled
        self.data_covariance = data_covariance
        self.precision: torch.dtype | None = None  # what the network alone is cast to (`sample(precision=...)`)
        self._preconditioning = Preconditioning(process, data_std, data_covariance)

    def forward(self, x_t: Tensor, t: Times, **cond: Any) -> Prediction:
        """E[x_0 | x_t] in every form, for x_t (B, *) and t a scalar or (B,) in [0, 1]."""
        output, mix = self._output(x_t, t, cond)
        if self.prediction == "edm":
            prediction = self.process.convert(x_t, t, x0=self._preconditioning.x0(x_t, t, output))
        else:
            prediction = self.process.convert(x_t, t, **{self.prediction: output})
        return prediction if mix is None else replace(prediction, variance_mix=mix)

    def _output(self, x_t: Tensor, t: Times, cond: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The network's prediction, and the v of E9 where it has twice the channels."""
        log_snr = self.process.schedule.log_snr(check_times(t, x_t)).to(x_t)
        log_snr = log_snr.expand(x_t.shape[0])
        x = self._preconditioning.network_input(x_t, t) if self.prediction == "edm" else x_t
        if self.precision is None:
            output = self.net(x, log_snr, **cond)
        else:
            with torch.autocast(x.device.type, self.precision):
                output = self.net(x, log_snr, **cond)
        # A network may compute in half precision; what follows is the sample's own arithmetic.
        if output.shape == x_t.shape:
            return output.to(x_t.dtype), None
        if output.shape != (x_t.shape[0], 2 * x_t.shape[1], *x_t.shape[2:]):
            raise ValueError(f"the network returned shape {tuple(output.shape)} for a sample of {tuple(x_t.shape)}")
        mean, variance = output.to(x_t.dtype).chunk(2, dim=1)
        return mean, (variance + 1) / 2

    def loss(self, x0: Tensor, t: Tensor, z: Tensor, **cond: Any) -> Tensor:
        """Mean squared error of the network's own output against its target, (B,).

        For "eps" this is L_simple (E10); the others weigh the same regression by what their target is made of (E8), and
        "score" carries the weight s^2 of E16. x0, z: (B, *) with z ~ N(0, I); t: (B,) in (0, 1].
        """
        x_t = self.process.add_noise(x0, t, z)
        return self.error(Prediction(self.process, x_t, t, x0, self.process.noise.color(z)), **cond)

    def error(self, truth: Prediction, **cond: Any) -> Tensor:
        """Mean squared error of the network's own output at truth.x_t against the one that would say `truth`, (B,).

        Of the x_0 that made x_t it is `loss`; distillation has it learn another. truth.t: (B,) in (0, 1].
        """
        x_t, t = truth.x_t, truth.t
        output, _ = self._output(x_t, t, cond)
        if self.prediction == "edm":
            error = output - self._preconditioning.target(x_t, t, truth.x0)
        else:
            error = output - getattr(truth, self.prediction)
        if self.prediction == "score":
            error = error * self.process.coefficients(t, x_t)[1]
        return error.flatten(1).square().mean(1)

    def decode(self, x: Tensor) -> Tensor:
        """The images that samples x (B, *) stand for: x itself, or what the space of a latent model makes of them."""
        return x if self.space is None else self.space.decode(x)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape without the batch of what `decode` returns; None where the model does not describe its samples."""
        if self.space is not None:
            return tuple(self.space.shape)
        return None if self.data is None else tuple(self.data.shape)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that the network takes besides x and log_snr."""
        names = list(inspect.signature(self.net.forward).parameters)
        return tuple(names[2:])

    def save(self, path: str | Path) -> None:
        """Write the folder `path`: model.safetensors and config.json; `ornstein.load` reads it."""
        # Saving stands above; the method is here because a model saves itself.
        from ornstein import checkpoint

        checkpoint.save(self, path)
