"""The command line: `ornstein demo | train | sample | ...`, one file a command. `COMMANDS` is the list."""

from typing import Annotated

import typer

from ornstein import __version__
from ornstein.cli.lazy import HELP, Group, Lazy

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = {
    "demo": Lazy("Train, sample and evaluate a model of handwritten digits.", "ornstein.cli.demo:demo"),
    "train": Lazy("Train a model on your images or videos.", "ornstein.cli.train:train"),
    "sample": Lazy("Draw samples from a trained model.", "ornstein.cli.sample:sample"),
    "tune": Lazy("Learn a solver of few steps for a model.", "ornstein.cli.tune:tune"),
    "distil": Lazy("Train a student that samples in few steps.", "ornstein.cli.distil:distil"),
    "bench": Lazy("Measure the speed of sampling.", "ornstein.cli.bench:bench"),
    "evaluate": Lazy("Score a trained model on held-out data.", "ornstein.cli.evaluate:evaluate"),
    "fit-noise": Lazy("Estimate the noise covariance of your clips.", "ornstein.cli.fit_noise:fit_noise"),
    "swap": Lazy("Swap faces in photos and videos.", "ornstein.faces.settings:SwapCommand", "ornstein.cli.swap:swap"),
    "studio": Lazy("Work in the browser.", "ornstein.cli.studio:studio"),
    "faces": Lazy("Prepare, train and evaluate models of faces.", "ornstein.cli.faces:faces"),
}


class _Commands(Group):
    table = COMMANDS


app = typer.Typer(
    name="ornstein", cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, context_settings=HELP
)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"ornstein {__version__}")
        raise typer.Exit


@app.callback()
def _ornstein(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Diffusion models for images and video whose noise may have any covariance."""


def main() -> None:
    """The entry point of the `ornstein` command."""
    app()
