"""A module that records its constructor's arguments, from which a checkpoint builds it again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

__all__ = ["Recorded"]


class Recorded(nn.Module):
    """Base of networks that a checkpoint can build again: `config` holds the arguments of the constructor.

    Every subclass with an `__init__` gets this for free: `config` has the arguments of the outermost constructor, its
    defaults included, as JSON types, and `type(net)(**net.config)` makes a network of the same shape. A constructor
    that chooses a value for an argument of None writes it into `self.config`.
    """

    config: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)
    flexible = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]

    @functools.wraps(init)
    def wrapped(self: Recorded, *args: Any, **kwargs: Any) -> None:
        if "config" not in self.__dict__:  # else the constructor of a subclass has recorded its own arguments
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError:
                init(self, *args, **kwargs)  # fails with Python's own message, which names the constructor
                raise
            bound.apply_defaults()
            arguments = dict(list(bound.arguments.items())[1:])
            for name in flexible:
                arguments |= arguments.pop(name)
            self.config = {name: _json(value) for name, value in arguments.items()}
        init(self, *args, **kwargs)

    return wrapped


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json(each) for key, each in value.items()}
    if isinstance(value, list | tuple | range):
        return [_json(each) for each in value]
    return value
