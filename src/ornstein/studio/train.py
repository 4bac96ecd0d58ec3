"""The page Train: data in, a run out, watched as it goes; the training is a process that no page has to wait for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from ornstein.errors import UserError
from ornstein.metrics import read_metrics
from ornstein.studio import charts, trainings
from ornstein.studio.studio import Studio
from ornstein.studio.trainings import Progress
from ornstein.studio.work import bar, duration, note, told

_PAGE = (
    "Train a diffusion model on your images. It goes on when this page is closed, and is found again when it is opened."
)
_EVERY = 2.0  # seconds between two looks at a run
_STEPS, _MINUTES = "steps", "minutes"
_WORDS = {
    trainings.WAITING: "Reading the data",
    trainings.RUNNING: "Training",
    trainings.JUDGING: "Drawing samples and judging them for the report",
    trainings.FINISHED: "Finished",
    trainings.STOPPED: "Stopped; it can be resumed",
    trainings.FAILED: "Failed",
}


def line(found: Progress) -> str:
    """A run's progress as HTML."""
    if found.state == trainings.FAILED:
        return note(f"Failed: {found.reason}", "bad")
    parts = [_WORDS[found.state]]
    if found.step:
        parts.append(f"step {found.step:,}" + (f" of {found.steps:,}" if found.steps else ""))
    if found.loss is not None:
        parts.append(f"loss {found.loss:.4f}")
    if found.rate is not None and found.state == trainings.RUNNING:
        parts.append(f"{found.rate:,.0f} images/s")
    if found.left is not None and found.state == trainings.RUNNING:
        parts.append(f"{duration(found.left)} left")
    text = " · ".join(parts)
    if found.state in (trainings.FINISHED, trainings.STOPPED):
        return note(text, "good" if found.state == trainings.FINISHED else "plain")
    return bar(text, found.share if found.state == trainings.RUNNING else None)


def options(how_long: str, amount: float, size: float, net: str, batch: float, frames: float, seed: float) -> list[str]:
    """The options of `ornstein train`; numbers of 0 are left to it."""
    if how_long not in (_STEPS, _MINUTES) or not amount or amount <= 0:
        raise UserError(f"say how long to train: a number of minutes or of steps above 0, not {amount}")
    words = [f"--{how_long}", str(int(amount)) if how_long == _STEPS else f"{amount:g}"]
    for name, value in (("size", size), ("batch", batch), ("frames", frames)):
        if value:
            words += [f"--{name}", str(int(value))]
    if net and net != "auto":
        words += ["--net", net]
    looks = "50" if how_long == _STEPS and amount <= 500 else "250"
    return [*words, "--seed", str(int(seed or 0)), "--sample-every", looks, "--checkpoint-every", looks]


