"""The training of a personalisation as a task of the trainer: its loss, what it watches, and what it writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein import processes
from ornstein.denoiser import Denoiser, Denoises
from ornstein.objectives import edm
from ornstein.personalization.learned import Learned, switch_of
from ornstein.personalization.pictures import PictureSet
from ornstein.personalization.settings import PersonalizeSettings
from ornstein.personalization.texts import Texts
from ornstein.process import Prediction
from ornstein.randomness import normal
from ornstein.schedules import Discrete, Rectified
from ornstein.text.gate import Gate
from ornstein.text.prompting import Prompting
from ornstein.training import Task, TrainConfig
from ornstein.training.objective import TimeSampling, check_objective, loss_of
from ornstein.training.task import on_cpu
from ornstein.wrapper import Wrapper

__all__ = ["Check", "Personalisation", "times_for"]

_STREAM = 77
_TIMES = 8  # fixed times of the loss that runs are compared by
_DRIFT_PICTURES = 4


def times_for(settings: PersonalizeSettings, d: Denoiser) -> str | None:
    """The distribution of the training times: as given, else what the base's authors drew."""
    if settings.time_sampling is not None or settings.objective is not None:
        return settings.time_sampling
    schedule = d.process.schedule
    return "steps" if isinstance(schedule, Discrete) else "logit-normal" if isinstance(schedule, Rectified) else None


