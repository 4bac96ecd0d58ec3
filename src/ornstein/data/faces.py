"""The earlier import path of `ornstein.faces.world`, which keeps working."""

import importlib
from typing import Any

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    # by name: the face world stands above this package
    return getattr(importlib.import_module("ornstein.faces.world"), name)
