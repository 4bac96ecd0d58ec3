"""WebDataset shards: tar archives in which the files of one sample follow each other, under one name."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from ornstein.data.decode import BadImage
from ornstein.data.sources import Entry, Listing, first_folders, hidden, natural_key, printable, sane_size
from ornstein.errors import UserError

CLASS = ".cls"  # the file of a sample that says its class, a number or a name
_CLASS_BYTES = 256
_SCANNED_AT_ONCE = 8  # archives: on a network disk each header read is a wait


@dataclass
class Shard:
    """What lies in one tar archive, in its order: names, places and sizes (bytes) of the files; classes where told.

    skipped: (name, reason) of what cannot be used; ignored: the number of files of other kinds.
    """

    path: Path
    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: int = 0


@contextmanager
def open_shards(paths: Sequence[Path], suffixes: Collection[str], limit_bytes: int) -> Iterator[Listing]:
    """List the files of tar archives, which stay open and are never extracted while in use.

    Files of the same path up to the first dot are one sample; its .cls file is its class, where all samples have one,
    else the first folder on its path. With several archives a name begins with that of its archive. Links, devices and
    paths that lead out are skipped.

    Raises:
        UserError: a file is no tar archive, or a compressed one, whose samples cannot be reached one by one.
    """
    listing = Listing()
    with ExitStack() as stack:
        labels: list[str | None] = []
        bare: list[str] = []
        for shard, prefix in scan(paths, suffixes, limit_bytes):
            handle = _open(shard.path)
            stack.callback(os.close, handle)
            for name, offset, size in zip(shard.names, shard.offsets, shard.sizes, strict=True):
                read = partial(read_at, handle, offset, size)
                listing.entries.append(Entry(prefix + name, size, read, partial(_stream, read)))
            bare += shard.names
            labels += shard.labels
            listing.skipped += [(prefix + name, why) for name, why in shard.skipped]
            listing.ignored += shard.ignored
        classes = classes_of(labels, bare)
        if classes is not None:
            named = zip(listing.entries, classes, strict=True)
            listing.entries = [Entry(e.name, e.size, e.read, e.open, label) for e, label in named]
        listing.entries.sort(key=lambda entry: natural_key(entry.name))
        yield listing


def scan(paths: Sequence[Path], suffixes: Collection[str], limit_bytes: int) -> Iterator[tuple[Shard, str]]:
    """What lies in each archive, in order, and what its names begin with. Raises as `open_shards`."""
    with ThreadPoolExecutor(_SCANNED_AT_ONCE) as pool:
        found = pool.map(lambda path: _scan(path, suffixes, limit_bytes), paths)
        for path, shard in zip(paths, found, strict=True):
            yield shard, f"{printable(path.stem)}/" if len(paths) > 1 else ""


def classes_of(labels: Sequence[str | None], names: Sequence[str]) -> list[str] | None:
    """The class of each sample by its .cls file, or where not all have one by the first folder of its name, or None."""
    told = [label for label in labels if label is not None]
    return told if labels and len(told) == len(labels) else first_folders(names, wrapped=True)


def read_at(handle: int, offset: int, size: int) -> bytes:
    """`size` bytes at a place of an open file. Raises BadImage where they are not there."""
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


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _scan(path: Path, suffixes: Collection[str], limit: int) -> Shard:
    handle = _open(path)
    shard = Shard(path)
    classes: dict[str, str] = {}
    keys: list[str] = []
    try:
        # "r:" and not "r": an archive that is compressed is told, not unpacked
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                # it would keep every header
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  (missing from the stubs)
                name = member.name.replace("\\", "/")
                parts = PurePosixPath(name).parts
                if member.isdir() or any(hidden(part) for part in parts):
                    continue
                base = PurePosixPath(name).name
                key = name[: len(name) - len(base)] + base.split(".")[0]
                if base.lower().endswith(CLASS) and member.isreg() and 0 < member.size <= _CLASS_BYTES:
                    text = read_at(handle, member.offset_data, member.size).decode("utf-8", "replace").strip()
                    classes[key] = printable(text)
                    continue
                if PurePosixPath(name).suffix.lower() not in suffixes:
                    shard.ignored += 1
                    continue
                shown = printable("/".join(parts))
                try:
                    if name.startswith("/") or ".." in parts:
                        raise BadImage("its path leads out of the archive")
                    if not member.isreg() or member.issparse():
                        raise BadImage("not a regular file")
                    size = sane_size(member.size, limit)
                except BadImage as bad:
                    shard.skipped.append((shown, str(bad)))
                    continue
                keys.append(key)
                shard.names.append(shown)
                shard.offsets.append(member.offset_data)
                shard.sizes.append(size)
    except (tarfile.TarError, ValueError, EOFError, RecursionError, BadImage) as error:
        if not shard.names and not shard.skipped:
            with path.open("rb") as file:
                packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
            hint = "compressed: unpack it to .tar first" if packed else f"no sound tar archive: {error}"
            raise UserError(f"{path} is {hint}") from None
        shard.skipped.append(("...", f"the archive {path.name} is damaged after {len(shard.names)} files"))
    finally:
        os.close(handle)
    shard.labels = [classes.get(key) for key in keys]
    return shard


def _stream(read: partial[bytes]) -> IO[bytes]:
    return io.BytesIO(read())
