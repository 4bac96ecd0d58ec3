"""The command line: `ornstein demo | train | sample | ...`, one file a command. `COMMANDS` is the list."""

from typing import Annotated

import typer

from ornstein import __version__
from ornstein.cli.lazy import HELP, Group, Lazy

__all__ = ["COMMANDS", "app", "main"]

_OPTIONS = "ornstein.cli.commands"

COMMANDS = {
    "demo": Lazy(
        "Train, sample and evaluate a model of handwritten digits.", f"{_OPTIONS}:Demo", "ornstein.cli.demo:demo"
    ),
    "train": Lazy("Train a model on your images or videos.", f"{_OPTIONS}:Train", "ornstein.cli.train:train"),
    "plan": Lazy("Say what a training would choose and reach.", f"{_OPTIONS}:Plan", "ornstein.cli.plan:plan"),
    "sample": Lazy("Draw samples from a trained model.", f"{_OPTIONS}:Sample", "ornstein.cli.sample:sample"),
    "personalize": Lazy(
        "Teach a model of text what a few pictures show.",
        "ornstein.personalization.settings:Personalize",
        "ornstein.cli.personalize:personalise",
    ),
    "tune": Lazy("Learn a solver of few steps for a model.", f"{_OPTIONS}:Tune", "ornstein.cli.tune:tune"),
    "distil": Lazy("Train a student that samples in few steps.", f"{_OPTIONS}:Distil", "ornstein.cli.distil:distil"),
    "compress": Lazy(
        "Make a trained model cheaper.", "ornstein.compress.settings:Compress", "ornstein.cli.compress:compress"
    ),
    "ema": Lazy("Choose the width of the weights' average.", f"{_OPTIONS}:Ema", "ornstein.cli.ema:ema"),
    "bench": Lazy("Measure the speed of sampling.", "ornstein.evaluation.settings:Bench", "ornstein.cli.bench:bench"),
    "evaluate": Lazy(
        "Score a trained model on held-out data.",
        "ornstein.evaluation.settings:Evaluate",
        "ornstein.cli.evaluate:evaluate",
    ),
    "contrast": Lazy(
        "Compare GANs, an autoregressive model and diffusion on the same data.",
        "ornstein.contrast.settings:Contrast",
        "ornstein.cli.contrast:contrast",
    ),
    "fit-noise": Lazy(
        "Estimate the noise covariance of your clips.", f"{_OPTIONS}:FitNoise", "ornstein.cli.fit_noise:fit_noise"
    ),
    "swap": Lazy("Swap faces in photos and videos.", "ornstein.faces.settings:SwapCommand", "ornstein.cli.swap:swap"),
    "studio": Lazy("Work in the browser.", "ornstein.cli.studio:studio"),
    "faces": Lazy("Prepare, train and evaluate models of faces.", "ornstein.cli.faces:faces"),
    "edit": Lazy("Fill, restore, enlarge, colour and vary pictures and clips.", "ornstein.cli.edit:edit"),
    "lora": Lazy("Show, convert, merge and scale LoRA files.", "ornstein.cli.lora:lora"),
    "import": Lazy(
        "Make a run of a diffusers folder.", "ornstein.interop.settings:Import", "ornstein.cli.exchange:import_"
    ),
    "export": Lazy(
        "Write a model for another library.", "ornstein.interop.settings:Export", "ornstein.cli.exchange:export"
    ),
    "push": Lazy(
        "Upload a model to the Hugging Face hub.", "ornstein.interop.settings:Push", "ornstein.cli.exchange:push"
    ),
    "info": Lazy("Show what a run is.", f"{_OPTIONS}:Info", "ornstein.cli.info:info"),
    "ls": Lazy("List the runs in a folder.", f"{_OPTIONS}:Ls", "ornstein.cli.info:ls"),
    "env": Lazy("Show versions and devices.", f"{_OPTIONS}:Env", "ornstein.cli.info:env"),
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
