"""`ornstein faces train`, `evaluate` and `demo`: models of face swaps, from faces to scores."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ornstein.cli.command import console, progress
from ornstein.errors import UserError
from ornstein.faces.nets.face import PRESETS
from ornstein.store import atomic_write

SCORES = "scores.json"


def train(
    data: Annotated[Path, typer.Argument(help="What `ornstein faces prepare` wrote.")],
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    minutes: Annotated[float, typer.Option(help="For the swap.")] = 120.0,
    recogniser: Annotated[float, typer.Option(help="Minutes for the recogniser before it.")] = 10.0,
    net: Annotated[str, typer.Option(help=f"Of {', '.join(PRESETS)}.")] = "s",
    batch: Annotated[int, typer.Option(help="Faces a step.", min=1)] = 32,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    licence: Annotated[str | None, typer.Option(help="Under which the model may be used, for its card.")] = None,
    research_only: Annotated[bool, typer.Option("--research-only", help="Its data are for research only.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
) -> None:
    """Train a face swap on your prepared photographs: first a recogniser after dlib's, then the swap that it judges.

    A tenth of the people is held out, for `faces evaluate`. Example:
    ornstein faces train runs/prepared --minutes 120 --out runs/faces
    """
    from ornstein.faces.provenance.card import ModelCard, write_card
    from ornstein.faces.train.face_set import open_faces
    from ornstein.faces.train.runs import people_split, train_recogniser, train_swap
    from ornstein.training import TrainConfig
    from ornstein.training.state import check_new

    if net not in PRESETS:
        raise UserError(f"--net {net!r}: choose one of {', '.join(PRESETS)}")
    teach = TrainConfig(minutes=recogniser, batch=2 * batch, learning_rate=2e-3, seed=seed, checkpoint_every=200)
    config = TrainConfig(minutes=minutes, batch=batch, seed=seed, checkpoint_every=200)
    if not resume:
        check_new(out)
    ours, held = people_split(open_faces(data))
    console.print(f"{len(ours)} faces of {len(ours.people)} people; {len(held.people)} people held out")
    with progress("s") as bar:
        for name, seconds, states in (
            ("recogniser", 60 * recogniser, train_recogniser(ours, out, teach)),
            ("swap", 60 * minutes, None),
        ):
            task = bar.add_task(name, total=seconds, note="")
            for state in states or train_swap(ours, out, config, preset=net, resume=(out / "state").is_dir()):
                note = f"loss {state.loss:.4f}  {state.images_per_second:,.0f} faces/s"
                bar.update(task, completed=min(state.elapsed, seconds), note=note)
    write_card(out, ModelCard(licence or ModelCard.licence, f"{len(ours)} photographs of {data}", research_only))
    console.print(
        f"done: swap with `ornstein swap SOURCE TARGET --model {out}`, judge with `ornstein faces evaluate {out}`"
    )


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder of `faces train`.")],
    data: Annotated[Path, typer.Option(help="What it was trained on: the people it held out are found again.")],
    people: Annotated[int, typer.Option("-n", help="Held-out people to swap with each other.", min=2)] = 100,
    steps: Annotated[int, typer.Option(help="Steps of the solver.", min=1)] = 20,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance.")] = 4.0,
    strength: Annotated[float, typer.Option(help="0 the target's identity, 1 the source's, or beyond.")] = 1.0,
    towards: Annotated[float, typer.Option(help="A step of identity guidance, in units of the pixels.")] = 0.0,
) -> None:
    """Judge swaps of people the model has not seen, by dlib's recogniser and landmarks.

    Example: ornstein faces evaluate runs/faces --data runs/prepared -n 100
    """
    from ornstein.faces.detect import Detector
    from ornstein.faces.recognise import Recogniser
    from ornstein.faces.swap.sampling import FaceModel
    from ornstein.faces.train.evaluate import Held, score_swaps, swap_held
    from ornstein.faces.train.face_set import open_faces
    from ornstein.faces.train.runs import people_split

    model = FaceModel.load(run)
    held = Held.of(people_split(open_faces(data))[1], people)
    settings = {"steps": steps, "guidance": guidance, "strength": strength, "towards": towards}
    swaps, seconds = swap_held(model, held, **settings)
    row = score_swaps(held, swaps, seconds, Recogniser(), Detector(thorough=False), **settings).as_row()
    table = Table("score", "value", title=f"{len(swaps)} swaps of held-out people", title_justify="left")
    for name, value in row.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(table)
    # infinity is no JSON
    text = json.dumps({k: None if v in (float("inf"),) or v != v else v for k, v in row.items()}, indent=1)
    atomic_write(run / SCORES, (text + "\n").encode())
    console.print(f"the figures: {run / SCORES}")


def demo(
    out: Annotated[Path, typer.Option(help="The run folder to write.")] = Path("runs/demo-swap"),
    minutes: Annotated[float, typer.Option(help="In all, about, on two cores.")] = 6.0,
) -> None:
    """Train a swap on faces that nobody has, swap people it has not seen, and hold it against the truth.

    Example: ornstein faces demo && open runs/demo-swap/report.html
    """
    from ornstein.faces.world.demo import demo as run_demo

    began = time.monotonic()
    with progress("parts", transient=True) as bar:
        task = bar.add_task("", total=1, note="")
        finished = run_demo(out, minutes, tell=lambda stage, done: bar.update(task, description=stage, completed=done))
    table = Table("method", "PSNR, dB", "SSIM", "top-1", "pose error", "expression error")
    for name, score in finished.scores.items():
        table.add_row(name, *(f"{value:.3g}" for value in asdict(score).values()))
    console.print(table)
    console.print(f"{time.monotonic() - began:.0f} s; look at {finished.report} and {out / 'swaps.png'}")
