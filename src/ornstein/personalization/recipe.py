"""`orn.personalize`: from a base, a few pictures and a prompt to a run directory that samples what is new."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein import checkpoint, processes
from ornstein.data.pixels import save_grid
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_device
from ornstein.errors import UserError
from ornstein.interop.pipeline import Pipeline
from ornstein.personalization.class_pictures import class_pictures, sampled
from ornstein.personalization.files import about_run, restore, write_run
from ornstein.personalization.learned import Learned, begin
from ornstein.personalization.pictures import Pictures, PictureSet, open_pictures, split
from ornstein.personalization.report import write_personal_report
from ornstein.personalization.settings import SETTINGS, PersonalizeSettings
from ornstein.personalization.task import Check, Personalisation
from ornstein.personalization.texts import check_words
from ornstein.progress import progress, say, warn
from ornstein.settings import extent_of, read, read_file, to_json
from ornstein.store import atomic_write
from ornstein.text.words import word_pattern
from ornstein.training import TrainState, run_task
from ornstein.training.folder import check_folder
from ornstein.training.recompute import recomputed
from ornstein.training.settings import resumed
from ornstein.training.state import check_new, check_resumable

__all__ = ["REPORT", "Run", "personalize"]

REPORT = "report.html"
_LISTED = 10  # unreadable files that are named


@dataclass(frozen=True)
class Run:
    """A finished personalisation.

    path: the run directory, which `orn.load` opens. settings: as stored in it. checks: the loss on fixed noise and the
    drift of the class at every checkpoint. model: the base with what was learned on it, for `orn.sample`. pictures: the
    ones trained on. held_out: the others, if there are any.
    """

    path: Path
    settings: PersonalizeSettings
    checks: list[Check]
    model: Denoiser = field(repr=False)
    pictures: Pictures = field(repr=False)
    held_out: Pictures | None = field(repr=False)


def personalize(
    base: str | Path | None,
    images: str | Path | None,
    prompt: str | None,
    out: str | Path,
    *,
    resume: bool = False,
    report: bool = True,
    device: str = "auto",
    **settings: Any,
) -> Run:
    """Teach a model of text what a few pictures show: what `ornstein personalize` does.

    Of several processes (`torchrun`) all train; the first one alone writes files and the console.

    Args:
        base: a run that takes text, or the folder or hub id of a pipeline of diffusers; None with `resume`.
        images: a folder or an archive of pictures of one person, thing or style; None with `resume`.
        prompt: their prompt, with a placeholder for what is new, "a photo of sks dog"; None with `resume`.
        out: the run directory.
        resume: continue the run in `out` with its stored settings; `settings` may extend it (steps, minutes).
        report: write report.html at the end.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        **settings: the fields of `personalization.settings.PersonalizeSettings`: method, rank, prior, steps, ...

    Returns:
        The run, with the model in memory.

    Raises:
        UserError: settings, base or pictures that do not go together, or `out` holds another run.
        RunError: the training failed; the last checkpoint is intact.
        KeyboardInterrupt: after SIGINT or SIGTERM, with a checkpoint saved.
    """
    out = Path(out)
    named = {"base": base, "images": images, "prompt": prompt}
    asked = _asked(out, resume, {k: str(v) for k, v in named.items() if v not in (None, "")} | settings)
    asked.validate()
    group = processes.current()
    where = choose_device(device)
    group.agreed(lambda: _claim(out, resume))
    place = checkpoint.locate(asked.base)
    folders = {name: getattr(asked, name) for name in ("class_folder", "masks", "held_out_images")}
    folders = {name: None if path is None else path.resolve() for name, path in folders.items()}
    asked = replace(asked, base=str(place.resolve()), images=_absolute(asked.images), **folders)
    d = checkpoint.load(place).to(where)
    if asked.size is not None and isinstance(d, Pipeline):
        d = d.sized(*extent_of(asked.size))
    for line in check_words(d, asked):
        warn(line)
    pictures, held_out = _pictures(asked, d)
    of_class = class_pictures(d, asked, out, pictures) if asked.pictured else None
    prompts = list(dict.fromkeys([asked.prompt, asked.of_class, *asked.preview_prompts]))
    before = _samples(d, asked, prompts) if report and group.main else None
    learned = begin(d, asked)
    about = about_run(d, place, asked)
    write = partial(write_run, d=d, base=place, about=about, settings=asked)
    sets = [
        None if each is None else PictureSet(d, each, other, asked.outside)
        for each, other in ((pictures.mirrored() if asked.flip else pictures, of_class), (held_out, None))
    ]
    assert sets[0] is not None
    task = Personalisation(d, learned, asked, sets[0], sets[1], write, about, out)
    states = run_task(task, sets[0], task.trainer, out, resume)
    if group.main:
        atomic_write(out / SETTINGS, (json.dumps(to_json(asked), indent=1) + "\n").encode())
    say(
        f"{asked.method}: {sum(p.numel() for p in learned.parameters()):,} numbers on "
        f"{sum(p.numel() for p in d.parameters()):,} of {asked.base}, {len(pictures)} pictures"
        + (f", {len(of_class)} of the class" if of_class is not None else "")
        + (f", {len(held_out)} held out" if held_out is not None else "")
    )
    steps = _follow(states, task, asked, prompts, out, resume)
    group.wait()  # the main process has written what the others read below
    group.end()
    if task.stops and task.checks:
        restore(learned, out)
    if isinstance(d, Pipeline):
        d.forget_text()
    best = task.best
    if resume and not steps:
        say(f"{out} is finished already; give more --steps or --minutes to train on")
        report = report and not (out / REPORT).is_file()
    elif best is not None:
        what = "held-out loss" if held_out is not None else "loss of the pictures on fixed noise"
        gate = ": it is behind the gate, which files for other programs have not" if asked.prior == "gated" else ""
        say(f"{what} {best.loss:.4f} at step {best.step}; drift of the class {best.drift:.2%}{gate}")
    if report and group.main:
        shown = {"pictures": pictures, "held_out": held_out, "of_class": of_class, "before": before}
        write_personal_report(out / REPORT, task, prompts, _samples(d, asked, prompts), **shown)
    return Run(out, asked, task.checks, d, pictures, held_out)


def _asked(out: Path, resume: bool, given: dict[str, Any]) -> PersonalizeSettings:
    """The settings of this call: those stored in `out` for a resumption, with what is given."""
    unknown = given.keys() - PersonalizeSettings.__dataclass_fields__.keys()
    if unknown:
        known = ", ".join(PersonalizeSettings.__dataclass_fields__)
        raise UserError(f"personalize has no setting {min(unknown)!r}; known: {known}")
    if resume and (out / SETTINGS).is_file():
        given = {k: _absolute(v) if k in ("base", "images") else v for k, v in given.items()}
        return resumed(read(PersonalizeSettings, read_file(out / SETTINGS), out / SETTINGS), given)
    return PersonalizeSettings(**given)


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if Path(path).exists() else path


def _claim(out: Path, resume: bool) -> None:
    """Refuse what cannot be begun or resumed, before minutes of work."""
    if (out / SETTINGS).is_file():
        read(PersonalizeSettings, read_file(out / SETTINGS), out / SETTINGS)  # else the files there are none of ours
    else:
        check_folder(out)
    check_resumable(out) if resume else check_new(out)


def _pictures(settings: PersonalizeSettings, d: Denoiser) -> tuple[Pictures, Pictures | None]:
    """The pictures to train on and those held out; what was left out is named."""
    opened = open_pictures(settings.images, d, settings)
    for name, why in opened.skipped[:_LISTED]:
        warn(f"{name}: {why}; left out")
    if len(opened.skipped) > _LISTED:
        warn(f"and {len(opened.skipped) - _LISTED} more files that cannot be read")
    for note in opened.notes:
        warn(note)
    if settings.prior == "gated":
        named = word_pattern(str(settings.word))
        closed = [n for n, p in zip(opened.names, opened.prompts, strict=True) if not all(map(named.search, p))]
        if closed:
            raise UserError(
                f"--prior gated: a prompt of {closed[0]} does not hold {settings.word} as a word of its own, which "
                "opens the gate"
            )
    return split(opened, settings, d)


def _samples(d: Denoiser, settings: PersonalizeSettings, prompts: list[str]) -> Tensor:
    """Pictures uint8 (prompts, previews, C, H, W): the same noise for every prompt."""
    rows = [sampled(d, [prompt] * settings.previews, 0, settings.guidance) for prompt in prompts]
    return torch.stack(rows)


def _follow(
    states: Iterator[TrainState[Learned]],
    task: Personalisation,
    settings: PersonalizeSettings,
    prompts: list[str],
    out: Path,
    resume: bool,
) -> int:
    """Train to the end with a progress bar; the steps made here."""
    group, config, d = processes.current(), task.trainer, task.denoiser
    timed = config.minutes is not None
    total = 60 * config.minutes if config.minutes is not None else config.steps
    steps, began = 0, time.monotonic()
    with ExitStack() as stack:
        if settings.recompute:
            _recompute(d, stack)
        bar = stack.enter_context(progress("s" if timed else "steps"))
        shown = bar.add_task("training", total=total, note="", visible=not resume)
        for state in states:
            steps += 1
            done = state.elapsed if timed else state.step
            check = f"  on fixed noise {task.checks[-1].loss:.4f}" if task.checks else ""
            note = f"loss {state.loss:.4f}{check}"
            bar.update(shown, completed=min(done, total or done), note=note, visible=True)
            if state.sample_due and group.main:
                with task.model.shown(state.model):
                    _preview(d, settings, prompts, out / "progress" / f"step-{state.step:06d}.png")
    if task.done and steps:
        say(f"stopped at step {task.checks[-1].step}: the held-out loss was best at step {task.best.step}")  # pyright: ignore
    if steps:
        say(f"{steps} steps in {time.monotonic() - began:.0f} s")
    return steps


def _preview(d: Denoiser, settings: PersonalizeSettings, prompts: list[str], path: Path) -> None:
    """Write a grid, a row a prompt, always of the same noise."""
    if isinstance(d, Pipeline):
        d.forget_text()
    pixels = _samples(d, settings, prompts).flatten(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    comment = json.dumps({"prompts": prompts, "seed": 0, "guidance": settings.guidance})
    save_grid(pixels, path, columns=settings.previews, upscale=max(1, 64 // pixels.shape[-1]), gap=1, comment=comment)


def _recompute(d: Denoiser, stack: ExitStack) -> None:
    """Compute the network's blocks again in the backward pass while the stack is open."""
    model: Any = getattr(d.net, "model", d.net)
    if hasattr(model, "enable_gradient_checkpointing"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.enable_gradient_checkpointing()
        model.train()  # diffusers recomputes nothing in evaluation mode
        stack.callback(model.eval)
        stack.callback(model.disable_gradient_checkpointing)
    else:
        stack.enter_context(recomputed(d.net))
