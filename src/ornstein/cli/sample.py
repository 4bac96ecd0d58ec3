"""`ornstein sample`: pictures or clips from a trained run."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from ornstein import autoencoders, checkpoint
from ornstein.cli.command import console, progress
from ornstein.cli.shards import batches_of, write_images
from ornstein.compiling import cache_folder, compile_network
from ornstein.data import open_clips, save_gif, save_mp4, save_sheet
from ornstein.denoiser import Denoiser, SampleSpec
from ornstein.devices import choose_precision
from ornstein.errors import UserError
from ornstein.evaluation.run import STEPS
from ornstein.evaluation.samples import choose_solver, class_number, record_of
from ornstein.nets.video import frames_known
from ornstein.sampling import State, at_once
from ornstein.sampling import sample as draw_samples
from ornstein.solvers import SOLVER, SOLVERS, Tuned
from ornstein.solvers.grids import GRID, GRIDS
from ornstein.training import processes
from ornstein.video import sample_given, sample_long
from ornstein.wrapper import device_of


def sample(
    run: Annotated[Path, typer.Argument(help="The run folder of a trained model.")],
    n: Annotated[int | None, typer.Option("-n", help="How many. (default: 64, or 16 clips)", min=1)] = None,
    solver: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(SOLVERS)}, tuned. (default: tuned where the run has it, or {SOLVER})"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help=f"Steps of the solver. (default: {STEPS}, or those of a distilled model)")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(help=f"Where the steps fall: {', '.join(GRIDS)}, or times such as 1,0.6,0.3,0. (default: {GRID})"),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--class", help="A class, by name or number. (default: each in turn, or the given videos' own)"),
    ] = None,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is the plain model.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Sample i of a seed is the same picture in any batch.")] = 0,
    batch: Annotated[
        int | None, typer.Option(help="Samples through the network at once. (default: 64, fewer large ones)", min=1)
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of the network alone: float32, bf16, or auto, bf16 where the hardware multiplies it. (default: auto; "
            "float32 for --given and longer --frames)"
        ),
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the network first, and tell how long it took; images alone.")
    ] = False,
    frames: Annotated[int | None, typer.Option(help="Clips of so many frames, by overlapping windows.")] = None,
    overlap: Annotated[int | None, typer.Option(help="Frames that two windows share. (default: half)")] = None,
    given: Annotated[str | None, typer.Option(help="Videos whose frames the clips go on from.")] = None,
    first: Annotated[int, typer.Option(help="Of the given videos, so many first frames are kept.", min=0)] = 0,
    last: Annotated[int, typer.Option(help="And so many last ones: the frames between are made.", min=0)] = 0,
    fps: Annotated[float, typer.Option(help="Frames a second of the videos written.")] = 8.0,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures. (default: RUN/samples)")] = None,
) -> None:
    """Draw samples: a PNG each and all in grid.png, or for clips an mp4 and a gif each and all in sheet.png.

    Images that are there already, of the same model and options, are kept: stopped, the command goes on where it was.
    `torchrun --nproc-per-node 8 -m ornstein sample ...` shares them out; each is the same picture as of one process.
    A run of an autoencoder draws from its own prior, by -n and --seed alone.

    Example: ornstein sample runs/photos -n 64 --steps 20 --seed 1
    """
    folder = run / "samples" if out is None else out
    if "autoencoder" in checkpoint.read_config(run):
        _from_autoencoder(run, n if n is not None else 64, seed, folder)
        return
    denoiser = checkpoint.load(run)
    if denoiser.data is None:
        raise UserError(f"{run} does not say what its samples look like; train it with `ornstein train`")
    clips = len(denoiser.data.shape) == 4
    if not clips and (frames is not None or given is not None):
        raise UserError(f"{run} is a model of images: --frames and --given are for clips")
    n = n if n is not None else 16 if clips else 64
    batch = batch if batch is not None else 8 if clips else min(64, at_once(denoiser.data.shape))
    labels = None if given is not None else denoiser.data.labels(n)  # given videos have their own
    if label is not None:
        labels = torch.full((n,), class_number(label, denoiser.data, run))
    if guidance != 1 and not denoiser.data.classes:
        raise UserError(f"{run} was trained without classes: there is nothing for --guidance to lean towards")
    spacing = _spacing(grid)
    if isinstance(spacing, tuple):
        if steps not in (None, len(spacing) - 1):
            raise UserError(f"--grid has the times of {len(spacing) - 1} steps: leave out --steps {steps}")
        steps = len(spacing) - 1
    own_noise = given is None and (frames is None or frames <= denoiser.data.shape[1])
    chosen, steps, at = _chosen(denoiser, run, solver, steps, spacing, guidance, own_noise)
    name = chosen if isinstance(chosen, str) else "tuned"
    dtype = choose_precision(precision or ("auto" if own_noise else "float32"), device_of(denoiser))
    if dtype is not None and not own_noise:
        raise UserError("--precision is for whole samples from noise, not for --given and --frames")
    if compile_ and clips:
        raise UserError("--compile is for images; clips are sampled as they are")
    options: dict[str, Any] = {
        "solver": chosen,
        "steps": steps,
        "grid": at,
        "seed": seed,
        "guidance": guidance,
        "cond": {"label": labels},
        "batch": batch,
    }
    if not clips:
        if torch.cuda.is_available():
            denoiser.to("cuda")
        told = {"class": label, "precision": str(dtype or torch.float32), "compiled": compile_}
        record = record_of(run, {k: v for k, v in options.items() if k != "cond"} | told)
        _images(denoiser, folder, record, n, name, options | {"precision": dtype}, compile_)
        return
    if processes.launched() > 1:
        raise UserError("clips are sampled by one process: leave out the launcher")
    if given is not None:
        samples = _go_on(denoiser, run, given, n, first, last, options)
    elif frames is not None and frames > denoiser.data.shape[1]:
        samples = _long(denoiser, run, n, frames, overlap, options)
    else:
        with progress("steps") as bar:
            task = bar.add_task("sampling", total=steps * -(-n // batch), note="")

            def advance(state: State) -> None:
                at = state.first // batch * steps + state.step
                bar.update(task, completed=at, note=f"{name}, t = {state.t:.3f}")

            shape = list(denoiser.data.shape)
            if frames is not None:
                shape[1] = frames
            samples = draw_samples(denoiser, (n, *shape), callback=advance, precision=dtype, **options)
            samples = denoiser.decode(samples)
    _write_clips(samples, folder, fps)


def _chosen(
    denoiser: Denoiser,
    run: Path,
    solver: str | None,
    steps: int | None,
    grid: str | tuple[float, ...] | None,
    guidance: float,
    own_noise: bool,
) -> tuple[str | Tuned, int, str | tuple[float, ...]]:
    """Solver, steps and grid, as asked for or the run's own; says so where they are its own."""
    few = denoiser.distilled
    if few is None:
        steps = STEPS if steps is None else steps
        chosen = choose_solver(run, solver, steps, grid, guidance, own_noise)
        if isinstance(chosen, Tuned):
            share = chosen.error / chosen.untuned
            console.print(f"tuned solver: {steps} steps, {share:.0%} of the untuned error where it was tuned")
        return chosen, steps, grid or GRID
    if guidance != 1:
        raise UserError(f"{run} is distilled and has its guidance built in, {few.guidance:g}: leave out --guidance")
    if not own_noise:
        raise UserError(f"{run} is distilled and makes whole clips from noise: leave out --given and longer --frames")
    if solver in (None, few.solver) and steps in (None, few.steps) and grid is None:
        console.print(f"distilled model: {few}, guidance {few.guidance:g} built in")
        return few.solver, few.steps, few.times
    told = f"{run} was distilled for {few}: by others its samples are not its teacher's"
    console.print(f"warning: {told}", style="yellow")
    warnings.filterwarnings("ignore", "this model was distilled")  # it has just been said
    return solver or few.solver, few.steps if steps is None else steps, grid or GRID


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
        raise UserError(f"--grid: the times of a grid fall from 1 to 0, each below the one before it; got {text!r}")
    return times


