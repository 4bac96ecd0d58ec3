"""Clips of `ornstein sample`: from noise, continued from given frames, or longer than the network's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.cli.commands import Sample
from ornstein.cli.models import compile_model
from ornstein.data import open_clips, save_gif, save_mp4, save_sheet
from ornstein.data.flow import flow_of, read_flow
from ornstein.denoiser import Denoiser, SampleSpec
from ornstein.errors import UserError
from ornstein.evaluation.samples import guidance_rule, record_of
from ornstein.nets.video import frames_known
from ornstein.noise import Carried
from ornstein.progress import progress, say
from ornstein.request import SampleRequest
from ornstein.sampling import State, draw
from ornstein.seal import check_replaceable, seal_file
from ornstein.training.settings import SETTINGS, Settings
from ornstein.video import sample_given, sample_long

__all__ = ["cheaper_by", "sample_clips"]

_FPS = 8.0


def sample_clips(
    asked: Sample, denoiser: Denoiser, n: int, labels: Tensor | None, request: SampleRequest, folder: Path
) -> None:
    """Draw n clips and write an mp4 and a GIF each, and a sheet of all."""
    assert denoiser.data is not None
    sheet = folder / "sheet.png"
    check_replaceable([*(p for i in range(n) for p in _files(folder, i)), sheet], asked.overwrite)
    if asked.compile:
        say("compiling the network: a minute, or seconds if it has been done before")
        first = min(n, request.batch or n)
        cond = {"label": None if labels is None else labels[:first]}
        compile_model(denoiser, (first, *denoiser.data.shape), request, cond)
    if asked.given is not None:
        samples = _continued(asked, denoiser, n, labels, request)
    elif asked.frames is not None and asked.frames > denoiser.data.shape[1]:
        samples = _long(asked, denoiser, n, labels, request)
    else:
        samples = _from_noise(asked, denoiser, n, labels, request)
    fps = asked.fps or _trained_fps(asked.run) or _FPS
    said = record_of(asked.run, _settings(asked, request) | {"fps": fps} | _prompts(asked, denoiser))
    upscale = max(1, 64 // samples.shape[-1])
    for i, clip in enumerate(samples):
        mp4, gif = _files(folder, i)
        comment = json.dumps(said | {"sample": i})
        save_mp4(clip, mp4, fps, upscale, comment)
        save_gif(clip, gif, fps, upscale, comment)
        seal_file(mp4)
        seal_file(gif)
    save_sheet(samples, sheet, upscale=upscale, comment=json.dumps(said))
    seal_file(sheet)
    say(f"{len(samples)} clips in {folder}, all of them in {sheet}")


def _files(folder: Path, i: int) -> tuple[Path, Path]:
    return folder / f"{i:05d}.mp4", folder / f"{i:05d}.gif"


def _settings(asked: Sample, request: SampleRequest) -> dict[str, Any]:
    """What decides the clips, in JSON types."""
    solver = request.solver if isinstance(request.solver, str) else "tuned"
    decided = {"solver": solver, "steps": request.steps, "grid": request.grid, "seed": request.seed}
    given = {"guidance": request.guidance, "class": asked.label, "frames": asked.frames, "given": asked.given}
    given |= {"flow": None if asked.flow is None else str(asked.flow), "like": asked.like}
    given |= {"size": asked.size, "tiled": asked.tiled or None, "width": asked.width}
    given |= guidance_rule(request) | {"coloured": asked.coloured}
    return decided | {name: value for name, value in given.items() if value is not None} | cheaper_by(asked)


def cheaper_by(asked: Sample) -> dict[str, Any]:
    """The settings of cheaper evaluations that were asked for."""
    kept = {"cache": asked.cache} if asked.cache > 1 else {}
    return kept | ({"merge": asked.merge} if asked.merge else {})


def _prompts(asked: Sample, denoiser: Denoiser) -> dict[str, Any]:
    """The prompts of the clips, which take the place of classes."""
    if denoiser.data is None or not getattr(denoiser, "takes_text", False):
        return {}
    return {"prompts": denoiser.data.classes, "negative": asked.negative}


def _trained_fps(run: Path) -> float | None:
    """The frame rate of the clips that the run was trained on; None if it does not store one."""
    return Settings.stored(run / SETTINGS).fps if (run / SETTINGS).is_file() else None


def _from_noise(asked: Sample, denoiser: Denoiser, n: int, labels: Tensor | None, request: SampleRequest) -> Tensor:
    assert denoiser.data is not None
    channels, length, *size = denoiser.data.shape
    shape = (n, channels, asked.frames or length, *size)
    with _steps(request, n) as advance:
        cond = {"label": labels, "flow": _flow(asked, denoiser, n)}
        return denoiser.decode(draw(denoiser, shape, request, cond, callback=advance))


@contextmanager
def _steps(request: SampleRequest, n: int) -> Iterator[Callable[[State], None]]:
    """A progress bar of the steps of n clips, batch after batch; gives the callback that advances it."""
    batch = request.batch or n
    name = request.solver if isinstance(request.solver, str) else "tuned"
    with progress("steps") as bar:
        task = bar.add_task("sampling", total=None, note="")

        def advance(state: State) -> None:
            done, total = state.first // batch * state.steps + state.step, -(-n // batch) * state.steps
            bar.update(task, completed=done, total=total, note=f"{name}, t = {state.t:.3f}")

        yield advance


def _continued(asked: Sample, denoiser: Denoiser, n: int, labels: Tensor | None, request: SampleRequest) -> Tensor:
    """Clips that keep the first and last frames of the given videos; the frames between are made."""
    assert denoiser.data is not None and asked.given is not None
    _require_given_frames(denoiser, asked.run)
    channels, length, height, width = denoiser.shape or denoiser.data.shape
    mask = frames_known(length, asked.first, asked.last)
    videos = open_clips(asked.given, length, (height, width), channels)
    known, classes = videos.batch(torch.arange(n) % len(videos))
    if labels is None and classes is not None and denoiser.data.classes:
        labels = _known_classes(videos.classes, denoiser.data)[classes]
    if labels is None and request.guidance not in (None, 1):
        raise UserError(f"the videos in {asked.given} have no classes for --guidance: give --class")
    of = f"{min(n, len(videos))} clips in {asked.given}"
    say(f"continuing from {asked.first} first and {asked.last} last frames of {of}")
    with _steps(request, n) as advance:
        masks = mask.expand(n, -1)
        cond = {"label": labels, "flow": _flow(asked, denoiser, n)}
        if denoiser.space is None:
            return sample_given(denoiser, known, masks, cond=cond, callback=advance, **_options(request))
        given = denoiser.space.encode(known)[0]
        made = sample_given(denoiser, given, masks, cond=cond, callback=advance, **_options(request))
        return torch.where(mask[:, None, None], known, denoiser.decode(made).to(known))  # the decoder loses a little


def _long(asked: Sample, denoiser: Denoiser, n: int, labels: Tensor | None, request: SampleRequest) -> Tensor:
    """Clips longer than the network's, window after window."""
    assert denoiser.data is not None and asked.frames is not None
    _require_given_frames(denoiser, asked.run)
    channels, window, *size = denoiser.data.shape
    shared = max(1, window // 2) if asked.overlap is None else asked.overlap
    say(f"{n} clips of {asked.frames} frames, {window} at a time")
    shape = (n, channels, asked.frames, *size)
    with _steps(request, n) as advance:
        options = _options(request)
        made = sample_long(denoiser, shape, window, shared, cond={"label": labels}, callback=advance, **options)
        return denoiser.decode(made)


def _flow(asked: Sample, denoiser: Denoiser, n: int) -> Tensor | None:
    """The motion of n clips, in turn those of --flow or --like; None for a model whose noise follows none.

    Without either they are those of the clips that the training held out.
    """
    if not isinstance(denoiser.process.noise, Carried):
        return None
    assert denoiser.data is not None
    channels, frames, *size = denoiser.data.shape
    if asked.flow is not None:
        flows = read_flow(asked.flow, (frames, size[0], size[1]))
        return flows[torch.arange(n) % len(flows)]
    stored = Settings.stored(asked.run / SETTINGS) if (asked.run / SETTINGS).is_file() else None
    if asked.like is None and stored is None:
        raise UserError(f"{asked.run} does not say what its clips are: give --flow or --like")
    data = asked.like or (stored.data if stored is not None else "")
    clips = open_clips(data, frames, (size[0], size[1]), channels, stride=1 if stored is None else stored.stride)
    if asked.like is None and stored is not None and len(clips) > 1:
        clips = clips.split(stored.held_out, stored.seed)[1]
    say(f"the motion of {min(n, len(clips))} clips in {data}")
    return flow_of(clips, torch.arange(n) % len(clips), None if stored is None or asked.like else stored.flow_by)


def _options(request: SampleRequest) -> dict[str, Any]:
    names = (
        "solver",
        "steps",
        "grid",
        "seed",
        "guidance",
        "guidance_interval",
        "guidance_rescale",
        "coloured",
        "batch",
        "precision",
    )
    return {name: getattr(request, name) for name in names}


def _require_given_frames(denoiser: Denoiser, run: Path) -> None:
    if not getattr(denoiser.net, "config", {}).get("conditioning"):
        raise UserError(f"{run} has not learned to continue from given frames: train it with --given-frames")


def _known_classes(names: list[str], spec: SampleSpec) -> Tensor:
    """The model's number of each class, (classes,); -1, no condition, for one it does not know."""
    return torch.tensor([spec.classes.index(name) if name in spec.classes else -1 for name in names])
