"""Work that takes a while: in a thread of its own, told about as it goes, and stopped when nobody waits any more."""

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

T = TypeVar("T")

_EVERY = 0.25  # seconds between two looks at the work
_TOLD = (UserError, RunError, ValueError, OSError, MemoryError)


class Stopped(Exception):
    """The work was told to stop."""


class Work(Generic[T]):
    """A job of a page. Iterating starts it and yields what is to be shown of it; then `result` is there.

    The job is called with `tell(what, done, total)`, which raises Stopped in it once the page's stop was pressed or the
    page was closed. One job runs at a time; the others wait. Errors of the job are raised where it is iterated.
    """

    _turn = threading.Lock()

    def __init__(self, session: Session, unit: str, job: Callable[[Callable[[str, int, int | None], None]], T]) -> None:
        self.session, self.unit, self.job = session, unit, job
        self.event = threading.Event()
        self.result: T
        self._said: tuple[str, int, int | None] = ("waiting for other work to end", 0, None)
        self._began = (time.monotonic(), 0)
        self._error: BaseException | None = None
        self.seconds = 0.0

    def tell(self, what: str, done: int, total: int | None) -> None:
        if self.event.is_set():
            raise Stopped
        if what.partition(",")[0] != self._said[0].partition(",")[0]:
            self._began = (time.monotonic(), done)
        self._said = (what, done, total)

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
        except BaseException as error:  # raised again where it is waited for
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
            self.event.set()  # also where the page is gone and nobody iterates on
            self.session.work.discard(self.event)
        if isinstance(self._error, Stopped):
            raise gr.Error("Stopped, as asked. Nothing was kept.", title="Stopped", duration=4, print_exception=False)
        if self._error is not None:
            raise self._error

    def _line(self) -> str:
        what, done, total = self._said
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
    """A line of progress as HTML; `text` is HTML already. Without a share the bar only shows that something goes on."""
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


def told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The handler with a user's mistakes shown on the page, and to scripts, as one line that says what to do.

    ORNSTEIN_TRACEBACK=1 in the environment lets the exception through.
    """

    def shown(error: BaseException) -> gr.Error:
        if os.environ.get("ORNSTEIN_TRACEBACK") == "1":
            raise error
        title = "This cannot be done" if isinstance(error, UserError | ValueError) else "This did not work"
        return gr.Error(
            " ".join(str(error).split()) or type(error).__name__, title=title, duration=None, print_exception=False
        )

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def each(*args: Any, **options: Any) -> Iterator[Any]:
            try:
                yield from handler(*args, **options)
            except _TOLD as error:
                raise shown(error) from None

        return each

    @functools.wraps(handler)
    def once(*args: Any, **options: Any) -> Any:
        try:
            return handler(*args, **options)
        except _TOLD as error:
            raise shown(error) from None

    return once
