"""The files of a folder and of a zip archive."""

import io
import json
import os
import re
import stat
import struct
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from ornstein.data.entry import BadImage, Entry, Listing, check_size, open_handle, reason_of
from ornstein.data.names import hidden, suffix_of, tidy
from ornstein.errors import UserError

__all__ = ["is_run", "list_folder", "list_zip", "open_file", "open_zip"]

_DEPTH = 64  # folders within folders
_DIRECTORY_BYTES = 256 * 2**20  # of a zip archive's table of contents: some three million files
_RUN_FILE, _RUN_BYTES = "train.json", 2**16
_RUN_KEYS = {"data", "held_out", "checkpoint_every"}
_RUN_PARTS = {"progress", "samples", "evaluation", "state", "latents"}


def list_folder(root: Path, suffixes: Collection[str], limit_bytes: int) -> Listing:
    """The files in `root` and its sub-folders, without run directories: their pictures are samples of a model.

    Links to folders are not followed, nor links out of `root`; folders more than 64 deep are not entered.
    """
    listing = Listing()
    inside = root.resolve()
    waiting: list[tuple[str, int]] = [("", 0)]
    while waiting:
        here, depth = waiting.pop()
        try:
            with os.scandir(root / here) as entries:
                found = list(entries)
        except OSError as error:
            listing.skipped.append((tidy(here or "."), reason_of(error)))
            continue
        names = {entry.name for entry in found}
        own_run = _RUN_FILE in names and is_run(root / here)
        if own_run and here:
            listing.ignored["run directory"] += 1
            continue
        for entry in found:
            if hidden(entry.name):
                continue
            name = f"{here}/{entry.name}" if here else entry.name
            if _is_linked_folder(entry):
                # it may leave the folder, or lead round in a circle
                listing.skipped.append((tidy(name), "symbolic link to a folder: not followed"))
            elif not entry.is_dir(follow_symlinks=False):
                _add_file(listing, root / name, name, suffixes, limit_bytes, inside)
            elif own_run and entry.name in _RUN_PARTS:
                listing.ignored["folder of this run"] += 1
            elif depth == _DEPTH:
                shown = tidy(f"{name[:40]}...")
                listing.skipped.append((shown, f"more than {_DEPTH} folders within each other: not read"))
            else:
                waiting.append((name, depth + 1))
    return listing


def _is_linked_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # links in a circle: no folder
        return False


def _add_file(
    listing: Listing, path: Path, name: str, suffixes: Collection[str], limit_bytes: int, inside: Path
) -> None:
    if Path(name).suffix.lower() not in suffixes:
        listing.ignored[suffix_of(name)] += 1
        return
    try:
        if path.is_symlink() and not path.resolve(strict=True).is_relative_to(inside):
            raise BadImage("symbolic link that leads out of the folder")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a regular file")
        size = check_size(status.st_size, limit_bytes)
    except (OSError, RuntimeError) as error:
        listing.skipped.append((tidy(name), reason_of(error)))
    except BadImage as bad:
        listing.skipped.append((tidy(name), str(bad)))
    else:
        listing.entries.append(Entry(tidy(name), size, partial(open_file, path, inside)))


def open_file(path: Path, inside: Path | None = None) -> IO[bytes]:
    """A stream over a regular file. Raises BadImage as `open_handle`."""
    return os.fdopen(open_handle(path, inside)[0], "rb")


def is_run(folder: Path) -> bool:
    """Whether `folder` is the directory of a training run, by the settings it keeps."""
    try:
        with open_file(folder / _RUN_FILE) as stream:
            value = json.loads(stream.read(_RUN_BYTES))
    except (BadImage, OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.keys() >= _RUN_KEYS


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip archive at `path`, open. Raises UserError if it is none, or its table of contents is too large."""
    try:
        stream = open_file(path)
    except BadImage as bad:
        raise UserError(f"cannot read {path}: {bad}") from None
    with stream:
        try:
            if _directory_bytes(stream) > _DIRECTORY_BYTES:
                limit = _DIRECTORY_BYTES // 2**20
                raise UserError(f"{path} has a table of contents above {limit} MB: divide the archive")
            archive = zipfile.ZipFile(stream)
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason_of(error)}") from None
        except Exception as error:  # of a damaged table of contents nearly everything is raised
            raise UserError(f"{path} is neither a folder nor a sound zip archive: {reason_of(error)}") from None
        with archive:
            yield archive


def _directory_bytes(stream: IO[bytes]) -> int:
    """The size of the table of contents as the archive states it (APPNOTE 4.3.14 to 4.3.16); 0 if it states none."""
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - 65_557))
    tail = stream.read(65_557)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + 22 > len(tail):
        return 0
    stated = struct.unpack_from("<I", tail, at + 12)[0]
    locator = tail.rfind(b"PK\6\7", 0, at)
    if stated == 0xFFFFFFFF and locator >= 0:
        stream.seek(struct.unpack_from("<Q", tail, locator + 8)[0])
        record = stream.read(56)
        stated = struct.unpack_from("<Q", record, 40)[0] if len(record) == 56 else 0
    return stated


def list_zip(archive: zipfile.ZipFile, path: Path, suffixes: Collection[str], limit_bytes: int) -> Listing:
    """The files of an open zip archive. Raises UserError if all are encrypted."""
    listing = Listing()
    encrypted = 0
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        parts = PurePosixPath(name).parts
        if not name or name.endswith("/") or any(hidden(part) for part in parts):
            continue
        if PurePosixPath(name).suffix.lower() not in suffixes:
            listing.ignored[suffix_of(name)] += 1
            continue
        try:
            if name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name):
                raise BadImage("its path leads out of the archive")
            if info.flag_bits & 0x1:
                encrypted += 1
                raise BadImage("encrypted")
            size = check_size(info.file_size, limit_bytes)
        except BadImage as bad:
            listing.skipped.append((tidy(name), str(bad)))
            continue
        listing.entries.append(Entry(tidy("/".join(parts)), size, partial(_open_member, archive, info), None, info.CRC))
    if encrypted and not listing.entries:
        raise UserError(f"{path} is encrypted: decrypt the archive first")
    return listing


def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return io.BufferedReader(_MemberFile(archive.open(info)), 2**16)
    except Exception as error:  # zipfile and its decompressors each raise their own
        raise BadImage(f"damaged in the archive: {reason_of(error)}") from None


class _MemberFile(io.RawIOBase):
    """A file of an archive as a stream whose errors are those of files: all readers expect OSError."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _as_os_error():
            return self._file.seek(offset, whence)

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        with _as_os_error():
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # zlib, bz2, lzma and zipfile each raise their own
        raise OSError(f"damaged in the archive: {reason_of(error)}") from None
