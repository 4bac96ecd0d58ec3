"""Archives behind URLs, read in ranges of bytes through fsspec: retried, and kept in a local cache of bounded size."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, TypeVar

from ornstein.data.block_cache import BLOCK, cache
from ornstein.data.entry import reason_of
from ornstein.errors import RunError, UserError
from ornstein.extras import install, require

__all__ = ["RemoteFile", "RemoteShard", "expanded", "is_remote", "remote_shards"]

T = TypeVar("T")

_ATTEMPTS = 6
_PAUSE, _LONGEST = 0.5, 30.0  # seconds before the second attempt, doubled each time
_STALL = 30.0  # seconds for an answer, ...
_SLOWEST = 2**17  # ... and bytes a second after it
_AT_ONCE = 8  # requests
_RUN = 8  # blocks of a request
_PIECES = 256  # such pieces must fit into the cache (two windows), or reading ahead would push them out
_MOST = 2**31  # bytes of an answer that is no range but the whole file
_MOST_SHARDS = 1_000_000
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*(?=://)", re.IGNORECASE)
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "abfs": "adlfs"}
_PACKAGES |= {"az": "adlfs", "sftp": "paramiko", "ssh": "paramiko", "oci": "ocifs", "gdrive": "gdrive_fsspec"}
# What filesystems say about the version of a file.
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "Content-MD5",
    "generation",
    "Last-Modified",
    "LastModified",
    "mtime",
    "blob_id",
)


def is_remote(text: str) -> bool:
    """Whether `text` is a URL, or a list that begins with one."""
    return _SCHEME.match(text) is not None


def expanded(text: str) -> list[str]:
    """The places in a list with commas and braces: "a-{000..002}.tar", "a-{x,y}.tar", "a.tar,b.tar".

    Raises UserError if they are more than a million.
    """
    parts, depth = [""], 0
    for letter in text:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    found = []
    for part in parts:
        for place in _braces(part.strip()):
            if place:
                found.append(place)
            if len(found) > _MOST_SHARDS:
                raise UserError(f"{text} means more than {_MOST_SHARDS:,} files")
    return found


def _braces(text: str) -> Iterator[str]:
    match = _BRACES.search(text)
    if match is None:
        yield text
        return
    before, after = text[: match.start()], text[match.end() :]
    if match[3] is not None:
        middle: Any = match[3].split(",")
    else:
        low, high = int(match[1]), int(match[2])
        middle = (f"{i:0{len(match[1])}d}" for i in range(low, high + 1))
    for each in middle:
        yield from _braces(before + each + after)


@dataclass(frozen=True)
class RemoteShard:
    """An archive behind a URL, its size in bytes, and a hash of its address and version."""

    url: str
    size: int
    key: str

    @property
    def name(self) -> str:
        return shown(self.url).rstrip("/").rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        return self.name.rsplit(".", 1)[0]

    def __str__(self) -> str:
        return shown(self.url)


def shown(url: str) -> str:
    """A URL without passwords: no user, and no query, where signed URLs have theirs."""
    return re.sub(r"(?<=://)[^/@]*@", "", url.split("?")[0].split("#")[0])


def remote_shards(urls: Sequence[str]) -> list[RemoteShard]:
    """The archives behind URLs, in their order. A `*` stands for any name, a URL that ends in "/" for its .tar files.

    Raises:
        UserError: there is none, its server refuses it, or no package for such URLs is installed.
        RunError: a server does not answer.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = [url for several in pool.map(_listed, urls) for url in several]
        return list(pool.map(_described, found))


def _listed(url: str) -> list[str]:
    if "*" not in shown(url) and not url.endswith("/"):
        return [url]
    fs, scheme = _filesystem(url)
    pattern = url + "*.tar" if url.endswith("/") else url
    names = _persistently(url, lambda: fs.glob(pattern, **_within(fs, 0)))
    if not names:
        raise UserError(f"there is no file {shown(pattern)}")
    return [name if is_remote(name) else f"{scheme}://{name}" for name in sorted(names)]


