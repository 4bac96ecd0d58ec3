"""Covariances as JSON and as short texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ornstein.noise.ar1 import AR1, OU
from ornstein.noise.carried import Carried
from ornstein.noise.covariance import Covariance, Identity, arguments
from ornstein.noise.frames import FrameCovariance, Matrix
from ornstein.noise.kronecker import Kronecker
from ornstein.noise.lowrank import LowRank
from ornstein.noise.mixed import Mixed
from ornstein.noise.spectral import SpectralAR1
from ornstein.noise.spectrum import Spectrum
from ornstein.noise.toeplitz import Toeplitz
from ornstein.noise.warped import Warped

__all__ = ["from_config", "parse", "to_config"]

TYPES: dict[str, type[Covariance]] = {
    c.__name__: c
    for c in (Identity, AR1, OU, Mixed, Toeplitz, LowRank, Kronecker, SpectralAR1, Spectrum, Matrix, Warped, Carried)
}


def to_config(noise: Covariance) -> dict[str, Any]:
    """The covariance as a JSON-able dict, `{"type": ..., its arguments}`; factors of a product are such dicts."""
    return {"type": type(noise).__name__, **{k: _plain(v) for k, v in arguments(noise).items()}}


def _plain(value: object) -> Any:
    if isinstance(value, Covariance):
        return to_config(value)
    if isinstance(value, Tensor):
        return value.tolist()
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def from_config(config: dict[str, Any]) -> Covariance:
    """The covariance that `to_config` described.

    Raises:
        ValueError: the type is unknown, or the arguments are wrong.
    """
    values = dict(config)
    name = values.pop("type", None)
    if not isinstance(name, str) or name not in TYPES:
        raise ValueError(f"unknown noise {name!r}; known: {', '.join(TYPES)}")
    try:
        return TYPES[name](**{k: _built(v) for k, v in values.items()})
    except TypeError as e:
        raise ValueError(f"wrong arguments for the noise {name}: {sorted(values)}") from e


def _built(value: Any) -> Any:
    if isinstance(value, dict):
        return from_config(value)
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        return tuple(_built(v) for v in value)
    return value


def parse(text: str, length: int) -> Covariance:
    """The covariance over `length` frames that a text names.

    Args:
        text: "white", "ar1:0.9", "mixed:0.5", "warped" or "warped:0.25" (its `degrade`), the path of a JSON file of
            `to_config`, or "ar1:0.9 x FILE.json": the product of a covariance over frames and a `Spectrum`.
        length: number of frames.

    Raises:
        ValueError: the text is something else, the file cannot be read, or it was made for another number of frames.
    """
    over_frames, product, space = text.partition(" x ")
    name, _, value = text.partition(":")
    try:
        if product:
            return _product(parse(over_frames.strip(), length), _read(Path(space.strip())))
        if name == "white" and not value:
            return Identity()
        if name == "ar1":
            return AR1(length, float(value))
        if name == "mixed":
            return Mixed(length, float(value))
        if name == "warped":
            return Carried(float(value)) if value else Carried()
        if text.endswith(".json"):
            return _check_length(from_config(_read(Path(text))), length)
    except ValueError as e:
        raise ValueError(f"noise {text!r}: {e}") from e
    raise ValueError(
        f"unknown noise {text!r}; write white or ar1:0.9, mixed:0.5, or a file.json of `ornstein fit-noise`; or "
        "warped:0.25, or 'ar1:0.9 x FILE.json' with a spectrum in the file"
    )


def _product(time: Covariance, config: dict[str, Any]) -> Covariance:
    space = from_config(config)
    if not isinstance(space, Spectrum) or not isinstance(time, FrameCovariance | Identity):
        raise ValueError(f"a product is of a covariance over frames and a spectrum over pixels, not {time} x {space}")
    return Kronecker(time if isinstance(time, FrameCovariance) else None, space)


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except OSError as e:
        raise ValueError(f"the file cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise ValueError(f"the file is no JSON ({e})") from e
    if not isinstance(config, dict):
        raise ValueError("the file holds no noise: make one with `ornstein fit-noise`")
    return config


def _check_length(noise: Covariance, length: int) -> Covariance:
    factor = noise.time if isinstance(noise, Kronecker) else noise
    if isinstance(factor, FrameCovariance | SpectralAR1) and factor.length != length:
        raise ValueError(f"it was made for {factor.length} frames, not {length}: fit it again with --frames {length}")
    return noise
