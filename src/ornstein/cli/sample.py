"""`ornstein sample`: pictures or clips from a trained run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein import autoencoders, checkpoint, processes
from ornstein.cli.clips import cheaper_by, sample_clips
from ornstein.cli.commands import Sample
from ornstein.cli.models import compile_model, lora_of, open_model
from ornstein.cli.options import refuse
from ornstein.cli.shards import batches_of, write_images
from ornstein.compress.caching import cached
from ornstein.compress.integral import at_width, check_elastic
from ornstein.compress.merging import merged
from ornstein.denoiser import Denoiser, SampleSpec
from ornstein.devices import choose_device, choose_precision, free_memory
from ornstein.errors import UserError
from ornstein.evaluation.samples import choose_solver, class_number, guidance_rule, record_of
from ornstein.interop.lora import lora_file
from ornstein.interop.memory import samples_at_once
from ornstein.interop.pipeline import Pipeline
from ornstein.nets import Tiled
from ornstein.noise import Carried, Covariance, FrameCovariance, Identity, Kronecker
from ornstein.progress import progress, say, warn
from ornstein.request import CHURNED, COLOURS, GRID, STEPS, SampleRequest
from ornstein.sampling import State, at_once, default_grid, draw
from ornstein.settings import extent_of, extent_text
from ornstein.sizes import check_sample
from ornstein.solvers import Tuned
from ornstein.store import file_hash

__all__ = ["sample"]

_IMAGES, _CLIPS = 64, 16
_AT_ONCE = 64
_PROBED = 4  # samples that the error of kept features is measured with
_CLIPS_AT_ONCE = 8
_OF_AUTOENCODERS = {"run", "num", "seed", "device", "trust_sizes", "out", "overwrite"}


def sample(asked: Sample, given: frozenset[str]) -> None:
    """Draw samples from the run, and write them."""
    asked = replace(asked, run=checkpoint.locate(asked.run))
    folder = checkpoint.run_folder(asked.run) / "samples" if asked.out is None else asked.out
    device = choose_device(asked.device)
    if checkpoint.is_autoencoder(asked.run):
        others = Sample.__dataclass_fields__.keys() - {
            "run",
            "num",
            "seed",
            "device",
            "trust_sizes",
            "out",
            "overwrite",
        }
        refuse(Sample, given, others, "an autoencoder samples from its own prior")
        _from_autoencoder(asked, folder, device)
        return
    denoiser, guidance = open_model(asked, asked.guidance)
    if asked.width is not None:
        check_elastic(asked.run)
        denoiser = at_width(denoiser, asked.width)
    denoiser = denoiser.to(device)
    if denoiser.data is None:
        raise UserError(f"{asked.run} does not say what its samples look like; train it with `ornstein train`")
    clips = len(denoiser.data.shape) == 4
    if asked.tiled:
        denoiser.net = _tiled(asked, denoiser)
    if asked.size is not None:
        denoiser.data = _resized(asked, denoiser)
    _refuse_idle(asked, given, clips, denoiser.data.shape, isinstance(denoiser.process.noise, Carried))
    if guidance in (None, 1):  # or it is a condition of the network
        refuse(Sample, given, ("guidance_interval", "guidance_rescale"), "it needs a --guidance other than 1")
    prompts = len(denoiser.data.classes) if getattr(denoiser, "takes_text", False) else 0
    n = asked.num or prompts or (_CLIPS if clips else _IMAGES)
    # given videos have classes of their own, and no prompts
    labels = None if asked.given is not None and not prompts else denoiser.data.labels(n)
    if asked.label is not None:
        labels = torch.full((n,), class_number(asked.label, denoiser.data, asked.run))
    if guidance not in (None, 1) and not denoiser.data.classes:
        raise UserError(f"{asked.run} was trained without classes: --guidance has nothing to strengthen")
    from_noise = asked.given is None and (asked.frames is None or asked.frames <= denoiser.data.shape[1])
    request = _request(asked, denoiser, from_noise, device, guidance)
    if asked.cache > 1 or asked.merge:
        denoiser = _cheaper(asked, denoiser, request, labels)
    if clips:
        if processes.launched() > 1:
            raise UserError("clips are sampled by one process: leave out the launcher")
        sample_clips(asked, denoiser, n, labels, request, folder)
    else:
        _images(asked, denoiser, folder, n, labels, request)


def _tiled(asked: Sample, denoiser: Denoiser) -> Tiled:
    """The network in tiles of the size of its training, which share a quarter."""
    assert denoiser.data is not None
    tile = (denoiser.data.shape[-2], denoiser.data.shape[-1])
    height, width = tile if asked.size is None else extent_of(asked.size)
    if min(height - tile[0], width - tile[1]) < 0 or (height, width) == tile:
        raise UserError(f"--tiled is for a --size above that of the training, {extent_text(tile)}")
    if not _over_frames(denoiser.process.noise):
        raise UserError(f"--tiled: {denoiser.process.noise} holds the pixels of one size together")
    return Tiled(denoiser.net, tile, min(tile) // 4)


def _over_frames(noise: Covariance) -> bool:
    """Whether C leaves pixels independent of one another, so that it is one of frames of any size."""
    return isinstance(noise, Identity | FrameCovariance) or (isinstance(noise, Kronecker) and noise.space is None)


def _resized(asked: Sample, denoiser: Denoiser) -> SampleSpec:
    """The sample spec at --size. Warns of a size that the model was not trained at."""
    data, (height, width) = denoiser.data, extent_of(asked.size or 0)
    assert data is not None
    if denoiser.space is not None:
        raise UserError("--size is for models in pixels: latents belong to one size of image; leave it out")
    if len(data.shape) != 3 and not asked.tiled:
        raise UserError("--size is for models of images in pixels; clips have the size of the training, or are --tiled")
    if asked.tiled and asked.given is not None:
        raise UserError("--given videos are read at the size of the training: leave out --tiled")
    check_sample((*data.shape[:-2], height, width), "--size", asked.trust_sizes)
    known = data.sizes or (data.shape[1:],)
    if (height, width) not in known and not asked.tiled:
        listed = ", ".join(extent_text((h, w)) for h, w in known)
        warn(
            f"{asked.run} was trained at {listed}: at {extent_text((height, width))} its samples may not hold together"
        )
    return replace(data, shape=(*data.shape[:-2], height, width))


def _refuse_idle(asked: Sample, given: Collection[str], clips: bool, shape: tuple[int, ...], carried: bool) -> None:
    """Refuse the options that do nothing for this model and these options."""
    if not clips:
        refuse(
            Sample,
            given,
            ("frames", "overlap", "given", "first", "last", "fps", "flow", "like"),
            "this is a model of images",
        )
        return
    if asked.given is not None or (asked.frames is not None and asked.frames > shape[1]) or carried:
        refuse(Sample, given, ("cache", "merge"), "it is for clips from noise alone, of the length of the model's")
    if not carried:
        refuse(Sample, given, ("flow", "like"), "the noise of this model follows no motion: train with --noise warped")
    elif asked.frames is not None and asked.frames > shape[1]:
        raise UserError(f"--frames {asked.frames}: a model of --noise warped makes clips of {shape[1]} frames")
    if asked.flow is not None:
        refuse(Sample, given, ("like",), "--flow is the motion already")
    if asked.given is None:
        refuse(Sample, given, ("first", "last"), "it needs videos: --given")
    else:
        refuse(Sample, given, ("frames", "overlap"), "with --given, clips have the length of the model's")
    if asked.frames is None or asked.frames <= shape[1]:
        refuse(Sample, given, ("overlap",), f"it is for --frames above {shape[1]}, by several windows")


def _request(
    asked: Sample, denoiser: Denoiser, from_noise: bool, device: torch.device, guidance: float | None
) -> SampleRequest:
    """What decides the samples: as asked for, or what the run stores. Says so if it is the run's."""
    assert denoiser.data is not None
    clips = len(denoiser.data.shape) == 4
    spacing, steps = _spacing(asked.grid), asked.steps
    if isinstance(spacing, tuple):
        if steps not in (None, len(spacing) - 1):
            raise UserError(f"--grid has the times of {len(spacing) - 1} steps: leave out --steps {steps}")
        steps = len(spacing) - 1
    if steps is not None and steps < 1:
        raise UserError(f"--steps must be at least 1, not {steps}")
    guidance = 1.0 if guidance is None else guidance
    solver, steps, grid = _chosen(asked, denoiser, steps, spacing, guidance, from_noise)
    return SampleRequest(
        solver=solver,
        steps=steps,
        grid=grid,
        seed=asked.seed,
        guidance=guidance,
        batch=asked.batch or _batch(denoiser, clips, device, guidance != 1),
        precision=choose_precision(asked.precision, device),
        guidance_interval=asked.guidance_interval,
        guidance_rescale=asked.guidance_rescale,
        coloured=None if asked.coloured is None else _table(asked.coloured),
    )


