"""Training: data and a model in, a run directory out. Names are imported at first use: settings need no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ornstein.training.config import TrainConfig
    from ornstein.training.loop import TrainState, run_task, train
    from ornstein.training.task import Task

__all__ = ["Task", "TrainConfig", "TrainState", "run_task", "train"]

_MODULES = {"Task": "task", "TrainConfig": "config", "TrainState": "loop", "run_task": "loop", "train": "loop"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
