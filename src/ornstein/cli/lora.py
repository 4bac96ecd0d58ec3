"""`ornstein lora info | convert | merge | scale`."""

from __future__ import annotations

import typer

from ornstein.cli.lazy import HELP, Group, Lazy

__all__ = ["COMMANDS", "lora"]

_SETTINGS, _BODIES = "ornstein.interop.settings:Lora", "ornstein.cli.lora_commands:"
COMMANDS = {
    name: Lazy(help, f"{_SETTINGS}{name.title()}", f"{_BODIES}{name}")
    for name, help in {
        "info": "Show what a LoRA file is.",
        "convert": "Write a LoRA as another kind of file.",
        "merge": "Add LoRAs up, in a file or in a model.",
        "scale": "Write a LoRA with another strength.",
    }.items()
}


class _Commands(Group):
    table = COMMANDS


lora = typer.Typer(
    cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, context_settings=HELP, add_completion=False
)


@lora.callback()
def _lora() -> None:
    """Show, convert, merge and scale LoRA files of Ornstein, diffusers, peft, kohya's scripts and ComfyUI."""
