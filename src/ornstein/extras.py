"""Optional packages: imported where they are used; if one is missing, the error names the extra that brings it."""

from __future__ import annotations

import importlib
from typing import Any

from ornstein.errors import UserError

__all__ = ["deferred", "install", "require"]


def install(extra: str) -> str:
    """The command that installs an extra of this package from a checkout."""
    return f"pip install -e '.[{extra}]'"


def require(module: str, extra: str, purpose: str = "this") -> Any:
    """Import an optional module.

    Args:
        module: dotted name of the module.
        extra: the extra of this package that installs it, as `pyproject.toml` names it.
        purpose: what needs the module, the subject of the error's sentence.

    Raises:
        UserError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"{purpose} needs {package}, which is not installed: {install(extra)}") from error


class _Deferred:
    def __init__(self, module: str, extra: str, purpose: str) -> None:
        self._wanted = module, extra, purpose

    def __getattr__(self, name: str) -> Any:
        return getattr(require(*self._wanted), name)


def deferred(module: str, extra: str, purpose: str = "this") -> Any:
    """A stand-in for an optional module, imported when one of its attributes is first read (see `require`)."""
    return _Deferred(module, extra, purpose)
