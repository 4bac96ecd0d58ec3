"""The bodies of `ornstein edit ...`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein import checkpoint
from ornstein.cli.models import open_model, told
from ornstein.cli.options import refuse
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_device, choose_precision
from ornstein.editing.editor import ROUNDING, Editor, check_editable
from ornstein.editing.files import (
    RECORD,
    Output,
    frame_rate,
    luma,
    pictures_in,
    read_array,
    read_clip,
    read_mask,
    read_picture,
    write_answers,
    write_record,
)
from ornstein.editing.settings import (
    Colourise,
    EditSettings,
    Inpaint,
    Interpolate,
    PosteriorSettings,
    Restore,
    Sdedit,
    Upscale,
)
from ornstein.errors import UserError
from ornstein.evaluation.distortion import psnr
from ornstein.evaluation.samples import class_number, record_of
from ornstein.inverse.named import damaged, reach_of
from ornstein.progress import progress, say
from ornstein.randomness import normal
from ornstein.sampling import State
from ornstein.settings import to_json

__all__ = ["colourise", "inpaint", "interpolate", "restore", "sdedit", "upscale"]

_DAMAGE = 2**21  # the number of the draw of the noise that --degrade adds
Job = Callable[[Editor, Path], tuple[Tensor | None, Tensor]]


def inpaint(asked: Inpaint, given: frozenset[str]) -> None:
    """Fill masks of pictures, or of a clip."""
    if asked.mask is None and asked.known_frames is None:
        raise UserError("give --mask, white where pixels are made; or --known-frames of a clip")
    with _editor(asked) as editor:
        if editor.clips:
            _fill_clip(asked, editor)
            return
        refuse(Inpaint, given, ("known_frames", "fps"), "this is a model of images")
        assert asked.mask is not None
        mask = read_mask(asked.mask)

        def job(editor: Editor, file: Path) -> tuple[Tensor, Tensor]:
            x = read_picture(file, editor.shape[0], editor.notes)
            return torch.where(mask, 0.0, x) if mask.shape == x.shape[1:] else x, editor.inpaint(
                x, mask, asked.noise_std or 0.0
            )

        _each(asked, editor, job)


def _fill_clip(asked: Inpaint, editor: Editor) -> None:
    out = Output(asked.out, [asked.input.stem], asked.num, True, asked.overwrite)
    x, rate = read_clip(asked.input, editor.shape[0])
    hidden = torch.zeros(x.shape[1:], dtype=torch.bool)
    if asked.mask is not None:
        mask = read_mask(asked.mask, x.shape[1])
        if mask.shape != hidden.shape:
            raise UserError(
                f"the mask is {mask.shape[-1]}x{mask.shape[-2]}, the clip {x.shape[-1]}x{x.shape[-2]}: make them equal"
            )
        hidden = mask.clone()
    if asked.known_frames is not None:
        frames = x.shape[1]
        if any(not -frames <= f < frames for f in asked.known_frames):
            raise UserError(f"--known-frames: the clip has frames 0 to {frames - 1}, or -1 to {-frames} from its end")
        made = torch.ones(frames, dtype=torch.bool)
        made[list(asked.known_frames)] = False
        hidden |= made[:, None, None]
    answers = _run(editor, lambda: editor.inpaint(x, hidden, asked.noise_std or 0.0), asked.input.name)
    record = _record(asked)
    about = write_answers(out, asked.input.stem, None, answers, record, asked.fps or rate)
    _finish(asked, editor, record, {asked.input.name: about})


def restore(asked: Restore, given: frozenset[str]) -> None:
    """Undo damage."""
    with _editor(asked) as editor:
        rounds = asked.operator.rpartition("+")[2].startswith("jpeg")
        if rounds and asked.noise_std:
            raise UserError("a JPEG is a measurement of its own, whose rounding is known: leave out --noise-std")
        picture = reach_of(asked.operator) is not None

        def job(editor: Editor, file: Path) -> tuple[Tensor | None, Tensor]:
            std = asked.noise_std
            if asked.degrade:
                x = _read(editor, file)
                y, std = _damaged(asked, x, std or 0.0, editor.number), std or 0.0
                answers = editor.restore(y, asked.operator, std, x.shape)
                _say_nearness(file, x, y, answers)
                return (y if y.ndim >= 3 else None), answers
            if file.suffix.lower() == ".npy" and not picture:
                return None, editor.restore(torch.from_numpy(read_array(file)).float(), asked.operator, std or 0.0)
            if "grey" not in asked.operator:
                y = _read(editor, file)
            else:
                y = _read_grey(editor, file) if editor.clips else read_picture(file, None, editor.notes)
            exact = rounds or file.suffix.lower() == ".npy"
            if std == 0 and not exact:
                editor.note("--noise-std 0, but the pixels of a file are rounded: the answers fit their rounding too")
            std = std if std is not None else 0.0 if exact else ROUNDING
            return y, editor.restore(y, asked.operator, std)

        _each(asked, editor, job)


def _damaged(asked: Restore, x: Tensor, noise_std: float, number: int) -> Tensor:
    try:
        y = damaged(asked.operator, x[None])
    except ValueError as error:
        raise UserError(str(error)) from None
    return (y + noise_std * normal(tuple(y.shape), asked.seed, torch.tensor([number]), _DAMAGE))[0]


def _say_nearness(file: Path, x: Tensor, y: Tensor, answers: Tensor) -> None:
    """How near the answers come to the truth, and whether it lies among them as often as it should."""

    def decibels(made: Tensor) -> str:
        return f"{float(psnr(*(each.flatten(0, -3)[None] for each in (made, x)))):.1f} dB"

    parts = [f"{decibels(answers.mean(0))} PSNR of the mean of the answers"]
    if y.shape == x.shape:
        parts.append(f"{decibels(y)} of the damaged {'clip' if x.ndim == 4 else 'picture'}")
    if len(answers) > 1:
        inside = float(((x >= answers.amin(0)) & (x <= answers.amax(0))).float().mean())
        expected = (len(answers) - 1) / (len(answers) + 1)
        parts.append(f"the truth lies between the answers in {inside:.0%} of the pixels, {expected:.0%} if calibrated")
    say(f"{file.name}: {'; '.join(parts)}")


def upscale(asked: Upscale, given: frozenset[str]) -> None:
    """Enlarge pictures."""
    with _editor(asked) as editor:

        def job(editor: Editor, file: Path) -> tuple[Tensor, Tensor]:
            y = _read(editor, file)
            return y, editor.upscale(y, asked.factor, asked.kind, _rounding(asked, file))

        _each(asked, editor, job)


def colourise(asked: Colourise, given: frozenset[str]) -> None:
    """Colour grey pictures."""
    with _editor(asked) as editor:

        def job(editor: Editor, file: Path) -> tuple[Tensor, Tensor]:
            y = _read_grey(editor, file)
            return y.expand(3, *y.shape[1:]), editor.colourise(y, _rounding(asked, file))

        _each(asked, editor, job)


def _read(editor: Editor, file: Path) -> Tensor:
    """A picture, or a clip if the model makes clips."""
    channels = editor.shape[0]
    return read_clip(file, channels)[0] if editor.clips else read_picture(file, channels, editor.notes)


def _read_grey(editor: Editor, file: Path) -> Tensor:
    """The luma of a picture or a clip, one channel."""
    return luma(read_clip(file, None)[0] if editor.clips else read_picture(file, None), file)


def _rounding(asked: PosteriorSettings, file: Path) -> float:
    if asked.noise_std is not None:
        return asked.noise_std
    return 0.0 if file.suffix.lower() == ".npy" else ROUNDING


def sdedit(asked: Sdedit, given: frozenset[str]) -> None:
    """Make variations."""
    with _editor(asked) as editor:

        def job(editor: Editor, file: Path) -> tuple[Tensor, Tensor]:
            x = _read(editor, file)
            return x, editor.sdedit(_finite(x, file), asked.strength)

        _each(asked, editor, job)


def interpolate(asked: Interpolate, given: frozenset[str]) -> None:
    """Lead from one picture to another."""
    with _editor(asked) as editor:

        def job(editor: Editor, file: Path) -> tuple[None, Tensor]:
            a, b = (_finite(read_picture(each, editor.shape[0], editor.notes), each) for each in (file, asked.to))
            return None, editor.interpolate(a, b, asked.tolerance)

        if asked.input.is_dir():
            raise UserError(f"{asked.input} is a folder: a path leads from one picture to another")
        _each(asked, editor, job)


def _finite(x: Tensor, file: Path) -> Tensor:
    if not bool(x.isfinite().all()):
        raise UserError(f"{file} has values that are not finite")
    return x


@contextmanager
def _editor(asked: EditSettings) -> Iterator[Editor]:
    """The model with the settings of the edit; its warnings become lines of the command's own."""
    run = checkpoint.locate(asked.run)
    if checkpoint.is_autoencoder(run):
        raise UserError(f"{run} holds an autoencoder: edits need a diffusion model, such as one of its latents")
    asked = replace(asked, run=run)
    device = choose_device(asked.device)
    precision = choose_precision(asked.precision, device)
    model, guidance = open_model(asked, asked.guidance)
    model = model.to(device)
    check_editable(model, run)
    names = ("method", "particles", "iterations", "solver", "steps", "seed", "batch")
    options: dict[str, Any] = {name: getattr(asked, name) for name in names if hasattr(asked, name)}
    fit = getattr(asked, "fit", "auto")
    with told():
        yield Editor(model, asked.num, fit, _cond(asked, model, guidance), guidance, options | {"precision": precision})


