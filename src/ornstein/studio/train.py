"""The page Train: data in, a run out, watched while it trains; the training is a process that outlives the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from ornstein.errors import UserError
from ornstein.metrics import read_metrics
from ornstein.studio import charts, forms, trainings
from ornstein.studio.studio import Studio, gallery
from ornstein.studio.trainings import Progress
from ornstein.studio.work import bar, duration, errors_shown, note
from ornstein.training.settings import Settings

__all__ = ["EVERY", "Handlers", "framed", "line", "options", "page"]

_PAGE = (
    "Train a diffusion model on your images. It goes on when this page is closed, and is found again when it is opened."
)
EVERY = 2.0  # seconds between two updates of a run
_STEPS, _MINUTES = "steps", "minutes"
# Settings of `ornstein train` that the form has besides data, name and length.
_BASIC = ("size", "net", "seed")
_MORE = (
    "frames", "stride", "noise", "conditional", "flip", "batch", "optimizer", "learning_rate", "objective", "ema",
    "precision", "held_out", "model", "latent",
)  # fmt: skip
_WORDS = {
    trainings.WAITING: "Reading the data",
    trainings.RUNNING: "Training",
    trainings.EVALUATING: "Sampling and evaluating for the report",
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


def options(how_long: str, amount: float | None, values: Sequence[Any]) -> list[str]:
    """The options of `ornstein train` for the values of the form; empty ones are left to their defaults.

    Raises:
        UserError: no length of the training, or a value that is not one.
    """
    if how_long not in (_STEPS, _MINUTES) or not amount or amount <= 0:
        raise UserError(f"say how long to train: a number of minutes or of steps above 0, not {amount}")
    words = [f"--{how_long}", str(int(amount)) if how_long == _STEPS else f"{amount:g}"]
    words += forms.given(Settings, (*_BASIC, *_MORE), values)
    every = "50" if how_long == _STEPS and amount <= 500 else "250"
    return [*words, "--sample-every", every, "--checkpoint-every", every]


class Handlers:
    """The handlers of the page; `key` keeps apart what the pages of one browser show."""

    def __init__(self, studio: Studio, key: str = "watched") -> None:
        self.studio, self.key = studio, key

    def watch(self, chosen: str | None) -> list[Any]:
        """Progress, loss curve, samples so far and report of a run, for `_Watched`."""
        if not chosen:
            return [note("No run chosen."), None, None, gr.update(visible=False), ""]
        path = self.studio.runs.find(chosen)
        curve = read_metrics(path)
        series = {"loss": ([m["step"] for m in curve], [m["loss"] for m in curve])}
        figure = charts.lines(series, "step", "loss", "y", 240, False) if curve else None
        pictures = [(str(p), _caption(p)) for p in trainings.previews(path)[-6:]]
        report = path / "report.html"
        there = report.is_file()
        file = gr.update(value=str(report) if there else None, visible=there)
        return [line(self.studio.trainings.progress(path)), figure, pictures, file, framed(report) if there else ""]

    def tick(self, chosen: str | None, request: gr.Request) -> list[Any]:
        """What changed since the last update, so that nothing flickers."""
        kept = self.studio.sessions.of(request).kept  # asked for in any case: it says that the page is open
        if not chosen:
            return [gr.skip()] * 5
        path = self.studio.runs.find(chosen)
        pictures, report = tuple(trainings.previews(path)), (path / "report.html").is_file()
        now = (chosen, self.studio.trainings.progress(path), pictures, report)
        before = kept.get(self.key)
        kept[self.key] = now
        if before == now:
            return [gr.skip()] * 5
        shown = self.watch(chosen)
        if before is not None and before[0] == chosen:
            shown[2] = gr.skip() if before[2] == pictures else shown[2]
            shown[4] = gr.skip() if before[3] == report else shown[4]
        return shown

    @errors_shown
    def train_start(self, name: str, data: str, upload: str | None, amount: float, how_long: str, *values: Any) -> Any:
        """Start a training; its run."""
        words = options(how_long, amount, values)
        path = self.studio.trainings.start(name or "", data or "", words, Path(upload) if upload else None)
        return self.menu(path)

    @errors_shown
    def train_stop(self, chosen: str) -> str:
        """Ask a training to save and end; it can be resumed."""
        self.studio.trainings.stop(self.studio.runs.find(chosen))
        return bar("Stopping: it saves what it has")

    @errors_shown
    def train_resume(self, chosen: str, steps: str | None) -> str:
        """Continue a training that was stopped, to `steps` steps in all if given."""
        longer = [] if (steps or "").strip() in ("", "0") else forms.given(Settings, ("steps",), [steps])
        self.studio.trainings.resume(self.studio.runs.find(chosen), longer)
        return bar("Continuing where it stopped")

    @errors_shown
    def train_status(self, chosen: str) -> dict[str, Any]:
        """The progress of a run, as JSON."""
        return vars(self.studio.trainings.progress(self.studio.runs.find(chosen)))

    @errors_shown
    def rename_run(self, chosen: str, name: str) -> Any:
        """Rename a run of the studio's folder."""
        return self.menu(self.studio.runs.rename(self.idle(chosen), name or ""))

    @errors_shown
    def delete_run(self, chosen: str, confirmation: str) -> Any:
        """Delete a run of the studio's folder; its name must be typed as confirmation."""
        path = self.idle(chosen)
        if (confirmation or "").strip() != path.name:
            raise UserError(f"to delete {path.name} and everything in it, type its name as confirmation")
        self.studio.runs.delete(path)
        return self.menu(None)

    def idle(self, chosen: str) -> Path:
        """The run chosen. Raises UserError if it is being trained, or about to be."""
        path = self.studio.runs.find(chosen)
        if self.studio.trainings.under_way(path):
            raise UserError(f"{path.name} is being trained: stop it first")
        return path

    def opened(self) -> Any:
        every = self.studio.runs.all()
        busy = [path for path in every if self.studio.trainings.under_way(path)]
        return self.menu((busy or every or [None])[-1])

    def menu(self, path: Path | None) -> Any:
        runs = self.studio.runs
        return gr.update(choices=runs.named(runs.all()), value=None if path is None else str(path))


