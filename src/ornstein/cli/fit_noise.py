"""`ornstein fit-noise`: the covariance of clips over their frames, as a file that `train --noise` takes."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table
from torch import Tensor

from ornstein.cli.command import console, progress
from ornstein.data.clips import open_clips
from ornstein.errors import UserError
from ornstein.extras import require
from ornstein.noise import ClipStatistics, Covariance, FrameCovariance, to_config
from ornstein.noise.estimation import Summary, summary
from ornstein.store import atomic_write

KINDS = ("ar1", "mixed", "toeplitz", "spectral", "blend:GAMMA")

# What the table by spatial frequency and the plot have room for.
_LAGS = (1, 2, 4, 8)

# Names of files that were skipped.
_NAMED = 8


def fit_noise(
    data: Annotated[str, typer.Argument(help="Videos: a folder, a zip, a file, or a bundled source.")],
    out: Annotated[Path, typer.Option(help="The JSON file to write.")],
    frames: Annotated[int, typer.Option(help="Frames of a clip.", min=2)] = 16,
    size: Annotated[int | None, typer.Option(help="Side of the square frames in pixels; their own if all agree.")] = 32,
    channels: Annotated[int | None, typer.Option(help="3 for colour, 1 for grey.")] = None,
    stride: Annotated[int, typer.Option(help="Take every STRIDE-th frame of a video.", min=1)] = 1,
    kind: Annotated[str, typer.Option(help=f"One of {', '.join(KINDS)}.")] = "toeplitz",
    shrinkage: Annotated[float, typer.Option(help="Share of white noise in toeplitz and blend.")] = 0.01,
    clips: Annotated[int, typer.Option(help="At most so many clips, spread over the data.", min=2)] = 2000,
    batch: Annotated[int, typer.Option(help="Clips in memory at once.", min=1)] = 16,
    plot: Annotated[Path | None, typer.Option(help="A picture of the correlations to write.")] = None,
) -> None:
    """Estimate the noise covariance of your clips over frames, for `ornstein train --noise FILE.json`.

    Example: ornstein fit-noise moving-digits --frames 16 --size 32 --kind ar1 --out noise.json --plot noise.png
    """
    gamma = _gamma(kind)
    if not 0 <= shrinkage <= 1:
        raise UserError(f"--shrinkage is a share of white noise in 0..1, not {shrinkage}")
    statistics = _read(data, frames, size, channels, stride, clips, batch)
    try:
        found = summary(statistics, sorted({0.25, 0.5, 0.75} | ({gamma} if gamma is not None else set())), shrinkage)
    except ValueError as error:
        raise UserError(f"{data}: {error}") from error
    name = kind if gamma is None else f"blend:{gamma:g}"
    chosen = found.fits[name]
    _print(found, name)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, (json.dumps(to_config(chosen), indent=1) + "\n").encode())
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(plot, draw(found, name))
        console.print(f"wrote {plot}")
    console.print(f"wrote {out}: {chosen}; train with `ornstein train --data {data} --frames {frames} --noise {out}`")


def _gamma(kind: str) -> float | None:
    """The gamma of "blend:0.5"; None for another kind. UserError for none of them."""
    name, _, value = kind.partition(":")
    if kind in KINDS[:-1]:
        return None
    try:
        gamma = float(value) if name == "blend" else math.nan
    except ValueError:
        gamma = math.nan
    if not 0 <= gamma <= 1:
        raise UserError(f"--kind {kind!r} is unknown: one of {', '.join(KINDS[:-1])}, or blend:0.5 (0 to 1)")
    return gamma


def _read(
    data: str, frames: int, size: int | None, channels: int | None, stride: int, clips: int, batch: int
) -> ClipStatistics:
    """The statistics of at most `clips` clips, spread evenly over the data."""
    with progress("videos") as bar:
        task = bar.add_task("reading", total=None, note="")

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        source = open_clips(data, frames=frames, size=size, channels=channels, stride=stride, progress=advance)
    for name, reason in source.skipped[:_NAMED]:
        console.print(f"skipped {name}: {reason}", markup=False)
    if len(source.skipped) > _NAMED:
        console.print(f"and {len(source.skipped) - _NAMED} more files skipped")
    used = torch.linspace(0, len(source) - 1, min(clips, len(source))).long()
    statistics = ClipStatistics()
    with progress("clips") as bar:
        task = bar.add_task("estimating", total=len(used), note="")
        for part in used.split(batch):
            statistics.update(source.batch(part)[0])
            bar.update(task, completed=statistics.clips)
    return statistics


def _frame_correlation(noise: Covariance) -> Tensor | None:
    """The first row of a covariance over frames; None for one that is no matrix over them."""
    return noise.dense()[0] if isinstance(noise, FrameCovariance) else None


def _lags(found: Summary) -> list[int]:
    return [lag for lag in _LAGS if lag < len(found.correlation)]


def _print(found: Summary, name: str) -> None:
    row = _frame_correlation(found.fits[name])
    console.print(f"autocorrelation by lag, of {found.clips} clips")
    table = Table()
    for heading in ("lag", "data", *((name,) if row is not None else ())):
        table.add_column(heading, justify="right")
    for lag, value in enumerate(found.correlation):
        table.add_row(str(lag), f"{value:.3f}", *((f"{row[lag]:.3f}",) if row is not None else ()))
    console.print(table)

    bands, lags = len(found.band_share), _lags(found)
    console.print("autocorrelation by spatial frequency")
    table = Table()
    table.add_column("cycles/pixel", justify="right")
    table.add_column("variance", justify="right")
    for lag in lags:
        table.add_column(f"lag {lag}", justify="right")
    for band, (share, values) in enumerate(zip(found.band_share, found.band_correlation, strict=True)):
        low, high = (math.sqrt(0.5) * edge / bands for edge in (band, band + 1))
        table.add_row(f"{low:.2f}-{high:.2f}", f"{share:.1%}", *(f"{values[lag]:.3f}" for lag in lags))
    console.print(table)

    console.print("kappa(C^-1 Sigma): 1 is a perfect match")
    table = Table()
    for heading in ("C", "over frames", "by spatial frequency", ""):
        table.add_column(heading, justify="left" if heading in ("C", "") else "right")
    for fit, (over_frames, by_frequency) in found.kappa.items():
        frames = "-" if math.isnan(over_frames) else f"{over_frames:.2f}"
        table.add_row(fit, frames, f"{by_frequency:.2f}", "chosen" if fit == name else "")
    console.print(table)


def draw(found: Summary, name: str) -> bytes:
    """A PNG: the autocorrelation by lag, of the data and of each fit, and by spatial frequency; and the kappas."""
    canvas = require("matplotlib.backends.backend_agg", "report", "--plot").FigureCanvasAgg
    figure = require("matplotlib.figure", "report", "--plot").Figure(figsize=(15, 4.2), layout="constrained")
    by_lag, by_band, kappas = figure.subplots(1, 3)
    by_lag.plot(found.correlation, "k.-", label="data")
    for fit, noise in found.fits.items():
        row = _frame_correlation(noise)
        if row is not None:
            by_lag.plot(row, lw=2.5 if fit == name else 1, label=fit)
    by_lag.set(xlabel="lag, frames", ylabel="correlation", title=f"By lag ({found.clips} clips)")
    by_lag.legend(fontsize=8)
    bands = len(found.band_share)
    middle = [math.sqrt(0.5) * (band + 0.5) / bands for band in range(bands)]
    for lag in _lags(found):
        by_band.plot(middle, found.band_correlation[:, lag], ".-", label=f"lag {lag}")
    by_band.plot(middle, found.band_share, "k:", label="share of the variance")
    by_band.set(xlabel="spatial frequency, cycles/pixel", title="By spatial frequency")
    by_band.legend(fontsize=8)
    values = [by_frequency for _, by_frequency in found.kappa.values()]
    colours = ["tab:orange" if fit == name else "tab:blue" for fit in found.kappa]
    kappas.bar(list(found.kappa), values, color=colours)
    kappas.set(yscale="log", ylim=(1, None), title="κ(C⁻¹Σ) by spatial frequency; 1 is a perfect match")
    kappas.tick_params(axis="x", rotation=45)
    png = io.BytesIO()
    canvas(figure).print_png(png)
    return png.getvalue()