def _table(colour: str) -> str | list[list[float]]:
    """--coloured: a name, or the table in a file; whether it is one says the solver."""
    if colour in COLOURS:
        return colour
    try:
        table = json.loads(Path(colour).read_text())
        torch.as_tensor(table, dtype=torch.float64)
    except (OSError, ValueError, TypeError) as error:
        known = ", ".join(COLOURS)
        raise UserError(f"--coloured {colour}: neither {known}, nor a .json file of a table ({error})") from None
    return table


def _batch(denoiser: Denoiser, clips: bool, device: torch.device, guided: bool) -> int:
    """How many samples go through the network at once: of a pipeline, as many as fit in memory at most."""
    assert denoiser.data is not None
    most = _CLIPS_AT_ONCE if clips else min(_AT_ONCE, at_once(denoiser.data.shape))
    if isinstance(denoiser, Pipeline):
        most = min(most, samples_at_once(denoiser, free_memory(device), guided))
    return most


def _chosen(
    asked: Sample,
    denoiser: Denoiser,
    steps: int | None,
    grid: str | tuple[float, ...] | None,
    guidance: float,
    from_noise: bool,
) -> tuple[str | Tuned, int, str | tuple[float, ...]]:
    """Solver, number of steps and time schedule."""
    run, few = asked.run, denoiser.distilled
    if asked.coloured is not None:
        if few is not None or asked.solver not in (None, "ddim", "ddpm"):
            what = f"{run} is distilled" if few is not None else f"--solver {asked.solver} has none"
            raise UserError(f"--coloured is the noise of the steps of ddim: {what}")
        steps = STEPS if steps is None else steps
        return "ddim", steps, grid or default_grid("ddim", denoiser.process.schedule, steps)
    if few is None:
        steps = STEPS if steps is None else steps
        chosen = choose_solver(run, asked.solver, steps, grid, guidance, from_noise)
        if isinstance(chosen, Tuned):
            share, kind = chosen.error / chosen.untuned, "tuned" if chosen.learned else "chosen"
            say(f"{kind} solver: {steps} steps, {share:.0%} of the default one's error where it was {kind}")
        name = chosen if isinstance(chosen, str) else "tuned"
        return chosen, steps, grid or default_grid(name, denoiser.process.schedule, steps)
    if guidance != 1:
        raise UserError(f"{run} is distilled and has its guidance built in, {few.guidance:g}: leave out --guidance")
    if not from_noise:
        raise UserError(f"{run} is distilled and makes whole clips from noise: leave out --given and longer --frames")
    if asked.solver in (None, few.solver) and steps in (None, few.steps) and grid is None:
        say(f"distilled model: {few}, guidance {few.guidance:g} built in")
        return few.solver, few.steps, few.times
    if asked.solver in ("tuned", CHURNED):
        raise UserError(f"{run} is distilled to {few}: no solver is tuned for it; leave out --solver {asked.solver}")
    warn(f"{run} was distilled for {few}: by others its samples are not its teacher's")
    warnings.filterwarnings("ignore", "this model was distilled")  # that was just said
    return asked.solver or few.solver, few.steps if steps is None else steps, grid or GRID


