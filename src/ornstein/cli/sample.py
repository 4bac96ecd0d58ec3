"""`ornstein sample`: pictures from a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from ornstein import checkpoint
from ornstein.cli.command import console, progress
from ornstein.data import save_grid
from ornstein.denoiser import Data
from ornstein.errors import UserError
from ornstein.evaluation.run import SOLVER, STEPS
from ornstein.sampling import State
from ornstein.sampling import sample as draw_samples
from ornstein.solvers import SOLVERS
from ornstein.solvers.grids import GRIDS


def sample(
    run: Annotated[Path, typer.Argument(help="The run folder of a trained model.")],
    n: Annotated[int, typer.Option("-n", help="How many.", min=1)] = 64,
    solver: Annotated[str, typer.Option(help=f"One of {', '.join(SOLVERS)}.")] = SOLVER,
    steps: Annotated[int, typer.Option(help="Steps of the solver.")] = STEPS,
    grid: Annotated[str, typer.Option(help=f"Where the steps fall: {', '.join(GRIDS)}.")] = "logistic",
    label: Annotated[
        str | None, typer.Option("--class", help="A class, by name or number.  [default: each in turn]")
    ] = None,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is the plain model.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Sample i of a seed is the same picture in any batch.")] = 0,
    batch: Annotated[int, typer.Option(help="Samples through the network at once.", min=1)] = 64,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures.  [default: RUN/samples]")] = None,
) -> None:
    """Draw samples: one PNG each, and all of them in grid.png.

    Example: ornstein sample runs/photos -n 64 --steps 20 --seed 1
    """
    denoiser = checkpoint.load(run)
    if denoiser.data is None:
        raise UserError(f"{run} does not say what its samples look like; train it with `ornstein train`")
    labels = denoiser.data.labels(n)
    if label is not None:
        labels = torch.full((n,), _class_number(label, denoiser.data, run))
    if guidance != 1 and labels is None:
        raise UserError(f"{run} was trained without classes: there is nothing for --guidance to lean towards")
    folder = run / "samples" if out is None else out
    with progress("steps") as bar:
        task = bar.add_task("sampling", total=steps * -(-n // batch), note="")

        def advance(state: State) -> None:
            bar.update(task, completed=state.first // batch * steps + state.step, note=f"{solver}, t = {state.t:.3f}")

        images = draw_samples(
            denoiser,
            (n, *denoiser.data.shape),
            solver=solver,
            steps=steps,
            grid=grid,
            seed=seed,
            guidance=guidance,
            cond={"label": labels},
            callback=advance,
            batch=batch,
        )
    for i, image in enumerate(images):
        save_grid(image[None], folder / f"{i:05d}.png")
    save_grid(images, folder / "grid.png", upscale=max(1, 64 // images.shape[-1]))
    console.print(f"{n} samples in {folder}, all of them in {folder / 'grid.png'}")


def _class_number(label: str, data: Data, run: Path) -> int:
    if not data.classes:
        raise UserError(f"{run} was trained without classes: leave out --class")
    if label in data.classes:
        return data.classes.index(label)
    if label.isdecimal() and int(label) < len(data.classes):
        return int(label)
    known = ", ".join(data.classes[:12]) + (", ..." if len(data.classes) > 12 else "")
    raise UserError(f"no class {label!r} in {run}: it knows {known}, or 0 to {len(data.classes) - 1}")
