"""State of the open pages: uploaded files, results and running work, which are deleted and stopped with the page."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Request", "Session", "Sessions"]


class Request(Protocol):
    """The part of Gradio's request that is used: the page it comes from."""

    session_hash: str | None


_GRACE = 5.0  # seconds in which a page that lost its connection may come back


@dataclass(eq=False)
class Session:
    """One open page.

    Args:
        folder: of the files made for it.
        sent: files that it uploaded.
        kept: values that its handlers keep, by name.
        work: the stop events of its running work.
        closing: the timer that deletes it after its connection was lost.
    """

    folder: Path
    sent: set[Path] = field(default_factory=set)
    kept: dict[str, Any] = field(default_factory=dict)
    work: set[threading.Event] = field(default_factory=set)
    closing: threading.Timer | None = None

    def new_folder(self) -> Path:
        """An empty folder inside the page's own."""
        number = self.kept["folders"] = self.kept.get("folders", 0) + 1
        folder = self.folder / f"{number:05d}"
        folder.mkdir(parents=True)
        return folder

    def stop(self) -> None:
        """Stop all work of this page."""
        for event in list(self.work):
            event.set()


class Sessions:
    """The open pages, under `root`. A file that two pages have uploaded stays until both are closed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: dict[str, Session] = {}
        self._lock = threading.Lock()

    def of(self, request: Request) -> Session:
        """The page that a request comes from; a new one is empty. Raises ValueError for a malformed session name."""
        key = request.session_hash or "none"
        if not key.replace("-", "").isalnum():  # it becomes the name of a folder
            raise ValueError("a session is named by letters, digits and dashes")
        with self._lock:
            if key not in self._open:
                folder = self.root / f"page-{key}"
                folder.mkdir(parents=True, exist_ok=True)
                self._open[key] = Session(folder)
            session = self._open[key]
            if session.closing is not None:  # it was a lost connection
                session.closing.cancel()
                session.closing = None
            return session

    def send(self, request: Request, files: Iterable[str | Path | None]) -> None:
        """Note files that a page has uploaded, to delete them with it; files outside `root` are ignored."""
        session = self.of(request)
        for file in files:
            if file is not None and Path(file).resolve().is_relative_to(self.root.resolve()):
                session.sent.add(Path(file).resolve())

    def close(self, request: Request) -> None:
        """Close a page: unless it comes back within seconds, its work is stopped and its files are deleted."""
        key = request.session_hash or "none"
        with self._lock:
            session = self._open.get(key)
            if session is None or session.closing is not None:
                return
            session.closing = threading.Timer(_GRACE, self._forget, (key, session))
            session.closing.daemon = True
            session.closing.start()

    def _forget(self, key: str, session: Session) -> None:
        with self._lock:
            if session.closing is None or self._open.get(key) is not session:
                return
            del self._open[key]
            others = {file for each in self._open.values() for file in each.sent}
        session.stop()
        shutil.rmtree(session.folder, ignore_errors=True)
        for file in session.sent - others:
            file.unlink(missing_ok=True)

    def close_all(self) -> None:
        """Stop all work and delete everything that was uploaded or made for a page."""
        for session in list(self._open.values()):
            session.stop()
        shutil.rmtree(self.root, ignore_errors=True)
