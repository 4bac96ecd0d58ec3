"""The studio's server: it listens on this computer only unless it has a password, and sends no telemetry."""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gradio
import torch
import uvicorn
from fastapi import FastAPI

from ornstein.errors import RunError, UserError
from ornstein.studio.app import STYLE, build, theme
from ornstein.studio.guard import Guard
from ornstein.studio.studio import Studio

if TYPE_CHECKING:
    from ornstein.faces.detect import FaceDetector
    from ornstein.faces.recognise import FaceRecogniser

__all__ = ["MAX_FILE_SIZE", "Address", "is_loopback", "serving"]

MAX_FILE_SIZE = 4 * 2**30  # bytes of one upload
_CACHE = "GRADIO_TEMP_DIR"
_FIRST_PORT = 7860
_SHORTEST = 8  # characters of a password


@dataclass(frozen=True)
class Address:
    """Where the studio listens, and who has access.

    Args:
        host: the address.
        port: None for the first free one from 7860 on.
        user, password: both or neither.
        names: further host names of the studio, such as that of a reverse proxy.

    Raises:
        UserError: others could reach it without a password, or a value that cannot be.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    user: str | None = None
    password: str | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.user is None) != (self.password is None):
            raise UserError("a user needs a password and a password a user: give --user and --password-file")
        if self.user is None and not is_loopback(self.host):
            raise UserError(
                f"on {self.host} others can reach the studio, which reads and writes files: "
                "give --user and --password-file, or leave out --host"
            )
        if self.user is not None and (not self.user.strip() or len(self.password or "") < _SHORTEST):
            raise UserError(f"a user has a name, and a password of at least {_SHORTEST} characters")
        if self.port is not None and not 0 < self.port < 65536:
            raise UserError(f"a port is a number from 1 to 65535, not {self.port}")


def is_loopback(host: str) -> bool:
    """Whether only this computer reaches that address; a name other than localhost is taken to be reached by others."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@contextmanager
def serving(
    home: Path,
    given: Sequence[Path] = (),
    address: Address | None = None,
    *,
    detector: FaceDetector | None = None,
    recogniser: FaceRecogniser | None = None,
    device: torch.device | None = None,
    precision: str = "auto",
    max_file_size: int = MAX_FILE_SIZE,
) -> Iterator[str]:
    """Serve the studio within the block; afterwards everything that pages uploaded is deleted.

    Args:
        home: the folder of runs, where new ones are written.
        given: further runs.
        address: where it listens; None is this computer's own address.
        detector, recogniser: of faces; None is dlib's.
        device, precision: of all networks, see `Studio`.
        max_file_size: bytes of one upload.

    Yields:
        The URL.

    Raises:
        UserError: the port is taken.
        RunError: the server does not start.
    """
    address = address or Address()
    with _cache() as cache:
        listening = _listen(address.host, address.port)
        studio = Studio(home, Path(cache), given, detector, recogniser, device, precision)
        blocks = build(studio)
        blocks.queue(max_size=None, default_concurrency_limit=8)
        # Mounted, not launched: launching asks the page from itself, which fails behind a proxy and on a busy machine.
        app = gradio.mount_gradio_app(
            FastAPI(openapi_url=None),
            blocks,
            "/",
            auth=None if address.user is None or address.password is None else (address.user, address.password),
            allowed_paths=[str(path.resolve()) for path in (home, *given)],
            show_error=False,
            max_file_size=max_file_size,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=theme(),
            css=STYLE,
        )
        guarded = Guard(app, address.host, (home, *given), address.names)
        server = uvicorn.Server(uvicorn.Config(guarded, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RunError("the studio does not start; the reason is printed above")
                time.sleep(0.01)
            host = f"[{address.host}]" if ":" in address.host else address.host
            yield f"http://{host}:{listening.getsockname()[1]}/"
        finally:
            studio.sessions.close_all()
            server.should_exit = True
            thread.join(10)
            listening.close()


@contextmanager
def _cache() -> Iterator[str]:
    """A folder for Gradio's files within the block. Gradio reads its name from the environment at each request."""
    before = os.environ.get(_CACHE)
    with tempfile.TemporaryDirectory(prefix="ornstein-studio-", ignore_cleanup_errors=True) as cache:
        os.environ[_CACHE] = cache
        try:
            yield cache
        finally:
            if before is None:
                del os.environ[_CACHE]
            else:
                os.environ[_CACHE] = before


def _listen(host: str, port: int | None) -> socket.socket:
    """A listening socket of that address; of the first free port from 7860 on if none is given."""
    reason = ""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in [port] if port is not None else range(_FIRST_PORT, _FIRST_PORT + 100):
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host.strip("[]"), number))
            listening.listen(128)
            return listening
        except OSError as error:
            listening.close()
            reason = error.strerror or str(error)
    where = f"port {port}" if port is not None else f"every port from {_FIRST_PORT} on"
    raise UserError(f"{where} of {host} cannot be used: {reason}; give another --port")
