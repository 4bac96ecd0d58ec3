"""One trainer a run folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import IO

from ornstein.errors import UserError
from ornstein.store import check_regular, make_folder, open_in_place, write_error

__all__ = ["LOCK", "hold", "holder", "release"]

LOCK = ".lock"

_held: dict[tuple[int, Path], IO[str]] = {}  # by process: a fork inherits the dictionary, not the lock


def hold(out: Path) -> bool:
    """Make `out` this process's own until `release`, or its end; False where it already is.

    The lock is the system's (flock), on a file that says who has it: it goes with its process, however that ends.
    Where the system has none, as on some network disks, the process that the file names decides: if it is gone the lock
    is stale.

    Raises:
        UserError: another process has it. RunError: nothing can be written in `out`.
    """
    path = out / LOCK
    if _key(out) in _held:
        return False
    try:
        make_folder(out)
        file = os.fdopen(open_in_place(path, os.O_RDWR | os.O_APPEND), "a+", encoding="utf-8")
    except OSError as error:
        raise write_error(out, error) from error
    try:
        _lock(file, out)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        file.flush()
    except OSError as error:
        file.close()
        raise write_error(path, error) from error
    except UserError:
        file.close()
        raise
    _held[_key(out)] = file
    return True


def release(out: Path) -> None:
    """Let another process have `out`."""
    file = _held.pop(_key(out), None)
    if file is not None:
        with contextlib.suppress(OSError):
            # Not deleted: who waits to open the old file and who makes a new one would both have a lock.
            file.truncate(0)
        file.close()


def holder(out: Path) -> int | None:
    """The process on this machine that trains in `out`; None where there is none, or where that cannot be known."""
    try:
        check_regular(out / LOCK)
        file = (out / LOCK).open(encoding="utf-8")
    except (OSError, UserError):
        return None
    with file:
        found = _holder(file.read())
        if found is None or found[1] != _host() or _gone(found):
            return None
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return found[0]
        except (ImportError, OSError):
            return None
        return None  # it can be had: the number is of a process long gone


def _key(out: Path) -> tuple[int, Path]:
    return os.getpid(), out.resolve()


def _lock(file: IO[str], out: Path) -> None:
    file.seek(0)
    holder = _holder(file.read())
    try:
        import fcntl  # not on every system

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        pass
    except (ImportError, OSError):
        if holder is None or _gone(holder):
            return
    who = "another process" if holder is None else f"process {holder[0]} on {holder[1]}"
    raise UserError(
        f"{out} is being trained by {who}: stop that one first (it saves), or give another folder"
        + (f"; if it is long gone, delete {out / LOCK}" if holder is not None and holder[1] != _host() else "")
    )


def _holder(text: str) -> tuple[int, str] | None:
    try:
        record = json.loads(text)
        return int(record["pid"]), str(record["host"])
    except (ValueError, KeyError, TypeError):
        return None


def _gone(holder: tuple[int, str]) -> bool:
    pid, host = holder
    if host != _host():
        return False  # not to be known from here
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return pid == os.getpid()


def _host() -> str:
    return socket.gethostname()
