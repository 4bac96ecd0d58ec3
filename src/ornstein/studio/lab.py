"""The page Video & noise lab: a covariance over frames, what it looks like, and what a model makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from torch import Tensor

import ornstein as orn
from ornstein import noise as noises
from ornstein.data import clip_grid, open_clips, save_mp4
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.evaluation.motion import autocorrelation
from ornstein.noise import ClipStatistics, Covariance
from ornstein.noise.estimation import Summary, summary
from ornstein.noise.frames import FrameCovariance
from ornstein.sampling import State
from ornstein.solvers import SOLVER
from ornstein.store import atomic_write, read_json
from ornstein.studio import charts
from ornstein.studio.studio import Studio
from ornstein.studio.work import Work, note, told

WHITE, AR1, MIXED, FITTED = "white", "ar1", "mixed", "fitted"
_KINDS = ("ar1", "mixed", "toeplitz", "spectral", "blend:0.5")
_BUNDLED = ("moving-digits", "bouncing-balls", "drifting-textures")
_SIDE = 32  # pixels of a noise clip
_SHOWN = 4  # clips side by side
_DRAWS = 256  # of a covariance that is no matrix over frames, to see its correlations
_MOST_CLIPS, _AT_ONCE = 500, 16
_PAGE = (
    "Choose a covariance of the noise over frames, or fit one to your videos; see its matrix, its spectrum and clips "
    "of it; and draw samples of a model of clips under it."
)

Tell = Callable[[str, int, int | None], None]


def covariance(family: str, correlation: float, frames: int, fitted: Path | None) -> Covariance:
    """The covariance over `frames` frames that was asked for. Raises UserError where it cannot be."""
    if family == FITTED:
        if fitted is None:
            raise UserError("fit a covariance first: choose videos below and press Fit")
        return noises.parse(str(fitted), frames)
    if family not in (WHITE, AR1, MIXED):
        raise UserError(f"no covariance {family!r}: one of {WHITE}, {AR1}, {MIXED}, {FITTED}")
    return noises.parse(family if family == WHITE else f"{family}:{correlation:g}", frames)


def over_frames(noise: Covariance, frames: int) -> Tensor:
    """The correlations of a pixel's frames, (F, F): C, or what is measured on draws where it is no such matrix."""
    if isinstance(noise, noises.Identity):
        return torch.eye(frames, dtype=torch.float64)
    if isinstance(noise, FrameCovariance):
        return noise.dense()
    generator = torch.Generator().manual_seed(0)
    x = (
        noise.sample((_DRAWS, 1, frames, *_size_of(noise)), generator=generator)
        .transpose(1, 2)
        .flatten(2)
        .movedim(1, 0)
    )
    return torch.corrcoef(x.flatten(1).double())


def with_noise(denoiser: Denoiser, noise: Covariance) -> Denoiser:
    """The same network in a process of other noise: what it was not trained for, to see what that does."""
    d = denoiser
    process = orn.Process(d.process.schedule, noise=noise)
    return Denoiser(d.net, process, d.prediction, d.data_std, d.data, d.data_covariance, d.space).eval()