def _images(
    denoiser: Denoiser,
    folder: Path,
    record: dict[str, Any],
    n: int,
    name: str,
    options: dict[str, Any],
    compiled: bool,
) -> None:
    """Images batch by batch, those that are missing, in the processes of a launch."""
    assert denoiser.data is not None
    shape, batch, steps = denoiser.data.shape, min(n, options["batch"]), options["steps"]
    labels = options["cond"]["label"]
    processes.current()
    with progress("steps", transient=True) as bar:
        task = bar.add_task("sampling", total=steps * batches_of(n, batch), note="")
        before, compile_first = 0, compiled

        def advance(state: State) -> None:
            bar.update(task, completed=before + state.step, note=f"{name}, t = {state.t:.3f}")

        def make(rows: range) -> Tensor:
            nonlocal before, compile_first
            # What is compiled is of one batch size: the last batch is filled up, and what is over thrown away.
            count = batch if compiled else len(rows)
            index = torch.arange(rows.start, rows.start + count).clamp(max=n - 1)
            own = {"cond": {"label": None if labels is None else labels[index]}, "first": rows.start}
            if compile_first:
                compile_first = False
                bar.update(task, note="compiling the network: a minute, or seconds where it has been done before")
                rest = {"solver": "ddim", "steps": 1, "grid": GRID}
                seconds = compile_network(
                    denoiser, lambda: draw_samples(denoiser, (count, *shape), **options | own | rest)
                )
                console.print(f"compiled in {seconds:.1f} s; what was compiled is kept in {cache_folder()}")
            samples = draw_samples(denoiser, (count, *shape), callback=advance, **options | own)
            before += steps
            return denoiser.decode(samples[: len(rows)])

        write_images(folder, record, n, batch, make)


