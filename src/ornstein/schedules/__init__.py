"""Noise schedules: a(t) and s(t) of x_t = a(t) x_0 + s(t) R z, for t in [0, 1] with t = 0 the data.

Everything is elementwise, computed in float64 and returned in the dtype of `t`. All schedules have s(0) = 0 exactly,
so the log-SNR at t = 0 is +inf; `time` inverts `log_snr`.
"""

from ornstein.schedules.exploding import EDM, VE
from ornstein.schedules.named import NAMED, parse
from ornstein.schedules.preserving import Cosine, Discrete, LinearBeta, VariancePreserving
from ornstein.schedules.rectified import Rectified
from ornstein.schedules.schedule import Schedule, Times
from ornstein.schedules.shifted import Shifted

__all__ = [
    "EDM",
    "NAMED",
    "VE",
    "Cosine",
    "Discrete",
    "LinearBeta",
    "Rectified",
    "Schedule",
    "Shifted",
    "Times",
    "VariancePreserving",
    "from_config",
    "parse",
    "to_config",
]

TYPES: dict[str, type[Schedule]] = {c.__name__: c for c in (Cosine, LinearBeta, Discrete, VE, Rectified, EDM, Shifted)}


def to_config(schedule: Schedule) -> dict:
    """The schedule as a JSON-able dict, `{"type": ..., its arguments}`."""
    arguments = {k: v for k, v in vars(schedule).items() if not k.startswith("_")}
    return {"type": type(schedule).__name__, **{k: _plain(v) for k, v in arguments.items()}}


def _plain(value: object) -> object:
    if isinstance(value, Schedule):
        return to_config(value)
    return list(value) if isinstance(value, tuple) else value


def from_config(config: dict) -> Schedule:
    """The schedule that `to_config` described.

    Raises:
        ValueError: the type is unknown, or the arguments are wrong.
    """
    arguments = {k: from_config(v) if isinstance(v, dict) else v for k, v in config.items()}
    name = arguments.pop("type", None)
    if not isinstance(name, str) or name not in TYPES:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(TYPES)}")
    try:
        return TYPES[name](**arguments)
    except TypeError as e:
        raise ValueError(f"wrong arguments for the schedule {name}: {sorted(arguments)}") from e
