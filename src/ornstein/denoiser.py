"""A denoiser: the network's output read as E[x_0 | x_t], the canonical prediction (E8)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from ornstein import noise, schedules
from ornstein.noise import Covariance
from ornstein.preconditioning import Preconditioning
from ornstein.process import Prediction, Process, check_times
from ornstein.schedules import Times
from ornstein.store import CONFIG, FORMAT, MODEL, atomic_save_tensors, atomic_write, json_bytes, make_folder

__all__ = [
    "Data", "Denoiser", "Denoises", "Distilled", "Kind", "Norm", "SampleSpec", "Space", "condition_tensor",
    "mean_square",
]  # fmt: skip

Kind = Literal["x0", "eps", "v", "score", "flow", "edm"]


class Denoises(Protocol):
    """What samplers and likelihoods need: a process, and E[x_0 | x_t] in all its forms; learned or exact.

    Anything with these two members will do. `ornstein.wrapper` finds the networks inside, and so the device.
    """

    @property
    def process(self) -> Process: ...

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction: ...


class Space(Protocol):
    """What the samples of a latent model represent: images (C, H, W) or clips of `shape`, through a decoder."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def decode(self, y: Tensor) -> Tensor:
        """Images or clips (B, *) in [-1, 1] from samples of the model (B, *)."""
        ...

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of images or clips (B, *), each (B, *)."""
        ...

    def to_config(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class SampleSpec:
    """What a model's samples look like.

    Attributes:
        shape: of one sample, without the batch: (C, H, W), or (C, F, H, W) for clips.
        classes: class names; empty if the model has none.
        value_range: smallest and largest value of the data.
        sizes: (H, W) of every size that the model was trained at, if they are several; that of `shape` is the first.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    value_range: tuple[float, float] = (-1.0, 1.0)
    sizes: tuple[tuple[int, int], ...] = ()

    def labels(self, n: int) -> Tensor | None:
        """Class numbers (n,) for n samples, each class in turn; None if there are no classes."""
        return torch.arange(n) % len(self.classes) if self.classes else None

    def to_config(self) -> dict[str, Any]:
        """A JSON-able dict."""
        sizes = {"sizes": [list(size) for size in self.sizes]} if self.sizes else {}
        return {
            "shape": list(self.shape), "classes": list(self.classes), "value_range": list(self.value_range), **sizes,
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SampleSpec:
        """The sample spec that `to_config` described. Raises ValueError if the dict does not describe one."""
        shape, classes, (low, high) = config["shape"], config["classes"], config["value_range"]
        if not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"data.shape holds positive integers, not {shape}")
        if not all(isinstance(name, str) for name in classes) or isinstance(classes, str):
            raise ValueError("data.classes is a list of names")
        if not -math.inf < float(low) < float(high) < math.inf:
            raise ValueError(f"data.value_range is a smallest and a largest value, not {config['value_range']}")
        sizes = config.get("sizes", [])
        if not all(len(size) == 2 and all(type(n) is int and n > 0 for n in size) for size in sizes):
            raise ValueError(f"data.sizes holds heights and widths, not {sizes}")
        return cls(tuple(shape), tuple(classes), (float(low), float(high)), tuple((h, w) for h, w in sizes))


Data = SampleSpec
"""The former name of `SampleSpec`."""