def page(studio: Studio, blocks: gr.Blocks) -> None:
    """Build the page."""
    handlers = Handlers(studio)
    gr.Markdown(_PAGE)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            form, upload, start = _form()
        with gr.Column(scale=7, min_width=280):
            run, longer, buttons, watched = _watched(studio)
            with gr.Accordion("Rename or delete", open=False):
                name = gr.Textbox(label="New name, or the name again to delete", max_length=80)
                with gr.Row():
                    rename, delete = gr.Button("Rename"), gr.Button("Delete", variant="stop")
    quick: dict[str, Any] = {"concurrency_limit": 8, "show_progress": "hidden"}
    silent: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    start.click(handlers.train_start, form, run, api_name="train_start", **quick)
    stop, resume = buttons
    stop.click(handlers.train_stop, run, watched[0], api_name="train_stop", **quick)
    resume.click(handlers.train_resume, [run, longer], watched[0], api_name="train_resume", **quick)
    rename.click(handlers.rename_run, [run, name], run, api_name="rename_run", **quick)
    delete.click(handlers.delete_run, [run, name], run, api_name="delete_run", **quick)
    run.change(handlers.watch, run, watched, api_visibility="private", **quick)
    gr.Timer(EVERY).tick(handlers.tick, run, watched, **silent)
    blocks.load(handlers.opened, None, run, **silent).then(handlers.watch, run, watched, **silent)
    gr.api(handlers.train_status, api_name="train_status")  # pyright: ignore[reportPrivateImportUsage]
    studio.sent(upload)


def _form() -> tuple[list[Any], gr.File, gr.Button]:
    """The inputs of `train_start`, the upload among them, and the button."""
    name = gr.Textbox(label="Name of the run", placeholder="my photos", max_length=80)
    data = gr.Textbox(
        label="Data",
        placeholder="digits, or /path/to/photos.zip",
        info="A folder or archive on this computer, one sub-folder per class; or the bundled set `digits`.",
    )
    upload = gr.File(label="or upload an archive", file_types=[".zip", ".tar"], height=160, elem_id="upload")
    with gr.Row():
        amount = gr.Number(10, label="Train for", minimum=0, info="In all.", min_width=120)
        how_long = gr.Radio([_MINUTES, _STEPS], value=_MINUTES, label="counted in", min_width=160)
    basic = forms.components(Settings, _BASIC)
    with gr.Accordion("More settings", open=False):
        more = forms.components(Settings, _MORE)
    start = gr.Button("Start", variant="primary")
    return [name, data, upload, amount, how_long, *basic, *more], upload, start


def _watched(studio: Studio) -> tuple[gr.Dropdown, gr.Textbox, tuple[gr.Button, gr.Button], list[Any]]:
    """The menu of runs, the longer length, the buttons Stop and Resume, and what shows the run."""
    names = studio.runs.named(studio.runs.all())
    run = gr.Dropdown(
        names,
        value=names[-1][1] if names else None,
        label="Run",
        info="Any run of this studio.",
        allow_custom_value=True,
    )
    with gr.Row():
        stop, resume = gr.Button("Stop"), gr.Button("Resume")
    status = gr.HTML(note("No run chosen."), elem_id="train-status")
    loss = gr.Plot(label="Training loss by step", elem_id="loss")
    samples = gallery("Samples during training", 3, "previews", download=True)
    with gr.Accordion("Train longer", open=False):
        longer = gr.Textbox(label="Steps in all, on Resume", placeholder="as many as planned", max_lines=1)
    report = gr.File(label="Report", visible=False, elem_id="report")
    shown = gr.HTML(elem_id="report-page")
    return run, longer, (stop, resume), [status, loss, samples, report, shown]


def framed(report: Path) -> str:
    """A report in the page: a frame without scripts and without access to the studio."""
    address = f"/gradio_api/file={quote(str(report.resolve()))}?{report.stat().st_mtime_ns}"
    return f'<iframe class="report" sandbox="" title="Report" src="{address}"></iframe>'


def _caption(picture: Path) -> str:
    return "the finished model" if picture.stem == "samples" else f"step {int(picture.stem.removeprefix('step-')):,}"
