"""The page Generate: samples of a run, their trajectory from noise, earlier draws, and the quality of fewer steps."""

from __future__ import annotations

import secrets
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from ornstein.data import clip_grid, grid, save_grid, to_uint8
from ornstein.errors import UserError
from ornstein.interop.settings import Prompts
from ornstein.request import CHURNED, SOLVERS, STEPS, SampleRequest
from ornstein.settings import field_of
from ornstein.studio import charts, forms
from ornstein.studio.draws import AUTOMATIC, EACH, MOST, MOST_CLIPS, TUNED, Draw, checked, write_samples
from ornstein.studio.sessions import Session
from ornstein.studio.studio import Studio, gallery
from ornstein.studio.work import Tell, Work, errors_shown, note
from ornstein.text import TextDenoiser

__all__ = ["page"]

_COMPARED, _REFERENCE = (2, 5, 10, 20, 50), 100
_PAGE = "Draw samples from a trained model. The same seed and settings give the same pictures as `ornstein sample`."
_REMEMBERED = 20  # draws of a page


def _zipped(files: list[Path], path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            archive.write(file, file.name)
    return path


class _Page:
    """The handlers of the page."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def classes(self, name: str) -> Any:
        """The menu of classes, the number of samples, and whether prompts are shown for a run that was chosen."""
        model = self.studio.runs.model(self.studio.runs.find(name))
        data = model.data
        assert data is not None
        most = MOST_CLIPS if len(data.shape) == 4 else MOST
        text = gr.update(visible=isinstance(model, TextDenoiser))
        menu = gr.update(choices=[EACH, *data.classes], value=EACH)
        return menu, gr.update(maximum=most, value=min(16, most)), text, text

    @errors_shown
    def generate(
        self,
        run: str,
        label: str,
        solver: str,
        steps: float,
        guidance: float,
        seed: float,
        n: float,
        prompt: str,
        negative: str,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Draw samples of a run: files, and the command that makes the same."""
        session = self.studio.sessions.of(request)
        draw = checked(self.studio, run, label, solver, steps, guidance, seed, n, prompt, negative)
        denoiser = self.studio.runs.model(draw.run)
        states: list[tuple[float, Tensor]] = []
        folder, seen = session.new_folder(), 0
        work = Work(session, "steps", lambda tell: draw.samples(denoiser, tell, states, self.studio.dtype))
        for line in work:
            preview = _preview(states, folder) if len(states) > seen else gr.skip()
            seen = len(states)
            yield line, gr.skip(), gr.skip(), gr.skip(), gr.skip(), preview, gr.skip()
        files = write_samples(draw, work.result, folder)
        session.kept["film"] = states, folder
        history = session.kept.setdefault("draws", [])
        history.append((draw, files))
        del history[:-_REMEMBERED]
        last = len(states) - 1
        yield (
            note(f"{draw.n} samples of {draw.run.name}, {draw.steps} steps, seed {draw.seed}.", "good"),
            [str(path) for path in files],
            str(_zipped(files, folder / f"{draw.run.name}-seed{draw.seed}.zip")),
            draw.command,
            gr.update(maximum=last, value=last),
            _state(session, last),
            gr.update(choices=_named(history), value=len(history) - 1),
        )

    def state(self, step: float, request: gr.Request) -> Any:
        """The samples after a step."""
        return _state(self.studio.sessions.of(request), int(step or 0))

    @errors_shown
    def again(self, number: float | None, request: gr.Request) -> list[Any]:
        """The settings and the samples of an earlier draw of this page."""
        history = self.studio.sessions.of(request).kept.get("draws", [])
        if number is None or not 0 <= number < len(history):
            raise UserError("nothing was drawn on this page yet: press Generate first")
        draw, files = history[int(number)]
        settings = [str(draw.run), draw.label or EACH, draw.solver or AUTOMATIC, draw.steps, draw.guidance, draw.seed]
        texts = [draw.prompt or "", draw.negative or ""]
        return [*settings, draw.n, *texts, [str(path) for path in files], draw.command]

    @errors_shown
    def compare_steps(
        self,
        run: str,
        label: str,
        solver: str,
        guidance: float,
        seed: float,
        prompt: str,
        negative: str,
        request: gr.Request,
    ) -> Iterator[Any]:
        """How far samples of few steps are from those of many, and what they look like."""
        session = self.studio.sessions.of(request)
        counts = (*_COMPARED, _REFERENCE)
        draws = [checked(self.studio, run, label, solver, k, guidance, seed, 4, prompt, negative) for k in counts]
        if any(draw.solver == TUNED for draw in draws):
            raise UserError("a tuned solver has one number of steps: choose another to compare")
        denoiser = self.studio.runs.model(draws[0].run)
        if denoiser.distilled is not None:
            raise UserError(f"{draws[0].run.name} is distilled to {denoiser.distilled}: it has no other steps")

        def job(tell: Tell) -> list[Tensor]:
            out, done = [], 0
            for draw in draws:

                def advance(what: str, step: int, total: int | None, before: int = done) -> None:
                    tell("comparing", before + step, sum(counts))

                out.append(draw.samples(denoiser, advance, precision=self.studio.dtype))
                done += draw.steps
            return out

        work = Work(session, "steps", job)
        for line in work:
            yield line, gr.skip(), gr.skip()
        *fewer, reference = (to_uint8(samples).float() for samples in work.result)
        gaps = [float((each - reference).square().mean().sqrt()) for each in fewer]
        folder, pictures = session.new_folder(), []
        for count, samples in zip(counts, work.result, strict=True):
            pictures.append((_sheet(samples, folder / f"{count}-steps.png", 128), f"{count} steps"))
        figure = charts.lines({"": (_COMPARED, gaps)}, "steps", "difference, of 255", log="xy")
        yield note(f"4 samples each, against {_REFERENCE} steps of the same solver.", "good"), figure, pictures


def page(studio: Studio) -> None:
    """Build the page."""
    handlers = _Page(studio)
    gr.Markdown(_PAGE)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            run = studio.chooser("images", "clips")
            prompt, negative = _prompts()
            label, solver, steps, guidance, seed, n, random = _form()
            with gr.Row():
                go, stop = gr.Button("Generate", variant="primary"), gr.Button("Stop")
            status = gr.HTML(note("Nothing drawn yet."), elem_id="generate-status")
            history = gr.Dropdown([], label="Earlier draws of this page", elem_id="history")
            again = gr.Button("Use these settings")
        with gr.Column(scale=7, min_width=280):
            pictures, files, command, place, state = _samples()
            compare, compared = _comparison()
    inputs = [run, label, solver, steps, guidance, seed, n, prompt, negative]
    silent: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    studio.on_stop(stop)
    shown = [label, n, prompt, negative]
    run.input(handlers.classes, run, shown, **silent)
    studio.on_load(handlers.classes, run, shown)
    random.click(lambda: secrets.randbelow(2**31), None, seed, **silent)
    go.click(
        handlers.generate,
        inputs,
        [status, pictures, files, command, place, state, history],
        api_name="generate",
        **studio.long,
    )
    again.click(handlers.again, history, [*inputs, pictures, command], **silent)
    place.release(handlers.state, place, state, **silent)
    compare.click(
        handlers.compare_steps,
        [run, label, solver, guidance, seed, prompt, negative],
        compared,
        api_name="compare_steps",
        **studio.long,
    )


def _prompts() -> list[gr.Textbox]:
    """Prompt and negative prompt, shown for a model that takes text."""
    about = {name: forms.described(field_of(Prompts, name)) for name in ("prompt", "negative")}
    return [
        gr.Textbox("", label=label, info=about[name], visible=False, elem_id=name)
        for name, label in (("prompt", "Prompt"), ("negative", "Negative prompt"))
    ]


def _form() -> tuple[Any, ...]:
    """The inputs of `generate` after the run, and the button for a random seed."""
    about = {name: forms.described(field_of(SampleRequest, name)) for name in ("solver", "steps", "guidance", "seed")}
    label = gr.Dropdown(
        [EACH], value=EACH, label="Class", info="Of the classes that the model knows.", allow_custom_value=True
    )
    n = gr.Slider(1, MOST, 16, step=1, label="Samples", info=f"At most {MOST}, or {MOST_CLIPS} clips.")
    with gr.Row(equal_height=False):
        seed = gr.Number(0, label="Seed", precision=0, info=about["seed"], min_width=160)
        random = gr.Button("Random", min_width=110, scale=0)
    steps = gr.Slider(1, 200, STEPS, step=1, label="Steps", info=about["steps"].replace("empty: ", "default: "))
    solver = gr.Dropdown(
        [AUTOMATIC, *SOLVERS, TUNED, CHURNED],
        value=AUTOMATIC,
        label="Solver",
        info=about["solver"].replace("empty: ", f"{AUTOMATIC}: "),
    )
    guidance = gr.Slider(
        0, 10, 1, step=0.1, label="Guidance", info=about["guidance"].replace("empty: ", "default: ")
    )  # fmt: skip
    return label, solver, steps, guidance, seed, n, random


def _samples() -> tuple[gr.Gallery, gr.File, gr.Textbox, gr.Slider, gr.Image]:
    """What shows the samples, and their states during sampling."""
    shown = gallery("Samples", 6, "samples", download=True)
    with gr.Row():
        files = gr.File(label="Download all, with their settings", elem_id="download")
        command = gr.Textbox(label="The same from the command line", interactive=False, buttons=["copy"], lines=2)
    with gr.Accordion("From noise to picture", open=True):
        place = gr.Slider(0, 1, 1, step=1, label="Step", info="0 is the noise.", elem_id="place")
        state = gr.Image(
            label="State", height=260, interactive=False, format="png", elem_id="film", buttons=["fullscreen"]
        )
    return shown, files, command, place, state


def _comparison() -> tuple[gr.Button, list[Any]]:
    """The button of `compare_steps`, and what shows its result."""
    with gr.Accordion("Quality against steps", open=False):
        gr.Markdown(f"The same noise with fewer steps, compared with {_REFERENCE} steps: the remaining error.")
        button = gr.Button("Compare")
        status = gr.HTML(elem_id="compare-status")
        curve = gr.Plot(label="Root mean square difference, of 255", elem_id="curve")
        sheets = gallery("By steps", 3, "by-steps")
    return button, [status, curve, sheets]


def _named(history: list[tuple[Draw, list[Path]]]) -> list[tuple[str, int]]:
    """The entries of the menu of earlier draws, the latest first."""
    return [(f"{i + 1}: {draw}", i) for i, (draw, _) in enumerate(history)][::-1]


def _preview(states: list[tuple[float, Tensor]], folder: Path) -> Any:
    """The latest state while samples are drawn."""
    number = len(states) - 1
    t, samples = states[number]
    path = _sheet(samples, folder / f"preview-{number}.png", 256)
    return gr.update(value=path, label=f"State after step {number}, t = {t:.3f}")


def _state(session: Session, step: int) -> Any:
    """The state after a step of the page's latest draw."""
    if "film" not in session.kept:
        return gr.skip()
    states, folder = session.kept["film"]
    number = min(max(step, 0), len(states) - 1)
    t, samples = states[number]
    path = _sheet(samples, folder / f"state-{number}.png", 256)
    return gr.update(value=path, label=f"State after step {number} of {len(states) - 1}, t = {t:.3f}")


def _sheet(samples: Tensor, path: Path, width: int) -> str:
    """Write the samples side by side as one picture, about so many pixels wide; of clips their middle frames."""
    if samples.ndim == 5:
        sheet = clip_grid(samples)
        picture = sheet[:, sheet.shape[1] // 2]
    else:
        picture = grid(samples, gap=1)
    save_grid(picture[None], path, upscale=max(1, width // picture.shape[-1]))
    return str(path)
