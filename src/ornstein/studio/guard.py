"""What the studio's server answers: requests of its own pages, and files that a page shows.

A page of another site runs in the same browser. By DNS rebinding its name can be made to lead to this computer, and
then the browser lets it read the answers; the Host header still has the foreign name, so foreign names are refused.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["SHOWN", "Guard", "host_of"]

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

SHOWN = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4", ".mov", ".webm", ".html"}
"""Kinds of files of a run that pages show: pictures, films and reports. Weights, logs and data are not served."""

_LOCAL = {"localhost", "127.0.0.1", "::1"}
_FILE = "file="


def host_of(netloc: str) -> tuple[str, int | None]:
    """Host name, lower case and without brackets, and port of "host:port". ("", None) if it is malformed."""
    try:
        parts = urlsplit(f"//{netloc}")
        return (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return "", None


class Guard:
    """An ASGI application that passes on what may come in, and answers 403 with a sentence to everything else.

    Args:
        app: the application behind it.
        bound: the address that the server listens on; "0.0.0.0" and "::" are all addresses of this computer.
        folders: folders of runs, of which only files of the kinds `SHOWN` are served.
        names: further host names under which pages reach the server, such as that of a reverse proxy.
    """

    def __init__(self, app: App, bound: str, folders: Iterable[Path] = (), names: Iterable[str] = ()) -> None:
        self.app = app
        self.folders = [Path(folder).resolve() for folder in folders]
        bound = bound.strip("[]").lower()
        self.anywhere = bound in ("0.0.0.0", "::", "")
        own = {socket.gethostname().lower(), socket.getfqdn().lower()} if self.anywhere else {bound}
        self.hosts = _LOCAL | own | {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            refusal = self.refusal(scope)
            if refusal is not None:
                await _refuse(scope, send, refusal)
                return
        await self.app(scope, receive, send)

    def refusal(self, scope: Scope) -> str | None:
        """Why a request is refused; None if it is not."""
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not self._known(host_of(hosts[0])[0]):
            return "This address is not one of the studio's: open it as localhost, or start it with --allow-host NAME."
        for origin in (value for name, value in headers if name == b"origin"):
            parts = host_of(urlsplit(origin).netloc)
            if not self._known(parts[0]) or parts != host_of(hosts[0]):
                return "A page of another site may not use the studio."
        return self._of_file(scope["path"])

    def _known(self, host: str) -> bool:
        if host in self.hosts:
            return True
        if not self.anywhere:
            return False
        try:  # an address, unlike a name, cannot be made to lead elsewhere
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    def _of_file(self, path: str) -> str | None:
        """Why a file of a run is not served; None for other paths and for files that pages show."""
        _, marker, name = path.partition(f"/{_FILE}")
        if not marker:
            return None
        try:
            wanted = Path(name).absolute()
            file = wanted.resolve()
        except (OSError, ValueError, RuntimeError):
            return "There is no such file."
        inside = [folder for folder in self.folders if wanted.is_relative_to(folder) or file.is_relative_to(folder)]
        if not inside:
            return None  # a file of the page itself, which Gradio checks
        hidden = any(part.startswith(".") for folder in inside for part in file.parts[len(folder.parts) :])
        within = any(file.is_relative_to(folder) for folder in inside)
        if hidden or not within or file.suffix.lower() not in SHOWN or not file.is_file():
            return "Only pictures, films and reports of runs are shown."
        return None


async def _refuse(scope: Scope, send: Any, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason[:120]})
        return
    body = reason.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