def page(studio: Studio) -> None:
    """Build the page."""
    gr.Markdown(_PAGE)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            family = gr.Radio(
                [WHITE, AR1, MIXED, FITTED], value=AR1, label="Covariance", info="ar1 decays by lag, mixed does not."
            )
            correlation = gr.Slider(-0.99, 0.99, 0.9, step=0.01, label="Correlation of neighbouring frames")
            frames = gr.Slider(2, 64, 16, step=1, label="Frames")
            show = gr.Button("Show noise", variant="primary")
            with gr.Accordion("Fit to videos", open=True):
                data = gr.Dropdown(
                    list(_BUNDLED),
                    value=_BUNDLED[0],
                    allow_custom_value=True,
                    label="Videos",
                    info="A bundled set, or a folder, zip or video on this computer.",
                )
                upload = gr.File(
                    label="or a zip or video to upload", file_types=[".zip", ".mp4", ".mov", ".gif"], height=140
                )
                with gr.Row():
                    size = gr.Number(16, label="Side, pixels", precision=0, min_width=100)
                    kind = gr.Dropdown(list(_KINDS), value="toeplitz", label="Kind", min_width=120)
                with gr.Row():
                    fit = gr.Button("Fit")
                    stop = gr.Button("Stop")
                fitted = gr.File(label="Fitted: for `ornstein train --noise FILE`", visible=False)
            status = gr.HTML(note("Press Show noise."), elem_id="lab-status")
        with gr.Column(scale=7, min_width=280):
            with gr.Row():
                white_clip = gr.Video(
                    label="White noise", autoplay=True, loop=True, height=220, buttons=[], elem_id="white-clip"
                )
                own_clip = gr.Video(
                    label="This noise", autoplay=True, loop=True, height=220, buttons=[], elem_id="own-clip"
                )
            with gr.Row():
                matrix = gr.Plot(label="C: correlation of two frames", elem_id="matrix", min_width=280)
                spectrum = gr.Plot(label="Its eigenvalues", elem_id="spectrum", min_width=280)
            fits = gr.Plot(label="Correlation by lag: the videos and each fit", elem_id="fits")
            with gr.Accordion("Samples under this noise", open=True):
                with gr.Row():
                    run = studio.chooser("clips", label="Model of clips")
                    steps = gr.Slider(1, 100, 20, step=1, label="Steps")
                    seed = gr.Number(0, label="Seed", precision=0, min_width=90)
                draw = gr.Button("Draw under both")
                drawn = gr.HTML(elem_id="lab-drawn")
                with gr.Row():
                    before = gr.Video(
                        label="Under the noise it was trained with", autoplay=True, loop=True, height=220, buttons=[]
                    )
                    after = gr.Video(
                        label="Under this noise", autoplay=True, loop=True, height=220, buttons=[], elem_id="under"
                    )
                lags = gr.Plot(label="Correlation by lag: data against samples", elem_id="lags")

    def fitted_file(request: gr.Request) -> Path | None:
        return studio.sessions.of(request).kept.get("noise")

    @told
    def noise(family: str, correlation: float, frames: float, request: gr.Request) -> list[Any]:
        """Clips of white noise and of this one, from the same draw; the matrix C and its eigenvalues."""
        count = _whole(frames, 2, 256, "frames")
        c = covariance(family, correlation, count, fitted_file(request))
        folder = studio.sessions.of(request).new_folder()
        z = torch.randn(_SHOWN, 1, count, *_size_of(c), generator=torch.Generator().manual_seed(0))
        clips = [_clip(x / 3, folder / name) for x, name in ((z, "white.mp4"), (c.color(z), "noise.mp4"))]
        dense = over_frames(c, count)
        values = torch.linalg.eigvalsh(dense).flip(0).clamp(min=1e-6).tolist()
        series = {str(family): (range(1, count + 1), values), "white": (range(1, count + 1), [1.0] * count)}
        said = note(f"{c}: the clips are of the same draw, once as it is and once coloured by C.", "good")
        return [
            said,
            *clips,
            charts.matrix(dense.tolist(), "frame", "frame"),
            charts.lines(series, "mode", "eigenvalue", "y", 320),
        ]

    @told
    def fit_noise(
        data: str, upload: str | None, frames: float, size: float, kind: str, request: gr.Request
    ) -> Iterator[Any]:
        """Estimate the covariance of videos over frames; the file for `ornstein train --noise`."""
        session = studio.sessions.of(request)
        studio.sessions.send(request, [upload])
        if kind not in _KINDS:
            raise UserError(f"no kind {kind!r}: one of {', '.join(_KINDS)}")
        count, side = _whole(frames, 2, 256, "frames"), _whole(size, 2, 512, "side")

        def job(tell: Tell) -> Summary:
            clips = open_clips(upload or data, count, side, progress=lambda done, all_: tell("videos", done, all_))
            statistics = ClipStatistics()
            used = torch.linspace(0, len(clips) - 1, min(_MOST_CLIPS, len(clips))).long()
            for part in used.split(_AT_ONCE):
                statistics.update(clips.batch(part)[0])
                tell("estimating", statistics.clips, len(used))
            return summary(statistics, (0.5,))

        work = Work(session, "clips", job)
        for line in work:
            yield line, gr.skip(), gr.skip(), gr.skip()
        found = work.result
        path = session.new_folder() / f"{kind.partition(':')[0]}.json"
        atomic_write(path, (json.dumps(noises.to_config(found.fits[kind]), indent=1) + "\n").encode())
        session.kept["noise"] = path
        lag = range(count)
        series = {"videos": (lag, found.correlation.tolist())}
        for name, each in found.fits.items():
            if isinstance(each, FrameCovariance):
                series[name] = (lag, each.dense()[0].tolist())
        over, by = found.kappa[kind]
        said = f"{found.fits[kind]} from {found.clips} clips; condition of C⁻¹Σ {by:.3g} by spatial frequency"
        said += f", {over:.3g} over frames" if over == over else ""
        yield (
            note(said + ". 1 is a perfect match.", "good"),
            gr.update(value=str(path), visible=True),
            FITTED,
            charts.lines(series, "lag, frames", "correlation"),
        )

    @told
    def clip_samples(
        run: str, family: str, correlation: float, steps: float, seed: float, request: gr.Request
    ) -> Iterator[Any]:
        """Samples of a model of clips under its own noise and under this one, and their correlations by lag."""
        session = studio.sessions.of(request)
        path = studio.runs.find(run)
        denoiser = studio.runs.model(path)
        assert denoiser.data is not None
        if len(denoiser.data.shape) != 4:
            raise UserError(f"{path.name} is a model of images: choose one of clips")
        length, count = denoiser.data.shape[1], _whole(steps, 1, 1000, "steps")
        other = with_noise(denoiser, covariance(family, correlation, length, fitted_file(request)))
        shape, labels = (_SHOWN, *denoiser.data.shape), denoiser.data.labels(_SHOWN)

        def job(tell: Tell) -> tuple[list[Tensor], Tensor | None]:
            out = []
            for number, d in enumerate((denoiser, other)):

                def advance(state: State, number: int = number) -> None:
                    tell("sampling", number * count + state.step, 2 * count)

                x = orn.sample(
                    d, shape, SOLVER, count, seed=int(seed or 0), cond={"label": labels}, callback=advance
                )  # fmt: skip
                out.append(d.decode(x).clamp(-1, 1))
            return out, _data_of(path, denoiser)

        work = Work(session, "steps", job)
        for line in work:
            yield line, gr.skip(), gr.skip(), gr.skip()
        (own, under), real = work.result
        lag = range(length)
        series = {"data": (lag, autocorrelation(real).tolist())} if real is not None else {}
        series["its own noise"] = (lag, autocorrelation(own).tolist())
        series["this noise"] = (lag, autocorrelation(under).tolist())
        folder = session.new_folder()
        said = f"{_SHOWN} clips each, seed {int(seed or 0)}: own {denoiser.process.noise}, this {other.process.noise}."
        yield (
            note(said + ("" if real is not None else " Its data are not at hand."), "good"),
            _clip(own, folder / "own.mp4"),
            _clip(under, folder / "under.mp4"),
            charts.lines(series, "lag, frames", "correlation"),
        )

    studio.on_stop(stop)
    studio.sent(upload)
    show.click(
        noise,
        [family, correlation, frames],
        [status, white_clip, own_clip, matrix, spectrum],
        api_name="noise",
        **studio.long,
    )
    fit.click(
        fit_noise,
        [data, upload, frames, size, kind],
        [status, fitted, family, fits],
        api_name="fit_noise",
        **studio.long,
    )
    draw.click(
        clip_samples,
        [run, family, correlation, steps, seed],
        [drawn, before, after, lags],
        api_name="clip_samples",
        **studio.long,
    )


def _size_of(noise: Covariance) -> tuple[int, int]:
    """Height and width of clips of it, pixels: those it was fitted to, where it depends on them."""
    return getattr(noise, "size", None) or (_SIDE, _SIDE)


def _whole(value: float | None, low: int, high: int, name: str) -> int:
    if value is None or not low <= value <= high:
        raise UserError(f"{name} must lie between {low} and {high}, not {value}")
    return int(value)


def _clip(clips: Tensor, path: Path) -> str:
    sheet = clip_grid(clips)
    save_mp4(sheet, path, 8.0, max(1, 256 // sheet.shape[-1]))
    return str(path)


def _data_of(run: Path, denoiser: Denoiser) -> Tensor | None:
    """Some clips that the run was trained on; None where they are not at hand."""
    assert denoiser.data is not None
    channels, frames, size, _ = denoiser.data.shape
    try:
        settings = read_json(run / "train.json")
        clips = open_clips(settings["data"], frames, size, channels, stride=settings.get("stride", 1))
    except (UserError, KeyError):
        return None
    return clips.batch(torch.arange(min(64, len(clips))))[0]