def _spacing(text: str | None) -> str | tuple[float, ...] | None:
    """--grid: a name, or times."""
    if text is None or "," not in text:
        return text
    try:
        times = tuple(float(t) for t in text.split(","))
    except ValueError:
        raise UserError(
            f"--grid takes a name or times with commas between, such as 1,0.6,0.3,0; got {text!r}"
        ) from None
    if (times[0], times[-1]) != (1.0, 0.0) or not all(a > b for a, b in pairwise(times)):
        raise UserError(f"--grid: the times must fall from 1 to 0, each below the one before it; got {text!r}")
    return times


def _images(
    asked: Sample, denoiser: Denoiser, folder: Path, n: int, labels: Tensor | None, request: SampleRequest
) -> None:
    """Images batch by batch, those that are missing, in the processes of a launch."""
    assert denoiser.data is not None and request.batch is not None and request.steps is not None
    shape = denoiser.data.shape
    settings: dict[str, Any] = {
        "solver": request.solver,
        "steps": request.steps,
        "grid": request.grid,
        "seed": request.seed,
        "guidance": request.guidance,
        **guidance_rule(request),
        **({"tiled": True} if asked.tiled else {}),
        **({} if asked.coloured is None else {"coloured": request.coloured}),
        "batch": request.batch,
        "class": asked.label,
        **({} if asked.size is None else {"size": list(shape[1:])}),
        "precision": str(request.precision or torch.float32),
        "compiled": asked.compile,
    }
    if getattr(denoiser, "takes_text", False):
        settings |= {"prompts": denoiser.data.classes, "negative": asked.negative, "guidance": asked.guidance}
    if asked.lora:
        settings["lora"] = [[text, file_hash(lora_file(lora_of(text)[0])).hexdigest()] for text in asked.lora]
    if asked.width is not None:
        settings["width"] = asked.width
    settings |= cheaper_by(asked)
    record = record_of(asked.run, settings)
    batch, steps = min(n, request.batch), request.steps
    name = request.solver if isinstance(request.solver, str) else "tuned"
    processes.current()
    with progress("steps", transient=True) as bar:
        task = bar.add_task("sampling", total=steps * batches_of(n, batch), note="")
        before, compile_first = 0, asked.compile

        def advance(state: State) -> None:
            bar.update(task, completed=before + state.step, note=f"{name}, t = {state.t:.3f}")

        def make(rows: range) -> Tensor:
            nonlocal before, compile_first
            # Compiled code is of one batch size: the last batch is filled up, and the surplus dropped.
            count = batch if asked.compile else len(rows)
            index = torch.arange(rows.start, rows.start + count).clamp(max=n - 1)
            cond = {"label": None if labels is None else labels[index]}
            of_rows = replace(request, first=rows.start)
            if compile_first:
                compile_first = False
                bar.update(task, note="compiling the network: a minute, or seconds if it has been done before")
                compile_model(denoiser, (count, *shape), of_rows, cond)
            samples = draw(denoiser, (count, *shape), of_rows, cond, callback=advance)
            before += steps
            return denoiser.decode(samples[: len(rows)])

        columns = len(denoiser.data.classes) if labels is not None and asked.label is None else None
        write_images(folder, record, n, batch, make, columns, asked.overwrite)


