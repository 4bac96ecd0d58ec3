"""The notes and progress bars of diffusers and transformers, kept off the screen."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ornstein.extras import require

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes of diffusers and transformers."""
    transformers = require("transformers", "interop", "a pipeline of diffusers")
    bars = [require("diffusers.utils", "interop").logging, transformers.utils.logging]
    shown = [b for b in bars if b.is_progress_bar_enabled()]
    for bar in shown:
        bar.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)
        for bar in shown:
            bar.enable_progress_bar()
