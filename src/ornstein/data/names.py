"""Names of files: their order, how they are shown, and which belong to the system and not to the data."""

import re
import unicodedata

__all__ = ["CLIPS_HINT", "hidden", "natural_key", "printable", "suffix_of", "tidy"]

CLIPS_HINT = "to train on the videos there, give --frames"
# Files and folders that operating systems, cameras and network disks add: previews, bins, indexes.
_SYSTEM = {
    "__macosx",
    "@eadir",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "lost+found",
    "lost.dir",
    "thumbs.db",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "thumbdata",
    "desktop.ini",
    "icon\r",
}


def natural_key(name: str) -> list[str | tuple[int, str]]:
    """A sort key by which img2 comes before img10."""
    parts: list[str | tuple[int, str]] = list(re.split(r"([0-9]+)", name))
    for i in range(1, len(parts), 2):
        digits = str(parts[i]).lstrip("0")
        parts[i] = (len(digits), digits)
    return [*parts, name]


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of the data: a dot file, or one of the system's own."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in _SYSTEM


def printable(name: str) -> str:
    """`name` for terminals, logs and JSON: line breaks, control characters and invalid bytes are escaped."""
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


def tidy(name: str) -> str:
    """`name` as it is stored and shown: Unicode NFC, so that file systems that decompose letters agree; printable."""
    return printable(unicodedata.normalize("NFC", name))


def suffix_of(name: str) -> str:
    """The suffix of a file, in small letters, by which files that are not read are counted: ".txt", or "none"."""
    base = name.rsplit("/", 1)[-1]
    stem, dot, suffix = base.rpartition(".")
    return f".{tidy(suffix.lower())}"[:16] if dot and stem else "no suffix"
