"""`ornstein studio`: everything as a web page on this computer."""

from __future__ import annotations

import signal
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ornstein.cli.options import resolve
from ornstein.errors import UserError
from ornstein.progress import say
from ornstein.runs import describe
from ornstein.settings import PRECISIONS

__all__ = ["studio"]


def studio(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Runs to open, beside those in --home.")
    ] = None,
    home: Annotated[Path, typer.Option(help="The folder of runs, where new ones are written.")] = Path("runs"),
    host: Annotated[
        str,
        typer.Option(help="The address to listen on; other than this computer's own it needs a user and a password."),
    ] = ("127.0.0.1"),
    port: Annotated[int | None, typer.Option(help="(default: the first free one from 7860 on)")] = None,
    user: Annotated[
        str | None, typer.Option(help="The user name; the password is asked for, or read from --password-file.")
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(help="The file whose first line is the password; as an option, others could see it."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further host name of the studio, such as a reverse proxy's; repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device to compute on: auto, cpu, cuda, cuda:1, ... or mps.")] = "auto",
    precision: Annotated[
        str, typer.Option(help=f"Precision of convolutions and matrix products: {', '.join(PRECISIONS)}.")
    ] = "auto",
    browse: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Open the studio: train, generate, video and noise, face swap, likelihood and evaluation, in the browser.

    Example: ornstein studio runs/photos --open
    """
    password = None
    if password_file is not None:
        password = _first_line(password_file)
    elif user is not None:
        if not sys.stdin.isatty():
            raise UserError(f"give the password of {user} in a file: --password-file")
        password = typer.prompt(f"password of {user}", hide_input=True)
    devices = resolve("ornstein.devices")  # it imports torch
    where = devices.choose_device(device)
    devices.choose_precision(precision, where)
    launch = resolve("ornstein.studio.launch")  # it needs Gradio, which no other command does
    address = launch.Address(host, port, user, password, tuple(allow_host or ()))
    for run in runs or []:
        describe(run)  # an error belongs here, not on a page
    with launch.serving(home, runs or [], address, device=where, precision=precision) as url:
        say(f"the studio is at {url}; Ctrl-C ends it, trainings continue")
        if browse:
            webbrowser.open(url)
        end = threading.Event()
        for name in ("SIGTERM", "SIGHUP"):  # end in order, so that uploads are deleted
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), lambda *_: end.set())
        end.wait()


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    return lines[0].strip() if lines else ""