@dataclass(frozen=True)
class Distilled:
    """What a distilled model was trained for: steps of `solver` at these `times`, from 1 to 0, and no others.

    At each of these times it returns the x0 whose DDIM step ends where its teacher's flow does (E31), which is not
    E[x_0 | x_t].

    Attributes:
        times: the time steps, falling from 1 to 0.
        guidance: the scale of classifier-free guidance that its teacher was followed with.

    Raises:
        ValueError: the times do not fall from 1 to 0, or the guidance is not finite.
    """

    times: tuple[float, ...]
    guidance: float = 1.0
    solver: ClassVar[str] = "ddim"

    def __post_init__(self) -> None:
        fall = all(a > b for a, b in pairwise(self.times))
        if len(self.times) < 2 or not fall or (self.times[0], self.times[-1]) != (1.0, 0.0):
            raise ValueError(f"the times of a distilled model fall from 1 to 0, got {self.times}")
        if not math.isfinite(self.guidance):
            raise ValueError(f"the guidance scale of a distilled model is a finite number, got {self.guidance}")

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    def __str__(self) -> str:
        return f"{self.steps} step{'s' * (self.steps > 1)} of {self.solver}"

    def to_config(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return {"times": list(self.times), "guidance": self.guidance}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Distilled:
        """What `to_config` described. Raises ValueError if the dict does not describe one."""
        return cls(tuple(float(t) for t in config["times"]), float(config["guidance"]))


def condition_tensor(value: Any) -> Any:
    """A condition that is a list or tuple of numbers as a tensor; any other is returned unchanged."""
    numbers = isinstance(value, list | tuple) and value and all(isinstance(v, int | float) for v in value)
    return torch.tensor(value) if numbers else value


Norm = Callable[[Tensor, Tensor], Tensor]
"""A mean square of errors (B, *) at the times (B,): (B,)."""


def mean_square(error: Tensor, t: Tensor) -> Tensor:
    """||e||^2/N of each sample, (B,)."""
    return error.flatten(1).square().mean(1)


class Denoiser(nn.Module):
    """Reads `net(x, log_snr, **cond)` as E[x_0 | x_t] and every quantity linear in it (E8).

    Conditions (`label`, ...) may be on any device, or lists of numbers; a call without them, or with None, is the
    unconditional prediction. They are moved to the sample's device, except for a network that does so itself and says
    so by `places_conditions`: it can check their values on the CPU, without waiting for the device.

    A network that returns twice the channels of x, (B, 2C, *), has a learned variance of the reverse steps too (E9):
    its second half is 2v - 1, where v interpolates the log variance between log beta~ and log beta (Nichol & Dhariwal
    2021, arXiv:2102.09672, eq. 15); see `Prediction.log_variance`.

    Args:
        net: a module that maps x (B, *), log_snr (B,) and conditions to a tensor like x.
        process: schedule and noise.
        prediction: the quantity that the network returns: "x0", "eps", "v", "score", "flow", or "edm", the
            preconditioned residual of Karras et al. (2022, arXiv:2206.00364, eq. 7) for data of standard deviation
            `data_std`, for any schedule: with d = sqrt(a^2 data_std^2 + s^2),
            x0 = (a data_std^2/d^2) x + (s data_std/d) net(x/d, log_snr). With data_std 1 and a^2 + s^2 = 1 it is -v.
        data_std: standard deviation of the data, used by "edm".
        data: the sample spec; stored with the model.
        data_covariance: for "edm" on clips: the covariance Sigma of the data over frames, in units of data_std^2. The
            preconditioning then acts on each mode of C^-1 Sigma; see `Preconditioning`.
        space: for latent models, what decodes samples to images; see `decode`.
        distilled: for distilled models, the steps that it was trained for.
        whitened: the network computes in the coordinates of R^-1: its input is R^-1 x, and R times its output is the
            prediction. There every mode of the noise has the same size, however small its variance is.

    Raises:
        SingularCovarianceError: `whitened`, and the noise has no R^-1.
        ValueError: an unknown prediction; "eps" or "score" with a zero terminal SNR, which carry no information on x_0
            at t = 1; "flow" with a schedule whose flow is infinite there.
    """

    def __init__(
        self,
        net: nn.Module,
        process: Process,
        prediction: Kind = "v",
        data_std: float = 0.5,
        data: SampleSpec | None = None,
        data_covariance: Covariance | None = None,
        space: Space | None = None,
        distilled: Distilled | None = None,
        whitened: bool = False,
    ) -> None:
        super().__init__()
        if prediction not in get_args(Kind):
            raise ValueError(f"unknown prediction {prediction!r}; known: {', '.join(get_args(Kind))}")
        if prediction in ("eps", "score") and process.schedule.zero_terminal_snr:
            raise ValueError(
                f"prediction {prediction!r} does not work with a zero terminal SNR: at t = 1 the sample is pure noise, "
                "so the noise carries no information on x_0; predict v, x0 or flow, or use a schedule whose terminal "
                "SNR is positive"
            )
        if prediction == "flow" and not bool(process.schedule.alpha_dot(1.0).isfinite()):
            raise ValueError("the flow of this schedule is infinite at t = 1 (zero terminal SNR); predict v or x0")
        if not 0 < data_std < math.inf:
            raise ValueError(f"data_std is a standard deviation, positive and finite, got {data_std}")
        if data_covariance is not None and prediction != "edm":
            raise ValueError(f'a data covariance preconditions the prediction "edm", not {prediction!r}')
        if whitened and data is not None:
            process.noise.whiten(torch.zeros(1, *data.shape))
        self.net = net
        self.process = process
        self.prediction: Kind = prediction
        self.data_std = data_std
        self.data = data
        self.space = space
        self.distilled = distilled
        self.data_covariance = data_covariance
        self.whitened = whitened
        # The solver that a run keeps for this network, a number of steps and a guidance scale; see `checkpoint.load`.
        self.solvers: Callable[[nn.Module, int, float, str | None], Any] | None = None
        self.precision: torch.dtype | None = None  # autocast dtype of the network alone (`sample(precision=...)`)
        self._preconditioning = Preconditioning(process, data_std, data_covariance)

    def forward(self, x_t: Tensor, t: Times, **cond: Any) -> Prediction:
        """E[x_0 | x_t] in every form, for x_t (B, *) and t, a scalar or (B,), in [0, 1]."""
        output, mix = self._output(x_t, t, cond)
        if self.prediction == "edm":
            prediction = self.process.convert(x_t, t, x0=self._preconditioning.x0(x_t, t, output))
        else:
            prediction = self.process.convert(x_t, t, **{self.prediction: output})
        return prediction if mix is None else replace(prediction, variance_mix=mix)

    def _output(self, x_t: Tensor, t: Times, cond: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The network's prediction, and the v of E9 if it returns twice the channels."""
        log_snr = self._log_snr(x_t, t)
        # `negative` is for guidance around this denoiser
        cond = {k: self._placed(v, x_t) for k, v in cond.items() if v is not None and k != "negative"}
        x = self._preconditioning.network_input(x_t, t) if self.prediction == "edm" else x_t
        x = self.process.noise.whiten(x) if self.whitened else x
        if self.precision is None:
            output = self.net(x, log_snr, **cond)
        else:
            with torch.autocast(x.device.type, self.precision):
                output = self.net(x, log_snr, **cond)
        if getattr(self.net, "reuses_output", False):  # compiled to CUDA graphs: see `compiling`
            output = output.clone()
        # The network may compute in half precision; everything after it has the dtype of the sample.
        if output.shape == x_t.shape:
            return self._coloured(output.to(x_t.dtype)), None
        if output.shape != (x_t.shape[0], 2 * x_t.shape[1], *x_t.shape[2:]):
            raise ValueError(f"the network returned shape {tuple(output.shape)} for a sample of {tuple(x_t.shape)}")
        mean, variance = output.to(x_t.dtype).chunk(2, dim=1)
        return self._coloured(mean), (variance + 1) / 2

    def _coloured(self, output: Tensor) -> Tensor:
        return self.process.noise.color(output) if self.whitened else output

    def _log_snr(self, x_t: Tensor, t: Times) -> Tensor:
        """(B,) beside x_t; one time for all samples goes to an accelerator as a number, not as a copy."""
        if isinstance(t, float) and x_t.is_floating_point():
            return x_t.new_full((x_t.shape[0],), self.process.at(t)[2])
        log_snr = self.process.schedule.log_snr(check_times(t, x_t))
        if log_snr.numel() == 1 and log_snr.device.type == "cpu" != x_t.device.type and not log_snr.requires_grad:
            return x_t.new_full((x_t.shape[0],), float(log_snr))
        return log_snr.to(x_t, non_blocking=True).expand(x_t.shape[0])

    def _placed(self, value: Any, x: Tensor) -> Any:
        value = condition_tensor(value)
        if not isinstance(value, Tensor) or getattr(self.net, "places_conditions", False):
            return value
        return value.to(x.device, non_blocking=True)

    def loss(self, x0: Tensor, t: Tensor, z: Tensor, *, norm: Norm = mean_square, **cond: Any) -> Tensor:
        """Mean squared error of the network's output against its target.

        For "eps" this is L_simple (E10). The other predictions weight the same regression by what their target is made
        of (E8); "score" carries the weight s^2 of E16.

        Args:
            x0: data (B, *).
            t: times (B,) in (0, 1].
            z: white noise (B, *), z ~ N(0, I).
            norm: of the error (B, *) at the times (B,), (B,); the mean square over pixels by default.

        Returns:
            (B,), one value a sample.
        """
        x_t = self.process.add_noise(x0, t, z)
        return self.error(Prediction(self.process, x_t, t, x0, self.process.noise.color(z)), norm=norm, **cond)

    def error(self, truth: Prediction, *, norm: Norm = mean_square, **cond: Any) -> Tensor:
        """Mean squared error of the network's output at truth.x_t against the output that means `truth`, (B,).

        With the x_0 that x_t was made from, this is `loss`; distillation uses another x_0. truth.t: (B,) in (0, 1].
        """
        x_t, t = truth.x_t, truth.t
        output, _ = self._output(x_t, t, cond)
        if self.prediction == "edm":
            error = output - self._preconditioning.target(x_t, t, truth.x0)
        else:
            error = output - getattr(truth, self.prediction)
        if self.prediction == "score":
            error = error * self.process.coefficients(t, x_t)[1]
        return norm(error, torch.as_tensor(t))

    def decode(self, x: Tensor) -> Tensor:
        """Images from samples x (B, *): x itself, or the decoded latents of a latent model."""
        return x if self.space is None else self.space.decode(x)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one sample that `decode` returns; None if the model has no sample spec."""
        if self.space is not None:
            return tuple(self.space.shape)
        return None if self.data is None else tuple(self.data.shape)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that the network takes besides x and log_snr.

        A network names those that it was made without in `without`, such as the text of a network without text.
        """
        without = getattr(self.net, "without", ())
        return tuple(name for name in list(inspect.signature(self.net.forward).parameters)[2:] if name not in without)

    @property
    def weights(self) -> nn.Module:
        """The module whose tensors `save` stores: the network."""
        return self.net

    def to_config(self) -> dict[str, Any]:
        """Everything needed to rebuild the model except the weights, in JSON types."""
        config: dict[str, Any] = {
            "format": FORMAT,
            "schedule": schedules.to_config(self.process.schedule),
            "noise": noise.to_config(self.process.noise),
            "prediction": self.prediction,
            "data_std": self.data_std,
            "net": {"type": type(self.net).__name__, **getattr(self.net, "config", {})},
        }
        if self.whitened:
            config["whitened"] = True
        if self.data_covariance is not None:
            config["data_covariance"] = noise.to_config(self.data_covariance)
        for name, part in (("latent", self.space), ("data", self.data), ("distilled", self.distilled)):
            if part is not None:
                config[name] = part.to_config()
        return config

    def save(self, path: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Write the folder `path`: model.safetensors and config.json; `ornstein.load` reads it.

        The config is written last: a folder without one is not a model, so no model is ever half written.

        Args:
            extra: JSON values to store in the config beside the model's own.

        Raises:
            UserError: the path is a link or a file.
            RunError: the folder cannot be written.
        """
        folder = make_folder(path)
        atomic_save_tensors(folder / MODEL, self.weights.state_dict(), {})
        atomic_write(folder / CONFIG, json_bytes(self.to_config() | (extra or {})))

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.net.parameters())
        about = "" if self.data is None else f", samples {self.data.shape}"
        return (
            f"Denoiser({type(self.net).__name__} with {parameters:,} parameters, {self.prediction!r} on "
            f"{self.process.schedule}, noise {self.process.noise}{about})"
        )
