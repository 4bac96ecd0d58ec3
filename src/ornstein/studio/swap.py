"""The page Face swap: whose face, into what, with whose consent; and what the result says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from ornstein.data import save_grid
from ornstein.errors import UserError
from ornstein.extras import require
from ornstein.faces import provenance
from ornstein.faces.detect import Detector, Face, find_faces
from ornstein.faces.provenance import log
from ornstein.faces.provenance.consent import Consent
from ornstein.faces.swap import ALL, Choice, Swapper, SwapSettings, film, load_model, photo
from ornstein.faces.swap.picture import read_picture
from ornstein.faces.swap.video import VideoSettings, swap_video
from ornstein.studio.judge import counted
from ornstein.studio.studio import Studio
from ornstein.studio.work import Work, duration, note, told

_LOOKS = 60  # frames of a film that are looked at, to find one with a face
_STEP = 5
_WIDE = 960  # pixels of the picture in which faces are chosen
_PAGE = (
    "Put a face into a photo or a film. It needs the agreement of the people shown, and says in a signed manifest that "
    "it was made. What you send is deleted when this page is closed; save what you want to keep."
)

Tell = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Target:
    """A photo or film to swap in: what is shown of it, uint8 (3, H, W), and the faces there."""

    path: Path
    shown: Tensor
    faces: list[Face]

    @property
    def names(self) -> list[str]:
        return [f"face {i + 1}" for i in range(len(self.faces))]

    def boxes(self) -> list[tuple[tuple[int, int, int, int], str]]:
        """(left, top, right, bottom) in pixels, and its name, of each face."""
        _, height, width = self.shown.shape
        out = []
        for face, name in zip(self.faces, self.names, strict=True):
            (x, y), half = face.centre, face.side / 2
            left, top = max(0, round(x - half)), max(0, round(y - half))
            out.append(((left, top, min(width, round(x + half)), min(height, round(y + half))), name))
        return out


def look_at(path: Path, studio: Studio) -> Target:
    """Find the faces of a photo, or of the first frame of a film that has any. Raises UserError where none is found."""
    detector = studio.detector or Detector()
    if not film.is_video(path):
        shown = read_picture(path).shown
        return Target(path, shown, _ordered(find_faces(detector, shown, path.name)))
    quick = studio.detector or Detector(thorough=False)
    for number, _, image in film.Film.open(path).frames():
        if number >= _LOOKS * _STEP:
            break
        if number % _STEP == 0 and (faces := quick(image)):
            return Target(path, image, _ordered(faces))
    raise UserError(
        f"no face found in the first frames of {path.name}: give a film in which one is seen from the front"
    )


def _ordered(faces: list[Face]) -> list[Face]:
    return sorted(faces, key=lambda face: face.centre[0])


def agreed(statement: str | None) -> bool:
    """Whether the statement says who agreed and to what."""
    try:
        Consent(statement or "")
    except UserError:
        return False
    return True


def page(studio: Studio) -> None:
    """Build the page."""
    gr.Markdown(_PAGE)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            run = studio.chooser("faces", label="Model")
            sources = gr.File(
                label="Photos of the person whose face is put in",
                file_count="multiple",
                file_types=["image"],
                height=140,
                elem_id="sources",
            )
            target = gr.File(
                label="Photo or film in which a face is replaced", height=140, elem_id="target"
            )  # fmt: skip
            consent = gr.Textbox(
                label="Who agreed, and to what",
                placeholder="Ann Lee and Bo Diaz, their wedding film",
                info="Names and purpose, a comma between. It is written into the result. Without it nothing is made.",
                max_length=500,
                lines=2,
                elem_id="consent",
            )
            with gr.Accordion("More", open=False):
                steps = gr.Slider(1, 100, 20, step=1, label="Steps", info="Of the sampler; more is finer.")
                identity = gr.Slider(0, 2, 1, step=0.05, label="Identity", info="0 the target's own, 1 the source's.")
                guidance = gr.Slider(
                    0, 8, 0, step=0.5, label="Guidance", info="Towards the source; 1 is none, 0 as suits the model."
                )
                seed = gr.Number(0, label="Seed", precision=0, info="The same number gives the same picture.")
                label = gr.Checkbox(True, label="Show the badge", info="Without it, the manifest says it was removed.")
            with gr.Row():
                go = gr.Button("Swap", variant="primary", interactive=False, elem_id="swap")
                stop = gr.Button("Stop")
            status = gr.HTML(note("Choose photos and a target, and say who agreed."), elem_id="swap-status")
        with gr.Column(scale=7, min_width=280):
            found = gr.AnnotatedImage(label="Faces found", height=320, show_legend=False, format="png", elem_id="found")
            chosen = gr.CheckboxGroup(
                [], label="Replace", info="Of the faces found; all unless you choose.", visible=False
            )
            slider = gr.ImageSlider(
                label="Before and after",
                type="filepath",
                format="png",
                interactive=False,
                visible=False,
                elem_id="slider",
            )
            movie = gr.Video(label="After", interactive=False, buttons=["download"], visible=False, elem_id="movie")
            download = gr.File(label="Save it: as it was signed", visible=False, elem_id="swapped")
            said = gr.HTML(elem_id="provenance")

    def target_of(path: str | None, request: gr.Request) -> Target:
        if not path:
            raise UserError("choose the photo or film in which a face is replaced")
        kept = studio.sessions.of(request).kept
        if "target" not in kept or kept["target"].path != Path(path):
            kept["target"] = look_at(Path(path), studio)
        return kept["target"]

    @told
    def find(path: str | None, request: gr.Request) -> Any:
        """The faces of a photo, or of the first frame of a film that has any, as boxes."""
        studio.sessions.send(request, [path])
        if not path:
            return None, gr.update(choices=[], value=[], visible=False), note("Choose a target.")
        require("c2pa", "faces", "a signature")  # told now, not after the swap
        there = target_of(path, request)
        file = studio.sessions.of(request).new_folder() / "target.png"
        save_grid(there.shown[None], file)
        count = len(there.faces)
        text = note(f"{count} face{'s' * (count != 1)} found in {there.path.name}.", "good")
        return (str(file), there.boxes()), gr.update(choices=there.names, value=there.names, visible=count > 1), text

    @told
    def swap(
        run: str,
        sources: list[str] | None,
        target: str | None,
        consent: str,
        chosen: list[str],
        steps: float,
        identity: float,
        guidance: float,
        seed: float,
        label: bool,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Swap faces; the signed result and what it says of itself. Nothing is made without a statement of consent."""
        session = studio.sessions.of(request)
        studio.sessions.send(request, [*(sources or []), target])
        statement = Consent(consent or "")
        path = studio.runs.find(run)
        settings = SwapSettings(int(steps or 0), identity, guidance or None, label=bool(label), seed=int(seed or 0))
        if not sources:
            raise UserError("choose a photo of the person whose face is put in")
        there = target_of(target, request)
        unknown = set(chosen or []) - set(there.names)
        if unknown:
            raise UserError(f"there is no {sorted(unknown)[0]} in {there.path.name}: it has {', '.join(there.names)}")
        video, folder = film.is_video(there.path), session.new_folder()
        suffix = there.path.suffix.lower()
        kinds = film.SUFFIXES if video else photo.SUFFIXES
        out = folder / f"{there.path.stem}-swapped{suffix if suffix in kinds else kinds[0]}"

        def job(tell: Tell) -> str:
            loaded = load_model(path)
            swapper = Swapper(loaded.model, settings, studio.detector, studio.recogniser)
            photos = [Path(each) for each in sources]
            source = swapper.source(photos)
            picked = [face for face, name in zip(there.faces, there.names, strict=True) if name in (chosen or [])]
            references: list[Path] = []
            if not picked or len(picked) == len(there.faces):
                choice = Choice([source], ALL)
            else:
                choice = Choice([source] * len(picked), ALL, swapper.recogniser(there.shown, picked))
                references = [_portrait(swapper, there, face, folder) for face in picked]
            order = photo.Order([photos] * len(choice.sources), there.path, out, statement, references, _log(studio))
            if video:
                report = swap_video(swapper, loaded, choice, order, VideoSettings(), False, tell)
                without = f", {report.frames_without} without a face" if report.frames_without else ""
                return f"{report.frames} frames{without}"
            with counted(loaded.model.denoiser.net, tell, "swapping"):
                faces = photo.swap_photo(swapper, loaded, choice, order)
            return f"{faces} face{'s' * (faces != 1)}"

        work = Work(session, "frames" if video else "calls", job)
        nothing = [gr.skip()] * 4
        for line in work:
            yield [line, *nothing]
        before = folder / "before.png"
        save_grid(there.shown[None], before)
        yield [
            note(
                f"Swapped {work.result} in {duration(work.seconds)}. Save it: it goes when this page is closed.", "good"
            ),
            gr.update(visible=False) if video else gr.update(value=(str(before), str(out)), visible=True),
            gr.update(value=str(out), visible=True) if video else gr.update(value=None, visible=False),
            gr.update(value=str(out), visible=True),
            facts(provenance.read(out)),
        ]

    studio.on_stop(stop)
    studio.sent(sources)
    target.change(find, target, [found, chosen, status], api_name="find_faces", **studio.long)
    consent.change(
        lambda text: gr.update(interactive=agreed(text)),
        consent,
        go,
        queue=False,
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="always_last",
    )
    go.click(
        swap,
        [run, sources, target, consent, chosen, steps, identity, guidance, seed, label],
        [status, slider, movie, download, said],
        api_name="swap",
        **studio.long,
    )


