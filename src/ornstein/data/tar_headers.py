"""The headers of a tar archive, read with bounds: what an archive claims is never allocated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ornstein.data.entry import BadImage
from ornstein.data.shard_file import ShardFile

__all__ = ["BLOCK", "Member", "TarError", "members", "read_at"]

BLOCK = 512
_EXTRA_BYTES = 2**20  # of an extended header: a path or an attribute
_SPARSE_BLOCKS = 64  # of the map of a sparse file, which is not read
_EXTRA = {b"x", b"g", b"X", b"L", b"K"}
_REGULAR = {b"0", b"\0", b"7"}
_WITHOUT_DATA = {b"1", b"2", b"3", b"4", b"5", b"6"}  # links, devices, folders, pipes


class TarError(Exception):
    """The bytes are no tar archive, or are damaged from here on."""


@dataclass(frozen=True)
class Member:
    """One entry: its path, where its bytes begin and how many they are, and whether it is a plain file or a folder."""

    name: str
    offset: int
    size: int
    regular: bool
    folder: bool


def members(file: ShardFile) -> Iterator[Member]:
    """The entries of the tar archive `file`, in order (POSIX.1-1988 ustar, pax, and GNU's long names).

    Raises:
        TarError: the archive is none, is damaged or cut short from here on.
    """
    end = file.size
    at, extra = 0, dict[str, str]()
    while True:
        block = _block(file, at)
        if block is None:
            if at == 0 or at < end:
                raise TarError("no header where one should be")
            return  # without the two empty blocks that should end it
        if not any(block):
            return
        kind, stated = block[156:157], extra.get("size", "")
        size = _number(block[124:136])
        data = at + BLOCK
        if kind in _EXTRA:
            extra |= _extended(file, kind, data, size)
        else:
            if stated.isdecimal() and len(stated) < 20:
                size = int(stated)
            if kind in _WITHOUT_DATA:
                size = 0
            if kind == b"S":
                data = _after_sparse_map(file, block, data)
            if data + size > end:
                raise TarError("cut short")
            name = extra.get("path") or _name(block)
            folder = kind == b"5" or (kind in _REGULAR and name.endswith("/"))
            sparse = any(key.startswith("GNU.sparse.") for key in extra)
            yield Member(name, data, size, kind in _REGULAR and not folder and not sparse, folder)
            extra = {}
        at = data + -(-size // BLOCK) * BLOCK


def read_at(file: ShardFile, offset: int, size: int) -> bytes:
    """`size` bytes at a place of an archive. Raises BadImage if they are not there."""
    data = file.read(offset, size)
    if len(data) < size:
        raise BadImage("the archive is cut short")
    return data


def _block(file: ShardFile, at: int) -> bytes | None:
    """The header block at `at`, checked by its sum; None at the end of the file."""
    block = file.read(at, BLOCK)
    if not block:
        return None
    if len(block) < BLOCK:
        raise TarError("cut short")
    if any(block):
        # the sum counts its own field as spaces; some old writers summed signed bytes
        missing = _number(block[148:156]) - (sum(block) - sum(block[148:156]) + 8 * 32)
        if missing and missing != -256 * sum(byte > 127 for byte in block[:148] + block[156:]):
            raise TarError("a header is damaged")
    return block


def _number(text: bytes) -> int:
    """A number of a header: octal digits, or GNU's binary form of large ones."""
    if text[0] & 0x80:
        value = int.from_bytes(bytes([text[0] & 0x7F]) + text[1:], "big")
        if text[0] & 0x40:
            raise TarError("a header has a negative number")
        return value
    digits = text.split(b"\0")[0].strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise TarError("a header has no number where one should be") from None


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0")[0]
    if block[257:263] == b"ustar\0":
        prefix = block[345:500].split(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return name.decode("utf-8", "surrogateescape")


def _extended(file: ShardFile, kind: bytes, at: int, size: int) -> dict[str, str]:
    """What an extended header says of the next entry."""
    if size > _EXTRA_BYTES:
        raise TarError(f"an extended header claims {size:,} bytes")
    try:
        data = read_at(file, at, size)
    except BadImage:
        raise TarError("cut short") from None
    if kind == b"L":
        return {"path": data.split(b"\0")[0].decode("utf-8", "surrogateescape")}
    if kind == b"x":
        return _records(data)
    return {}  # defaults of all entries and targets of links: nothing that is used here


def _records(data: bytes) -> dict[str, str]:
    """Pax records, "LENGTH KEY=VALUE\\n" each."""
    values = {}
    while data and data[0]:
        digits, space, _ = data[:24].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[len(digits) + 1 : length - 1]
        key, equals, value = record.partition(b"=")
        if not 0 < length <= len(data) or not equals:
            raise TarError("an extended header is damaged")
        values[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return values


def _after_sparse_map(file: ShardFile, block: bytes, at: int) -> int:
    """Where the bytes of a GNU sparse file begin, behind the blocks of its map."""
    more, blocks = block[482:483] not in (b"\0", b""), 0
    while more:
        block = file.read(at, BLOCK)
        blocks += 1
        if len(block) < BLOCK or blocks > _SPARSE_BLOCKS:
            raise TarError("the map of a sparse file is damaged")
        more, at = block[504:505] != b"\0", at + BLOCK
    return at
