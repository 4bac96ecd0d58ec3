"""Noise with any covariance C = R R^T over the axes of a sample."""

from torch import Tensor

from ornstein.noise.ar1 import AR1
from ornstein.noise.covariance import Covariance, Identity, SingularCovarianceError
from ornstein.noise.frames import Matrix

__all__ = [
    "AR1",
    "Covariance",
    "Identity",
    "Matrix",
    "SingularCovarianceError",
    "from_config",
    "parse",
    "to_config",
]

TYPES: dict[str, type[Covariance]] = {c.__name__: c for c in (Identity, AR1, Matrix)}


def to_config(noise: Covariance) -> dict:
    """The covariance as a JSON-able dict, `{"type": ..., its arguments}`."""
    arguments = {k: v for k, v in vars(noise).items() if not k.startswith("_")}
    lists = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    return {"type": type(noise).__name__, **lists}


def from_config(config: dict) -> Covariance:
    """The covariance that `to_config` described; ValueError for an unknown type or wrong arguments."""
    arguments = dict(config)
    name = arguments.pop("type", None)
    if not isinstance(name, str) or name not in TYPES:
        raise ValueError(f"unknown noise {name!r}; known: {', '.join(TYPES)}")
    try:
        return TYPES[name](**arguments)
    except TypeError as e:
        raise ValueError(f"wrong arguments for the noise {name}: {sorted(arguments)}") from e


def parse(text: str, length: int) -> Covariance:
    """The covariance that a short text names, over `length` frames: "white" or "ar1:0.9"."""
    name, _, value = text.partition(":")
    try:
        if name == "white" and not value:
            return Identity()
        if name == "ar1":
            return AR1(length, float(value))
    except ValueError as e:
        raise ValueError(f"noise {text!r}: {e}") from e
    raise ValueError(f"unknown noise {text!r}; write white or ar1:0.9")
