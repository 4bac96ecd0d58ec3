"""`ornstein fit-noise`: the covariance of clips over their frames, as a file that `train --noise` takes."""

from __future__ import annotations

import io
import json
import math
import shlex
from contextlib import suppress

import torch
from rich.table import Table
from torch import Tensor

from ornstein.cli.commands import KINDS, FitNoise
from ornstein.data import open_clips
from ornstein.devices import choose_device, has_float64
from ornstein.errors import UserError
from ornstein.extras import require
from ornstein.noise import ClipStatistics, Covariance, FrameCovariance, from_config, to_config
from ornstein.noise.estimation import Summary, summary
from ornstein.progress import cell, console, progress, say
from ornstein.seal import check_replaceable, sealed
from ornstein.settings import extent_of, field_of, read_file
from ornstein.store import atomic_write

__all__ = ["draw", "fit_noise", "recommended"]

_LAGS = (1, 2, 4, 8)  # what the table by spatial frequency and the plot have room for
_NAMED = 8  # names of skipped files that are shown
_GAMMAS = (0.25, 0.5, 0.75)


def fit_noise(asked: FitNoise, given: frozenset[str]) -> None:
    """Estimate the covariance, show how well each kind fits, and write the one that is asked for."""
    gamma = _gamma(asked.kind)
    _check_writable(asked)
    statistics = _read(asked)
    try:
        fitted = summary(statistics, sorted({*_GAMMAS, *(() if gamma is None else (gamma,))}), asked.shrinkage)
    except ValueError as error:
        raise UserError(f"{asked.data}: {error}") from error
    best = recommended(fitted)
    name = best if asked.kind == "best" else asked.kind if gamma is None else f"blend:{gamma:g}"
    _print(fitted, name, best)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(asked.out, (json.dumps(to_config(fitted.fits[name]), indent=1) + "\n").encode())
    if asked.plot is not None:
        asked.plot.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(asked.plot, sealed(draw(fitted, name)))
        say(f"wrote {asked.plot}")
    say(f"wrote {asked.out}: {fitted.fits[name]}; train with `{_training(asked)}`")


def recommended(fitted: Summary) -> str:
    """The kind of the smallest condition number of C^-1 Sigma by spatial frequency: the first of those that share it.

    With it the signal-to-noise ratios of the data's modes differ least.
    """
    return min(fitted.kappa, key=lambda kind: fitted.kappa[kind][1])


def _training(asked: FitNoise) -> str:
    """The command that trains with the file."""
    words = ["ornstein", "train", "--data", asked.data, "--frames", str(asked.frames)]
    if asked.size is not None:
        words += ["--size", str(asked.size)]
    for name in ("channels", "stride"):
        value = getattr(asked, name)
        if value != field_of(FitNoise, name).default:
            words += [f"--{name}", str(value)]
    return shlex.join([*words, "--noise", str(asked.out), "--out", f"runs/{asked.out.stem}"])


def _gamma(kind: str) -> float | None:
    """The gamma of "blend:0.5"; None for another kind. UserError for an unknown one."""
    name, _, value = kind.partition(":")
    if kind in KINDS:
        return None
    gamma = math.nan
    with suppress(ValueError):
        gamma = float(value) if name == "blend" else math.nan
    if not 0 <= gamma <= 1:
        raise UserError(f"--kind {kind!r} is unknown: one of {', '.join(KINDS)}, or blend:0.5 (0 to 1)")
    return gamma


def _check_writable(asked: FitNoise) -> None:
    """Raise UserError if --out or --plot is a file that this command did not write."""
    if asked.out.exists() and not asked.overwrite:
        try:
            from_config(read_file(asked.out))
        except (UserError, ValueError, KeyError, TypeError):
            raise UserError(f"{asked.out} is no file of this command: give another --out, or --overwrite") from None
    if asked.plot is not None:
        require("matplotlib", "report", "--plot")
        check_replaceable([asked.plot], asked.overwrite)


