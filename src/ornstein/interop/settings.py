"""The settings of prompts. It imports no torch: the options of commands come from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ornstein.settings import setting

__all__ = ["Prompts"]

_PANEL = "Models of text"


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What a model that takes text is asked for."""

    prompt: str | None = setting(None, "The prompt.", names=("-p", "--prompt"), panel=_PANEL)
    prompts: Path | None = setting(None, "A text file with a prompt a line; samples take them in turn.", panel=_PANEL)
    negative: str | None = setting(None, "The prompt that guidance leads away from.", panel=_PANEL)
