"""Smaller models from trained ones: pruning to a budget, integral layers, weights of 8 bits.

The package is callable: `ornstein.compress(run, out, macs=0.5)` is `ornstein.compress.run.compress`. Names are imported
at first use: the settings need no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ornstein.compress.integral import at_width
    from ornstein.compress.run import Compressed, compress
    from ornstein.compress.settings import CompressSettings

__all__ = ["CompressSettings", "Compressed", "at_width", "compress"]

_MODULES = {"CompressSettings": "settings", "Compressed": "run", "at_width": "integral", "compress": "run"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module(f"{__name__}.run").compress(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