def _from_autoencoder(run: Path, n: int, seed: int, folder: Path) -> None:
    """Images from an autoencoder's own prior; options of solvers have no part in it."""
    model = autoencoders.load(run)

    def make(rows: range) -> Tensor:
        with torch.no_grad():
            return model.sample(len(rows), autoencoders.addressed(seed, torch.arange(rows.start, rows.stop)))

    write_images(folder, record_of(run, {"seed": seed}), n, 64, make)


def _write_clips(clips: Tensor, folder: Path, fps: float) -> None:
    upscale = max(1, 64 // clips.shape[-1])
    for i, clip in enumerate(clips):
        save_mp4(clip, folder / f"{i:05d}.mp4", fps, upscale)
        save_gif(clip, folder / f"{i:05d}.gif", fps, upscale)
    save_sheet(clips, folder / "sheet.png", upscale=upscale)
    console.print(f"{len(clips)} clips in {folder}, all of them in {folder / 'sheet.png'}")


def _needs_given_frames(denoiser: Denoiser, run: Path) -> None:
    if not getattr(denoiser.net, "config", {}).get("conditioning"):
        raise UserError(f"{run} has not learned to go on from given frames: train it with --given-frames")


def _go_on(denoiser: Denoiser, run: Path, path: str, n: int, first: int, last: int, options: dict[str, Any]) -> Tensor:
    """Clips that keep the first and last frames of the videos at `path` and make the rest."""
    _needs_given_frames(denoiser, run)
    assert denoiser.data is not None
    channels, length, size, _ = denoiser.data.shape
    mask = frames_known(length, first, last)
    videos = open_clips(path, length, size, channels)
    known, labels = videos.batch(torch.arange(n) % len(videos))
    if options["cond"]["label"] is None and labels is not None and denoiser.data.classes:
        options = options | {"cond": {"label": _known_classes(videos.classes, denoiser.data)[labels]}}
    if options["cond"]["label"] is None and options["guidance"] != 1:
        raise UserError(f"the videos in {path} have no classes for --guidance to lean towards: give --class")
    console.print(f"going on from {first} first and {last} last frames of {min(n, len(videos))} clips in {path}")
    return sample_given(denoiser, known, mask.expand(n, -1), **options)


def _known_classes(names: list[str], data: SampleSpec) -> Tensor:
    """The model's number of each class, (classes,); -1, no condition, for one it does not know."""
    return torch.tensor([data.classes.index(name) if name in data.classes else -1 for name in names])


def _long(denoiser: Denoiser, run: Path, n: int, frames: int, overlap: int | None, options: dict[str, Any]) -> Tensor:
    """Clips longer than the network's, window after window."""
    _needs_given_frames(denoiser, run)
    assert denoiser.data is not None
    channels, window, *size = denoiser.data.shape
    shared = max(1, window // 2) if overlap is None else overlap
    console.print(f"{n} clips of {frames} frames, {window} at a time")
    return sample_long(denoiser, (n, channels, frames, *size), window, shared, **options)