def _cond(asked: EditSettings, model: Denoiser, guidance: float | None) -> dict[str, Tensor]:
    """The class, or the prompt that became one."""
    assert model.data is not None
    if asked.prompt is not None:
        if asked.label is not None:
            raise UserError("give --prompt or --class, not both")
        return {"label": torch.zeros(1, dtype=torch.int64)}
    if asked.label is not None:
        return {"label": torch.tensor([class_number(asked.label, model.data, asked.run)])}
    if guidance not in (None, 1):
        raise UserError("--guidance strengthens a condition: give --class, or a --prompt for a model of text")
    return {}


def _each(asked: EditSettings, editor: Editor, job: Job) -> None:
    """Do the job for each picture of the input, and write its answers."""
    files = [asked.input] if editor.clips else pictures_in(asked.input)
    path = isinstance(asked, Interpolate)
    out = Output(asked.out, [file.stem for file in files], asked.num, editor.clips, asked.overwrite, path)
    record, abouts = _record(asked), {}
    for file in files:
        number = editor.number
        shown, answers = _run(editor, lambda file=file: job(editor, file), file.name)
        of_file = record | {"input": file.name, "first": number}
        rate = frame_rate(file) if editor.clips else 1.0
        abouts[file.name] = write_answers(out, file.stem, shown, answers, of_file, rate) | {"first": number}
    _finish(asked, editor, record, abouts)


