"""The model that a command works on: a run, or the folder of a diffusers pipeline with its prompts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ornstein import checkpoint
from ornstein.compiling import cache_folder, compile_network
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.interop.lora import load_lora, merge_lora
from ornstein.progress import say, warn
from ornstein.request import GRID, SampleRequest
from ornstein.sampling import draw
from ornstein.store import read_bytes
from ornstein.text import TextDenoiser

__all__ = ["add_loras", "compile_model", "lora_of", "open_model", "prompts_of", "told"]

_LARGEST = 2**24  # bytes of a file of prompts
_OPTIONS = ("prompt", "prompts", "negative")


def open_model(asked: Any, guidance: float | None = None, own: bool = False) -> tuple[Denoiser, float | None]:
    """The model of a command on the CPU, and the scale of guidance for its sampler.

    The prompts of a model of text become its classes. A model that takes the scale of guidance as a condition gets it
    there, and the sampler has none to apply.

    Args:
        asked: settings with `run`, `trust_sizes` and those of `interop.settings.Prompts`.
        guidance: the scale that was asked for.
        own: without a prompt, take the captions that a run has kept of its held-out pictures.

    Raises:
        UserError: there is no model; it takes no text, and a prompt is given; or it does, and none is.
    """
    model = checkpoint.load(asked.run, trust_sizes=asked.trust_sizes)
    add_loras(model, getattr(asked, "lora", None) or [])
    given = [f"--{name}" for name in _OPTIONS if getattr(asked, name) is not None]
    if not getattr(model, "takes_text", False):
        if given:
            raise UserError(f"{asked.run} is a model without text: leave out {given[0]}")
        return model, guidance
    prompts = prompts_of(asked.prompt, asked.prompts)
    if own and not prompts and isinstance(model, TextDenoiser):
        prompts = list(model.examples)
        say(f"prompts: {len(prompts)} captions of held-out pictures, in turn")
    if not prompts:
        raise UserError(f'{asked.run} takes text: give --prompt "a red square", or --prompts FILE with one a line')
    inside: Any = model
    if inside.guided_by_condition and guidance is not None:
        say(f"guidance {guidance:g} is a condition of this network: one evaluation a step")
        return inside.prompted(prompts, asked.negative, guidance), None
    return inside.prompted(prompts, asked.negative), guidance


def add_loras(model: Denoiser, given: list[str]) -> None:
    """Write LoRAs, "FILE" or "FILE:0.7", into the weights of a model.

    Raises:
        UserError: one cannot be read, or is of another base.
    """
    for text in given:
        file, strength = lora_of(text)
        with told():
            lora = load_lora(model, file, strength)
        say(f"{file}: LoRA of {len(lora.layers)} layers at strength {strength:g}")
    if given:
        merge_lora(model)


def lora_of(text: str) -> tuple[str, float]:
    """File and strength of "FILE" or "FILE:0.7"."""
    file, colon, strength = text.rpartition(":")
    try:
        return (file, float(strength)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0  # a colon in the name of the file


@contextmanager
def told() -> Iterator[None]:
    """Warnings of what is assumed of a file as lines of the command's own."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for each in caught:
        warn(str(each.message))


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


def compile_model(denoiser: Denoiser, shape: Sequence[int], request: SampleRequest, cond: dict[str, Any]) -> None:
    """Compile the network for samples of this shape, (B, *), and these conditions, and say how long that took."""
    once = replace(request, solver="ddim", steps=1, grid=GRID)
    seconds = compile_network(denoiser, lambda: draw(denoiser, shape, once, cond))
    say(f"compiled in {seconds:.1f} s; the compiled code is kept in {cache_folder()}")
