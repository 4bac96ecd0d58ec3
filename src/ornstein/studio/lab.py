"""The page Video & noise lab: covariances over frames, by name or fitted to videos, and samples under them."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from ornstein.request import SOLVER, STEPS
from ornstein.sampling import State
from ornstein.store import atomic_write, read_json
from ornstein.studio import charts
from ornstein.studio.studio import Studio
from ornstein.studio.work import Tell, Work, errors_shown, note

__all__ = ["correlations", "covariance", "page", "with_noise"]

WHITE, AR1, MIXED, WARPED, FITTED = "white", "ar1", "mixed", "warped", "fitted"
_KINDS = ("ar1", "mixed", "toeplitz", "spectral", "blend:0.5")
_BUNDLED = ("moving-digits", "bouncing-balls", "drifting-textures")
_SIDE = 32  # pixels of a noise clip
_SHOWN = 4  # clips side by side
_DRAWS = 256  # to measure the correlations of a covariance that is no matrix over frames
_MOST_CLIPS, _AT_ONCE = 500, 16
_PAGE = (
    "Choose a covariance of the noise over frames, or fit one to your videos; see its matrix, its spectrum and clips "
    "of it; and draw samples of a model of clips under it."
)


def covariance(family: str, correlation: float, frames: int, fitted: Path | None) -> Covariance:
    """The chosen covariance over frames.

    Args:
        family: "white", "ar1", "mixed", "warped" (by a plane that turns) or "fitted".
        correlation: of neighbouring frames, for ar1 and mixed; of a point that moves, for warped.
        frames: number of frames.
        fitted: the file of the fitted one, if there is one.

    Raises:
        UserError: an unknown family, a correlation out of range, or nothing was fitted.
    """
    if family == FITTED:
        if fitted is None:
            raise UserError("fit a covariance first: choose videos below and press Fit")
        return noises.parse(str(fitted), frames)
    if family == WARPED:
        share = 1 - max(0.0, min(1.0, correlation))  # g of (1 - g) C + g I
        ratio = (share / (1 - share)) ** 0.5 if share < 1 else 1e3
        return noises.Warped(_turning(frames), min(ratio / (1 + ratio), 0.999))
    if family not in (WHITE, AR1, MIXED):
        raise UserError(f"no covariance {family!r}: one of {WHITE}, {AR1}, {MIXED}, {WARPED}, {FITTED}")
    return noises.parse(family if family == WHITE else f"{family}:{correlation:g}", frames)


def _turning(frames: int) -> Tensor:
    """The flow (F - 1, 2, H, W) of a plane that turns about the middle of the frame by 18 degrees a frame."""
    angle, middle = torch.tensor(torch.pi / 10), (_SIDE - 1) / 2
    y, x = torch.meshgrid(torch.arange(_SIDE) - middle, torch.arange(_SIDE) - middle, indexing="ij")
    cos, sin = angle.cos() - 1, angle.sin()
    return torch.stack([cos * x - sin * y, sin * x + cos * y]).expand(frames - 1, -1, -1, -1)


def correlations(noise: Covariance, frames: int) -> Tensor:
    """Correlation matrix of the frames of a pixel, (F, F), float64; measured on draws if C is no matrix over frames."""
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
    """The same network in a process with other noise, which it was not trained for."""
    d = denoiser
    process = orn.Process(d.process.schedule, noise=noise)
    return Denoiser(
        d.net, process, d.prediction, d.data_std, d.data, d.data_covariance, d.space, whitened=d.whitened
    ).eval()


class _Page:
    """The handlers of the page."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    @errors_shown
    def noise(self, family: str, correlation: float, frames: float, request: gr.Request) -> list[Any]:
        """Clips of white noise and of this one, from the same draw; the matrix C and its eigenvalues."""
        count = _whole(frames, 2, 256, "frames")
        c = covariance(family, correlation, count, self.fitted(request))
        folder = self.studio.sessions.of(request).new_folder()
        z = torch.randn(_SHOWN, 1, count, *_size_of(c), generator=torch.Generator().manual_seed(0))
        clips = [_clip(x / 3, folder / name) for x, name in ((z, "white.mp4"), (c.color(z), "noise.mp4"))]
        dense = correlations(c, count)
        values = torch.linalg.eigvalsh(dense).flip(0).clamp(min=1e-6).tolist()
        series = {str(family): (range(1, count + 1), values), "white": (range(1, count + 1), [1.0] * count)}
        return [
            note(f"{c}: the clips are of the same draw, once white and once coloured by C.", "good"),
            *clips,
            charts.matrix(dense.tolist(), "frame", "frame"),
            charts.lines(series, "mode", "eigenvalue", "y", 320),
        ]

    @errors_shown
    def fitted_noise(self, frames: float, request: gr.Request) -> list[Any]:
        """Clips, matrix and eigenvalues of the noise that was just fitted."""
        return self.noise(FITTED, 0.0, frames, request)[1:]

    @errors_shown
    def fit_noise(
        self, data: str, upload: str | None, frames: float, size: float, kind: str, request: gr.Request
    ) -> Iterator[Any]:
        """Estimate the covariance of videos over frames; the file for `ornstein train --noise`."""
        session = self.studio.sessions.of(request)
        self.studio.sessions.send(request, [upload])
        if kind not in _KINDS:
            raise UserError(f"no kind {kind!r}: one of {', '.join(_KINDS)}")
        if not upload and not (data or "").strip():
            raise UserError("choose videos first: a bundled set, a folder, zip or video on this computer, or an upload")
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
        result = work.result
        path = session.new_folder() / f"{kind.partition(':')[0]}.json"
        atomic_write(path, (json.dumps(noises.to_config(result.fits[kind]), indent=1) + "\n").encode())
        session.kept["noise"] = path
        lag = range(count)
        series = {"videos": (lag, result.correlation.tolist())}
        for name, fit in result.fits.items():
            if isinstance(fit, FrameCovariance):
                series[name] = (lag, fit.dense()[0].tolist())
        over, by = result.kappa[kind]
        text = f"{result.fits[kind]} from {result.clips} clips; condition of C⁻¹Σ {by:.3g} by spatial frequency"
        text += f", {over:.3g} over frames" if over == over else ""
        yield (
            note(text + ". 1 is a perfect match.", "good"),
            gr.update(value=str(path), visible=True),
            FITTED,
            charts.lines(series, "lag, frames", "correlation"),
        )

    @errors_shown
    def clip_samples(
        self, run: str, family: str, correlation: float, steps: float, seed: float, request: gr.Request
    ) -> Iterator[Any]:
        """Samples of a model of clips under its own noise and under this one, and their correlations by lag."""
        session = self.studio.sessions.of(request)
        path = self.studio.runs.find(run)
        denoiser = self.studio.runs.model(path)
        assert denoiser.data is not None
        if len(denoiser.data.shape) != 4:
            raise UserError(f"{path.name} is a model of images: choose one of clips")
        length, count = denoiser.data.shape[1], _whole(steps, 1, 1000, "steps")
        number = _whole(0 if seed is None else seed, 0, 2**53, "seed")
        if family == WARPED or isinstance(denoiser.process.noise, noises.Carried):
            raise UserError("warped noise follows a motion: `ornstein sample RUN --like CLIPS` draws such samples")
        other = with_noise(denoiser, covariance(family, correlation, length, self.fitted(request)))
        work = Work(session, "steps", lambda tell: _samples_of(path, (denoiser, other), count, number, tell))
        for line in work:
            yield line, gr.skip(), gr.skip(), gr.skip()
        (own, under), real = work.result
        lag = range(length)
        series = {"data": (lag, autocorrelation(real).tolist())} if real is not None else {}
        series["its own noise"] = (lag, autocorrelation(own).tolist())
        series["this noise"] = (lag, autocorrelation(under).tolist())
        folder = session.new_folder()
        text = f"{_SHOWN} clips each, seed {number}: own {denoiser.process.noise}, this {other.process.noise}."
        yield (
            note(text + ("" if real is not None else " Its training data cannot be read."), "good"),
            _clip(own, folder / "own.mp4"),
            _clip(under, folder / "under.mp4"),
            charts.lines(series, "lag, frames", "correlation"),
        )

    def fitted(self, request: gr.Request) -> Path | None:
        """The file of the noise that this page has fitted."""
        return self.studio.sessions.of(request).kept.get("noise")


