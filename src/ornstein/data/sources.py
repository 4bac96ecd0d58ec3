"""What lies in a folder or an archive: files of a kind in order, their classes, and what was passed over."""

import os
import re
import stat
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from ornstein.data.decode import BadImage
from ornstein.errors import UserError

# HEIC and JPEG XL are named so that they are reported as unreadable instead of passed over in silence.
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"} | {
    ".ppm",
    ".pgm",
    ".pbm",
    ".avif",
    ".heic",
    ".heif",
    ".jxl",
}
MAX_FILE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Entry:
    """One file that should be usable: its name within the source, its size in bytes, how to read or stream it."""

    name: str
    size: int
    read: Callable[[], bytes]
    open: Callable[[], IO[bytes]]
    label: str | None = None


@dataclass
class Listing:
    """The files of a source: those usable, in natural order; (name, reason) of those skipped; number of others."""

    entries: list[Entry] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: int = 0


@contextmanager
def open_source(
    path: Path, suffixes: Collection[str] = SUFFIXES, limit_bytes: int = MAX_FILE_BYTES
) -> Iterator[Listing]:
    """List a folder (recursively), a zip or tar archive, which stay open, and are never extracted, while in use.

    A folder of tar archives and nothing of `suffixes` is read as WebDataset shards, one that `datasets` has saved as
    that data set. Files with other `suffixes` are counted as ignored, those above `limit_bytes` skipped.
    Hidden files and folders and __MACOSX are no part of it. Raises UserError where there is no such source.
    """
    # few sources are of these kinds
    from ornstein.data import hugging_face, webdataset

    shards = tar_archives(path, suffixes, limit_bytes)
    if shards:
        with webdataset.open_shards(shards, suffixes, limit_bytes) as listing:
            yield listing
    elif path.is_dir():
        if hugging_face.is_dataset(path):
            with hugging_face.open_dataset(path, suffixes, limit_bytes) as listing:
                yield listing
        else:
            yield _labelled(_list_folder(path, suffixes, limit_bytes), wrapped=False)
    elif not path.exists():
        raise UserError(f"no such folder or file: {path}")
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise UserError(f"{path} is neither a folder nor a sound zip archive: {error}") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from None
        with archive:
            yield _labelled(_list_zip(archive, path, suffixes, limit_bytes), wrapped=True)


def tar_archives(path: Path, suffixes: Collection[str] = SUFFIXES, limit_bytes: int = MAX_FILE_BYTES) -> list[Path]:
    """The tar archives that are read where `path` is given: itself, or those of a folder with nothing else to read."""
    if not path.is_dir():
        return [path] if _is_tar(path) else []
    shards = sorted((p for p in path.iterdir() if _is_tar(p)), key=lambda p: natural_key(p.name))
    return [] if shards and _list_folder(path, suffixes, limit_bytes).entries else shards


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz")) and path.is_file()


def natural_key(name: str) -> list[str | tuple[int, str]]:
    """A sort key by which img2 comes before img10."""
    parts: list[str | tuple[int, str]] = list(re.split(r"([0-9]+)", name))
    for i in range(1, len(parts), 2):
        digits = str(parts[i]).lstrip("0")
        parts[i] = (len(digits), digits)
    return [*parts, name]


def _list_folder(root: Path, suffixes: Collection[str], limit_bytes: int) -> Listing:
    listing = Listing()
    inside = root.resolve()

    def unreadable(error: OSError) -> None:
        name = os.path.relpath(error.filename, root)
        listing.skipped.append((printable(name), error.strerror or "cannot be read"))

    for folder, subfolders, files in os.walk(root, onerror=unreadable):
        here = Path(folder)
        for name in [*subfolders]:
            if hidden(name):
                subfolders.remove(name)
            elif (here / name).is_symlink():
                # os.walk does not follow it: it may leave the folder, or lead round in a circle.
                listing.skipped.append((_relative(here / name, root), "symbolic link to a folder: not followed"))
        for name in files:
            if hidden(name):
                continue
            if Path(name).suffix.lower() not in suffixes:
                listing.ignored += 1
                continue
            relative = _relative(here / name, root)
            try:
                size = sane_size(_regular_size(here / name, inside), limit_bytes)
                opener = partial((here / name).open, "rb")
                listing.entries.append(Entry(relative, size, partial(_read_file, here / name), opener))
            except BadImage as bad:
                listing.skipped.append((relative, str(bad)))
    return listing


