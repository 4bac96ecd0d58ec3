"""Long work of a page: it runs in a thread of its own, reports its progress, and stops when nobody waits for it."""

from __future__ import annotations

import functools
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator
from html import escape
from typing import Any, Generic, TypeVar

import gradio as gr

from ornstein.errors import RunError, UserError
from ornstein.studio.sessions import Session

__all__ = ["Stopped", "Tell", "Work", "bar", "duration", "errors_shown", "note", "shown"]

T = TypeVar("T")
Tell = Callable[[str, int, int | None], None]
"""Called with what is done, how much of it, and how much there is of it; None if that is unknown."""

_EVERY = 0.25  # seconds between two updates
_DURATION = 10.0  # seconds that an error is shown
_EXPECTED = (UserError, RunError, ValueError, OSError, MemoryError)


class Stopped(Exception):
    """The work was stopped by its user."""


class Work(Generic[T]):
    """A job of a page. Iterating starts it and yields its progress as HTML; afterwards `result` is set.

    One job runs at a time; the others wait. Errors of the job are raised where it is iterated.

    Args:
        session: the page.
        unit: what the progress counts, in the plural.
        job: called with `tell(what, done, total)`, which raises Stopped when Stop was pressed or the page was closed.
    """

    _turn = threading.Lock()

    def __init__(self, session: Session, unit: str, job: Callable[[Tell], T]) -> None:
        self.session, self.unit, self.job = session, unit, job
        self.event = threading.Event()
        self.result: T
        self._latest: tuple[str, int, int | None] = ("waiting for other work to end", 0, None)
        self._began = (time.monotonic(), 0)
        self._error: BaseException | None = None
        self.seconds = 0.0

    def tell(self, what: str, done: int, total: int | None) -> None:
        if self.event.is_set():
            raise Stopped
        if what.partition(",")[0] != self._latest[0].partition(",")[0]:
            self._began = (time.monotonic(), done)
        self._latest = (what, done, total)

    def _run(self) -> None:
        try:
            while not Work._turn.acquire(timeout=_EVERY):
                if self.event.is_set():
                    raise Stopped
            try:
                self.tell("starting", 0, None)
                began = time.monotonic()
                self.result = self.job(self.tell)
                self.seconds = time.monotonic() - began
            finally:
                Work._turn.release()
        except BaseException as error:  # raised again in __iter__
            self._error = error

    def __iter__(self) -> Iterator[str]:
        self.session.work.add(self.event)
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                yield self._line()
                thread.join(_EVERY)
        finally:
            self.event.set()  # also if the page is closed and nobody iterates any more
            self.session.work.discard(self.event)
        if isinstance(self._error, Stopped):
            raise gr.Error("Stopped, as asked. Nothing was kept.", title="Stopped", duration=4, print_exception=False)
        if self._error is not None:
            raise self._error

    def _line(self) -> str:
        what, done, total = self._latest
        (began, before), seconds = self._began, time.monotonic() - self._began[0]
        parts = [escape(what)]
        if total:
            parts.append(f"{done:,} of {total:,} {self.unit}")
        elif done:
            parts.append(f"{done:,} {self.unit}")
        if done > before and seconds > 0.5:
            rate = (done - before) / seconds
            parts.append(
                f"{rate:,.1f} {self.unit}/s" if rate >= 0.1 else f"{1 / rate:,.0f} s a {self.unit.rstrip('s')}"
            )
            if total:
                parts.append(f"{duration((total - done) / rate)} left")
        elif seconds > 2:
            parts.append(f"{duration(time.monotonic() - began)} so far")
        return bar(" · ".join(parts), done / total if total else None)


def bar(text: str, share: float | None = None) -> str:
    """A line of progress as HTML; `text` is HTML already. Without a share the bar shows only that work is under way."""
    width = "" if share is None else f' style="width:{100 * min(max(share, 0), 1):.1f}%"'
    kind = "going" if share is None else "done"
    return f'<div class="progress" role="status"><div class="track"><div class="{kind}"{width}></div></div>{text}</div>'


def note(text: str, kind: str = "plain") -> str:
    """A line as HTML, of the kind "plain", "good" or "bad"."""
    return f'<div class="note {kind}" role="status">{escape(text)}</div>'


def duration(seconds: float) -> str:
    """1 h 05 min, 3 min 20 s, 12 s."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def errors_shown(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The handler with its errors shown on the page, and to scripts, as one line that says what to do.

    With ORNSTEIN_TRACEBACK=1 in the environment the exception passes.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def each(*args: Any, **options: Any) -> Iterator[Any]:
            try:
                yield from handler(*args, **options)
            except _EXPECTED as error:
                raise shown(error) from None

        return each

    @functools.wraps(handler)
    def once(*args: Any, **options: Any) -> Any:
        try:
            return handler(*args, **options)
        except _EXPECTED as error:
            raise shown(error) from None

    return once


def shown(error: BaseException) -> gr.Error:
    """The error as a message of the page that closes by itself."""
    if os.environ.get("ORNSTEIN_TRACEBACK") == "1":
        raise error
    text = " ".join(str(error).split())
    if not isinstance(error, _EXPECTED):  # a fault of the program or of the request, not of what was entered
        text = f"The studio could not do this ({type(error).__name__}{': ' if text else ''}{text})."
    title = "This cannot be done" if isinstance(error, UserError | ValueError) else "This did not work"
    return gr.Error(text or type(error).__name__, title=title, duration=_DURATION, print_exception=False)
