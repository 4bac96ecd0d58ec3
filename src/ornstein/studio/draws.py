"""A draw of samples: its settings, the samples, their files and the command that makes the same."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ornstein as orn
from ornstein.data import save_grid, save_mp4, to_uint8
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.evaluation.samples import choose_solver, class_number, record_of
from ornstein.sampling import State
from ornstein.studio.studio import Studio
from ornstein.studio.work import Tell
from ornstein.text import TextDenoiser

__all__ = ["AUTOMATIC", "EACH", "MOST", "MOST_CLIPS", "TUNED", "Draw", "checked", "checked_seed", "write_samples"]

AUTOMATIC, EACH, TUNED = "automatic", "each in turn", "tuned"
MOST = 64  # samples at a time: one batch, as `ornstein sample` makes it
MOST_CLIPS = 8
_FILM = 16  # samples whose trajectory is kept


@dataclass(frozen=True)
class Draw:
    """The settings of a draw of samples.

    Args:
        run: the run directory.
        n: number of samples.
        solver: a name of `SOLVERS`, "tuned", "churned", or None for what the run or the library has as its default.
        steps: number of steps.
        label: the class, by name or number; None for each in turn.
        guidance: the guidance scale; 1 is the plain model.
        seed: the seed.
        prompt, negative: of a model that takes text.
    """

    run: Path
    n: int
    solver: str | None
    steps: int
    label: str | None
    guidance: float
    seed: int
    prompt: str | None = None
    negative: str | None = None

    @property
    def command(self) -> str:
        """The command that makes the same samples."""
        words = ["ornstein", "sample", str(self.run), "-n", str(self.n), "--steps", str(self.steps)]
        words += ["--seed", str(self.seed), "--guidance", f"{self.guidance:g}"]
        for option, value in (
            ("--solver", self.solver),
            ("--class", self.label),
            ("--prompt", self.prompt),
            ("--negative", self.negative),
        ):
            words += [option, value] if value is not None else []
        return shlex.join(words)

    def __str__(self) -> str:
        parts = [self.run.name, f"seed {self.seed}", f"{self.steps} steps"]
        parts += [] if self.label is None else [f"class {self.label}"]
        parts += [] if self.prompt is None else [repr(self.prompt)]
        parts += [] if self.guidance == 1 else [f"guidance {self.guidance:g}"]
        parts += [] if self.solver is None else [self.solver]
        return " · ".join([*parts, f"{self.n} samples"])

    def labels(self, denoiser: Denoiser) -> Tensor | None:
        """The class numbers (n,). Raises UserError if there is no such class, or guidance without classes."""
        assert denoiser.data is not None
        if self.label is None:
            if self.guidance != 1 and not denoiser.data.classes:
                raise UserError(f"{self.run.name} was trained without classes: leave guidance at 1")
            return denoiser.data.labels(self.n)
        return torch.full((self.n,), class_number(self.label, denoiser.data, self.run))

    def samples(
        self,
        denoiser: Denoiser,
        tell: Tell,
        states: list[tuple[float, Tensor]] | None = None,
        precision: torch.dtype | None = None,
    ) -> Tensor:
        """Draw the samples.

        Args:
            denoiser: the model.
            tell: called with the progress.
            states: gets (t, state) of every step, uint8, of the first samples.
            precision: of the network, None for float32.

        Returns:
            (N, C, H, W) or (N, C, F, H, W) in [-1, 1].
        """
        if self.prompt is not None:
            assert isinstance(denoiser, TextDenoiser)
            denoiser = denoiser.prompted([self.prompt], self.negative)
        assert denoiser.data is not None
        solver: Any = self.solver
        if denoiser.distilled is None:
            solver = choose_solver(self.run, self.solver, self.steps, None, self.guidance, True)
        labels = self.labels(denoiser)
        clips = len(denoiser.data.shape) == 4
        batch = 8 if clips else 64

        def advance(state: State) -> None:
            tell(f"sampling, t = {state.t:.3f}", state.step, state.steps)
            if states is not None and state.first == 0:
                states.append((state.t, to_uint8(denoiser.decode(state.x[:_FILM]))))

        samples = orn.sample(
            denoiser,
            (self.n, *denoiser.data.shape),
            solver=solver,
            steps=self.steps,
            seed=self.seed,
            guidance=self.guidance,
            cond={"label": labels},
            callback=advance,
            batch=batch,
            precision=precision,
        )
        return denoiser.decode(samples)


def checked(
    studio: Studio,
    run: str,
    label: str,
    solver: str,
    steps: float,
    guidance: float,
    seed: float,
    n: float,
    prompt: str = "",
    negative: str = "",
) -> Draw:
    """The settings of a draw from the values of the form. Raises UserError for what is out of range."""
    path = studio.runs.find(run)
    denoiser = studio.runs.model(path)
    assert denoiser.data is not None
    most = MOST_CLIPS if len(denoiser.data.shape) == 4 else MOST
    for name, value, low, high in (("samples", n, 1, most), ("steps", steps, 1, 1000), ("guidance", guidance, 0, 20)):
        if value is None or not low <= value <= high:
            raise UserError(f"{name} must lie between {low} and {high}, not {value}")
    seed = checked_seed(seed)
    chosen = None if solver in (None, "", AUTOMATIC) else solver
    if denoiser.distilled is not None and chosen is None:
        steps = denoiser.distilled.steps  # those it was distilled to
    chosen_class = None if label in (None, "", EACH) else label
    texts = [text.strip() or None if isinstance(text, str) else None for text in (prompt, negative)]
    if isinstance(denoiser, TextDenoiser) and texts[0] is None:
        raise UserError(f"{path.name} takes text: write a prompt, such as {(*denoiser.examples, 'a red square')[0]!r}")
    if not isinstance(denoiser, TextDenoiser) and any(texts):
        raise UserError(f"{path.name} is a model without text: leave the prompt empty")
    return Draw(path, int(n), chosen, int(steps), chosen_class, guidance, seed, *texts)


def checked_seed(seed: float | None) -> int:
    """The seed of a form. Raises UserError if it is none."""
    if seed is None or not 0 <= seed < 2**53 or seed != int(seed):
        raise UserError(f"a seed is a whole number from 0 on, not {seed}")
    return int(seed)


def write_samples(draw: Draw, samples: Tensor, folder: Path, fps: float = 8.0) -> list[Path]:
    """Write a PNG of each sample, or an mp4 of each clip, with its command and its model in it."""
    record = record_of(draw.run, {"command": draw.command, "seed": draw.seed, "steps": draw.steps})
    out = []
    clips = samples.ndim == 5
    for i, sample in enumerate(samples):
        text = json.dumps(record | {"sample": i})
        path = folder / f"{draw.run.name}-seed{draw.seed}-{i:05d}.{'mp4' if clips else 'png'}"
        if clips:
            save_mp4(sample, path, fps, max(1, 128 // sample.shape[-1]), text)
        else:
            save_grid(sample[None], path, comment=text)
        out.append(path)
    return out