def page(studio: Studio) -> None:
    """Build the page."""
    handlers = _Page(studio)
    gr.Markdown(_PAGE)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            chosen, show = _form()
            videos, fit, stop, fitted = _fit_form()
            status = gr.HTML(note("Press Show noise."), elem_id="lab-status")
        with gr.Column(scale=7, min_width=280):
            pictures, fits = _pictures()
            model, draw, drawn = _model(studio)
    family, correlation, frames = chosen
    data, upload, size, kind = videos
    studio.on_stop(stop)
    studio.sent(upload)
    show.click(handlers.noise, chosen, [status, *pictures], api_name="noise", **studio.long)
    fit.click(
        handlers.fit_noise,
        [data, upload, frames, size, kind],
        [status, fitted, family, fits],
        api_name="fit_noise",
        **studio.long,
    ).success(handlers.fitted_noise, frames, pictures, api_visibility="private", **studio.long)
    run, steps, seed = model
    draw.click(
        handlers.clip_samples,
        [run, family, correlation, steps, seed],
        drawn,
        api_name="clip_samples",
        **studio.long,
    )


def _form() -> tuple[list[Any], gr.Button]:
    """The inputs and the button of `noise`."""
    family = gr.Radio(
        [WHITE, AR1, MIXED, WARPED, FITTED],
        value=AR1,
        label="Covariance",
        info="ar1 decays by lag, mixed does not; warped moves with a plane that turns.",
    )
    correlation = gr.Slider(-0.99, 0.99, 0.9, step=0.01, label="Correlation of neighbouring frames")
    frames = gr.Slider(2, 64, 16, step=1, label="Frames")
    return [family, correlation, frames], gr.Button("Show noise", variant="primary")


