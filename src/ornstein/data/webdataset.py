"""WebDataset shards: tar archives in which the files of one sample follow each other, under one name."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from ornstein.data.decode import BadImage
from ornstein.data.sources import Entry, Listing, hidden, printable, sane_size
from ornstein.errors import UserError

CLASS = ".cls"  # the file of a sample that says its class, a number or a name
_CLASS_BYTES = 256


@contextmanager
def open_shards(paths: Sequence[Path], suffixes: Collection[str], limit_bytes: int) -> Iterator[Listing]:
    """List the files of tar archives, which stay open and are never extracted while in use.

    Files of the same path up to the first dot are one sample; its .cls file is its class, where all samples have one.
    With several archives a name begins with that of its archive. Links, devices and paths that lead out are skipped.

    Raises:
        UserError: a file is no tar archive, or a compressed one, whose samples cannot be reached one by one.
    """
    listing = Listing()
    with ExitStack() as stack:
        for path in paths:
            handle = _open(path)
            stack.callback(os.close, handle)
            _list(path, handle, f"{printable(path.stem)}/" if len(paths) > 1 else "", suffixes, limit_bytes, listing)
        if any(entry.label is None for entry in listing.entries):
            listing.entries = [Entry(e.name, e.size, e.read, e.open) for e in listing.entries]
        yield listing


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _list(path: Path, handle: int, prefix: str, suffixes: Collection[str], limit: int, listing: Listing) -> None:
    classes: dict[str, str] = {}
    found: list[tuple[str, str, Entry]] = []
    try:
        # "r:" and not "r": an archive that is compressed is told, not unpacked
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = member.name.replace("\\", "/")
                parts = PurePosixPath(name).parts
                if member.isdir() or any(hidden(part) for part in parts):
                    continue
                base = PurePosixPath(name).name
                key = name[: len(name) - len(base)] + base.split(".")[0]
                if base.lower().endswith(CLASS) and member.isreg() and 0 < member.size <= _CLASS_BYTES:
                    text = _read(handle, member.offset_data, member.size).decode("utf-8", "replace").strip()
                    classes[key] = printable(text)
                    continue
                if PurePosixPath(name).suffix.lower() not in suffixes:
                    listing.ignored += 1
                    continue
                shown = prefix + printable("/".join(parts))
                try:
                    if name.startswith("/") or ".." in parts:
                        raise BadImage("its path leads out of the archive")
                    if not member.isreg() or member.issparse():
                        raise BadImage("not a regular file")
                    size = sane_size(member.size, limit)
                except BadImage as bad:
                    listing.skipped.append((shown, str(bad)))
                    continue
                read = partial(_read, handle, member.offset_data, size)
                found.append((key, shown, Entry(shown, size, read, partial(_stream, read))))
    except (tarfile.TarError, ValueError, EOFError, RecursionError) as error:
        if not found and not listing.skipped:
            with path.open("rb") as file:
                packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
            hint = "compressed: unpack it to .tar first" if packed else f"no sound tar archive: {error}"
            raise UserError(f"{path} is {hint}") from None
        listing.skipped.append((f"{prefix}...", f"the archive {path.name} is damaged after {len(found)} files"))
    listing.entries += [Entry(e.name, e.size, e.read, e.open, classes.get(key)) for key, _, e in found]


def _read(handle: int, offset: int, size: int) -> bytes:
    try:
        data = os.pread(handle, size, offset)  # at a place of its own: threads share the file
        while 0 < len(data) < size:
            more = os.pread(handle, size - len(data), offset + len(data))
            if not more:
                break
            data += more
    except (OSError, OverflowError) as error:
        raise BadImage(getattr(error, "strerror", None) or str(error)) from None
    if len(data) < size:
        raise BadImage("the archive is cut short")
    return data


def _stream(read: partial[bytes]) -> IO[bytes]:
    return io.BytesIO(read())