def _described(url: str) -> RemoteShard:
    fs, _ = _filesystem(url)
    info = _persistently(url, lambda: fs.info(url, **_within(fs, 0)))
    size = info.get("size")
    if info.get("type") == "directory":
        raise UserError(f"{shown(url)} is a folder: end it with / for the .tar files in it")
    if not isinstance(size, int):
        raise UserError(f"{shown(url)}: the server does not say how large it is, so that it cannot be read in ranges")
    versions = [str(info[name]) for name in _VERSIONS if info.get(name)]
    key = hashlib.sha256("\0".join([shown(url), str(size), *versions]).encode()).hexdigest()[:32]
    return RemoteShard(url, size, key)


def _filesystem(url: str) -> tuple[Any, str]:
    """The filesystem of a URL, and its scheme. UserError if no package knows it."""
    match = _SCHEME.match(url)
    if match is None or "::" in url:
        raise UserError(f"{shown(url)} is no URL of a tar archive, such as https://..., s3://..., gs://... or hf://...")
    scheme = match[0].lower()
    return _opened(scheme), scheme


@lru_cache(maxsize=16)
def _opened(scheme: str) -> Any:
    fsspec = require("fsspec", "remote", "data behind a URL")
    try:
        return fsspec.filesystem(scheme)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        how = f"pip install {package}" if package else install("remote")
        raise UserError(f"{scheme}:// URLs need a package that is not installed: {how} ({reason_of(error)})") from None
    except ValueError:
        raise UserError(f"no package reads {scheme}:// URLs: give https://, s3://, gs://, hf:// or a path") from None


def _within(fs: Any, count: int) -> dict[str, float]:
    """The time limit of a request for `count` bytes; filesystems that do not run on fsspec's loop have their own."""
    return {"timeout": _STALL + count / _SLOWEST} if getattr(fs, "async_impl", False) else {}


def _persistently(url: str, ask: Callable[[], T]) -> T:
    """What `ask` returns, asked again with growing pauses if it fails.

    Raises:
        UserError: the server says that there is no such file, or refuses it.
        RunError: it failed every time.
    """
    pause, reason = _PAUSE, ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
        try:
            return ask()
        except (UserError, RunError):
            raise
        except Exception as error:  # every filesystem raises its own
            refused = _refusal(error)
            if refused is not None:
                raise UserError(f"{shown(url)}: {refused}") from None
            reason = _reason(error)
    raise RunError(
        f"cannot read {shown(url)}: {reason}, {_ATTEMPTS} times in a row; once it can be reached, go on with --resume"
    )


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error: fsspec's own says only that a file was not found."""
    codes = (getattr(each, "status", None) for each in (error, error.__cause__) if each is not None)
    return next((code for code in codes if isinstance(code, int)), None)


def _refusal(error: Exception) -> str | None:
    """Why asking again is of no use; None if it may be."""
    status = _status(error)
    if status in (401, 403) or (status is None and isinstance(error, PermissionError)):
        return "the server refuses it: check the address and your credentials"
    missing = isinstance(error, FileNotFoundError) and error.__cause__ is None
    if status in (404, 410) or (status is None and missing):
        return "there is no such file on the server"
    if status is not None and 400 <= status < 500 and status not in (408, 416, 425, 429):
        return f"the server answers with HTTP status {status}"
    return None


def _reason(error: Exception) -> str:
    status, cause = _status(error), error.__cause__
    if status is not None:
        return f"the server answers with HTTP status {status}"
    if isinstance(error, TimeoutError) or "timeout" in type(error).__name__.lower():
        return "no answer in time"
    return reason_of(cause if isinstance(cause, Exception) else error)


