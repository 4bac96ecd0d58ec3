"""WebDataset shards: tar archives in which the files of one sample share a name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from ornstein.data.block_cache import cache
from ornstein.data.classes import split_of, without_companions
from ornstein.data.entry import BadImage, check_size
from ornstein.data.names import hidden, natural_key, suffix_of, tidy
from ornstein.data.remote import RemoteShard
from ornstein.data.shard_file import Place, ShardFile, open_shard
from ornstein.data.tar_headers import Member, TarError, members, read_at
from ornstein.errors import UserError

__all__ = ["CLASS", "Shard", "is_tar", "scan", "training_shards"]

P = TypeVar("P", Path, RemoteShard)

CLASS = ".cls"  # the file of a sample that says its class, a number or a name
_CLASS_BYTES = 256
_FORMAT = 1  # of an index in the cache
_SCANNED_AT_ONCE = 8  # archives: on a network disk each header read is a wait
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass
class Shard:
    """The pictures in one tar archive, in its order: names, places and sizes (bytes); classes by a .cls file, or None.

    skipped: (name, reason) of what cannot be used; ignored: numbers of other files by suffix.
    """

    path: Place
    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def is_tar(path: Path) -> bool:
    """Whether `path` is a tar archive by its name, compressed ones included, and a regular file."""
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz")) and path.is_file()


def training_shards(paths: Sequence[P]) -> list[P]:
    """The shards to train on, in natural order: of train-0.tar, val-0.tar, ... only those of the training part."""
    ordered = sorted(paths, key=lambda path: natural_key(path.name))
    parts = [split_of(re.split(r"\.", path.name)[0]) for path in ordered]
    if "train" in parts and None not in parts:
        return [path for path, part in zip(ordered, parts, strict=True) if part == "train"]
    return ordered


def scan(paths: Sequence[Place], suffixes: Collection[str], limit_bytes: int) -> Iterator[tuple[Shard, str]]:
    """The pictures of each archive, in order, and what their names begin with: the archive's, if there are several.

    A .cls file gives the class of the picture with the same name before the suffix; NAME.cls also that of
    NAME.FIELD.jpg (dots may be part of the name: img.v2.cls belongs to img.v2.jpg). Links, devices and paths that lead
    out are skipped.

    Raises:
        UserError: a file is no tar archive, or a compressed one, whose samples cannot be reached one by one; two files
            in it have the same name, or one sample has several pictures.
    """
    with ThreadPoolExecutor(_SCANNED_AT_ONCE) as pool:
        shards = pool.map(lambda path: _scan(path, suffixes, limit_bytes), paths)
        for path, shard in zip(paths, shards, strict=True):
            yield shard, f"{tidy(path.stem)}/" if len(paths) > 1 else ""


def _scan(path: Place, suffixes: Collection[str], limit: int) -> Shard:
    if not isinstance(path, RemoteShard):
        return _read(path, suffixes, limit)
    # its headers lie in as many places as it has files: what they say is kept in the cache
    asked = hashlib.sha256(repr([_FORMAT, sorted(suffixes), limit]).encode()).hexdigest()[:16]
    name = f"{path.key}-index-{asked}"
    kept = cache().read(name)
    with contextlib.suppress(ValueError, TypeError, KeyError):
        stored = json.loads(kept or b"")
        return Shard(path, **stored | {"ignored": Counter(stored["ignored"])})
    shard = _read(path, suffixes, limit)
    fields = {key: value for key, value in vars(shard).items() if key != "path"}
    cache().write(name, json.dumps(fields).encode())
    return shard


def _read(path: Place, suffixes: Collection[str], limit: int) -> Shard:
    file = open_shard(path)
    shard, classes = Shard(path), dict[str, str]()
    seen = set[str]()
    try:
        for member in members(file):
            _add(shard, classes, seen, member, file, suffixes, limit)
    except (TarError, BadImage, OSError) as error:
        if not shard.names and not shard.skipped and not shard.ignored:
            packed = file.read(0, 6).startswith(_PACKED)
            hint = "compressed: unpack it to .tar first" if packed else f"no sound tar archive: {error}"
            raise UserError(f"{path} is {hint}") from None
        shard.skipped.append(("...", f"the archive {path.name} is damaged after {len(shard.names)} files: {error}"))
    _drop_companions(shard)
    _label(shard, classes)
    return shard


def _add(
    shard: Shard,
    classes: dict[str, str],
    seen: set[str],
    member: Member,
    file: ShardFile,
    suffixes: Collection[str],
    limit: int,
) -> None:
    """Add an entry of the archive to the pictures, or its class to `classes`."""
    name = member.name.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if member.folder or any(hidden(part) for part in parts):
        return
    shown = tidy("/".join(parts))
    is_class = name.lower().endswith(CLASS) and member.regular and 0 < member.size <= _CLASS_BYTES
    if not is_class and PurePosixPath(name).suffix.lower() not in suffixes:
        shard.ignored[suffix_of(name)] += 1
        return
    if shown in seen:
        raise UserError(f"{shard.path}: {shown} is in it twice: give each sample a name of its own")
    seen.add(shown)
    if is_class:
        text = read_at(file, member.offset, member.size).decode("utf-8", "replace").strip()
        classes[shown[: -len(CLASS)]] = tidy(text)
        return
    try:
        if name.startswith("/") or ".." in parts:
            raise BadImage("its path leads out of the archive")
        if not member.regular:
            raise BadImage("not a regular file")
        size = check_size(member.size, limit)
    except BadImage as bad:
        shard.skipped.append((shown, str(bad)))
        return
    shard.names.append(shown)
    shard.offsets.append(member.offset)
    shard.sizes.append(size)


def _drop_companions(shard: Shard) -> None:
    companions = without_companions(shard.names)
    if companions:
        kept = [i for i in range(len(shard.names)) if i not in companions]
        shard.names = [shard.names[i] for i in kept]
        shard.offsets = [shard.offsets[i] for i in kept]
        shard.sizes = [shard.sizes[i] for i in kept]
        shard.ignored.update(companions.values())


def _label(shard: Shard, classes: dict[str, str]) -> None:
    """Give each picture its class: that of the longest part of its name, up to a dot, which has a .cls file."""
    owners: dict[str, str] = {}
    for name in shard.names:
        key = name.rpartition(".")[0]
        folder = len(name) - len(name.rsplit("/", 1)[-1])
        while key not in classes and "." in key[folder:]:
            key = key.rpartition(".")[0]
        shard.labels.append(classes.get(key))
        if key in classes:
            _refuse_second(shard.path, key, owners.setdefault(key, name), name)
    if not classes:
        _refuse_fields(shard)


def _refuse_second(path: Place, key: str, first: str, name: str) -> None:
    if first != name:
        raise UserError(
            f"{path}: the sample {key} has several pictures ({first}, {name}): keep one of them, or give each its own "
            f"{CLASS} file"
        )


def _refuse_fields(shard: Shard) -> None:
    """Raises UserError if every sample consists of the same several pictures, as 1.rgb.png and 1.seg.png."""
    fields = defaultdict[str, set[str]](set)
    for name in shard.names:
        folder, _, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        if not re.match(r"[A-Za-z]\w*\.", ending):
            return
        fields[f"{folder}/{stem}"].add(ending)
    kinds = {frozenset(endings) for endings in fields.values()}
    if len(fields) > 1 and len(kinds) == 1 and len(next(iter(kinds))) > 1:
        several = ", ".join(f".{ending}" for ending in sorted(next(iter(kinds))))
        raise UserError(f"{shard.path}: each sample has several pictures ({several}): keep one of them")
