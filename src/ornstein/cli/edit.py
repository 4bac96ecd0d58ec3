"""`ornstein edit inpaint | restore | upscale | colourise | sdedit | interpolate`."""

from __future__ import annotations

import typer

from ornstein.cli.lazy import HELP, Group, Lazy

__all__ = ["COMMANDS", "edit"]

_SETTINGS, _BODIES = "ornstein.editing.settings:", "ornstein.cli.edit_commands:"
COMMANDS = {
    name: Lazy(help, f"{_SETTINGS}{name.title()}", f"{_BODIES}{name}")
    for name, help in {
        "inpaint": "Fill what a mask hides, in pictures and clips.",
        "restore": "Undo blur, noise, JPEG and other damage.",
        "upscale": "Enlarge pictures.",
        "colourise": "Colour grey pictures.",
        "sdedit": "Make variations of pictures.",
        "interpolate": "Lead from one picture to another.",
    }.items()
}


class _Commands(Group):
    table = COMMANDS


edit = typer.Typer(
    cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, context_settings=HELP, add_completion=False
)


@edit.callback()
def _edit() -> None:
    """Edit pictures and clips with a model as the prior: several answers, and how uncertain each pixel is."""