def _read(asked: FitNoise) -> ClipStatistics:
    """The statistics of at most `clips` clips, spread evenly over the data."""
    with progress("videos") as bar:
        task = bar.add_task("reading", total=None, note="")
        source = open_clips(
            asked.data,
            frames=asked.frames,
            size=None if asked.size is None else extent_of(asked.size),
            channels=asked.channels,
            stride=asked.stride,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for name, reason in source.skipped[:_NAMED]:
        say(f"skipped {name}: {reason}")
    if len(source.skipped) > _NAMED:
        say(f"and {len(source.skipped) - _NAMED} more files skipped")
    used = torch.linspace(0, len(source) - 1, min(asked.clips, len(source))).long()
    device = choose_device(asked.device)
    narrow = asked.precision == "float32" or not has_float64(device)
    statistics = ClipStatistics(device=device, dtype=torch.float32 if narrow else torch.float64)
    with progress("clips") as bar:
        task = bar.add_task("estimating", total=len(used), note="")
        for part in used.split(asked.batch):
            statistics.update(source.batch(part)[0])
            bar.update(task, completed=statistics.clips)
    return statistics


def _frame_correlation(noise: Covariance) -> Tensor | None:
    """The first row of a covariance over frames; None for one that is no matrix over them."""
    return noise.dense()[0] if isinstance(noise, FrameCovariance) else None


def _lags(fitted: Summary) -> list[int]:
    return [lag for lag in _LAGS if lag < len(fitted.correlation)]


def _print(fitted: Summary, name: str, best: str) -> None:
    row = _frame_correlation(fitted.fits[name])
    console.print(f"autocorrelation by lag, of {fitted.clips} clips")
    table = _table("lag", "data", *((name,) if row is not None else ()))
    for lag, value in enumerate(fitted.correlation):
        table.add_row(str(lag), f"{value:.3f}", *((f"{row[lag]:.3f}",) if row is not None else ()))
    console.print(table)

    bands, lags = len(fitted.band_share), _lags(fitted)
    console.print("autocorrelation by spatial frequency")
    table = _table("cycles/pixel", "variance", *(f"lag {lag}" for lag in lags))
    for band, (share, values) in enumerate(zip(fitted.band_share, fitted.band_correlation, strict=True)):
        low, high = (math.sqrt(0.5) * edge / bands for edge in (band, band + 1))
        table.add_row(f"{low:.2f}-{high:.2f}", f"{share:.1%}", *(f"{values[lag]:.3f}" for lag in lags))
    console.print(table)

    say("kappa(C^-1 Sigma), the condition number: how far the signal-to-noise ratios of the data's modes differ")
    table = _table("C", "over frames", "by spatial frequency", "")
    for fit, (over_frames, by_frequency) in fitted.kappa.items():
        frames = "-" if math.isnan(over_frames) else f"{over_frames:.2f}"
        marks = [mark for mark, kind in (("recommended", best), ("chosen", name)) if fit == kind]
        table.add_row(cell(fit), frames, f"{by_frequency:.2f}", ", ".join(marks))
    console.print(table)
    why = f"recommended: {best}, the smallest number by spatial frequency; 1 would be a perfect match"
    say(why if best == name else f"{why}. Choose it with --kind {best}")


def _table(*headings: str) -> Table:
    """A table whose columns of figures are aligned to the right."""
    table = Table()
    for heading in headings:
        table.add_column(cell(heading), justify="left" if heading in ("C", "") else "right")
    return table


def draw(fitted: Summary, name: str) -> bytes:
    """A PNG: the autocorrelation by lag, of the data and of each fit, and by spatial frequency; and the kappas."""
    canvas = require("matplotlib.backends.backend_agg", "report", "--plot").FigureCanvasAgg
    figure = require("matplotlib.figure", "report", "--plot").Figure(figsize=(15, 4.2), layout="constrained")
    by_lag, by_band, kappas = figure.subplots(1, 3)
    by_lag.plot(fitted.correlation, "k.-", label="data")
    for fit, noise in fitted.fits.items():
        row = _frame_correlation(noise)
        if row is not None:
            by_lag.plot(row, lw=2.5 if fit == name else 1, label=fit)
    by_lag.set(xlabel="lag, frames", ylabel="correlation", title=f"By lag ({fitted.clips} clips)")
    by_lag.legend(fontsize=8)
    bands = len(fitted.band_share)
    middle = [math.sqrt(0.5) * (band + 0.5) / bands for band in range(bands)]
    for lag in _lags(fitted):
        by_band.plot(middle, fitted.band_correlation[:, lag], ".-", label=f"lag {lag}")
    by_band.plot(middle, fitted.band_share, "k:", label="share of the variance")
    by_band.set(xlabel="spatial frequency, cycles/pixel", title="By spatial frequency")
    by_band.legend(fontsize=8)
    values = [by_frequency for _, by_frequency in fitted.kappa.values()]
    colours = ["tab:orange" if fit == name else "tab:blue" for fit in fitted.kappa]
    kappas.bar(list(fitted.kappa), values, color=colours)
    kappas.set(yscale="log", ylim=(1, None), title="κ(C⁻¹Σ) by spatial frequency; 1 is a perfect match")
    kappas.tick_params(axis="x", rotation=45)
    png = io.BytesIO()
    canvas(figure).print_png(png)
    return png.getvalue()
