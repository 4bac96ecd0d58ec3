"""`ornstein faces`: photographs to aligned faces."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ornstein.cli.command import console, progress, run
from ornstein.errors import UserError

faces = typer.Typer(help="Faces in photographs: prepare them for training.", no_args_is_help=True)

# Names of files that were skipped.
_NAMED = 8


def prepare(
    data: Annotated[Path, typer.Argument(help="Photos: a folder or a zip archive, best with a folder per person.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    size: Annotated[int, typer.Option(help="Side of the aligned faces in pixels: 64, 128 or 256.")] = 64,
    shard: Annotated[str, typer.Option(help="I/N: do the I-th of N parts only, to share the work.")] = "1/1",
    workers: Annotated[int | None, typer.Option(help="Processes; all cores if not given.", min=1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after what is finished in --out.")] = False,
) -> None:
    """Find, align and embed the face in each of your photos.

    Example: ornstein faces prepare photos.zip --out faces --size 64
    """
    from ornstein.faces.prepare import NO_FACE, prepare  # torch.multiprocessing and the models' extra: only when used

    with progress("photos") as bar:
        task = bar.add_task("preparing", total=None, note="")

        before: list[tuple[int, float]] = []  # the files found done on resuming, and when

        def advance(done: int, total: int) -> None:
            if not before:
                before.append((done, time.monotonic()))
            count, seconds = done - before[0][0], time.monotonic() - before[0][1]
            note = f"{count / seconds:.1f}/s" if count else ""
            bar.update(task, completed=done, total=total, note=note)

        summary = prepare(data, out, size, part=_part(shard), workers=workers, resume=resume, progress=advance)
    bad = [(name, reason) for name, reason in summary.skipped if reason != NO_FACE]
    for name, reason in bad[:_NAMED]:
        console.print(f"skipped {name}: {reason}", markup=False)
    if len(bad) > _NAMED:
        console.print(f"and {len(bad) - _NAMED} more files skipped")
    if summary.without_face:
        first = next(name for name, reason in summary.skipped if reason == NO_FACE)
        console.print(
            f"no face found in {summary.without_face} of {summary.files} photos, the first {first}", markup=False
        )
    if summary.missing:
        console.print(
            f"{summary.faces} faces in this part; {summary.missing} shards of other parts are not in {out} yet"
        )
    else:
        console.print(f"wrote {out}: {summary.faces} faces of {summary.people} people")


def _part(text: str) -> tuple[int, int]:
    """(I, N) of "I/N"."""
    index, _, parts = text.partition("/")
    if not (index.isdecimal() and parts.isdecimal()):
        raise UserError(f"--shard {text!r}: write I/N, for example 1/4")
    return int(index), int(parts)


faces.command()(run(prepare))
