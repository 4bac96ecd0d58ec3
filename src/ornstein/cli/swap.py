"""`ornstein swap`: a face in photos and videos replaced by another person's, with consent and provenance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import typer
from torch import Tensor

from ornstein import processes
from ornstein.cli.options import refuse
from ornstein.devices import choose_device, choose_precision
from ornstein.errors import RunError, UserError
from ornstein.extras import require
from ornstein.faces.provenance.blocklist import BlockList
from ornstein.faces.provenance.consent import Consent
from ornstein.faces.settings import SwapCommand, SwapSettings, VideoSettings
from ornstein.faces.swap import Choice, Order, Source, SwapModel, Swapper, film, load_model
from ornstein.faces.swap import photo as photo_swap
from ornstein.faces.swap.photo import COLUMNS, read_pairs
from ornstein.faces.swap.video import VideoReport, swap_video
from ornstein.progress import progress, say
from ornstein.settings import settings_of

__all__ = ["swap"]

_STRETCHES = 8  # stretches of frames without a face that are printed


def swap(asked: SwapCommand, given: frozenset[str]) -> None:
    if asked.consent is None:
        raise UserError('say who agreed to this swap and what it is for: --i-have-consent "who, why"')
    consent = Consent(asked.consent)
    device = choose_device(asked.device)
    choose_precision(asked.precision, device)
    jobs = _jobs(asked)
    group = processes.current()
    if asked.pairs is None and group.world > 1:
        raise UserError("one swap is made by one process: leave out the launcher, or give several with --batch")
    require("c2pa", "faces", "a signature")  # nothing is made that could not be signed
    if asked.pairs is None and isinstance(jobs[0][1], _Job) and not _check_files(jobs[0][1], asked.overwrite):
        refuse(SwapCommand, given, ("noise", "gap", "every", "resume"), "the target is a photo")
    model = load_model(asked.model, device)
    say(f"model {asked.model}: {model.card}")
    protected = BlockList.load(asked.block_list) if asked.block_list is not None else None
    swapper = Swapper(model.model, settings_of(SwapSettings, asked), protected=protected)
    work = _Swaps(swapper, model, consent, asked)
    if asked.pairs is None:
        work.do(jobs[0][1])
        return
    failed = []
    for line, job in jobs[group.rank :: group.world]:  # the processes of a launch share them out
        try:
            work.do(job)
        except (UserError, RunError, ValueError, OSError, MemoryError) as error:
            failed.append((line, " ".join(str(error).split()) or type(error).__name__))
            if group.world == 1:
                say(_failure(asked, *failed[-1]))
    failed = sorted(group.collected(failed))
    if group.world > 1:
        for line, reason in failed:
            say(_failure(asked, line, reason))
    group.end()
    say(f"{len(jobs) - len(failed)} of {len(jobs)} swaps done, {len(failed)} failed")
    if failed:
        raise typer.Exit(1)


def _failure(asked: SwapCommand, line: int, reason: str) -> str:
    return f"line {line} of {asked.pairs} failed: {reason}"


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
    asked: SwapCommand

    def do(self, job: _Job | str) -> None:
        """Do a swap; a text is the reason why it cannot be done."""
        if isinstance(job, str):
            raise UserError(job)
        video = _check_files(job, self.asked.overwrite)
        photos = [photo_swap.photos_in(source) for _, source in job.whom]
        sources: list[Source] = [self.swapper.source(each) for each in photos]
        references = [whom for whom, _ in job.whom if isinstance(whom, Path)]
        known: Tensor | None = None
        every = "all"
        if references:
            known = torch.stack([self.swapper.reference(path) for path in references])
        else:
            every = str(job.whom[0][0])
        choice = Choice(sources, every, known)
        order = photo_swap.Order(
            photos, job.target, job.out, self.consent, references, self.asked.log, self.asked.overwrite
        )
        began = time.monotonic()
        if not video:
            faces = photo_swap.swap_photo(self.swapper, self.model, choice, order)
            seconds = time.monotonic() - began
            say(f"wrote {job.out}: {faces} face{'s' * (faces != 1)} in {seconds:.1f} s")
            return
        report = self._swap_video(choice, order)
        say(f"wrote {job.out}: {report.frames} frames in {time.monotonic() - began:.0f} s")
        for note in report.notes:
            say(note)
        _print_gaps(report)

    def _swap_video(self, choice: Choice, order: Order) -> VideoReport:
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

            settings = settings_of(VideoSettings, self.asked)
            return swap_video(self.swapper, self.model, choice, order, settings, self.asked.resume, tell)


def _check_files(job: _Job, overwrite: bool) -> bool:
    """Check the files of a swap before anything is loaded; return whether the target is a video.

    Raises:
        UserError: a file is missing, or the output has a wrong name or replaces another file.
    """
    named = [path for pair in job.whom for path in pair if isinstance(path, Path)]
    for path in (*named, job.target):
        if not path.exists():
            raise UserError(f"there is no file {path}")
    video = film.is_video(job.target)
    photo_swap.check_output(job.out, film.SUFFIXES if video else photo_swap.SUFFIXES, job.target)
    photo_swap.check_inputs([*named, job.target], job.out)
    photo_swap.check_replaceable(job.out, overwrite)
    return video


def _print_gaps(report: VideoReport) -> None:
    if not report.without:
        return
    stretches = [f"{a + 1}" if a == b else f"{a + 1}-{b + 1}" for a, b in report.without]
    named = ", ".join(stretches[:_STRETCHES])
    if len(stretches) > _STRETCHES:
        named += f" and {len(stretches) - _STRETCHES} more stretches, all in the log"
    say(f"no face to swap in {report.frames_without} of {report.frames} frames: {named}")


def _jobs(asked: SwapCommand) -> list[tuple[int, _Job | str]]:
    """The swaps that are asked for, each with its line in the CSV file; a text is the reason why it cannot be done."""
    paths, maps = asked.paths or [], asked.map or []
    whom: Path | str = asked.face if asked.face in ("all", "largest") else Path(asked.face)
    if isinstance(whom, Path) and not whom.is_file():
        raise UserError(f"--face {whom}: all, largest or a photo; there is no file of that name")
    if asked.pairs is not None:
        if paths or asked.out is not None or maps:
            raise UserError("--batch has source, target and output in its file: leave out the others")
        jobs: list[tuple[int, _Job | str]] = []
        for line, (source, target, to) in read_pairs(asked.pairs):
            if source is None or target is None or to is None:
                jobs.append((line, f"one of {', '.join(COLUMNS)} is empty"))
            else:
                jobs.append((line, _Job([(whom, source)], target, to)))
        if not jobs:
            raise UserError(f"{asked.pairs} has no rows")
        return jobs
    if asked.out is None:
        raise UserError("say where to write it: -o swapped.png, or swapped.mp4 for a video")
    if maps:
        if len(paths) != 1 or whom != "all":
            raise UserError(
                "with --map give the target alone: the sources and whose faces they replace are in the maps"
            )
        return [(1, _Job([_mapped(pair) for pair in maps], paths[0], asked.out))]
    if len(paths) != 2:
        raise UserError(
            f"give a source and a target, not {len(paths)} files: ornstein swap me.jpg party.jpg -o out.png"
        )
    return [(1, _Job([(whom, paths[0])], paths[1], asked.out))]


def _mapped(pair: str) -> tuple[Path, Path]:
    reference, equals, source = pair.partition("=")
    if not (reference and equals and source):
        raise UserError(f"--map {pair!r}: write REF=SOURCE, for example ann.jpg=bo.jpg")
    return Path(reference), Path(source)
