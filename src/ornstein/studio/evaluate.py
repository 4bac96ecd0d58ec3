"""The page Likelihood & evaluation: bits of an image, the most and least likely images of a set, a model's report."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from torch import Tensor, nn

from ornstein import likelihood
from ornstein.autoencoders.latent import LatentSpace
from ornstein.data import open_images, save_grid, to_unit
from ornstein.data.decode import BadImage, decode
from ornstein.denoiser import Denoiser
from ornstein.errors import RunError, UserError
from ornstein.evaluation.held_out import LEVELS, STEPS, Bits, bits_of_images
from ornstein.evaluation.settings import Evaluate
from ornstein.store import read_json
from ornstein.studio import charts, forms
from ornstein.studio.studio import Studio, gallery
from ornstein.studio.train import framed
from ornstein.studio.work import Tell, Work, errors_shown, note

__all__ = ["bits_of_each", "page", "report_calls", "seen_by", "table_of"]

_ONE = ("continuous", "vlb", "ode")
_MOST, _AT_ONCE, _ENDS = 256, 8, 8
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BAR = re.compile(r"[━╸╺]+")
_PAGE = (
    "Bits per dimension: how many bits a channel of a pixel takes when the model describes the image. Fewer is "
    "likelier; 8 is no better than guessing."
)
_SIZES = ("num", "steps", "images", "minutes")
_LABELS = {"num": "Samples", "images": "Images for the likelihood"}


@contextmanager
def report_calls(net: nn.Module, tell: Tell, what: str) -> Iterator[None]:
    """Report each call of the network as progress, which stops the work when its user asked for that."""
    calls = 0

    def before(*_: object) -> None:
        nonlocal calls
        tell(what, calls, None)
        calls += 1

    hook = net.register_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


def seen_by(denoiser: Denoiser, path: Path) -> Tensor:
    """The image in a file at the model's size.

    Returns:
        uint8 (1, C, H, W).

    Raises:
        UserError: the file is no image.
    """
    assert denoiser.data is not None
    shape = denoiser.space.autoencoder.shape if isinstance(denoiser.space, LatentSpace) else denoiser.data.shape
    channels, size = shape[0], shape[-1]
    try:
        pixels, _ = decode(path.read_bytes(), size, channels)
    except OSError as error:
        raise UserError(f"cannot read {path.name}: {error.strerror or error}") from None
    except BadImage as bad:
        raise UserError(f"{path.name} cannot be used: {bad}") from None
    return torch.from_numpy(pixels.copy())[None]


def bits_of_each(denoiser: Denoiser, images: Tensor, tell: Tell) -> Tensor:
    """Bits per dimension of each image by the continuous bound (E17).

    Args:
        denoiser: a model of pixels.
        images: uint8 (N, C, H, W).
        tell: called with the progress.

    Returns:
        (N,).

    Raises:
        UserError: a model of latents.
    """
    if denoiser.space is not None:
        raise UserError("the images of a set are ranked by models of pixels; this one is of latents")
    out = []
    for first in range(0, len(images), _AT_ONCE):
        tell("images", first, len(images))
        x0 = to_unit(images[first : first + _AT_ONCE])
        bound = likelihood.vlb(denoiser, x0, STEPS, "continuous", "discrete", terms=LEVELS, first=first)
        out.append(likelihood.bits_per_dim(bound.total, x0.shape, None))
    return torch.cat(out)


class _Page:
    """The handlers of the page."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    @errors_shown
    def likelihood(self, run: str, image: str | None, method: str, request: gr.Request) -> Iterator[Any]:
        """Bits per dimension of an image, by term of the bound."""
        session = self.studio.sessions.of(request)
        self.studio.sessions.send(request, [image])
        denoiser = self.studio.runs.model(self.studio.runs.find(run))
        if not image:
            raise UserError("choose an image first")
        if method not in _ONE:
            raise UserError(f"no method {method!r}: one of {', '.join(_ONE)}")
        pixels = seen_by(denoiser, Path(image))

        def job(tell: Tell) -> Bits:
            with report_calls(denoiser.net, tell, "measuring"):
                return bits_of_images(denoiser, pixels, method)

        work = Work(session, "calls", job)
        for line in work:
            yield line, gr.skip(), gr.skip()
        bits = work.result
        path = session.new_folder() / "seen.png"
        save_grid(pixels, path, upscale=max(1, 160 // pixels.shape[-1]))
        figure = charts.bars({**bits.parts, "total": bits.mean}, "bits/dim") if bits.parts else None
        yield note(f"{bits.mean:.3f} bits/dim: {bits.meaning}.", "good"), str(path), figure

    @errors_shown
    def rank(self, run: str, data: str, upload: str | None, count: float, request: gr.Request) -> Iterator[Any]:
        """The most and least likely images of a set, with their bits per dimension."""
        session = self.studio.sessions.of(request)
        self.studio.sessions.send(request, [upload])
        denoiser = self.studio.runs.model(self.studio.runs.find(run))
        assert denoiser.data is not None
        if len(denoiser.data.shape) != 3:
            raise UserError("the images of a set are ranked by models of images; this one is of clips")
        if not upload and not (data or "").strip():
            raise UserError("choose images first: a folder or zip on this computer, `digits`, or an upload")
        channels, _, size = denoiser.data.shape
        if count is None or not 2 <= count <= _MOST:
            raise UserError(f"images must lie between 2 and {_MOST}, not {count}")

        def job(tell: Tell) -> tuple[Tensor, Tensor, list[str]]:
            images = open_images(upload or data, size, channels, progress=lambda done, all_: tell("files", done, all_))
            rows = torch.linspace(0, len(images) - 1, min(int(count), len(images))).long()
            pixels = images.images[rows]
            return bits_of_each(denoiser, pixels, tell), pixels, [images.names[i] for i in rows]

        work = Work(session, "images", job)
        for line in work:
            yield line, gr.skip(), gr.skip()
        values, pixels, names = work.result
        folder, order = session.new_folder(), values.argsort().tolist()
        captions = [f"{float(value):.3f} · {name}" for value, name in zip(values, names, strict=True)]
        text = f"{len(values)} images: mean {float(values.mean()):.3f} bits/dim, from {float(values.min()):.3f}"
        text += f" to {float(values.max()):.3f}; bound E17, {LEVELS} noise levels an image."
        pictures = [_pictures(rows[:_ENDS], pixels, captions, folder) for rows in (order, order[::-1])]
        yield note(text, "good"), *pictures

    @errors_shown
    def evaluate(
        self,
        run: str,
        samples: str | None,
        steps: str | None,
        images: str | None,
        minutes: str | None,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Evaluate a model as `ornstein evaluate` does: its tables and its report."""
        session = self.studio.sessions.of(request)
        path = self.studio.runs.find(run)
        folder = path / "evaluation"
        words = forms.given(Evaluate, _SIZES, [samples, steps, images, minutes], _LABELS)
        command = ["evaluate", str(path), *words, "--out", str(folder)]
        work = Work(session, "parts", lambda tell: _command(command, tell))
        for line in work:
            yield line, gr.skip(), gr.skip(), gr.skip()
        report = folder / "report.html"
        yield (
            note(f"Evaluated; the report is {report}.", "good"),
            table_of(read_json(folder / "evaluation.json")),
            gr.update(value=str(report), visible=True),
            framed(report),
        )


def page(studio: Studio) -> None:
    """Build the page."""
    handlers = _Page(studio)
    gr.Markdown(_PAGE)
    run = studio.chooser("images")
    stop = gr.Button("Stop", size="sm")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            image, method, bits, measured = _image()
        with gr.Column(min_width=280):
            data, upload, count, rank, ranked = _set()
    sizes, evaluate, evaluated = _model()
    studio.on_stop(stop)
    studio.sent(image)
    studio.sent(upload)
    bits.click(handlers.likelihood, [run, image, method], measured, api_name="likelihood", **studio.long)
    rank.click(handlers.rank, [run, data, upload, count], ranked, api_name="rank", **studio.long)
    evaluate.click(handlers.evaluate, [run, *sizes], evaluated, api_name="evaluate", **studio.long)


def _image() -> tuple[gr.File, gr.Dropdown, gr.Button, list[Any]]:
    """The inputs and the button of `likelihood`, and what shows its result."""
    gr.Markdown("### An image")
    image = gr.File(label="Image (its centre square)", height=160, elem_id="image")
    method = gr.Dropdown(list(_ONE), value=_ONE[0], label="Method", info="A bound (continuous, vlb) or the flow (ode).")
    button = gr.Button("Bits per dimension", variant="primary")
    status = gr.HTML(elem_id="bits-status")
    with gr.Row():
        seen = gr.Image(
            label="At the model's size", height=200, interactive=False, format="png", min_width=180, buttons=[]
        )
        terms = gr.Plot(label="By term", elem_id="terms", min_width=240)
    return image, method, button, [status, seen, terms]


def _set() -> tuple[gr.Textbox, gr.File, gr.Slider, gr.Button, list[Any]]:
    """The inputs and the button of `rank`, and what shows its result."""
    gr.Markdown("### A set")
    data = gr.Textbox("digits", label="Images", info="A folder or zip on this computer, or `digits`.")
    upload = gr.File(label="or an archive to upload", file_types=[".zip", ".tar"], height=160)
    count = gr.Slider(2, _MOST, 32, step=1, label="Images, evenly spread over the set")
    button = gr.Button("Rank", variant="primary")
    status = gr.HTML(elem_id="rank-status")
    galleries = [
        gallery(label, 4, name) for label, name in (("Most likely", "ranked"), ("Least likely", "ranked-last"))
    ]
    return data, upload, count, button, [status, *galleries]


def _model() -> tuple[list[Any], gr.Button, list[Any]]:
    """The inputs and the button of `evaluate`, and what shows its result."""
    gr.Markdown("### The model")
    gr.Markdown("Evaluated on the images it held out: likelihood, distances, precision and recall, copies.")
    with gr.Row():
        sizes = forms.components(Evaluate, _SIZES, _LABELS)
    button = gr.Button("Evaluate", variant="primary")
    status = gr.HTML(elem_id="evaluate-status")
    tables = gr.HTML(elem_id="tables")
    report = gr.File(label="Report", visible=False, elem_id="evaluate-report")
    return sizes, button, [status, tables, report, gr.HTML(elem_id="evaluate-page")]


def _pictures(rows: list[int], pixels: Tensor, captions: list[str], folder: Path) -> list[tuple[str, str]]:
    out = []
    for i in rows:
        path = folder / f"{i:05d}.png"
        save_grid(pixels[i : i + 1], path, upscale=max(1, 96 // pixels.shape[-1]))
        out.append((str(path), captions[i]))
    return out


def table_of(record: dict[str, Any]) -> str:
    """The figures of `evaluation.json` as HTML tables."""
    out = []
    for title, rows in (
        ("Likelihood", record.get("likelihood") or []),
        ("Quality of samples", record.get("quality") or []),
    ):
        if not rows:
            continue
        kept = [{k: v for k, v in row.items() if _short(v)} for row in rows]
        heads = list(kept[0])
        body = "".join("<tr>" + "".join(f"<td>{_cell(row.get(head))}</td>" for head in heads) + "</tr>" for row in kept)
        head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in heads)
        out.append(f'<h4>{title}</h4><div class="wide"><table class="facts"><tr>{head}</tr>{body}</table></div>')
    return "".join(out)


def _short(value: Any) -> bool:
    return not isinstance(value, list | dict) or (isinstance(value, dict) and "mean" in value)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("mean")
    return escape(f"{value:.4g}" if isinstance(value, float) else str("" if value is None else value))


def _command(words: list[str], tell: Tell) -> None:
    """Run a command of ornstein's with its progress bar as progress. Raises UserError or RunError with its error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ornstein", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "200", "FORCE_COLOR": "1", "TTY_INTERACTIVE": "1"},
    )
    latest = [""]

    def listen() -> None:
        assert process.stdout is not None
        text = ""
        while piece := process.stdout.read1(4096):  # type: ignore[attr-defined]
            text = (text + piece.decode("utf-8", "replace"))[-8192:]
            lines = [each.strip() for each in re.split(r"[\r\n]+", _ANSI.sub("", text)) if each.strip()]
            if lines:
                latest[0] = lines[-1]

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    try:
        while process.poll() is None:
            tell(" ".join(_BAR.sub(" ", latest[0]).split()) or "reading", 0, None)
            reader.join(0.25)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    reader.join(5)
    if process.returncode:
        kind = UserError if process.returncode == 2 else RunError
        raise kind(latest[0].removeprefix("error: ") or f"ornstein {words[0]} ended with status {process.returncode}")