def _run(editor: Editor, job: Callable[[], Any], what: str) -> Any:
    """The result of a job, with a progress bar of its steps."""
    with progress("steps", transient=True) as bar:
        task = bar.add_task(what, total=None, note="")

        def advance(state: State) -> None:
            bar.update(task, completed=state.step, total=state.steps, note=f"t = {state.t:.3f}")

        editor.callback = advance
        return job()


def _record(asked: EditSettings) -> dict[str, Any]:
    settings = to_json(asked)
    for name in ("out", "overwrite", "device", "trust_sizes", "batch"):  # they do not decide the answers
        settings.pop(name, None)
    return {"edit": type(asked).__name__.lower()} | record_of(checkpoint.locate(asked.run), settings)


def _finish(asked: EditSettings, editor: Editor, record: dict[str, Any], abouts: dict[str, Any]) -> None:
    for text in editor.notes:
        say(text)
    if asked.out.suffix.lower() == ".png":
        say(f"answer in {asked.out}")
        return
    write_record(asked.out, record | {"notes": editor.notes, "pictures": abouts})
    count, spreads = sum(len(each["files"]) for each in abouts.values()), _spreads(list(abouts.values()))
    say(f"{count} answers in {asked.out}{spreads}; what they are in {asked.out / RECORD}")


def _spreads(abouts: Sequence[dict[str, Any]]) -> str:
    known = [each["uncertainty"] for each in abouts if "uncertainty" in each]
    return f", uncertain by {sum(known) / len(known):.3f} a pixel (of 2)" if known else ""