@dataclass(frozen=True)
class _Masked(Wrapper):
    """A denoiser whose error is multiplied by sqrt(weight): every squared loss then weighs its pixels by `weight`."""

    denoiser: Denoises
    x0: Tensor
    weight: Tensor

    def __call__(self, x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        found = self.denoiser(x_t, t, **cond)
        x0 = self.x0 + self.weight.sqrt() * (found.x0 - self.x0)
        return replace(found.process.convert(x_t, t, x0=x0), variance_mix=found.variance_mix)


def _error(d: Denoises, kind: str, data_std: float, x0: Tensor, t: Tensor, z: Tensor, **cond: Any) -> Tensor:
    """`Denoiser.loss` of a masked denoiser: the error of the quantity that the network predicts."""
    if kind == "edm":
        return edm(d, x0, t, z, data_std=data_std, **cond)
    process = d.process
    x_t = process.add_noise(x0, t, z)
    truth = Prediction(process, x_t, t, x0, process.noise.color(z))
    return (getattr(d(x_t, t, **cond), kind) - getattr(truth, kind)).flatten(1).square().mean(1)


@dataclass(frozen=True)
class Check:
    """The loss on fixed times and noise after a step: of the pictures held out, or of those trained on if there are
    none; and how far the predictions of the class are from the base's, as a share of their mean square."""

    step: int
    loss: float
    drift: float


class Personalisation(Task[Learned]):
    """Training of `learned`, numbers of the denoiser `d`, on a `PictureSet`.

    Args:
        d: the base, with what is learned on it.
        learned: its trained parameters.
        pictures: what is trained on. held_out: what is only measured; may be empty.
        write: writes the run's files from a copy of `learned`.
        about: a description in JSON types; a resumed run must have the same.
    """

    by_rows = True

    def __init__(
        self,
        d: Denoiser,
        learned: Learned,
        settings: PersonalizeSettings,
        pictures: PictureSet,
        held_out: PictureSet | None,
        write: Callable[[Learned, Path, dict[str, Any]], None],
        about: dict[str, Any],
        out: Path,
    ) -> None:
        super().__init__(learned, [d.net])
        check_objective(settings.objective, d)
        self.denoiser, self.settings, self.pictures, self.held_out = d, settings, pictures, held_out
        self.trainer: TrainConfig = settings.config()
        self.objective = loss_of(settings.objective)
        self.times = TimeSampling(times_for(settings, d), settings.objective, d.process.schedule)
        self.switch = switch_of(d, learned, settings)
        if settings.prior == "gated" and settings.word is not None and isinstance(d, Prompting):
            d.gate = Gate(settings.word, self.switch)
        self.write, self.about, self.out = write, about, out
        self.checks: list[Check] = []
        trained = settings.train_text or settings.method == "textual-inversion"
        self.texts = Texts(d, trained)
        self.before = Texts(d, False)  # the conditions of the base, as it is now
        measured = [] if held_out is None else held_out.latents
        for shape in {tuple(z.shape[1:]) for z in (*pictures.latents, *measured)}:
            sets = (pictures,) if held_out is None else (pictures, held_out)
            prompts = {p for each in sets for texts in each.prompts for p in texts}
            self.before.keep(sorted({settings.of_class, *map(settings.class_of, prompts)}), shape)

    # the loss

    def loss(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert labels is not None
        mean, std = x0.unbind(1)
        n, rows = self.whole(x0)
        small = on_cpu(draw)
        t, weight = self.times.draw(n, small)
        t = t[rows]
        dropped = torch.rand(n, generator=small)[rows] < self.settings.condition_dropout
        noise = [torch.randn((n, *mean.shape[1:]), generator=draw, device=x0.device)[rows] for _ in range(2)]
        y, z = mean + std * noise[0], noise[1]
        chosen = torch.rand(n, generator=small)[rows]
        prompts = [
            None if drop else self.pictures.prompts[i][int(u * len(self.pictures.prompts[i]))]
            for i, drop, u in zip(labels.tolist(), dropped.tolist(), chosen.tolist(), strict=True)
        ]
        of_class = labels >= self.pictures.own
        if self.settings.prior == "distilled":
            losses = self._distilled(y, labels, t, z, prompts, of_class)
        else:
            losses = self._losses(y, labels, t, z, self.texts.of(prompts, y.shape[1:]))
        share = 1.0 if weight is None else weight[rows].to(losses)
        figures = {} if weight is None else self.times.figures(t, losses)
        of_class = of_class.to(losses.device)
        own = (losses * share)[~of_class].sum()
        if self.settings.pictured:
            # a batch has as many of both: each kind has the mean of its own
            prior = (losses * share)[of_class].sum()
            half = len(losses) / 2
            total, parts = (own + self.settings.prior_weight * prior) / half, {"own": own / half, "prior": prior / half}
        elif self.settings.prior == "frozen":
            drift = self._drift(y, t, z, prompts).mean()
            own = own / len(losses)
            total, parts = own + self.settings.prior_weight * drift, {"own": own, "prior": drift}
        else:
            total, parts = own / len(losses), {}
        return total, figures | parts

    def _distilled(
        self, y: Tensor, labels: Tensor, t: Tensor, z: Tensor, prompts: list[str | None], of_class: Tensor
    ) -> Tensor:
        """(B,): the objective of what is new, and of the class the drift from the base at its pictures, noised."""
        losses = torch.zeros(len(y), device=y.device)
        for kind in (~of_class, of_class):
            rows = kind.nonzero()[:, 0].tolist()
            if not rows:  # of one kind a process may have none
                continue
            asked = [prompts[i] for i in rows]
            if kind is of_class:
                found = self._drift(y[rows], t[rows], z[rows], asked)
            else:
                found = self._losses(y[rows], labels[rows], t[rows], z[rows], self.texts.of(asked, y.shape[1:]))
            losses = losses.index_put((torch.tensor(rows, device=y.device),), found.to(losses.dtype))
        return losses

    def _losses(self, y: Tensor, labels: Tensor, t: Tensor, z: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The objective of each row (B,)."""
        d = self.denoiser
        if not self.pictures.masked:
            return self.objective(d, y, t, z, **cond)
        masks = torch.stack([self.pictures.masks[i] for i in labels.tolist()]).to(y)
        masked: Any = _Masked(d, y, masks)
        if self.settings.objective is None:
            return _error(masked, d.prediction, d.data_std, y, t, z, **cond)
        return self.objective(masked, y, t, z, **cond)

    def _drift(self, y: Tensor, t: Tensor, z: Tensor, prompts: list[str | None]) -> Tensor:
        """The mean square between the prediction of the class now and before (B,), where the pictures are noised.

        A picture with its own prompt keeps the class in the state that its prompt describes.
        """
        now, before = self._of_class(y, t, z, prompts)
        return (now - before).flatten(1).square().mean(1)

    def _of_class(self, y: Tensor, t: Tensor, z: Tensor, given: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        d, of = self.denoiser, self.settings
        prompts = [of.of_class if prompt is None else of.class_of(prompt) for prompt in given]
        x_t = d.process.add_noise(y, t, z)
        kind = "x0" if d.prediction == "edm" else d.prediction
        with torch.no_grad(), self.switch.off():
            before = getattr(d(x_t, t, **self.before.of(prompts, y.shape[1:])), kind)
        return getattr(d(x_t, t, **self.texts.of(prompts, y.shape[1:])), kind), before

    # what is watched

    @torch.no_grad()
    def watch(self, average: Learned, step: int) -> None:
        group = processes.current()
        with self.model.shown(average):
            found = group.agreed(lambda: self._checked(step))
        best = min((each.loss for each in self.checks), default=math.inf)
        self.checks.append(found)
        if self.stops and found.loss < best and group.main:
            # before the trainer's state: a run that is killed in between writes the same file again
            self.write(average, self.out, self._facts(step))

    def _checked(self, step: int) -> Check:
        pictures, own = (
            (self.pictures, self.pictures.own) if self.held_out is None else (self.held_out, len(self.held_out))
        )
        losses, drifts = [], []
        for i in range(own):
            z = normal((_TIMES, *pictures.latents[i].shape[1:]), 0, torch.arange(_TIMES) + i * _TIMES, 0, _STREAM)
            t = (torch.arange(_TIMES) + 0.5) / _TIMES
            z = z.to(next(self.denoiser.net.parameters()).device)
            y = pictures.latents[i][0].to(z).expand(_TIMES, *pictures.latents[i].shape[1:])
            cond: dict[str, Any] = self.texts.of([pictures.prompts[i][0]] * _TIMES, y.shape[1:])
            losses.append(float(self.denoiser.loss(y, t, z, **cond).mean()))
            if i < _DRIFT_PICTURES:
                now, before = self._of_class(y, t, z, [pictures.prompts[i][0]] * _TIMES)
                drifts.append(float((now - before).square().mean() / before.square().mean()))
        return Check(step, sum(losses) / len(losses), sum(drifts) / len(drifts))

    @property
    def stops(self) -> bool:
        """Whether the held-out loss decides when the training ends and which weights it leaves."""
        return self.held_out is not None and self.settings.patience > 0

    @property
    def best(self) -> Check | None:
        """The check of the weights that are kept."""
        if not self.checks:
            return None
        return min(self.checks, key=lambda each: each.loss) if self.stops else self.checks[-1]

    @property
    def done(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        best = self.best
        if not self.stops or best is None:
            return False
        return len([each for each in self.checks if each.step > best.step]) >= self.settings.patience

    # what the trainer asks for

    def learn(self, figures: dict[str, float], pieces: int) -> dict[str, float]:
        return self.times.learn(figures, pieces)

    def to_state(self) -> dict[str, Any] | None:
        return {"times": self.times.to_state(), "checks": [[c.step, c.loss, c.drift] for c in self.checks]}

    def load_state(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            self.times.load_state(state["times"])
            self.checks = [Check(int(step), loss, drift) for step, loss, drift in state["checks"]]

    def config(self) -> dict[str, Any]:
        return self.about

    def varying(self, labelled: bool) -> bool:
        return True

    def _facts(self, step: int) -> dict[str, Any]:
        return {"learned_steps": step}

    def save(self, model: Learned, out: Path, extra: dict[str, Any]) -> None:
        if not (self.stops and self.checks):  # else the best is there already
            self.write(model, out, self._facts(int(extra["training"]["step"])) | extra)
