"""The command line: `ornstein demo | train | sample | ...`, one file a command."""

from typing import Annotated

import typer

from ornstein import __version__
from ornstein.cli.bench import bench
from ornstein.cli.command import run
from ornstein.cli.demo import demo
from ornstein.cli.distil import distil
from ornstein.cli.evaluate import evaluate
from ornstein.cli.faces import faces
from ornstein.cli.fit_noise import fit_noise
from ornstein.cli.sample import sample
from ornstein.cli.studio import studio
from ornstein.cli.swap import swap
from ornstein.cli.train import train
from ornstein.cli.tune import tune

app = typer.Typer(
    name="ornstein",
    help="Diffusion models for images and video whose noise may have any covariance.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ornstein {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


for command in (demo, train, sample, tune, distil, bench, evaluate, fit_noise, swap, studio):
    app.command()(run(command))
app.add_typer(faces, name="faces")


def main() -> None:
    """The entry point of the `ornstein` command."""
    app()
