"""`ornstein faces prepare | train | adapt | evaluate | demo | verify | protect | card | costs | finish | benchmark`."""

from __future__ import annotations

import typer

from ornstein.cli.lazy import HELP, Group, Lazy

__all__ = ["COMMANDS", "faces"]

_SETTINGS, _BODIES = "ornstein.faces.commands:", "ornstein.cli.faces_commands:"
COMMANDS = {
    name: Lazy(help, f"{_SETTINGS}{name.title()}Command", f"{_BODIES}{name}")
    for name, help in {
        "prepare": "Detect, align and embed the face in each of your photos.",
        "train": "Train a face swap on your photographs.",
        "adapt": "Adapt a face swap to one person's photos.",
        "evaluate": "Evaluate swaps of people that the model has not seen.",
        "demo": "Train and evaluate a swap on rendered faces.",
        "verify": "Read the provenance of a photo or a video.",
        "protect": "Put people on a list of protected faces.",
        "card": "Show or write the licence of a model.",
    }.items()
}
COMMANDS |= {
    name: Lazy(help, f"{_SETTINGS}{name.title()}Command", f"ornstein.cli.swap_commands:{name}")
    for name, help in {
        "costs": "Measure what a swap costs here, by resolution.",
        "finish": "Train the networks of occlusion and detail.",
        "benchmark": "Evaluate on the CASIA FaceSwapping protocols.",
    }.items()
}


class _Commands(Group):
    table = COMMANDS


faces = typer.Typer(
    cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, context_settings=HELP, add_completion=False
)


@faces.callback()
def _faces() -> None:
    """Prepare, train and evaluate models of faces; read the provenance of swaps."""
