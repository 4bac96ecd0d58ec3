"""The page Generate: samples of a run by class, solver, steps and seed; how they come about; what fewer steps cost."""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from torch import Tensor

import ornstein as orn
from ornstein.data import clip_grid, grid, save_grid, save_mp4, to_uint8
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_precision
from ornstein.errors import UserError
from ornstein.evaluation.run import STEPS
from ornstein.evaluation.samples import choose_solver, class_number, record_of
from ornstein.sampling import State
from ornstein.solvers import SOLVER, SOLVERS
from ornstein.studio import charts
from ornstein.studio.studio import Studio
from ornstein.studio.work import Work, note, told
from ornstein.wrapper import device_of

AUTOMATIC, EACH, TUNED = "automatic", "each in turn", "tuned"
MOST = 64  # samples at a time: one batch, as `ornstein sample` makes it
_MOST_CLIPS = 8
_FILM = 16  # samples whose trajectory is kept
_COMPARED, _REFERENCE = (2, 5, 10, 20, 50), 100
_PAGE = "Draw samples from a trained model. The same seed and settings give the same pictures as `ornstein sample`."

Tell = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Asked:
    """What samples are asked for."""

    run: Path
    n: int
    solver: str | None
    steps: int
    label: str | None
    guidance: float
    seed: int

    @property
    def command(self) -> str:
        """The command that makes the same samples."""
        words = ["ornstein", "sample", str(self.run), "-n", str(self.n), "--steps", str(self.steps)]
        words += ["--seed", str(self.seed), "--guidance", f"{self.guidance:g}"]
        for option, value in (("--solver", self.solver), ("--class", self.label)):
            words += [option, value] if value is not None else []
        return shlex.join(words)

    def labels(self, denoiser: Denoiser) -> Tensor | None:
        assert denoiser.data is not None
        if self.label is None:
            if self.guidance != 1 and not denoiser.data.classes:
                raise UserError(f"{self.run.name} was trained without classes: leave guidance at 1")
            return denoiser.data.labels(self.n)
        return torch.full((self.n,), class_number(self.label, denoiser.data, self.run))

    def draw(self, denoiser: Denoiser, tell: Tell, film: list[tuple[float, Tensor]] | None = None) -> Tensor:
        """The samples, (N, C, H, W) or (N, C, F, H, W) in [-1, 1]; `film` gets (t, uint8) of the first of them."""
        assert denoiser.data is not None
        solver: Any = self.solver
        if denoiser.distilled is None:
            solver = choose_solver(self.run, self.solver, self.steps, None, self.guidance, True)
        labels = self.labels(denoiser)
        clips = len(denoiser.data.shape) == 4
        batch = 8 if clips else 64

        def told_state(state: State) -> None:
            tell(f"sampling, t = {state.t:.3f}", state.step, state.steps)
            if film is not None and state.first == 0:
                film.append((state.t, to_uint8(denoiser.decode(state.x[:_FILM]))))

        samples = orn.sample(
            denoiser,
            (self.n, *denoiser.data.shape),
            solver=solver,
            steps=self.steps,
            seed=self.seed,
            guidance=self.guidance,
            cond={"label": labels},
            callback=told_state,
            batch=batch,
            precision=choose_precision("auto", device_of(denoiser)),
        )
        return denoiser.decode(samples)


def asked_for(
    studio: Studio, run: str, label: str, solver: str, steps: float, guidance: float, seed: float, n: float
) -> Asked:
    """The request with its numbers checked. Raises UserError for what is out of range."""
    path = studio.runs.find(run)
    denoiser = studio.runs.model(path)
    assert denoiser.data is not None
    most = _MOST_CLIPS if len(denoiser.data.shape) == 4 else MOST
    for name, value, low, high in (("samples", n, 1, most), ("steps", steps, 1, 1000), ("guidance", guidance, 0, 20)):
        if value is None or not low <= value <= high:
            raise UserError(f"{name} must lie between {low} and {high}, not {value}")
    if seed is None or not 0 <= seed < 2**53 or seed != int(seed):
        raise UserError(f"a seed is a whole number from 0 on, not {seed}")
    chosen = None if solver in (None, "", AUTOMATIC) else solver
    if denoiser.distilled is not None and chosen is None:
        steps = denoiser.distilled.steps  # its own, whatever the slider says
    return Asked(path, int(n), chosen, int(steps), None if label in (None, "", EACH) else label, guidance, int(seed))


