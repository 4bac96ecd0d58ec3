"""`ornstein swap`: a face in photos and videos replaced by another person's, with consent and provenance."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from ornstein import processes
from ornstein.cli.options import refuse
from ornstein.devices import choose_device, choose_precision
from ornstein.errors import RunError, UserError
from ornstein.extras import require
from ornstein.faces import provenance
from ornstein.faces.blaze import BlazeDetector
from ornstein.faces.detect import Detector, FaceDetector
from ornstein.faces.provenance.blocklist import BlockList
from ornstein.faces.provenance.consent import Consent
from ornstein.faces.recognise import SAME_PERSON, Recogniser
from ornstein.faces.settings import SwapCommand, SwapSettings, VideoSettings, parse_indices
from ornstein.faces.swap import Choice, Order, Source, SwapModel, Swapper, film, load_model, video
from ornstein.faces.swap import photo as photo_swap
from ornstein.faces.swap.queue import Row, read_rows
from ornstein.faces.swap.sampling import ONSET, FaceModel
from ornstein.faces.swap.swapper import SMALLEST
from ornstein.progress import progress, say, warn
from ornstein.settings import settings_of

__all__ = ["detectors", "swap", "tell_idle"]

_STRETCHES = 8  # stretches of frames without a face that are printed
_OF_SAMPLER = ("steps", "guidance", "towards")
_OF_VIDEOS = ("noise", "gap", "every", "fade", "begin", "end", "codec")


def swap(asked: SwapCommand, given: frozenset[str]) -> None:
    if asked.consent is None and asked.pairs is None:
        raise UserError('say who agreed to this swap and what it is for: --i-have-consent "who, why"')
    if asked.consent is not None:
        Consent(asked.consent)
    choose_precision(asked.precision, choose_device(asked.device))
    group = processes.current()
    if asked.pairs is None and group.world > 1:
        raise UserError("one swap is made by one process: leave out the launcher, or give several with --batch")
    work = _Swaps(asked)
    if asked.pairs is None:
        job = _job(asked, given)
        require("c2pa", "faces", "a signature")  # nothing is made that could not be signed
        work.do(job)
        return
    if asked.paths or asked.out is not None or asked.map or asked.preview is not None:
        raise UserError("--batch has source, target and output in its file: leave out the others")
    _check_face(asked.face)
    rows = read_rows(asked.pairs, asked)
    require("c2pa", "faces", "a signature")
    failed, kept = [], 0
    for row in rows[group.rank :: group.world]:  # the processes of a launch share them out
        try:
            if row.fault is not None:
                raise UserError(row.fault)
            kept += not work.do(_job(row.asked, row.own))
        except (UserError, RunError, ValueError, OSError, MemoryError) as error:
            failed.append((row.line, " ".join(str(error).split()) or type(error).__name__))
            if group.world == 1:
                say(_failure(asked, *failed[-1]))
    _tell(asked, rows, sorted(group.collected(failed)), kept, group)


def tell_idle(model: FaceModel, onset: float | None, given: Iterable[str]) -> bool:
    """Whether the sampler begins at time 0; then the settings of it, of those `given`, do nothing, which is said."""
    at_0 = model.shaped and (ONSET if onset is None else onset) == 0
    idle = [f"--{name}" for name in _OF_SAMPLER if name in given]
    if idle and at_0:
        names = f"{', '.join(idle)} do{'es' * (len(idle) == 1)}"
        warn(f"at onset 0 the face is laid on and no network paints: {names} nothing; give --onset 0.5")
    return at_0


def _tell(asked: SwapCommand, rows: list[Row], failed: list[Any], kept: int, group: Any) -> None:
    if group.world > 1:
        for line, reason in failed:
            say(_failure(asked, line, reason))
    group.end()
    before = f", {kept} of them before" if kept else ""
    say(f"{len(rows) - len(failed)} of {len(rows)} swaps done{before}, {len(failed)} failed")
    if failed:
        raise typer.Exit(1)


def _failure(asked: SwapCommand, line: int, reason: str) -> str:
    return f"line {line} of {asked.pairs} failed: {reason}"


@dataclass(frozen=True)
class _Job:
    """One swap: (reference or "all" or "largest", source) for each source; `indices` of the faces, if any."""

    asked: SwapCommand
    whom: Sequence[tuple[Path | str, Path]]
    target: Path
    out: Path
    video: bool
    indices: tuple[int, ...] = ()

    @property
    def references(self) -> list[Path]:
        return [whom for whom, _ in self.whom if isinstance(whom, Path)]


def _job(asked: SwapCommand, given: frozenset[str]) -> _Job:
    """The swap that is asked for, with all that can be checked before anything is loaded.

    Raises:
        UserError: files or settings do not fit.
    """
    if asked.consent is None:
        raise UserError('say who agreed to this swap and what it is for: consent, "who, why"')
    Consent(asked.consent)
    whom, target = _whom(asked)
    if asked.out is None:
        raise UserError("say where to write it: -o swapped.png, or swapped.mp4 for a video")
    by_number = asked.order is not None or asked.index is not None
    indices = (parse_indices(asked.index) if asked.index is not None else (1,)) if by_number else ()
    references = [path for path, _ in whom if isinstance(path, Path)]
    if by_number and (references or whom[0][0] != "all"):
        raise UserError("--order and --index say which faces: leave out --face, --reference and --map")
    for path in (*(path for pair in whom for path in pair if isinstance(path, Path)), target):
        if not path.exists():
            raise UserError(f"there is no file {path}")
    is_video = film.is_video(target)
    picture = not is_video or asked.preview is not None
    photo_swap.check_output(asked.out, photo_swap.SUFFIXES if picture else film.SUFFIXES, target)
    photo_swap.check_inputs([*references, *(source for _, source in whom), target], asked.out)
    photo_swap.check_replaceable(asked.out, asked.overwrite or (asked.resume and asked.out.exists()))
    if not is_video:
        refuse(SwapCommand, given, (*_OF_VIDEOS, "preview", "resume"), "the target is a photo")
    elif picture:
        refuse(SwapCommand, given, (*_OF_VIDEOS[:4], "codec", "resume"), "one frame alone is swapped")
    else:
        film.check_codec(asked.codec, asked.out)
    if picture and asked.out.suffix.lower() not in (".jpg", ".jpeg"):
        refuse(SwapCommand, given, ("quality",), f"{asked.out.suffix} loses nothing")
    if not (references or (indices and is_video)):
        refuse(SwapCommand, given, ("distance",), "no face is compared with a reference")
    return _Job(asked, whom, target, asked.out, is_video, indices)


def _check_face(face: str) -> Path | str:
    whom: Path | str = face if face in ("all", "largest") else Path(face)
    if isinstance(whom, Path) and not whom.is_file():
        raise UserError(f"--face {whom}: all, largest or a photo; there is no file of that name")
    return whom


def _whom(asked: SwapCommand) -> tuple[list[tuple[Path | str, Path]], Path]:
    """Whose faces become whose, and the target."""
    paths, whom = asked.paths or [], _check_face(asked.face)
    references: list[Path] = list(asked.reference or [])
    if references and whom != "all":
        raise UserError("give --face or --reference, not both")
    if asked.map:
        if len(paths) != 1 or whom != "all" or references:
            raise UserError(
                "with --map give the target alone: the sources and whose faces they replace are in the maps"
            )
        return [_mapped(pair) for pair in asked.map], paths[0]
    if len(paths) != 2:
        if asked.out is None:
            raise UserError("say where to write it: -o swapped.png, or swapped.mp4 for a video")
        raise UserError(
            f"give a source and a target, not {len(paths)} files: ornstein swap me.jpg party.jpg -o out.png"
        )
    return [(each, paths[0]) for each in references or [whom]], paths[1]


def _mapped(pair: str) -> tuple[Path | str, Path]:
    reference, equals, source = pair.partition("=")
    if not (reference and equals and source):
        raise UserError(f"--map {pair!r}: write REF=SOURCE, for example ann.jpg=bo.jpg")
    return Path(reference), Path(source)


def detectors(name: str, score: float | None) -> tuple[FaceDetector, FaceDetector]:
    """The detector of that name for photos, and the quick one for the frames of videos."""
    least: dict[str, Any] = {} if score is None else {"threshold": score}
    if name == "dlib":
        return Detector(**least), Detector(smallest=SMALLEST, thorough=False, **least)
    if score is not None and score > 1:
        raise UserError(f"--score {score:g}: blaze's scores are probabilities, from 0 to 1")
    return BlazeDetector(**least), BlazeDetector(thorough=False, **least)


@dataclass
class _Swaps:
    """Does swaps one after another; what was loaded once is kept."""

    asked: SwapCommand
    models: dict[Path, SwapModel] = field(default_factory=dict)
    swappers: dict[Any, Swapper] = field(default_factory=dict)

    @cached_property
    def recogniser(self) -> Recogniser:
        return Recogniser()

    def model(self, run: Path) -> SwapModel:
        if run not in self.models:
            self.models[run] = load_model(run, choose_device(self.asked.device))
            say(f"model {run}: {self.models[run].card}")
        return self.models[run]

    def swapper(self, asked: SwapCommand) -> Swapper:
        settings = settings_of(SwapSettings, asked)
        key = (settings, asked.model, asked.detector, asked.score, asked.block_list)
        if key not in self.swappers:
            model = self.model(asked.model)
            detector, scanner = detectors(asked.detector, asked.score)
            protected = BlockList.load(asked.block_list) if asked.block_list is not None else None
            plain = SwapSettings()
            changed = [name for name in _OF_SAMPLER if getattr(settings, name) != getattr(plain, name)]
            tell_idle(model.model, settings.onset, changed)
            self.swappers[key] = Swapper(
                model.model, settings, detector, self.recogniser, protected, asked.model, scanner
            )
        return self.swappers[key]

    def do(self, job: _Job) -> bool:
        """Do a swap; False: it was done before, by the same settings, and is kept."""
        asked = job.asked
        swapper, model = self.swapper(asked), self.model(asked.model)
        photos = [photo_swap.photos_in(source) for _, source in job.whom]
        again = self.asked.resume and self.asked.pairs is not None
        order = Order(
            photos,
            job.target,
            job.out,
            Consent(str(asked.consent)),
            job.references,
            asked.log,
            asked.overwrite or (again and job.out.exists()),
        )
        if again and job.out.exists():
            if self._is_done(job, order, swapper, model):
                return False
            photo_swap.check_replaceable(job.out, asked.overwrite)
        sources: list[Source] = [swapper.source(each) for each in photos]
        known: Tensor | None = None
        if job.references:
            known = torch.stack([swapper.reference(path) for path in job.references])
        every = "all" if job.references else str(job.whom[0][0])
        distance = SAME_PERSON if asked.distance is None else asked.distance
        choice = Choice(sources, every, known, distance, asked.order or "left-right", job.indices)
        began = time.monotonic()
        if not job.video or asked.preview is not None:
            frame = None
            if asked.preview is not None:
                source = video.opened(job.target, settings_of(VideoSettings, asked))
                frame, choice = video.frame_at(source, asked.preview), video.resolved(swapper, choice, source)
            faces = photo_swap.swap_photo(swapper, model, choice, order, asked.quality, frame)
            seconds = time.monotonic() - began
            say(f"wrote {job.out}: {faces} face{'s' * (faces != 1)} in {seconds:.1f} s")
            return True
        report = self._swap_video(swapper, model, choice, order, asked)
        say(f"wrote {job.out}: {report.frames} frames in {time.monotonic() - began:.0f} s")
        for note in report.notes:
            say(note)
        _print_gaps(report)
        return True

    def _is_done(self, job: _Job, order: Order, swapper: Swapper, model: SwapModel) -> bool:
        """Whether the output is an unchanged swap of this machine, of these files and settings."""
        there = provenance.read(job.out)
        if there.state != provenance.INTACT or not there.ours or there.swap is None:
            return False
        faces = order.described(str(job.whom[0][0]), job.asked.order or "left-right", job.indices)
        if job.video:
            settings = video.stated(swapper, order, faces, settings_of(VideoSettings, job.asked))
        else:
            settings = photo_swap.stated(swapper, order, faces, job.asked.quality)
        expected = order.statement(model, settings)
        return all(there.swap.get(name) == value for name, value in expected.items() if name != "time")

    def _swap_video(
        self, swapper: Swapper, model: SwapModel, choice: Choice, order: Order, asked: SwapCommand
    ) -> video.VideoReport:
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

            settings = settings_of(VideoSettings, asked)
            return video.swap_video(swapper, model, choice, order, settings, self.asked.resume, tell)


def _print_gaps(report: video.VideoReport) -> None:
    if report.held or report.faded:
        say(f"held over gaps: {report.held} faces; held and faded out where they are lost: {report.faded}")
    if not report.without:
        return
    stretches = [f"{a + 1}" if a == b else f"{a + 1}-{b + 1}" for a, b in report.without]
    named = ", ".join(stretches[:_STRETCHES])
    if len(stretches) > _STRETCHES:
        named += f" and {len(stretches) - _STRETCHES} more stretches, all in the log"
    say(f"no face to swap in {report.frames_without} of {report.frames} frames: {named}")
