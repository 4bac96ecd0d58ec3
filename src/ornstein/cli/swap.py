"""`ornstein swap`: a face in photos and videos given to somebody else, with consent and provenance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ornstein.cli.command import console, progress
from ornstein.errors import RunError, UserError

if TYPE_CHECKING:  # loaded when used: dlib and c2pa are an extra, and torch takes its time
    from torch import Tensor

    from ornstein.faces.provenance.consent import Consent
    from ornstein.faces.swap import Source, SwapModel, Swapper
    from ornstein.faces.video_swap import VideoReport, VideoSettings

_STRETCHES = 8  # of frames without a face that are named


def swap(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SOURCE] TARGET", help="A photo or a folder of photos of the source; a photo or video."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write: .png .jpg .webp, .mp4 .mov")
    ] = None,
    consent: Annotated[
        str | None,
        typer.Option(
            "--i-have-consent", metavar='"WHO, WHY"', help="Who agreed, and to what. Nothing runs without it."
        ),
    ] = None,
    model: Annotated[Path, typer.Option(help="The run folder of a face-swap model.")] = Path("runs/faces"),
    face: Annotated[str, typer.Option(help="Whose face is replaced: all, largest, or a photo of that person.")] = "all",
    pairs: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="REF=SOURCE", help="Give the person in REF the face of SOURCE; repeatable."),
    ] = None,
    batch: Annotated[Path | None, typer.Option(help="A CSV file with the columns source,target,out.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 20,
    identity: Annotated[float, typer.Option(help="0 is the target's own identity, 1 the source's.")] = 1.0,
    guidance: Annotated[
        float | None, typer.Option(help="Scale of guidance towards the source; as suits the model unless it is given.")
    ] = None,
    towards: Annotated[float, typer.Option(help="Guidance by the recogniser, about 0.02; 0 for none.")] = 0.0,
    blend: Annotated[str, typer.Option(help="feather, laplacian or poisson.")] = "laplacian",
    seed: Annotated[int, typer.Option(help="The same seed gives the same picture.")] = 0,
    no_label: Annotated[bool, typer.Option("--no-label", help="No visible badge; the manifest says so.")] = False,
    block_list: Annotated[Path | None, typer.Option(help="Faces to refuse: of `ornstein faces protect`.")] = None,
    log: Annotated[Path | None, typer.Option(help="The log. (default: ornstein-swaps.jsonl beside --out)")] = None,
    noise: Annotated[str, typer.Option(help="Video: shared, independent or ar1:RHO over a face's frames.")] = "shared",
    gap: Annotated[int, typer.Option(help="Video: frames without a face that are filled in.")] = 5,
    every: Annotated[int, typer.Option("--detect-every", help="Video: look for faces every so many frames.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Video: go on with a swap that was stopped.")] = False,
) -> None:
    """Swap a face in a photo or a video. Every output says in a signed manifest what it is, and whose consent it has.

    Example: ornstein swap me.jpg party.jpg -o swapped.png --i-have-consent "Ann Lee, her birthday card"
    """
    from ornstein.extras import require
    from ornstein.faces.provenance.blocklist import BlockList
    from ornstein.faces.provenance.consent import Consent
    from ornstein.faces.swap import Swapper, SwapSettings, load_model
    from ornstein.faces.video_swap import VideoSettings

    if consent is None:
        raise UserError('say who agreed to this swap and what it is for: --i-have-consent "who, why"')
    agreed = Consent(consent)
    settings = SwapSettings(steps, identity, guidance, towards, blend, not no_label, seed)
    video = VideoSettings(noise=noise, gap=gap, every=every)
    jobs = _jobs(paths or [], out, pairs or [], batch, face)
    if batch is None and isinstance(jobs[0][1], _Job):
        _check_files(jobs[0][1])
    require("c2pa", "faces", "a signature")  # nothing is made that could not be signed
    loaded = load_model(model)
    console.print(f"model {model}: {loaded.card}", markup=False)
    protected = BlockList.load(block_list) if block_list is not None else None
    work = _Swaps(Swapper(loaded.model, settings, protected=protected), loaded, agreed, video, log, resume)
    failed = 0
    for line, job in jobs:
        try:
            work.do(job)
        except (UserError, RunError, ValueError, OSError, MemoryError) as error:
            if batch is None:
                raise
            failed += 1
            reason = " ".join(str(error).split()) or type(error).__name__
            console.print(f"line {line} of {batch} failed: {reason}", markup=False)
    if batch is not None:
        console.print(f"{len(jobs) - failed} of {len(jobs)} swaps done, {failed} failed")
        if failed:
            raise typer.Exit(1)


@dataclass(frozen=True)
class _Job:
    """One swap: (reference or "all" or "largest", source) for each source."""

    whom: Sequence[tuple[Path | str, Path]]
    target: Path
    out: Path


@dataclass(frozen=True)
class _Swaps:
    swapper: Swapper
    model: SwapModel
    consent: Consent
    video: VideoSettings
    log: Path | None
    resume: bool

    def do(self, asked: _Job | str) -> None:
        from ornstein.faces.swap import Choice
        from ornstein.faces.swap import photo as photo_swap
        from ornstein.faces.video_swap import swap_video

        job = asked if isinstance(asked, _Job) else _refused(asked)
        video = _check_files(job)
        photos = [photo_swap.photos_in(source) for _, source in job.whom]
        sources: list[Source] = [self.swapper.source(each) for each in photos]
        references = [whom for whom, _ in job.whom if isinstance(whom, Path)]
        known: Tensor | None = None
        every = "all"
        if references:
            import torch

            known = torch.stack([self.swapper.reference(path) for path in references])
        else:
            every = str(job.whom[0][0])
        choice = Choice(sources, every, known)
        order = photo_swap.Order(photos, job.target, job.out, self.consent, references, self.log)
        began = time.monotonic()
        if not video:
            faces = photo_swap.swap_photo(self.swapper, self.model, choice, order)
            seconds = time.monotonic() - began
            console.print(f"wrote {job.out}: {faces} face{'s' * (faces != 1)} in {seconds:.1f} s", markup=False)
            return
        with progress("frames") as bar:
            task = bar.add_task("finding faces", total=None, note="")
            last: tuple[str, int, float] = ("", 0, 0.0)

            def tell(stage: str, done: int, total: int | None) -> None:
                nonlocal last
                if stage != last[0]:
                    bar.reset(task, total=total, description=stage, note="")
                    last = (stage, done, time.monotonic())
                seconds, count = time.monotonic() - last[2], done - last[1]
                note = f"{count / seconds:.1f} frames/s" if count and seconds > 0 else ""
                bar.update(task, completed=done, total=total, note=note)

            report = swap_video(self.swapper, self.model, choice, order, self.video, self.resume, tell)
        console.print(f"wrote {job.out}: {report.frames} frames in {time.monotonic() - began:.0f} s", markup=False)
        for note in report.notes:
            console.print(note, markup=False)
        _tell_gaps(report)


def _check_files(job: _Job) -> bool:
    """Whether it is a video. Raises UserError, before anything is loaded, where a file is missing or misnamed."""
    from ornstein.faces import film
    from ornstein.faces.swap import photo as photo_swap

    named = [path for pair in job.whom for path in pair if isinstance(path, Path)]
    for path in (*named, job.target):
        if not path.exists():
            raise UserError(f"there is no file {path}")
    video = film.is_video(job.target)
    photo_swap.check_output(job.out, film.SUFFIXES if video else photo_swap.SUFFIXES, job.target)
    return video


def _tell_gaps(report: VideoReport) -> None:
    if not report.without:
        return
    stretches = [f"{a + 1}" if a == b else f"{a + 1}-{b + 1}" for a, b in report.without]
    named = ", ".join(stretches[:_STRETCHES])
    if len(stretches) > _STRETCHES:
        named += f" and {len(stretches) - _STRETCHES} more stretches, all in the log"
    console.print(f"no face to swap in {report.frames_without} of {report.frames} frames: {named}")


def _jobs(
    paths: list[Path], out: Path | None, pairs: list[str], batch: Path | None, face: str
) -> list[tuple[int, _Job | str]]:
    """(line, what to do), or why a line cannot be done."""
    from ornstein.faces.swap import ALL, LARGEST
    from ornstein.faces.swap.photo import COLUMNS, read_pairs

    whom: Path | str = face if face in (ALL, LARGEST) else Path(face)
    if isinstance(whom, Path) and not whom.is_file():
        raise UserError(f"--face {face}: all, largest or a photo; there is no file of that name")
    if batch is not None:
        if paths or out is not None or pairs:
            raise UserError("--batch has source, target and output in its file: leave out the others")
        jobs: list[tuple[int, _Job | str]] = []
        for line, (source, target, to) in read_pairs(batch):
            if source is None or target is None or to is None:
                jobs.append((line, f"one of {', '.join(COLUMNS)} is empty"))
            else:
                jobs.append((line, _Job([(whom, source)], target, to)))
        if not jobs:
            raise UserError(f"{batch} has no rows")
        return jobs
    if out is None:
        raise UserError("say where to write it: -o swapped.png, or swapped.mp4 for a video")
    if pairs:
        if len(paths) != 1 or face != ALL:
            raise UserError(
                "with --map give the target alone: the sources and whose faces they replace are in the maps"
            )
        return [(1, _Job([_mapped(pair) for pair in pairs], paths[0], out))]
    if len(paths) != 2:
        raise UserError(
            f"give a source and a target, not {len(paths)} files: ornstein swap me.jpg party.jpg -o out.png"
        )
    return [(1, _Job([(whom, paths[0])], paths[1], out))]


def _mapped(pair: str) -> tuple[Path, Path]:
    reference, equals, source = pair.partition("=")
    if not (reference and equals and source):
        raise UserError(f"--map {pair!r}: write REF=SOURCE, for example ann.jpg=bo.jpg")
    return Path(reference), Path(source)


def _refused(reason: str) -> _Job:
    raise UserError(reason)