def _cheaper(asked: Sample, denoiser: Denoiser, request: SampleRequest, labels: Tensor | None) -> Denoiser:
    """The denoiser with kept features or merged tokens; says how much the first samples differ from those without."""
    assert denoiser.data is not None
    shape = denoiser.data.shape
    other = cached(denoiser, asked.cache) if asked.cache > 1 else denoiser
    other = merged(other, asked.merge) if asked.merge else other
    count = 1 if len(shape) == 4 else min(_PROBED, request.batch or _PROBED)
    cond = {"label": None if labels is None else labels[torch.arange(count) % len(labels)]}
    plain, cheap = (draw(d, (count, *shape), request, cond) for d in (denoiser, other))
    error = float((plain - cheap).double().square().mean().sqrt())
    what = f"deep features of every {asked.cache} evaluations" if asked.cache > 1 else f"{asked.merge:.0%} merged"
    say(f"{what}: the first {count} differ by {error:.3g} (black to white is 2)")
    return other


def _from_autoencoder(asked: Sample, folder: Path, device: torch.device) -> None:
    """Images from an autoencoder's own prior."""
    model = autoencoders.load(asked.run, asked.trust_sizes).to(device)

    def make(rows: range) -> Tensor:
        with torch.no_grad():
            return model.sample(len(rows), autoencoders.addressed(asked.seed, torch.arange(rows.start, rows.stop)))

    record = record_of(asked.run, {"seed": asked.seed})
    write_images(folder, record, asked.num or _IMAGES, _AT_ONCE, make, overwrite=asked.overwrite)
