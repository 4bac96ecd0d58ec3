"""Models of diffusers as denoisers; pipeline folders read and written.

A model of a discrete chain knows timesteps k = 0 ... T-1. On `schedules.Discrete(betas)` these are t = (k + 1)/T; at a
time in between, the model gets the fractional timestep that has the same log-SNR.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.checkpoint import INDEX
from ornstein.denoiser import Denoiser, Denoises, Kind, SampleSpec
from ornstein.errors import UserError
from ornstein.extras import require
from ornstein.interop.folder import open_pipeline
from ornstein.interop.schedulers import PREDICTIONS, Reading, own_timesteps, read, scheduler_for, times_of
from ornstein.noise import Identity
from ornstein.process import Prediction, Process
from ornstein.schedules import Discrete, Times
from ornstein.store import atomic_write, json_bytes, read_json
from ornstein.wrapper import Wrapper

__all__ = ["Clipped", "DiffusersNet", "load_pipeline", "save_pipeline", "times", "wrap"]

_MODELS = ("UNet2DModel", "DiTTransformer2DModel")


class DiffusersNet(nn.Module):
    """A network `(x, log_snr, label) -> output` from a diffusers UNet2DModel or DiTTransformer2DModel.

    Source: Ho et al. 2020, arXiv:2006.11239; Peebles & Xie 2023, arXiv:2212.09748.

    Args:
        model: the diffusers model, or its config.
        betas: (T,), the chain that it was trained on.

    Raises:
        UserError: another model, or a UNet whose time embedding is not sinusoidal.
    """

    def __init__(self, model: nn.Module | dict[str, Any], betas: list[float] | tuple[float, ...]) -> None:
        super().__init__()
        name = str(model.get("_class_name")) if isinstance(model, dict) else type(model).__name__
        if name not in _MODELS:  # before it is built: a folder may name any class of the library
            raise UserError(f"only {' and '.join(_MODELS)} of diffusers are read, not {name}")
        self.model: Any = _class(name).from_config(model) if isinstance(model, dict) else model
        settings = dict(self.model.config)
        if settings.get("time_embedding_type", "positional") != "positional":
            raise UserError(f"{name} embeds its time by {settings['time_embedding_type']!r}; only 'positional' is read")
        self.model.to(memory_format=torch.channels_last)  # the fastest layout of convolutions
        self.schedule = Discrete(betas)
        count = settings.get("num_class_embeds" if name == "UNet2DModel" else "num_embeds_ada_norm")
        self.classes: int = count or 0
        self.null: int | None = self.classes if name == "DiTTransformer2DModel" else None
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items() if _stored(k)}
        self.config: dict[str, Any] = {"model": {**plain, "_class_name": name}, "betas": list(self.schedule.steps)}

    def forward(self, x: Tensor, log_snr: Tensor, label: Tensor | None = None) -> Tensor:
        """The model's own output for x (B, C, H, W), log_snr (B,) and label (B,).

        A label of -1, or none, is the null class of a model that has one: the last class of a DiT.
        """
        k = own_timesteps(self.schedule, log_snr)
        x = x.contiguous(memory_format=torch.channels_last)
        return self.model(x, k, class_labels=self._labels(x, label)).sample

    def _labels(self, x: Tensor, label: Tensor | None) -> Tensor | None:
        if not self.classes:
            if label is not None:
                raise ValueError("a label was given, but this model is unconditional: leave label out")
            return None
        if label is None:
            label = torch.full((len(x),), -1, device=x.device)
        if self.null is None and bool((label < 0).any()):
            raise ValueError("this model has no null class: give each sample a label, and no guidance")
        return label if self.null is None else torch.where(label < 0, self.null, label)


@dataclass(frozen=True)
class Clipped(Wrapper):
    """A denoiser whose x0 is clipped to [-limit, limit] while eps is kept, as `clip_sample` of diffusers' schedulers.

    With it, DDIM and DDPM make the same images as a pipeline that clips (Ho et al. 2020).
    """

    denoiser: Denoises
    limit: float = 1.0

    def __call__(self, x_t: Tensor, t: Times, /, **cond: Any) -> Prediction:
        out = self.denoiser(x_t, t, **cond)
        return replace(out, x0=out.x0.clamp(-self.limit, self.limit))


def wrap(model: nn.Module, scheduler: Any) -> Denoiser:
    """A denoiser from a diffusers model and the scheduler, or scheduler config, with the betas of its training.

    Raises:
        UserError: a scheduler without betas (flow matching, EDM), an unknown prediction, or another model.
    """
    chain, kind = _chain(scheduler)
    net = DiffusersNet(model, chain.steps)
    settings = net.config["model"]
    size = settings["sample_size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    names = tuple(str(i) for i in range(net.classes))
    data = SampleSpec((settings["in_channels"], *size), names) if settings["sample_size"] else None
    return Denoiser(net, Process(net.schedule), kind, data=data).eval()


def load_pipeline(path: str | Path) -> Denoiser:
    """The denoiser of a pipeline folder, in evaluation mode: a `Pipeline` of `families.FAMILIES`, or DDPM and DDIM.

    Only safetensors weights are read.

    Raises:
        UserError: the folder does not hold such a pipeline.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a pipeline: there is no such folder")
    index = read_json(folder / INDEX)
    parts = {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    if "_class_name" in index and not parts.keys() <= {"unet", "transformer", "scheduler"}:
        return open_pipeline(folder)
    part = next((name for name in ("unet", "transformer") if name in parts), None)
    if part is None or "scheduler" not in parts:
        what = ", ".join(parts) or "nothing"
        raise UserError(f"{folder} is not a pipeline of a network and a scheduler: it has {what}")
    if parts[part] not in _MODELS:
        raise UserError(f"{folder}: only {' and '.join(_MODELS)} of diffusers are read, not {parts[part]}")
    if not parts["scheduler"].endswith("Scheduler"):
        raise UserError(f"{folder}: {parts['scheduler']} is not a scheduler of diffusers")
    try:
        model = _class(parts[part]).from_pretrained(
            folder / part, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        scheduler = _class(parts["scheduler"]).from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder} cannot be read as a pipeline: {e}") from e
    return wrap(model, scheduler)


def save_pipeline(denoiser: Denoiser, path: str | Path) -> None:
    """Write a denoiser made by `wrap` or `load_pipeline` as a DDIM pipeline folder that diffusers reads.

    Raises:
        UserError: its network is not one of diffusers, or its noise is not white.
    """
    net = denoiser.net
    if not isinstance(net, DiffusersNet):
        raise UserError(f"a pipeline holds a network of diffusers, and {type(net).__name__} is not one")
    if denoiser.prediction not in PREDICTIONS.values() or not isinstance(denoiser.process.noise, Identity):
        raise UserError("a pipeline of diffusers predicts eps, x0 or v under white noise; this model does not")
    schedule = denoiser.process.schedule
    if not isinstance(schedule, Discrete):
        raise UserError(f"a pipeline of diffusers has a chain of betas, not {type(schedule).__name__}")
    folder = Path(path)
    scheduler = scheduler_for(Reading(schedule, denoiser.prediction, "chain", len(schedule.steps)))
    part, pipeline = ("unet", "DDIMPipeline") if net.null is None else ("transformer", "DiTPipeline")
    net.model.save_pretrained(folder / part, safe_serialization=True)
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": pipeline,
        "_diffusers_version": importlib.import_module("diffusers").__version__,
        "scheduler": ["diffusers", "DDIMScheduler"],
        part: ["diffusers", type(net.model).__name__],
    }
    atomic_write(folder / INDEX, json_bytes(index))


def times(scheduler: Any, steps: int) -> list[float]:
    """The times at which a scheduler with `steps` inference steps calls its model, and its end: a grid for `sample`.

    A scheduler may begin below t = 1 (`timestep_spacing`), and one without `set_alpha_to_one` ends at 1/T. With
    "linspace", DDIM of diffusers calls the model at these times but computes its steps as if they were equally spaced.
    """
    return times_of(scheduler, steps)


def _chain(scheduler: Any) -> tuple[Discrete, Kind]:
    reading = read(scheduler)
    if not isinstance(reading.schedule, Discrete):
        name = scheduler.get("_class_name") if isinstance(scheduler, dict) else type(scheduler).__name__
        raise UserError(f"{name} has no chain of betas: only models of a discrete chain are read")
    return reading.schedule, reading.prediction


def _class(name: str) -> Any:
    library = require("diffusers", "interop", "a model of diffusers")
    found: Callable[..., Any] | None = getattr(library, name, None) if name.isidentifier() else None
    if found is None:
        raise UserError(f"diffusers has no {name!r}")
    return found


def _stored(key: str) -> bool:
    return not key.startswith("_")
