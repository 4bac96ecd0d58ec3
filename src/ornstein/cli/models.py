"""The model that a command works on: a run, or the folder of a diffusers pipeline with its prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ornstein import checkpoint
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.progress import say
from ornstein.store import read_bytes

__all__ = ["open_model", "prompts_of"]

_LARGEST = 2**24  # bytes of a file of prompts
_OPTIONS = ("prompt", "prompts", "negative")


def open_model(asked: Any, guidance: float | None = None) -> tuple[Denoiser, float | None]:
    """The model of a command on the CPU, and the scale of guidance for its sampler.

    The prompts of a model of text become its classes. A model that takes the scale of guidance as a condition gets it
    there, and the sampler has none to apply.

    Args:
        asked: settings with `run`, `trust_sizes` and those of `interop.settings.Prompts`.
        guidance: the scale that was asked for.

    Raises:
        UserError: there is no model; it takes no text, and a prompt is given; or it does, and none is.
    """
    model = checkpoint.load(asked.run, trust_sizes=asked.trust_sizes)
    given = [f"--{name}" for name in _OPTIONS if getattr(asked, name) is not None]
    if not getattr(model, "takes_text", False):
        if given:
            raise UserError(f"{asked.run} is a model without text: leave out {given[0]}")
        return model, guidance
    prompts = prompts_of(asked.prompt, asked.prompts)
    if not prompts:
        raise UserError(f'{asked.run} takes text: give --prompt "a red square", or --prompts FILE with one a line')
    inside: Any = model
    if inside.guided_by_condition and guidance is not None:
        say(f"guidance {guidance:g} is a condition of this network: one evaluation a step")
        return inside.prompted(prompts, asked.negative, guidance), None
    return inside.prompted(prompts, asked.negative), guidance


def prompts_of(prompt: str | None, file: Path | None) -> list[str]:
    """The prompts of --prompt and --prompts, each once; none if neither is given.

    Raises:
        UserError: both are given, or the file cannot be read or has no prompt.
    """
    if file is None:
        return [] if prompt is None else [prompt]
    if prompt is not None:
        raise UserError("give --prompt or --prompts, not both")
    try:
        text = read_bytes(file, _LARGEST).decode("utf-8")
    except ValueError as error:
        raise UserError(f"{file} is not a text file in UTF-8: {error}") from None
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not lines:
        raise UserError(f"{file} has no prompts: write one a line")
    return lines