def files_of(asked: Asked, samples: Tensor, folder: Path, fps: float = 8.0) -> list[Path]:
    """The samples as files that say how they were made: a PNG each, or for clips an mp4 each."""
    record = record_of(asked.run, {"command": asked.command, "seed": asked.seed, "steps": asked.steps})
    out = []
    clips = samples.ndim == 5
    for i, sample in enumerate(samples):
        said = json.dumps(record | {"sample": i})
        path = folder / f"{asked.run.name}-seed{asked.seed}-{i:05d}.{'mp4' if clips else 'png'}"
        if clips:
            save_mp4(sample, path, fps, max(1, 128 // sample.shape[-1]), said)
        else:
            save_grid(sample[None], path, comment=said)
        out.append(path)
    return out


def _zipped(files: list[Path], path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            archive.write(file, file.name)
    return path


def _shown(samples: Tensor) -> Tensor:
    """The samples, or the middle frames of clips, side by side as one picture (C, H, W), uint8."""
    if samples.ndim == 5:
        sheet = clip_grid(samples)
        return sheet[:, sheet.shape[1] // 2]
    return grid(samples, gap=1)


def page(studio: Studio) -> None:
    """Build the page."""
    gr.Markdown(_PAGE)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            run = studio.chooser("images", "clips")
            label = gr.Dropdown(
                [EACH], value=EACH, label="Class", info="Of the classes the model knows.", allow_custom_value=True
            )
            with gr.Row():
                n = gr.Slider(1, MOST, 16, step=1, label="Samples", info=f"At most {MOST}, or {_MOST_CLIPS} clips.")
                seed = gr.Number(0, label="Seed", precision=0, info="The same number gives the same pictures.")
            steps = gr.Slider(1, 200, STEPS, step=1, label="Steps", info="Calls of the network; more is finer.")
            with gr.Row():
                solver = gr.Dropdown(
                    [AUTOMATIC, *SOLVERS, TUNED], value=AUTOMATIC, label="Solver", info=f"Else {SOLVER}."
                )
                guidance = gr.Slider(0, 10, 1, step=0.1, label="Guidance", info="1 is the plain model.")
            with gr.Row():
                go = gr.Button("Generate", variant="primary")
                stop = gr.Button("Stop")
            status = gr.HTML(note("Nothing drawn yet."), elem_id="generate-status")
        with gr.Column(scale=7, min_width=280):
            gallery = gr.Gallery(
                label="Samples",
                columns=6,
                height=380,
                object_fit="contain",
                elem_id="samples",
                format="png",
                buttons=["download", "fullscreen"],
            )
            with gr.Row():
                files = gr.File(label="Download: every sample, its settings inside", elem_id="download")
                command = gr.Textbox(
                    label="The same from the command line", interactive=False, buttons=["copy"], lines=2
                )
            with gr.Accordion("How they come about", open=True):
                place = gr.Slider(0, 1, 1, step=1, label="Step", info="From noise to picture.", elem_id="place")
                film = gr.Image(
                    label="State", height=260, interactive=False, format="png", elem_id="film", buttons=["fullscreen"]
                )
            with gr.Accordion("Quality against steps", open=False):
                gr.Markdown(f"The same noise with fewer steps, held against {_REFERENCE} steps: what is still wrong.")
                compare = gr.Button("Compare")
                compared = gr.HTML(elem_id="compare-status")
                curve = gr.Plot(label="Root mean square difference, pixel values of 255", elem_id="curve")
                sheet = gr.Gallery(
                    label="By steps", columns=3, height=300, object_fit="contain", format="png", buttons=["fullscreen"]
                )

    inputs = [run, label, solver, steps, guidance, seed, n]

    def classes(name: str) -> Any:
        found = studio.runs.model(studio.runs.find(name)).data
        assert found is not None
        most = _MOST_CLIPS if len(found.shape) == 4 else MOST
        count = gr.update(maximum=most, value=min(16, most))
        return gr.update(choices=[EACH, *found.classes], value=EACH), count

    @told
    def generate(
        run: str, label: str, solver: str, steps: float, guidance: float, seed: float, n: float, request: gr.Request
    ) -> Iterator[Any]:
        """Samples of a run as files, and the command that makes the same."""
        session = studio.sessions.of(request)
        asked = asked_for(studio, run, label, solver, steps, guidance, seed, n)
        denoiser = studio.runs.model(asked.run)
        states: list[tuple[float, Tensor]] = []
        work = Work(session, "steps", lambda tell: asked.draw(denoiser, tell, states))
        for line in work:
            yield line, gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        folder = session.new_folder()
        made = files_of(asked, work.result, folder)
        session.kept["film"] = states, folder
        zipped = _zipped(made, folder / f"{asked.run.name}-seed{asked.seed}.zip")
        last = len(states) - 1
        yield (
            note(f"{asked.n} samples of {asked.run.name}, {asked.steps} steps, seed {asked.seed}.", "good"),
            [str(path) for path in made],
            str(zipped),
            asked.command,
            gr.update(maximum=last, value=last),
            _state(session, last),
        )

    def _state(session: Any, step: int) -> Any:
        if "film" not in session.kept:
            return gr.skip()
        states, folder = session.kept["film"]
        t, samples = states[min(max(int(step), 0), len(states) - 1)]
        path = folder / f"state-{int(step)}.png"
        save_grid(_shown(samples)[None], path, upscale=max(1, 256 // _shown(samples).shape[-1]))
        return gr.update(value=str(path), label=f"State after step {int(step)} of {len(states) - 1}, t = {t:.3f}")

    def look(step: float, request: gr.Request) -> Any:
        return _state(studio.sessions.of(request), int(step))

    @told
    def compare_steps(
        run: str, label: str, solver: str, guidance: float, seed: float, request: gr.Request
    ) -> Iterator[Any]:
        """How far samples of few steps are from those of many, and what they look like."""
        session = studio.sessions.of(request)
        counts = (*_COMPARED, _REFERENCE)
        all_asked = [asked_for(studio, run, label, solver, k, guidance, seed, 4) for k in counts]
        if any(asked.solver == TUNED for asked in all_asked):
            raise UserError("a tuned solver has one number of steps: choose another to compare")
        denoiser = studio.runs.model(all_asked[0].run)
        if denoiser.distilled is not None:
            raise UserError(f"{run} is distilled to {denoiser.distilled}: there are no others to compare")
        done = 0

        def job(tell: Tell) -> list[Tensor]:
            nonlocal done
            out = []
            for asked in all_asked:
                # one line of progress over all of them
                out.append(asked.draw(denoiser, lambda _, step, __: tell("comparing", done + step, sum(counts))))  # noqa: B023
                done += asked.steps
            return out

        work = Work(session, "steps", job)
        for line in work:
            yield line, gr.skip(), gr.skip()
        *fewer, reference = (to_uint8(samples).float() for samples in work.result)
        gaps = [float((each - reference).square().mean().sqrt()) for each in fewer]
        folder, pictures = session.new_folder(), []
        for count, samples in zip(counts, work.result, strict=True):
            path = folder / f"{count}-steps.png"
            shown = _shown(samples)
            save_grid(shown[None], path, upscale=max(1, 128 // shown.shape[-1]))
            pictures.append((str(path), f"{count} steps"))
        figure = charts.lines({"": (_COMPARED, gaps)}, "steps", "difference, of 255", log="xy")
        yield note(f"4 samples each, against {_REFERENCE} steps of the same solver.", "good"), figure, pictures

    studio.on_stop(stop)
    run.change(classes, run, [label, n], api_visibility="private", queue=False)
    studio.on_load(classes, run, [label, n])
    go.click(
        generate, inputs, [status, gallery, files, command, place, film], api_name="generate", **studio.long
    )  # fmt: skip
    place.release(look, place, film, queue=False, api_visibility="private", show_progress="hidden")
    compare.click(
        compare_steps,
        [run, label, solver, guidance, seed],
        [compared, curve, sheet],
        api_name="compare_steps",
        **studio.long,
    )
