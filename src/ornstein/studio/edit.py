"""The page Edit: a picture, what is to be made of it, several answers, and how uncertain each pixel is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from torch import Tensor

from ornstein.editing.editor import ROUNDING, Editor, check_editable
from ornstein.editing.files import Output, read_picture, write_answers
from ornstein.editing.settings import METHODS, Inpaint, Restore, Sdedit, Upscale
from ornstein.errors import UserError
from ornstein.evaluation.samples import class_number, record_of
from ornstein.interop.settings import Prompts
from ornstein.sampling import State
from ornstein.settings import field_of
from ornstein.studio import forms
from ornstein.studio.draws import AUTOMATIC, checked_seed
from ornstein.studio.studio import Studio, gallery
from ornstein.studio.work import Tell, Work, errors_shown, note
from ornstein.text import TextDenoiser

__all__ = ["TASKS", "page", "painted"]

FILL, RESTORE, ENLARGE, COLOUR, VARY = "fill what is painted", "restore", "enlarge", "colour", "vary"
TASKS = (FILL, RESTORE, ENLARGE, COLOUR, VARY)
_NO_CLASS = "none"
_MOST = 16  # answers
_PAGE = (
    "Edit a picture with a trained model. Each answer is a draw of what may be there; where they differ, the picture "
    "does not say. Outside of what is painted, a filled picture keeps every pixel."
)
_FACTOR = 2


def painted(value: Any) -> tuple[Path, Tensor | None]:
    """The picture of an image editor, and where it was painted, bool (H, W); None if nowhere."""
    background = value.get("background") if isinstance(value, dict) else None
    if not background:
        raise UserError("give a picture first")
    mask: Tensor | None = None
    for layer in value.get("layers") or []:
        alpha = read_picture(Path(layer), 4)[3] > -1
        mask = alpha if mask is None else mask | alpha
    return Path(background), mask if mask is not None and bool(mask.any()) else None


def _read(path: Path, channels: int, notes: list[str]) -> Tensor:
    """The picture for a model of so many channels; a grey one may come with three equal channels."""
    if channels != 1:
        return read_picture(path, channels, notes)
    x = read_picture(path, None)
    if not torch.equal(x, x[:1].expand_as(x)):
        raise UserError("the picture has colours, the model makes grey ones: choose the task colour, or another model")
    return x[:1]


class _Page:
    """The handlers of the page."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def classes(self, name: str) -> Any:
        """The menu of classes, and whether prompts are shown, for a run that was chosen."""
        model = self.studio.runs.model(self.studio.runs.find(name))
        assert model.data is not None
        text = gr.update(visible=isinstance(model, TextDenoiser))
        return gr.update(choices=[_NO_CLASS, *model.data.classes], value=_NO_CLASS), text, text

    @errors_shown
    def edit(
        self,
        run: str,
        picture: Any,
        task: str,
        operator: str,
        noise_std: float,
        factor: float,
        strength: float,
        label: str,
        prompt: str,
        negative: str,
        method: str,
        n: float,
        steps: float,
        guidance: float,
        seed: float,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Answers for a picture: files, and how uncertain each pixel is."""
        session = self.studio.sessions.of(request)
        if isinstance(picture, dict):
            self.studio.sessions.send(request, [picture.get("background"), *picture.get("layers", [])])
        path = self.studio.runs.find(run)
        model = self.studio.runs.model(path)
        check_editable(model, path.name)
        file, mask = painted(picture)
        limits = {"answers": (n, 1, _MOST), "steps": (steps, 0, 200), "noise": (noise_std, 0, 2)}
        for name, (value, low, high) in (limits | {"guidance": (guidance, 0, 20)}).items():
            if value is None or not low <= value <= high:
                raise UserError(f"{name} must lie between {low} and {high}, not {value}")
        assert model.data is not None
        cond = {}
        if label not in (None, "", _NO_CLASS):
            cond["label"] = torch.tensor([class_number(label, model.data, path)])
        elif (prompt or "").strip() and isinstance(model, TextDenoiser):
            model = model.prompted([prompt.strip()], (negative or "").strip() or None)
            cond["label"] = torch.zeros(1, dtype=torch.int64)
        if guidance != 1 and not cond:
            raise UserError("guidance strengthens a condition: choose a class, or write a prompt for a model of text")
        options: dict[str, Any] = {"seed": checked_seed(seed), "precision": self.studio.dtype}
        if steps:
            options["steps"] = int(steps)
        if task != VARY and method != AUTOMATIC:
            options["method"] = method
        editor = Editor(model, int(n), cond=cond, guidance=guidance if cond else None, options=options)
        folder = session.new_folder()

        def job(tell: Tell) -> tuple[Tensor, Tensor]:
            def advance(state: State) -> None:
                tell(f"{task}, t = {state.t:.3f}", state.step, state.steps)

            editor.callback = advance
            return _made(editor, task, file, mask, operator, noise_std, int(factor or _FACTOR), strength)

        work = Work(session, "steps", job)
        for line in work:
            yield line, gr.skip(), gr.skip()
        shown, answers = work.result
        record = record_of(path, {"edit": task, "operator": operator, **{k: str(v) for k, v in options.items()}})
        stem = f"{path.name}-seed{options['seed']}"
        about = write_answers(Output(folder, [stem], len(answers)), stem, shown, answers, record)
        spread = folder / f"{stem}-uncertainty.png"
        said = [f"{len(answers)} answers."]
        if "uncertainty" in about:
            said.append(f"White is a standard deviation of {about['largest_uncertainty']:.2f}, of values that span 2.")
        said += [f"{text[:1].upper()}{text[1:]}." for text in editor.notes]
        yield (
            note(" ".join(said), "good"),
            [str(folder / name) for name in about["files"]],
            str(spread) if spread.is_file() else None,
        )


def _made(
    editor: Editor,
    task: str,
    file: Path,
    mask: Tensor | None,
    operator: str,
    noise_std: float,
    factor: int,
    strength: float,
) -> tuple[Tensor, Tensor]:
    """What the answers are of, and the answers."""
    channels = editor.shape[0]
    noise = noise_std or ROUNDING
    if task == FILL:
        if mask is None:
            raise UserError("paint over what is to be filled")
        x = _read(file, channels, editor.notes)
        return x, editor.inpaint(x, mask)
    if task == RESTORE:
        x = read_picture(file, None) if "grey" in operator else _read(file, channels, editor.notes)
        return x, editor.restore(x, operator, 0.0 if "jpeg" in operator else noise)
    if task == ENLARGE:
        x = _read(file, channels, editor.notes)
        return x, editor.upscale(x, factor, "area", noise)
    if task == COLOUR:
        x = read_picture(file, None)
        grey = x if len(x) == 1 else (x.new_tensor((0.299, 0.587, 0.114)).reshape(3, 1, 1) * x).sum(0, keepdim=True)
        return grey.expand(3, *grey.shape[1:]), editor.colourise(grey, noise)
    if task == VARY:
        x = _read(file, channels, editor.notes)
        return x, editor.sdedit(x, strength)
    raise UserError(f"unknown task {task!r}; known: {', '.join(TASKS)}")


def page(studio: Studio) -> None:
    """Build the page."""
    handlers = _Page(studio)
    gr.Markdown(_PAGE)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=280):
            run = studio.chooser("images")
            picture = gr.ImageEditor(
                type="filepath",
                format="png",
                label="Picture; paint over what is to be filled",
                elem_id="edit-picture",
                sources=["upload", "clipboard"],
                transforms=[],
                brush=gr.Brush(default_size=12, colors=["#e4572e"], color_mode="fixed"),
                layers=False,
                height=380,
            )
            inputs = [run, picture, *_form()]
            shown = inputs[7:10]
            with gr.Row():
                go, stop = gr.Button("Edit", variant="primary"), gr.Button("Stop")
            status = gr.HTML(note("Nothing edited yet."), elem_id="edit-status")
        with gr.Column(scale=6, min_width=280):
            answers = gallery("Answers", 4, "answers", download=True)
            spread = gr.Image(label="Where the answers differ", elem_id="edit-spread", type="filepath", format="png")
    studio.on_stop(stop)
    silent: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    run.input(handlers.classes, run, shown, **silent)
    studio.on_load(handlers.classes, run, shown)
    go.click(handlers.edit, inputs, [status, answers, spread], api_name="edit", **studio.long)


def _form() -> list[Any]:
    """The inputs of `edit` after the picture."""
    task = gr.Radio(list(TASKS), value=FILL, label="Task")

    def info(cls: type, name: str) -> str:
        return forms.described(field_of(cls, name))

    operator = gr.Textbox(
        "blur:1.5", label="What was done to it", info="noise, blur:1.5, jpeg:30, area:2, ...", visible=False
    )
    noise = gr.Number(0.0, label="Noise in it", info="Standard deviation; values span 2.", visible=False)
    factor = gr.Number(_FACTOR, label="Factor", info=info(Upscale, "factor"), precision=0, visible=False)
    strength = gr.Slider(0.05, 1, 0.5, step=0.05, label="Strength", info=info(Sdedit, "strength"), visible=False)
    label = gr.Dropdown([_NO_CLASS], value=_NO_CLASS, label="Class", allow_custom_value=True)
    prompt, negative = (
        gr.Textbox("", label=text, info=info(Prompts, name), visible=False, elem_id=f"edit-{name}")
        for name, text in (("prompt", "Prompt"), ("negative", "Negative prompt"))
    )
    with gr.Row(equal_height=False):
        n = gr.Slider(1, _MOST, 4, step=1, label="Answers", min_width=160)
        seed = gr.Number(0, label="Seed", precision=0, min_width=120)
    with gr.Accordion("More", open=False):
        method = gr.Dropdown([AUTOMATIC, *METHODS], value=AUTOMATIC, label="Method", info=info(Inpaint, "method"))
        steps = gr.Slider(0, 200, 0, step=1, label="Steps", info=f"0: {info(Restore, 'steps')}")
        guidance = gr.Slider(0, 10, 1, step=0.1, label="Guidance", info=info(Restore, "guidance"))

    def fields_of(chosen: str) -> list[Any]:
        of = {operator: (RESTORE,), noise: (RESTORE, ENLARGE, COLOUR), factor: (ENLARGE,), strength: (VARY,)}
        return [gr.update(visible=chosen in tasks) for tasks in of.values()]

    silent: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    task.change(fields_of, task, [operator, noise, factor, strength], **silent)
    return [task, operator, noise, factor, strength, label, prompt, negative, method, n, steps, guidance, seed]
