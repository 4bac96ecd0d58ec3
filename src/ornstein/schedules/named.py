"""Schedules by name, as the command line and stored settings write them: "rectified:3"."""

from __future__ import annotations

from collections.abc import Callable

from ornstein.schedules.exploding import EDM, VE
from ornstein.schedules.preserving import Cosine, Discrete, LinearBeta
from ornstein.schedules.rectified import Rectified
from ornstein.schedules.schedule import Schedule
from ornstein.schedules.shifted import Shifted

__all__ = ["NAMED", "parse"]

_LONGEST = 100_000  # steps of a chain: its betas are stored in the run


def _cosine(log_snr: float = -10.0, shift: float = 0.0) -> Schedule:
    # the end stays where it was asked for: only the times between move
    return Shifted(Cosine(log_snr - shift), shift) if shift else Cosine(log_snr)


def _ddpm(steps: float = 1000, first: float | None = None, last: float | None = None) -> Discrete:
    """Ho et al.'s chain; of another length, betas that reach the same noise, 1000/steps times as large."""
    n = _length(steps)
    scale = 1000 / n
    return Discrete.linear(n, 1e-4 * scale if first is None else first, 0.02 * scale if last is None else last)


def _length(steps: float) -> int:
    if steps != int(steps) or not 1 <= steps <= _LONGEST:
        raise ValueError(f"a chain has a whole number of steps from 1 to {_LONGEST:,}, not {steps:g}")
    return int(steps)


# The schedule of a name, and the numbers that may follow it.
NAMED: dict[str, tuple[Callable[..., Schedule], tuple[str, ...]]] = {
    "cosine": (_cosine, ("LOG_SNR", "SHIFT")),
    "cosine-zero": (lambda: Cosine(None), ()),
    "linear": (LinearBeta, ("BETA_MIN", "BETA_MAX")),
    "ddpm": (_ddpm, ("STEPS", "FIRST_BETA", "LAST_BETA")),
    "ddpm-zero": (lambda *numbers: _ddpm(*numbers).zero_terminal(), ("STEPS", "FIRST_BETA", "LAST_BETA")),
    "ddpm-cosine": (lambda steps=1000: Discrete.cosine(_length(steps)), ("STEPS",)),
    "rectified": (Rectified, ("SHIFT",)),
    "edm": (EDM, ("SIGMA_MIN", "SIGMA_MAX", "RHO")),
    "ve": (VE, ("SIGMA_MIN", "SIGMA_MAX")),
}


def parse(text: str) -> Schedule:
    """The schedule that a text such as "cosine", "rectified:3" or "edm:0.002,80,7" names.

    The numbers after the colon may be left out from the end: "cosine:LOG_SNR,SHIFT" with the log-SNR at t = 1, -10 by
    default, and a shift of the log-SNR (`Shifted`), none by default; "cosine-zero", of zero terminal SNR;
    "linear:BETA_MIN,BETA_MAX"; "ddpm:STEPS,FIRST_BETA,LAST_BETA", the chain of Ho et al. (2020), whose betas are those
    of 1000 steps times 1000/STEPS if they are left out; "ddpm-zero", the same rescaled to a zero terminal SNR;
    "ddpm-cosine:STEPS"; "rectified:SHIFT"; "edm:SIGMA_MIN,SIGMA_MAX,RHO"; "ve:SIGMA_MIN,SIGMA_MAX".

    Raises:
        ValueError: the name is unknown, or the numbers are wrong.
    """
    name, colon, rest = text.partition(":")
    if name not in NAMED:
        raise ValueError(f"schedule {name!r} is unknown; known: {', '.join(NAMED)}")
    make, arguments = NAMED[name]
    form = f"{name}:{','.join(arguments)}" if arguments else name
    try:
        numbers = [float(part) for part in rest.split(",")] if colon else []
    except ValueError:
        raise ValueError(f"schedule {text!r}: numbers follow the colon, {form}") from None
    if len(numbers) > len(arguments):
        raise ValueError(f"schedule {text!r} has too many numbers: {form}")
    try:
        return make(*numbers)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"schedule {text!r}: {error}") from None