def _regular_size(path: Path, inside: Path) -> int:
    try:
        if path.is_symlink() and not path.resolve(strict=True).is_relative_to(inside):
            raise BadImage("symbolic link that leads out of the folder")
        status = path.stat()
    except (OSError, RuntimeError) as error:
        raise BadImage(_why(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise BadImage("not a regular file")
    return status.st_size


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadImage(_why(error)) from None


def _list_zip(archive: zipfile.ZipFile, path: Path, suffixes: Collection[str], limit_bytes: int) -> Listing:
    listing = Listing()
    encrypted = 0
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        parts = PurePosixPath(name).parts
        if info.is_dir() or any(hidden(part) for part in parts):
            continue
        if PurePosixPath(name).suffix.lower() not in suffixes:
            listing.ignored += 1
            continue
        try:
            if name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name):
                raise BadImage("its path leads out of the archive")
            if info.flag_bits & 0x1:
                encrypted += 1
                raise BadImage("encrypted")
            size = sane_size(info.file_size, limit_bytes)
            opener = partial(archive.open, info)
            listing.entries.append(
                Entry(printable("/".join(parts)), size, partial(_read_zipped, archive, info), opener)
            )
        except BadImage as bad:
            listing.skipped.append((printable(name), str(bad)))
    if encrypted and not listing.entries:
        raise UserError(f"{path} is encrypted: decrypt the archive first")
    return listing


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except Exception as error:  # zlib, bz2, lzma and zipfile each raise their own
        raise BadImage(f"damaged in the archive: {_why(error)}") from None


def _labelled(listing: Listing, wrapped: bool) -> Listing:
    """Sort the entries and give each its class, unless the source did."""
    listing.entries.sort(key=lambda entry: natural_key(entry.name))
    if any(entry.label is not None for entry in listing.entries):
        return listing
    labels = first_folders([entry.name for entry in listing.entries], wrapped)
    if labels is not None:
        named = zip(listing.entries, labels, strict=True)
        listing.entries = [replace(entry, label=label) for entry, label in named]
    return listing


def first_folders(names: Sequence[str], wrapped: bool) -> list[str] | None:
    """The class of each name: the first folder on its path; None unless every name lies in one.

    Where `wrapped`, a single folder around everything is the archive's own and names no class.
    """
    folders = [name.split("/")[:-1] for name in names]
    tops = {parts[0] if parts else None for parts in folders}
    if wrapped and len(tops) == 1 and None not in tops:
        folders = [parts[1:] for parts in folders]
    return [parts[0] for parts in folders] if all(folders) else None


def nothing_usable(
    path: Path | str, skipped: Sequence[tuple[str, str]], ignored: int, kind: str = "image"
) -> UserError:
    """The error of a source without a single usable image, or other `kind`: it counts what was found instead."""
    if not skipped and not ignored:
        return UserError(f"{path} is empty: give a folder or zip archive of {kind}s")
    found = []
    if skipped:
        name, reason = skipped[0]
        found.append(f"{len(skipped)} skipped ({name}: {reason}{'; ...' if len(skipped) > 1 else ''})")
    if ignored:
        found.append(f"{ignored} of other kinds ignored")
    return UserError(f"no usable {kind} in {path}: files: {', '.join(found)}")


def sane_size(size: int, limit: int) -> int:
    if size == 0:
        raise BadImage("empty file")
    if size > limit:
        raise BadImage(f"{size / 2**20:,.0f} MB: more than the limit of {limit // 2**20} MB a file")
    return size


def hidden(name: str) -> bool:
    return (name.startswith(".") and name not in (".", "..")) or name == "__MACOSX"


def _relative(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def printable(name: str) -> str:
    # Names go to terminals and JSON: no line breaks, escape codes or bytes that are no text.
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


def _why(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).replace("\n", " ")