def _fit_form() -> tuple[list[Any], gr.Button, gr.Button, gr.File]:
    """The inputs of `fit_noise`, the buttons Fit and Stop, and the fitted file."""
    with gr.Accordion("Fit to videos", open=True):
        data = gr.Dropdown(
            list(_BUNDLED),
            value=_BUNDLED[0],
            allow_custom_value=True,
            label="Videos",
            info="A bundled set, or a folder, zip or video on this computer.",
        )
        upload = gr.File(label="or a zip or video to upload", file_types=[".zip", ".mp4", ".mov", ".gif"], height=160)
        with gr.Row():
            size = gr.Number(16, label="Side, pixels", precision=0, min_width=100)
            kind = gr.Dropdown(list(_KINDS), value="toeplitz", label="Kind", min_width=120)
        with gr.Row():
            fit, stop = gr.Button("Fit"), gr.Button("Stop")
        fitted = gr.File(label="For `ornstein train --noise FILE`", visible=False)
    return [data, upload, size, kind], fit, stop, fitted


def _pictures() -> tuple[list[Any], gr.Plot]:
    """What shows a covariance, and the fits."""
    with gr.Row():
        white = _video("White noise", "white-clip")
        own = _video("This noise", "own-clip")
    with gr.Row():
        matrix = gr.Plot(label="Correlation of two frames", elem_id="matrix", min_width=280)
        spectrum = gr.Plot(label="Eigenvalues", elem_id="spectrum", min_width=280)
    return [white, own, matrix, spectrum], gr.Plot(label="Correlation by lag: videos and fits", elem_id="fits")


def _model(studio: Studio) -> tuple[list[Any], gr.Button, list[Any]]:
    """The inputs and the button of `clip_samples`, and what shows its result."""
    with gr.Accordion("Samples under this noise", open=True):
        with gr.Row():
            run = studio.chooser("clips", label="Model of clips")
            steps = gr.Slider(1, 100, STEPS, step=1, label="Steps")
            seed = gr.Number(0, label="Seed", precision=0, min_width=90)
        draw = gr.Button("Draw under both")
        status = gr.HTML(elem_id="lab-drawn")
        with gr.Row():
            own, under = _video("Under its training noise", "trained"), _video("Under this noise", "under")
        lags = gr.Plot(label="Correlation by lag: data and samples", elem_id="lags")
    return [run, steps, seed], draw, [status, own, under, lags]


def _video(label: str, name: str) -> gr.Video:
    return gr.Video(label=label, autoplay=True, loop=True, height=220, buttons=[], elem_id=name, min_width=220)


def _samples_of(
    run: Path, denoisers: tuple[Denoiser, ...], steps: int, seed: int, tell: Tell
) -> tuple[list[Tensor], Tensor | None]:
    """Clips (N, C, F, H, W) of each denoiser from the same seed, and clips of the run's data if they can be read."""
    out = []
    for number, d in enumerate(denoisers):
        assert d.data is not None

        def advance(state: State, number: int = number) -> None:
            tell("sampling", number * steps + state.step, len(denoisers) * steps)

        labels = d.data.labels(_SHOWN)
        shape = (_SHOWN, *d.data.shape)
        x = orn.sample(d, shape, SOLVER, steps, seed=seed, cond={"label": labels}, callback=advance)
        out.append(d.decode(x).clamp(-1, 1))
    return out, _data_of(run, denoisers[0])


def _size_of(noise: Covariance) -> tuple[int, int]:
    """Height and width of clips of it in pixels: those that it was fitted to, if it depends on them."""
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
    """Some clips that the run was trained on; None if they cannot be read."""
    assert denoiser.data is not None
    channels, frames, size, _ = denoiser.data.shape
    try:
        settings = read_json(run / "train.json")
        clips = open_clips(settings["data"], frames, size, channels, stride=settings.get("stride", 1))
    except (UserError, KeyError):
        return None
    return clips.batch(torch.arange(min(64, len(clips))))[0]