class RemoteFile:
    """The bytes of a `RemoteShard`, in blocks that are fetched once and kept in the cache; threads share it."""

    def __init__(self, shard: RemoteShard) -> None:
        self.shard, self.size = shard, shard.size
        self._fs, _ = _filesystem(shard.url)
        self._latest: tuple[int, bytes] = (-1, b"")
        self._next, self._run = 0, 1  # the block after the last one fetched, and how many to fetch there

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on, fewer at the end. RunError if the server does not give them."""
        end = min(offset + count, self.size)
        parts, at = [], offset
        while at < end:
            block, start = divmod(at, BLOCK)
            part = self._part(block, start, min(end - at, BLOCK - start), (end - 1) // BLOCK + 1)
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def will_need(self, offset: int, count: int) -> None:
        """Fetch these bytes in the background."""
        if count * _PIECES > cache().limit:
            return
        missing = [i for i in range(offset // BLOCK, (offset + count - 1) // BLOCK + 1) if not self._kept(i)]
        for run in _runs(missing):
            _pool().submit(self._quietly, run[0], run[-1] + 1)

    def _kept(self, block: int) -> bool:
        return cache().has(self._name(block))

    def _name(self, block: int) -> str:
        return f"{self.shard.key}-{block}"

    def _part(self, block: int, start: int, count: int, last: int) -> bytes:
        """Bytes of a block; if it has to be fetched, with those up to `last` that are missing too."""
        latest, data = self._latest
        if latest == block:
            return data[start : start + count]
        part = cache().read(self._name(block), start, count)
        if part is not None and len(part) == count:
            return part
        # a scan of the headers goes straight on: fetch more each time
        self._run = min(2 * self._run, _RUN) if block == self._next else 1
        end = max(block + self._run, min(last, block + _RUN))
        end = min(end, self.size // BLOCK + 1)
        while end - 1 > block and self._kept(end - 1):
            end -= 1
        self._next = end
        data = self._fetched(block, end)
        self._latest = (block, data[:BLOCK])
        return data[start : start + count]

    def _fetched(self, first: int, end: int) -> bytes:
        """Blocks first..end-1 from the server, or from another thread that fetches the first of them now."""
        address = (self.shard.key, first)
        promise: Future[bytes] = Future()
        with _lock:
            coming = _coming.setdefault(address, promise)
        if coming is not promise:
            return coming.result()
        try:
            data = self._request(first, end)
            promise.set_result(data)
        except BaseException as error:
            promise.set_exception(error)
            raise
        finally:
            with _lock:
                del _coming[address]
        return data

    def _request(self, first: int, end: int) -> bytes:
        begin, stop = first * BLOCK, min(end * BLOCK, self.size)
        url = self.shard.url

        def ask() -> bytes:
            data = self._fs.cat_file(url, start=begin, end=stop, **_within(self._fs, stop - begin))
            if len(data) == self.size <= _MOST and stop - begin < self.size:
                self._keep(0, data)  # a server without ranges sends all of it
                return data[begin:stop]
            if len(data) != stop - begin:
                raise OSError(f"cut short: {len(data):,} of {stop - begin:,} bytes")
            return data

        data = _persistently(url, ask)
        self._keep(first, data)
        return data

    def _keep(self, first: int, data: bytes) -> None:
        for i in range(0, len(data), BLOCK):
            cache().write(self._name(first + i // BLOCK), data[i : i + BLOCK])

    def _quietly(self, first: int, end: int) -> None:
        if not self._kept(first):
            with suppress(Exception):  # reading it will fail too, and say so
                self._fetched(first, end)


_lock = threading.Lock()
_coming: dict[tuple[str, int], Future[bytes]] = {}


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")


def _runs(blocks: Sequence[int]) -> Iterator[list[int]]:
    """Blocks in a row, 8 at most together."""
    for _, group in groupby(enumerate(blocks), lambda pair: pair[1] - pair[0]):
        run = [block for _, block in group]
        yield from (run[i : i + _RUN] for i in range(0, len(run), _RUN))