def page(studio: Studio, blocks: gr.Blocks) -> None:
    """Build the page."""
    gr.Markdown(_PAGE)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            name = gr.Textbox(label="Name of the run", placeholder="my photos", max_length=80)
            data = gr.Textbox(
                label="Data",
                placeholder="digits, or /path/to/photos.zip",
                info="A folder or zip on this computer, a sub-folder a class; or the bundled set `digits`.",
            )
            upload = gr.File(label="or a zip to upload", file_types=[".zip", ".tar"], height=110, elem_id="upload")
            with gr.Row():
                amount = gr.Number(10, label="Train for", minimum=0, info="How long in all.", min_width=120)
                how_long = gr.Radio([_MINUTES, _STEPS], value=_MINUTES, label="counted in", min_width=160)
            with gr.Accordion("More", open=False):
                size = gr.Number(
                    0, label="Side of the images, pixels", precision=0, info="0: their own, where all agree."
                )
                net = gr.Dropdown(
                    ["auto", "xs", "s", "m", "l"], value="auto", label="Network", info="By size and device."
                )
                batch = gr.Number(0, label="Images a step", precision=0, info="0: 128, or 16 clips.")
                frames = gr.Number(0, label="Frames a clip", precision=0, info="0 for images; for videos 8 or 16.")
                seed = gr.Number(0, label="Seed", precision=0, info="Of everything random.")
            start = gr.Button("Start", variant="primary")
        with gr.Column(scale=7, min_width=280):
            names = [str(run) for run in studio.runs.all()]
            run = gr.Dropdown(
                names,
                value=names[-1] if names else None,
                label="Watch",
                info="Any run of this studio.",
                allow_custom_value=True,
            )
            with gr.Row():
                stop = gr.Button("Stop")
                resume = gr.Button("Resume")
            status = gr.HTML(note("No run chosen."), elem_id="train-status")
            loss = gr.Plot(label="Training loss by step", elem_id="loss")
            samples = gr.Gallery(
                label="Samples as they improve",
                columns=3,
                height=320,
                object_fit="contain",
                elem_id="looks",
                format="png",
                buttons=["download", "fullscreen"],
            )
            with gr.Accordion("Train longer", open=False):
                longer = gr.Number(0, label="Steps in all, on Resume", precision=0, info="0: as many as planned.")
            report = gr.File(label="Report", visible=False, elem_id="report")
    watched = [status, loss, samples, report]

    def watch(chosen: str | None) -> list[Any]:
        """How far a run is, its loss by step, its samples on the way, its report."""
        if not chosen:
            return [note("No run chosen."), None, None, gr.update(visible=False)]
        path = studio.runs.find(chosen)
        curve = read_metrics(path)
        figure = charts.lines(
            {"loss": ([m["step"] for m in curve], [m["loss"] for m in curve])}, "step", "loss", "y", 240, False
        )
        pictures = [(str(p), _caption(p)) for p in trainings.looks(path)[-6:]]
        done = (path / "report.html").is_file()
        shown = (
            gr.update(value=str(path / "report.html"), visible=True) if done else gr.update(value=None, visible=False)
        )
        return [line(studio.trainings.progress(path)), figure if curve else None, pictures, shown]

    def tick(chosen: str | None, request: gr.Request) -> list[Any]:
        """What has changed since the last look alone, so that nothing flickers."""
        kept = studio.sessions.of(request).kept  # asked for in any case: it says that the page is there
        if not chosen:
            return [gr.skip()] * len(watched)
        path = studio.runs.find(chosen)
        state = studio.trainings.progress(path)
        now = (chosen, state, tuple(trainings.looks(path)), (path / "report.html").is_file())
        before = kept.get("watched")
        kept["watched"] = now
        if before == now:
            return [gr.skip()] * len(watched)
        found = watch(chosen)
        if before is not None and before[0] == now[0] and before[2] == now[2]:
            found[2] = gr.skip()
        return found

    @told
    def train_start(
        name: str,
        data: str,
        upload: str | None,
        amount: float,
        how_long: str,
        size: float,
        net: str,
        batch: float,
        frames: float,
        seed: float,
        request: gr.Request,
    ) -> Any:
        """Begin a training; its run."""
        studio.sessions.send(request, [upload])
        words = options(how_long, amount, size, net, batch, frames, seed)
        path = studio.trainings.start(name or "", data or "", words, Path(upload) if upload else None)
        return _chosen(studio, path)

    @told
    def train_stop(chosen: str) -> str:
        """Ask a training to save and end; it can be resumed."""
        studio.trainings.stop(studio.runs.find(chosen))
        return bar("Stopping: it saves what it has")

    @told
    def train_resume(chosen: str, steps: float) -> str:
        """Go on with a training that was stopped, to so many steps in all where they are given."""
        studio.trainings.resume(studio.runs.find(chosen), ["--steps", str(int(steps))] if steps else [])
        return bar("Going on where it was")

    @told
    def train_status(chosen: str) -> dict[str, Any]:
        """How far a run is, as JSON."""
        return vars(studio.trainings.progress(studio.runs.find(chosen)))

    quick: dict[str, Any] = {"concurrency_limit": 8, "show_progress": "hidden"}
    start.click(
        train_start,
        [name, data, upload, amount, how_long, size, net, batch, frames, seed],
        run,
        api_name="train_start",
        **quick,
    )
    stop.click(train_stop, run, status, api_name="train_stop", **quick)
    resume.click(train_resume, [run, longer], status, api_name="train_resume", **quick)
    run.change(watch, run, watched, api_visibility="private", **quick)
    timer = gr.Timer(_EVERY)
    timer.tick(tick, run, watched, api_visibility="private", queue=False, show_progress="hidden")

    def opened() -> Any:
        every = studio.runs.all()
        busy = [path for path in every if studio.trainings.under_way(path)]
        return _chosen(studio, (busy or every or [None])[-1])

    blocks.load(opened, None, run, api_visibility="private", queue=False, show_progress="hidden").then(
        watch, run, watched, api_visibility="private", queue=False, show_progress="hidden"
    )
    gr.api(train_status, api_name="train_status")  # pyright: ignore[reportPrivateImportUsage]
    studio.sent(upload)


def _chosen(studio: Studio, path: Path | None) -> Any:
    return gr.update(choices=[str(run) for run in studio.runs.all()], value=None if path is None else str(path))


def _caption(picture: Path) -> str:
    return "the finished model" if picture.stem == "samples" else f"step {int(picture.stem.removeprefix('step-')):,}"