def facts(found: provenance.Provenance) -> str:
    """What a file says of itself, as an HTML table."""
    said = found.swap or {}
    rows = {
        "Provenance": {
            provenance.INTACT: "signed; not changed since",
            provenance.CHANGED: "CHANGED since it was signed",
            provenance.UNSIGNED: "no manifest",
        }[found.state],
        "Signed": f"{'by this computer' if found.ours else 'by another key'} ({found.signer})",
        "Kind": (found.source_type or "").rpartition("/")[2],
        "Consent": said.get("consent"),
        "Badge": "shown" if said.get("label") else "removed when it was made",
        "Model": f"{str(said.get('model', {}).get('sha256'))[:16]}…, licence {said.get('model', {}).get('licence')}",
        "Made": said.get("time"),
    }
    body = "".join(f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items() if value)
    return f'<table class="facts">{body}</table>'


def _portrait(swapper: Swapper, there: Target, face: Face, folder: Path) -> Path:
    """The face that was chosen as a file, whose hash the manifest has."""
    path = folder / f"chosen-{round(face.centre[0])}-{round(face.centre[1])}.png"
    save_grid(swapper.aligned(there.shown, face).crop[None], path)
    return path


def _log(studio: Studio) -> Path:
    """The log of all swaps made here: hashes and statements, no picture."""
    return studio.runs.home / log.NAME
