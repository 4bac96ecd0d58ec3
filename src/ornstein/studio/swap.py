"""The page Face swap: photos of a face, a photo or film, a statement of consent; the result and its provenance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from ornstein.data import save_grid
from ornstein.errors import UserError
from ornstein.extras import require
from ornstein.faces import provenance
from ornstein.faces.align import alignment, crop
from ornstein.faces.detect import Face
from ornstein.faces.provenance import log
from ornstein.faces.provenance.consent import Consent
from ornstein.faces.settings import FACE, REGIONS
from ornstein.faces.swap import ALL, Choice, SwapModel, Swapper, SwapSettings, film, load_model, photo, video
from ornstein.faces.swap.video import VideoSettings, swap_video
from ornstein.studio import forms
from ornstein.studio.evaluate import report_calls
from ornstein.studio.sessions import Session
from ornstein.studio.studio import Studio
from ornstein.studio.swap_shown import Target, card_of, facts, read_target
from ornstein.studio.work import Tell, Work, duration, errors_shown, note

__all__ = ["is_consent", "page"]

_PAGE = (
    "Put a face into a photo or a film. It needs the agreement of the people shown, and says in a signed manifest that "
    "it was made. What you send is deleted when this page is closed; save what you want to keep. `ornstein faces "
    "adapt` fits a model to one person's photos."
)
_SETTINGS = ("steps", "identity", "guidance", "seed", "label")
_FINISH = ("padding", "occlusion", "colour", "detail", "max_turn")
_FILM = ("begin", "end", "quality")
_PORTRAIT = 128  # pixels a side of the faces that are clicked
_LABELS = {
    "label": "Show the badge",
    "occlusion": "What stands before a face",
    "begin": "From",
    "end": "To",
}


def is_consent(statement: str | None) -> bool:
    """Whether the statement says who agreed and to what."""
    try:
        Consent(statement or "")
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class _Ready:
    """A swap that was asked for: nothing is loaded yet."""

    run: Path
    settings: SwapSettings
    photos: list[Path]
    target: Target
    picked: list[Face]
    statement: Consent
    session: Session
    folder: Path


class _Page:
    """The handlers of the page."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    @errors_shown
    def card(self, run: str | None) -> str:
        """The card of the model that was chosen."""
        return card_of(self.studio.runs.find(run)) if run else ""

    @errors_shown
    def find_faces(self, path: str | None, request: gr.Request) -> Any:
        """The faces of a photo, or of the first frame of a film that has any, as boxes."""
        self.studio.sessions.send(request, [path])
        if not path:
            return None, gr.update(choices=[], value=[], visible=False), note("Choose a target.")
        require("c2pa", "faces", "a signature")  # an error now, not after the swap
        target = self.target(path, request)
        file = self.studio.sessions.of(request).new_folder() / "target.png"
        save_grid(target.shown[None], file)
        count = len(target.faces)
        text = note(f"{count} face{'s' * (count != 1)} found in {target.path.name}.", "good")
        menu = gr.update(choices=target.names, value=target.names, visible=count > 1)
        return (str(file), target.boxes()), menu, text

    @errors_shown
    def gallery(self, path: str | None, request: gr.Request) -> Any:
        """The faces of the target as pictures to click."""
        if not path:
            return gr.update(value=[], visible=False)
        target, folder = self.target(path, request), self.studio.sessions.of(request).new_folder()
        shown = []
        for k, (face, name) in enumerate(zip(target.faces, target.names, strict=True)):
            file = folder / f"{k}.png"
            save_grid(crop(target.shown, alignment(face.landmarks, _PORTRAIT), _PORTRAIT)[None], file)
            shown.append((str(file), name))
        return gr.update(value=shown, visible=len(shown) > 1)

    @errors_shown
    def pick(self, chosen: list[str], event: gr.SelectData) -> Any:
        """Choose the face that was clicked, or leave it out."""
        name = f"face {int(event.index) + 1}"
        return [each for each in chosen if each != name] if name in chosen else sorted([*chosen, name], key=_number)

    @errors_shown
    def swap(
        self,
        run: str,
        sources: list[str] | None,
        target: str | None,
        consent: str,
        chosen: list[str],
        steps: float,
        identity: float,
        guidance: str | None,
        seed: float,
        label: bool,
        regions: list[str] | None,
        padding: str,
        occlusion: str,
        colour: str,
        detail: float,
        max_turn: float,
        begin: str,
        end: str,
        quality: str,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Swap faces: the signed result and its provenance. Nothing is made without a statement of consent."""
        entered = (steps, identity, guidance, seed, label, padding, occlusion, colour, detail, max_turn)
        ready = self._ready(run, sources, target, consent, chosen, entered, regions, request)
        there, folder, video = ready.target, ready.folder, film.is_video(ready.target.path)
        film_settings = _film_settings(begin, end, quality) if video else VideoSettings()
        out = folder / _output_name(there.path, video)
        left: list[str] = []

        def job(tell: Tell) -> str:
            loaded, swapper, choice, order = self._loaded(ready, out)
            if video:
                report = swap_video(swapper, loaded, choice, order, film_settings, False, tell)
                without = f", {report.frames_without} without a face" if report.frames_without else ""
                left.extend(report.notes)
                return f"{report.frames} frames{without}"
            with report_calls(loaded.model.denoiser.net, tell, "swapping"):
                faces = photo.swap_photo(swapper, loaded, choice, order, tell=left.append)
            return f"{faces} face{'s' * (faces != 1)}"

        work = Work(ready.session, "frames" if video else "calls", job)
        for line in work:
            yield [line, *[gr.skip()] * 4]
        before = folder / "before.png"
        save_grid(there.shown[None], before)
        text = f"Swapped {work.result} in {duration(work.seconds)}. Save it: it is deleted when this page is closed."
        text = " ".join([text, *(f"{line}." for line in left)])
        yield [
            note(text, "good"),
            gr.update(visible=False) if video else gr.update(value=(str(before), str(out)), visible=True),
            gr.update(value=str(out), visible=True) if video else gr.update(value=None, visible=False),
            gr.update(value=str(out), visible=True),
            facts(provenance.read(out)),
        ]

    @errors_shown
    def preview(
        self,
        run: str,
        sources: list[str] | None,
        target: str | None,
        consent: str,
        chosen: list[str],
        steps: float,
        identity: float,
        guidance: str | None,
        seed: float,
        label: bool,
        regions: list[str] | None,
        padding: str,
        occlusion: str,
        colour: str,
        detail: float,
        max_turn: float,
        begin: str,
        end: str,
        quality: str,
        frame: str,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Swap one frame of a film alone: before and after."""
        entered = (steps, identity, guidance, seed, label, padding, occlusion, colour, detail, max_turn)
        ready = self._ready(run, sources, target, consent, chosen, entered, regions, request)
        if not film.is_video(ready.target.path):
            raise UserError("a preview is one frame of a film: a photo is swapped at once")
        film_settings = _film_settings(begin, end, quality)
        before, out = ready.folder / "before.png", ready.folder / "preview.png"
        left: list[str] = []

        def job(tell: Tell) -> str:
            loaded, swapper, choice, order = self._loaded(ready, out)
            tell("finding the frame", 0, None)
            found = video.frame_at(video.opened(order.target, film_settings), frame.strip() or "1")
            save_grid(found[1][None], before)
            with report_calls(loaded.model.denoiser.net, tell, "swapping"):
                faces = photo.swap_photo(swapper, loaded, choice, order, frame=found, tell=left.append)
            return f"frame {found[0] + 1} with {faces} face{'s' * (faces != 1)}"

        work = Work(ready.session, "calls", job)
        for line in work:
            yield [line, gr.skip()]
        text = " ".join([f"Previewed {work.result} in {duration(work.seconds)}.", *(f"{line}." for line in left)])
        yield [note(text, "good"), gr.update(value=(str(before), str(out)), visible=True)]

    def _ready(
        self,
        run: str,
        sources: list[str] | None,
        target: str | None,
        consent: str,
        chosen: list[str],
        entered: tuple[Any, ...],
        regions: list[str] | None,
        request: gr.Request,
    ) -> _Ready:
        """All that a swap needs, checked before anything is loaded. Raises UserError."""
        session = self.studio.sessions.of(request)
        self.studio.sessions.send(request, [*(sources or []), target])
        statement = Consent(consent or "")
        path = self.studio.runs.find(run)
        settings = replace(_settings(regions, *entered), precision=self.studio.precision)
        if not sources:
            raise UserError("choose a photo of the person whose face is put in")
        there = self.target(target, request)
        unknown = set(chosen or []) - set(there.names)
        if unknown:
            raise UserError(f"there is no {sorted(unknown)[0]} in {there.path.name}: it has {', '.join(there.names)}")
        picked = [face for face, name in zip(there.faces, there.names, strict=True) if name in (chosen or [])]
        photos = [Path(each) for each in sources]
        return _Ready(path, settings, photos, there, picked, statement, session, session.new_folder())

    def _loaded(self, ready: _Ready, out: Path) -> tuple[SwapModel, Swapper, Choice, photo.Order]:
        studio, there = self.studio, ready.target
        loaded = load_model(ready.run, studio.runs.device)
        swapper = Swapper(loaded.model, ready.settings, studio.detector, studio.recogniser, run=ready.run)
        choice, references = _choice(swapper, ready.photos, there, ready.picked, ready.folder)
        sources = [ready.photos] * len(choice.sources)
        order = photo.Order(sources, there.path, out, ready.statement, references, _log(studio))
        return loaded, swapper, choice, order

    def target(self, path: str | None, request: gr.Request) -> Target:
        """The photo or film with its faces, which are found once."""
        if not path:
            raise UserError("choose the photo or film in which a face is replaced")
        kept = self.studio.sessions.of(request).kept
        if "target" not in kept or kept["target"].path != Path(path):
            kept["target"] = read_target(Path(path), self.studio)
        return kept["target"]


def page(studio: Studio) -> None:
    """Build the page."""
    handlers = _Page(studio)
    gr.Markdown(_PAGE)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            run = studio.chooser("faces", label="Model")
            card = gr.HTML(elem_id="card")
            sources, target, consent, settings = _form()
            with gr.Row():
                go = gr.Button("Swap", variant="primary", interactive=False, elem_id="swap")
                stop = gr.Button("Stop")
            with gr.Accordion("Preview one frame of a film", open=False):
                frame = gr.Textbox("1", label="Frame", info="Its number from 1 on, or a time such as 0:12.")
                look = gr.Button("Preview", interactive=False, elem_id="preview")
            status = gr.HTML(note("Choose photos and a target, and say who agreed."), elem_id="swap-status")
        with gr.Column(scale=7, min_width=280):
            found = gr.AnnotatedImage(label="Faces found", height=320, show_legend=False, format="png", elem_id="found")
            faces = gr.Gallery(
                label="Click the faces to replace",
                columns=6,
                height=180,
                object_fit="contain",
                allow_preview=False,
                visible=False,
                elem_id="faces",
            )
            chosen = gr.CheckboxGroup(
                [], label="Replace", info="Of the faces found; all unless you choose.", visible=False, elem_id="chosen"
            )
            results = _results()
    silent: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    studio.on_stop(stop)
    studio.sent(sources)
    run.change(handlers.card, run, card, **silent)
    studio.on_load(handlers.card, run, [card])
    target.change(handlers.find_faces, target, [found, chosen, status], api_name="find_faces", **studio.long).then(
        handlers.gallery, target, faces, api_visibility="private", show_progress="hidden"
    )
    faces.select(handlers.pick, chosen, chosen, **silent)
    found.select(handlers.pick, chosen, chosen, **silent)
    consent.change(
        lambda text: [gr.update(interactive=is_consent(text))] * 2,
        consent,
        [go, look],
        trigger_mode="always_last",
        **silent,
    )
    asked = [run, sources, target, consent, chosen, *settings]
    go.click(handlers.swap, asked, [status, *results], api_name="swap", **studio.long)
    look.click(handlers.preview, [*asked, frame], [status, results[0]], api_name="preview", **studio.long)


def _form() -> tuple[gr.File, gr.File, gr.Textbox, list[Any]]:
    """The inputs of `swap` besides the model and the faces."""
    sources = gr.File(
        label="Photos of the person whose face is put in",
        file_count="multiple",
        file_types=["image"],
        height=160,
        elem_id="sources",
    )
    target = gr.File(label="Photo or film in which a face is replaced", height=160, elem_id="target")
    consent = gr.Textbox(
        label="Who agreed, and to what",
        placeholder="Ann Lee and Bo Diaz, their wedding film",
        info="Names and purpose, a comma between. It is written into the result. Without it nothing is made.",
        max_length=500,
        lines=2,
        elem_id="consent",
    )
    with gr.Accordion("What is repainted", open=False):
        regions = gr.CheckboxGroup(list(REGIONS), value=list(FACE), label="Regions", elem_id="regions")
        finish = forms.components(SwapSettings, _FINISH, _LABELS)
    with gr.Accordion("Part of a film", open=False):
        part = forms.components(VideoSettings, _FILM, _LABELS)
    with gr.Accordion("More", open=False):
        settings = forms.components(SwapSettings, _SETTINGS, _LABELS)
    return sources, target, consent, [*settings, regions, *finish, *part]


def _results() -> list[Any]:
    """What shows a swap after its status."""
    slider = gr.ImageSlider(
        label="Before and after", type="filepath", format="png", interactive=False, visible=False, elem_id="slider"
    )
    movie = gr.Video(label="After", interactive=False, buttons=["download"], visible=False, elem_id="movie")
    download = gr.File(label="Save the signed file", visible=False, elem_id="swapped")
    return [slider, movie, download, gr.HTML(elem_id="provenance")]


def _settings(regions: list[str] | None, *entered: Any) -> SwapSettings:
    """The settings of a swap from the values of the form; empty ones take their defaults."""
    pairs = zip((*_SETTINGS, *_FINISH), entered, strict=True)
    given = {name: _entered(SwapSettings, name, entry) for name, entry in pairs}
    if regions is not None:
        if not regions:
            raise UserError("choose at least one region to repaint")
        given["regions"] = "all" if set(regions) == set(FACE) else ",".join(regions)
    return SwapSettings(**{name: value for name, value in given.items() if value is not None})


def _film_settings(*entered: Any) -> VideoSettings:
    given = {name: _entered(VideoSettings, name, entry) for name, entry in zip(_FILM, entered, strict=True)}
    return VideoSettings(**{name: value for name, value in given.items() if value is not None})


def _entered(cls: type, name: str, entry: Any) -> Any:
    return forms.parsed(cls, name, entry, _LABELS.get(name, ""))


def _number(name: str) -> int:
    return int(name.rpartition(" ")[2])


def _output_name(target: Path, video: bool) -> str:
    suffix, known = target.suffix.lower(), film.SUFFIXES if video else photo.SUFFIXES
    return f"{target.stem}-swapped{suffix if suffix in known else known[0]}"


def _choice(
    swapper: Swapper, photos: list[Path], target: Target, picked: list[Face], folder: Path
) -> tuple[Choice, list[Path]]:
    """Which faces get the source's, and pictures of them for the manifest; all if none or all are picked."""
    source = swapper.source(photos)
    if not picked or len(picked) == len(target.faces):
        return Choice([source], ALL), []
    choice = Choice([source] * len(picked), ALL, swapper.recogniser(target.shown, picked))
    return choice, [_portrait(swapper, target, face, folder) for face in picked]


def _portrait(swapper: Swapper, target: Target, face: Face, folder: Path) -> Path:
    """A picture of the face that was chosen; the manifest has its hash."""
    path = folder / f"chosen-{round(face.centre[0])}-{round(face.centre[1])}.png"
    save_grid(swapper.aligned(target.shown, face).crop[None], path)
    return path


def _log(studio: Studio) -> Path:
    """The log of all swaps made here: hashes and statements, no picture."""
    return studio.runs.home / log.NAME
