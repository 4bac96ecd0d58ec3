"""SIGINT and SIGTERM: a step is never interrupted in the middle, and a training stops within seconds."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Interrupts"]


class Interrupts:
    """Within a step a signal sets a flag, which the trainer reads after it; a second signal interrupts at once.

    Between steps the caller may be busy for minutes, drawing samples: there the first signal calls `save` and raises
    KeyboardInterrupt in the caller's code. Without a `save` it sets the flag there too.
    """

    def __init__(self, save: Callable[[], None] | None) -> None:
        self.requested = False
        self.save = save
        self.stepping = True
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous.clear()

    def handle(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if not self.stepping and self.save is not None:
            self.save()
            # the trainer, a generator that waits in the caller's loop, may never be resumed to do it
            self.__exit__()
            raise KeyboardInterrupt

    @contextmanager
    def caller(self) -> Iterator[None]:
        """Marks the time in which the caller's code runs."""
        self.stepping = False
        try:
            yield
        finally:
            self.stepping = True
