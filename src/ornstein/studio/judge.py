"""The page Likelihood & judge: bits of an image by term, the most and least likely of a set, the report of a model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
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
from ornstein.store import read_json
from ornstein.studio import charts
from ornstein.studio.studio import Studio
from ornstein.studio.work import Work, note, told

_ONE = ("continuous", "vlb", "ode")
_MOST, _AT_ONCE, _ENDS = 256, 8, 8
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BAR = re.compile(r"[━╸╺]+")
_PAGE = (
    "Bits per dimension: how many bits a channel of a pixel takes when the model describes the image. Fewer is "
    "likelier; 8 is no better than guessing."
)

Tell = Callable[[str, int, int | None], None]


@contextmanager
def counted(net: nn.Module, tell: Tell, what: str) -> Iterator[None]:
    """Each call of the network is told of, and stops the work when that was asked for."""
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
    """The image in a file as the model sees it, uint8 (1, C, H, W). Raises UserError where it is no image."""
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


def each_bits(denoiser: Denoiser, images: Tensor, tell: Tell) -> Tensor:
    """Bits/dim of each image uint8 (N, C, H, W) by the continuous bound (E17), (N,). Raises UserError for latents."""
    if denoiser.space is not None:
        raise UserError("the images of a set are ranked by models of pixels; this one is of latents")
    out = []
    for first in range(0, len(images), _AT_ONCE):
        tell("images", first, len(images))
        x0 = to_unit(images[first : first + _AT_ONCE])
        bound = likelihood.vlb(denoiser, x0, STEPS, "continuous", "discrete", terms=LEVELS, first=first)
        out.append(likelihood.bits_per_dim(bound.total, x0.shape, None))
    return torch.cat(out)


def page(studio: Studio) -> None:
    """Build the page."""
    gr.Markdown(_PAGE)
    run = studio.chooser("images")
    stop = gr.Button("Stop", size="sm")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            gr.Markdown("### An image")
            image = gr.File(label="Image: its centre square, brought to the model's size", height=140, elem_id="image")
            method = gr.Dropdown(
                list(_ONE), value=_ONE[0], label="Method", info="A bound (continuous, vlb) or the flow."
            )
            bits = gr.Button("Bits per dimension", variant="primary")
            bits_status = gr.HTML(elem_id="bits-status")
            with gr.Row():
                seen = gr.Image(
                    label="As the model sees it", height=180, interactive=False, format="png", min_width=140, buttons=[]
                )
                terms = gr.Plot(label="By term", elem_id="terms", min_width=240)
        with gr.Column(min_width=280):
            gr.Markdown("### A set")
            data = gr.Textbox("digits", label="Images", info="A folder or zip on this computer, or `digits`.")
            upload = gr.File(label="or a zip to upload", file_types=[".zip", ".tar"], height=140)
            count = gr.Slider(2, _MOST, 32, step=1, label="Images, evenly spread over the set")
            rank = gr.Button("Rank", variant="primary")
            rank_status = gr.HTML(elem_id="rank-status")
            most = gr.Gallery(
                label="Most likely",
                columns=4,
                height=200,
                object_fit="contain",
                format="png",
                buttons=["fullscreen"],
                elem_id="ranked",
            )
            least = gr.Gallery(
                label="Least likely", columns=4, height=200, object_fit="contain", format="png", buttons=["fullscreen"]
            )
    gr.Markdown("### The model")
    gr.Markdown("Judged by the images it held out: likelihood, distances, precision and recall, copies.")
    with gr.Row():
        samples = gr.Number(200, label="Samples", precision=0, min_width=110)
        steps = gr.Textbox("10,50", label="Steps", info="With commas between.", min_width=110)
        images = gr.Number(32, label="Images for the likelihood", precision=0, min_width=110)
    judge = gr.Button("Evaluate", variant="primary")
    judged = gr.HTML(elem_id="judge-status")
    tables = gr.HTML(elem_id="tables")
    report = gr.File(label="The report", visible=False, elem_id="judge-report")

    @told
    def likelihood_of(run: str, image: str | None, method: str, request: gr.Request) -> Iterator[Any]:
        """Bits per dimension of an image, by term of the bound."""
        session = studio.sessions.of(request)
        studio.sessions.send(request, [image])
        denoiser = studio.runs.model(studio.runs.find(run))
        if not image:
            raise UserError("choose an image first")
        if method not in _ONE:
            raise UserError(f"no method {method!r}: one of {', '.join(_ONE)}")
        pixels = seen_by(denoiser, Path(image))

        def job(tell: Tell) -> Bits:
            with counted(denoiser.net, tell, "measuring"):
                return bits_of_images(denoiser, pixels, method)

        work = Work(session, "calls", job)
        for line in work:
            yield line, gr.skip(), gr.skip()
        found = work.result
        path = session.new_folder() / "seen.png"
        save_grid(pixels, path, upscale=max(1, 160 // pixels.shape[-1]))
        figure = charts.bars({**found.parts, "total": found.mean}, "bits/dim") if found.parts else None
        yield note(f"{found.mean:.3f} bits/dim: {found.meaning}.", "good"), str(path), figure

    @told
    def rank_images(run: str, data: str, upload: str | None, count: float, request: gr.Request) -> Iterator[Any]:
        """The most and least likely images of a set, with their bits per dimension."""
        session = studio.sessions.of(request)
        studio.sessions.send(request, [upload])
        denoiser = studio.runs.model(studio.runs.find(run))
        assert denoiser.data is not None
        channels, _, size = denoiser.data.shape
        if not 2 <= count <= _MOST:
            raise UserError(f"images must lie between 2 and {_MOST}, not {count}")

        def job(tell: Tell) -> tuple[Tensor, Tensor, list[str]]:
            found = open_images(upload or data, size, channels, progress=lambda done, all_: tell("files", done, all_))
            rows = torch.linspace(0, len(found) - 1, min(int(count), len(found))).long()
            pixels = found.images[rows]
            return each_bits(denoiser, pixels, tell), pixels, [found.names[i] for i in rows]

        work = Work(session, "images", job)
        for line in work:
            yield line, gr.skip(), gr.skip()
        values, pixels, names = work.result
        folder, order = session.new_folder(), work.result[0].argsort().tolist()

        def shown(rows: list[int]) -> list[tuple[str, str]]:
            out = []
            for i in rows:
                path = folder / f"{i:05d}.png"
                save_grid(pixels[i : i + 1], path, upscale=max(1, 96 // pixels.shape[-1]))
                out.append((str(path), f"{float(values[i]):.3f} · {names[i]}"))
            return out

        said = f"{len(values)} images: mean {float(values.mean()):.3f} bits/dim, from {float(values.min()):.3f}"
        said += f" to {float(values.max()):.3f}; bound E17, {LEVELS} noise levels an image."
        yield note(said, "good"), shown(order[:_ENDS]), shown(order[::-1][:_ENDS])

    @told
    def evaluate(run: str, samples: float, steps: str, images: float, request: gr.Request) -> Iterator[Any]:
        """Judge a model as `ornstein evaluate` does: its tables and its report."""
        session = studio.sessions.of(request)
        path = studio.runs.find(run)
        words = [
            "-n",
            str(int(samples or 0)),
            "--steps",
            steps or "",
            "--images",
            str(int(images or 0)),
            "--seeds",
            "1",
        ]
        folder = path / "evaluation"
        work = Work(
            session, "parts", lambda tell: _command(["evaluate", str(path), *words, "--out", str(folder)], tell)
        )
        for line in work:
            yield line, gr.skip(), gr.skip()
        yield (
            note(f"Judged; the report is in {folder}.", "good"),
            table_of(read_json(folder / "evaluation.json")),
            gr.update(value=str(folder / "report.html"), visible=True),
        )

    studio.on_stop(stop)
    studio.sent(image)
    studio.sent(upload)
    bits.click(
        likelihood_of, [run, image, method], [bits_status, seen, terms], api_name="likelihood", **studio.long
    )  # fmt: skip
    rank.click(
        rank_images, [run, data, upload, count], [rank_status, most, least], api_name="rank", **studio.long
    )  # fmt: skip
    judge.click(
        evaluate, [run, samples, steps, images], [judged, tables, report], api_name="evaluate", **studio.long
    )  # fmt: skip


def table_of(found: dict[str, Any]) -> str:
    """The figures of `evaluation.json` as HTML tables."""
    out = []
    for title, rows in (
        ("Likelihood", found.get("likelihood") or []),
        ("Quality of samples", found.get("quality") or []),
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
    """Run a command of ornstein's, its bar told as it goes. Raises UserError or RunError with what it says."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ornstein", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "200", "FORCE_COLOR": "1", "TTY_INTERACTIVE": "1"},
    )
    said = [""]

    def listen() -> None:
        assert process.stdout is not None
        text = ""
        while piece := process.stdout.read1(4096):  # type: ignore[attr-defined]
            text = (text + piece.decode("utf-8", "replace"))[-8192:]
            lines = [each.strip() for each in re.split(r"[\r\n]+", _ANSI.sub("", text)) if each.strip()]
            if lines:
                said[0] = lines[-1]

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    try:
        while process.poll() is None:
            tell(" ".join(_BAR.sub(" ", said[0]).split()) or "reading", 0, None)
            reader.join(0.25)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    reader.join(5)
    if process.returncode:
        kind = UserError if process.returncode == 2 else RunError
        raise kind(said[0].removeprefix("error: "))
