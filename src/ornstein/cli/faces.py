"""`ornstein faces`: photographs to aligned faces, and where a swapped one comes from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ornstein.cli.command import console, progress, run
from ornstein.cli.faces_train import demo, evaluate, train
from ornstein.errors import UserError

faces = typer.Typer(
    help="Faces in photographs: prepared, trained on, judged; and the provenance of swaps.", no_args_is_help=True
)

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
    from ornstein.faces.train.prepare import (  # torch.multiprocessing and the models' extra: only when used
        NO_FACE,
        prepare,
    )

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


def verify(
    file: Annotated[Path, typer.Argument(help="A photo or a video.")],
) -> None:
    """Read a file's provenance: who signed it, whether it was changed since, and what was said of the swap.

    Exits with 1 unless the file is signed and intact. Example: ornstein faces verify swapped.png
    """
    from ornstein.faces import provenance

    found = provenance.read(file)
    if found.state == provenance.UNSIGNED:
        console.print(
            f"{file}: no manifest. Nothing is known of it: it never had one, or it was stripped", markup=False
        )
        raise typer.Exit(1)
    if found.signer is not None:
        whose = "by this machine's key" if found.ours else "by a key that this machine does not know"
        console.print(f"signed      {whose} ({found.signer})", markup=False)
    intact = found.state == provenance.INTACT
    console.print(
        f"state       {'intact: not changed since it was signed' if intact else 'CHANGED since it was signed'}"
    )
    for reason in found.reasons:
        console.print(f"            {reason}", markup=False)
    if found.source_type:
        console.print(f"kind        {found.source_type.rpartition('/')[2]}", markup=False)
    if found.swap is None:
        console.print("swap        the manifest says nothing of one")
    else:
        said = found.swap
        model = said.get("model", {})
        label = "shown" if said.get("label") else "REMOVED when it was made"
        rows = {
            "consent": said.get("consent"),
            "model": f"{model.get('sha256')}, licence {model.get('licence')}",
            "label": label,
            "settings": ", ".join(f"{key} {value}" for key, value in said.get("settings", {}).items()),
            "target": said.get("target"),
            "made": said.get("time"),
        }
        for name, value in rows.items():
            console.print(f"{name:<12}{value}", markup=False)
    if not intact:
        raise typer.Exit(1)


def protect(
    photos: Annotated[list[Path], typer.Argument(help="Photos of people whose faces are not to be swapped.")],
    out: Annotated[Path, typer.Option(help="The list to write, or to add to.")],
) -> None:
    """Put people on a list of protected faces, which `ornstein swap --block-list` refuses as source and as target.

    Example: ornstein faces protect ann.jpg bo.jpg --out protected.json
    """
    import torch

    from ornstein.faces.detect import Detector, find_faces, subject
    from ornstein.faces.provenance.blocklist import BlockList
    from ornstein.faces.read import read_photo
    from ornstein.faces.recognise import Recogniser

    detector, recogniser = Detector(), Recogniser()
    rows = []
    for path in photos:
        image = read_photo(path)
        rows.append(recogniser(image, [subject(find_faces(detector, image, str(path)), image)]))
    found = torch.cat(rows)
    everyone = BlockList.load(out).with_faces(found) if out.exists() else BlockList(found)
    everyone.save(out)
    console.print(f"wrote {out}: {len(everyone)} protected faces", markup=False)


def card(
    run: Annotated[Path, typer.Argument(help="The run folder of a model.")],
    licence: Annotated[str | None, typer.Option(help="The licence that the model may be used under.")] = None,
    data: Annotated[str | None, typer.Option(help="What it was trained on.")] = None,
    research_only: Annotated[
        bool | None, typer.Option("--research-only/--any-use", help="Whether its data are for research only.")
    ] = None,
) -> None:
    """Show or write a model's card, which `ornstein swap` prints when the model is used.

    Example: ornstein faces card runs/faces --licence "research only" --data "Labeled Faces in the Wild" --research-only
    """
    from dataclasses import replace

    from ornstein.checkpoint import read_config
    from ornstein.faces.provenance.card import read_card, write_card

    read_config(run)
    given = {"licence": licence, "data": data, "research_only": research_only}
    new = {key: value for key, value in given.items() if value is not None}
    if new:
        write_card(run, replace(read_card(run), **new))
    console.print(f"{run}: {read_card(run)}", markup=False)


for command in (prepare, train, evaluate, demo, verify, protect, card):
    faces.command()(run(command))
