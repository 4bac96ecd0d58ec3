"""The page Personalise: pictures and a prompt in, a run and its LoRA files out, watched while it learns."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gradio as gr

from ornstein.errors import UserError
from ornstein.personalization.files import DIFFUSERS, KOHYA
from ornstein.personalization.settings import SETTINGS, PersonalizeSettings
from ornstein.studio import forms
from ornstein.studio.studio import Studio, gallery
from ornstein.studio.train import EVERY, Handlers
from ornstein.studio.work import errors_shown, note

__all__ = ["page"]

_PAGE = (
    "Teach a model of text a person, thing or style from a few pictures. It goes on when this page is closed; the run "
    "is then a model on the page Generate, and its LoRA works in diffusers and ComfyUI."
)
_BASIC = ("method", "rank", "prior", "steps")
_MORE = (
    "alpha", "dora", "train_text", "learning_rate", "batch", "placeholder", "class_prompt", "captions", "size", "crop",
    "flip", "held_out", "patience", "class_images", "vectors", "initial", "guidance", "seed",
)  # fmt: skip
_FILES = (DIFFUSERS, KOHYA, "learned_embeds.safetensors", "learned_embeds_2.safetensors")


class _Page:
    """The handlers of the page."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    @errors_shown
    def personalize_start(
        self, name: str, base: str, folder: str, upload: list[str] | None, prompt: str, *values: Any
    ) -> Any:
        """Start a personalisation; its run."""
        if not (prompt or "").strip():
            raise UserError('give a prompt with a word for what is new, "a photo of sks dog"')
        words = ["--prompt", prompt.strip(), *forms.given(PersonalizeSettings, (*_BASIC, *_MORE), values)]
        words += ["--sample-every", "50", "--checkpoint-every", "25"]
        pictures = [Path(file) for file in upload or []]
        path = self.studio.trainings.personalize(name or "", base or "", folder or "", words, pictures)
        return self.menu(path)

    @errors_shown
    def personalize_files(self, chosen: str, request: gr.Request) -> list[str]:
        """The LoRA, or the word, of a run for other programs."""
        run = self.studio.runs.find(chosen)
        there = [run / name for name in _FILES if (run / name).is_file()]
        if not there:
            raise UserError(f"{run.name} has no files for other programs: they are those of a LoRA or of a new word")
        folder = self.studio.sessions.of(request).new_folder()
        return [shutil.copyfile(file, folder / f"{run.name}-{file.name}").as_posix() for file in there]

    def menu(self, path: Path | None) -> Any:
        return gr.update(choices=self.runs(), value=None if path is None else str(path))

    def bases(self) -> Any:
        return gr.update(choices=self.studio.runs.of_text())

    def runs(self) -> list[tuple[str, str]]:
        """(name, path) of the runs that this page made, or that look as if it had."""
        every = [run for run in self.studio.runs.all() if (run / SETTINGS).is_file() or (run / "pictures").is_dir()]
        return self.studio.runs.named(every)


def page(studio: Studio) -> None:
    """Build the page."""
    handlers, watching = _Page(studio), Handlers(studio, "personalised")
    gr.Markdown(_PAGE)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            form, upload, base, start = _form(studio)
        with gr.Column(scale=7, min_width=280):
            run = gr.Dropdown(handlers.runs(), value=None, label="Personalised run", allow_custom_value=True)
            with gr.Row():
                stop, resume, files = gr.Button("Stop"), gr.Button("Resume"), gr.Button("LoRA files")
            status = gr.HTML(note("No run chosen."), elem_id="personal-status")
            loras = gr.File(label="For diffusers and ComfyUI", file_count="multiple", height=120, elem_id="lora-files")
            loss = gr.Plot(label="Training loss by step", elem_id="personal-loss")
            samples = gallery("Samples by prompt, always of the same noise", 1, "personal-previews", download=True)
            report = gr.File(label="Report", visible=False, elem_id="personal-report")
            shown = gr.HTML(elem_id="personal-page")
    watched = [status, loss, samples, report, shown]
    quick: dict[str, Any] = {"concurrency_limit": 8, "show_progress": "hidden"}
    silent: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    start.click(handlers.personalize_start, form, run, api_name="personalize_start", **quick)
    stop.click(watching.train_stop, run, status, api_visibility="private", **quick)
    resume.click(watching.train_resume, [run, gr.State("")], status, api_visibility="private", **quick)
    files.click(handlers.personalize_files, run, loras, api_name="personalize_files", **quick)
    run.change(watching.watch, run, watched, api_visibility="private", **quick)
    gr.Timer(EVERY).tick(watching.tick, run, watched, **silent)
    base.focus(handlers.bases, None, base, **silent)
    studio.sent(upload)


def _form(studio: Studio) -> tuple[list[Any], gr.File, gr.Dropdown, gr.Button]:
    """The inputs of `personalize_start`, the upload and the base among them, and the button."""
    name = gr.Textbox(label="Name of the personalised run", placeholder="my dog", max_length=80)
    base = gr.Dropdown(
        studio.runs.of_text(),
        value=None,
        label="Base",
        info="A run that takes text, or the path of a pipeline of diffusers.",
        allow_custom_value=True,
        elem_id="personal-base",
    )
    upload = gr.File(
        label="Pictures", file_count="multiple", file_types=["image"], height=160, elem_id="personal-pictures"
    )
    folder = gr.Textbox(label="or a folder of pictures", placeholder="/path/to/dog")
    prompt = gr.Textbox(
        label="Prompt of the pictures", placeholder="a photo of sks dog", info="With a word for what is new."
    )
    basic = forms.components(PersonalizeSettings, _BASIC)
    with gr.Accordion("More settings", open=False):
        more = forms.components(PersonalizeSettings, _MORE)
    start = gr.Button("Personalise", variant="primary")
    return [name, base, folder, upload, prompt, *basic, *more], upload, base, start
