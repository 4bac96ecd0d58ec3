"""Shards behind URLs: a server that fails, stalls, truncates and ignores ranges on purpose."""

from __future__ import annotations

import hashlib
import io
import re
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import open_clips, open_images, open_streamed, remote
from ornstein.data.block_cache import BLOCK, FOLDER, SIZE, BlockCache, cache
from ornstein.data.remote import expanded, remote_shards
from ornstein.errors import RunError, UserError
from running import ornstein, refused

pytest.importorskip("aiohttp")


def shard(seed: int, count: int = 24, side: int = 64) -> bytes:
    """A tar of PNGs of noise, which no compression makes small, in two classes."""
    draw, out = np.random.default_rng(seed), io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i in range(count):
            picture = io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (side, side, 3), np.uint8)).save(picture, "png")
            for suffix, data in (("png", picture.getvalue()), ("cls", str(i % 2).encode())):
                info = tarfile.TarInfo(f"{seed}-{i:03d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@dataclass
class Server:
    """Files by name. `faults` are used up one a request for a body: a status, "stall", "short" or "whole"."""

    files: dict[str, bytes]
    faults: list[int | str] = field(default_factory=list)
    always: int | str | None = None
    gets: list[tuple[str, str | None]] = field(default_factory=list)
    port: int = 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    @property
    def sent(self) -> int:
        return sum(1 for _, asked in self.gets if asked)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_PAUSE", 0.001)
    monkeypatch.setattr(remote, "_STALL", 0.5)
    about = Server({f"shard-{i:03d}.tar": shard(i) for i in range(3)})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            data = about.files.get(self.path.split("?")[0].lstrip("/"))
            if data is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            fault = None
            if body:
                about.gets.append((self.path, self.headers["Range"]))
                fault = about.always or (about.faults.pop(0) if about.faults else None)
            if isinstance(fault, int):
                self.send_response(fault)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault == "stall":
                time.sleep(1.5)
                self.close_connection = True
                return
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
            whole = not asked or fault == "whole"
            part = data if whole else data[int(asked[1]) : int(asked[2]) + 1]  # pyright: ignore
            self.send_response(200 if whole else 206)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            if not whole:
                self.send_header("Content-Range", f"bytes {asked[1]}-{asked[2]}/{len(data)}")  # pyright: ignore
            self.end_headers()
            if body:
                self.wfile.write(part[: len(part) // 2] if fault == "short" else part)
                if fault == "short":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        about.port = http.server_port
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield about
        http.shutdown()


@pytest.fixture
def local(server: Server, tmp_path: Path) -> Path:
    """The same shards in a folder."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, data in server.files.items():
        (folder / name).write_bytes(data)
    return folder


def pattern(server: Server) -> str:
    return server.url("shard-{000..002}.tar")


def test_places_in_lists_and_braces() -> None:
    assert expanded("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expanded("x/{a,b}-{0..1}.tar,y.tar") == ["x/a-0.tar", "x/a-1.tar", "x/b-0.tar", "x/b-1.tar", "y.tar"]
    assert expanded("plain.tar") == ["plain.tar"]
    with pytest.raises(UserError, match="more than 1,000,000 files"):
        expanded("a-{0..99999999}.tar")


@pytest.mark.parametrize("faults", [[], [503, 500, 429], ["short", "short"], ["stall"], ["whole"]], ids=str)
def test_the_set_is_that_of_the_files(server: Server, local: Path, faults: list[int | str]) -> None:
    server.faults = list(faults)
    there, here = open_streamed(pattern(server), 16), open_streamed(local, 16)
    assert there is not None and here is not None
    assert (there.fingerprint, there.classes, len(there)) == (here.fingerprint, ["0", "1"], 72)
    for step in (0, 5):  # batches are functions of the step: what a resumed run reads
        order = there.order(16, step, seed=1)
        assert torch.equal(order, here.order(16, step, seed=1))
        for ours, theirs in zip(there.batch(order), here.batch(order), strict=True):
            assert ours is not None and theirs is not None and torch.equal(ours, theirs)
    assert not server.faults and not there.skipped


def test_lists_of_local_archives(local: Path) -> None:
    listed = open_images(f"{local}/shard-{{000..001}}.tar,{local}/shard-002.tar", 16)
    assert listed.fingerprint == open_images(local, 16).fingerprint
    with pytest.raises(UserError, match=r"shard-003\.tar is no tar archive"):
        open_images(f"{local}/shard-{{000..003}}.tar", 16)


def test_in_memory_it_is_the_same_set(server: Server, local: Path) -> None:
    there, here = open_images(pattern(server), 16), open_images(local, 16)
    assert there.fingerprint == here.fingerprint and torch.equal(there.images, here.images)


def test_a_second_start_asks_for_nothing_but_versions(server: Server) -> None:
    first = open_streamed(pattern(server), 16)
    assert first is not None
    first.batch(range(72))
    server.gets.clear()
    again = open_streamed(pattern(server), 16)
    assert again is not None and again.fingerprint == first.fingerprint
    again.batch(range(72))
    assert server.gets == []
    server.files["shard-001.tar"] = shard(7)  # another version: nothing kept of the old one is used
    changed = open_streamed(pattern(server), 16)
    assert changed is not None and changed.fingerprint != first.fingerprint and server.gets


def test_an_archive_is_read_in_ranges(server: Server) -> None:
    server.files["large.tar"] = shard(3, count=12, side=600)  # 13 MB
    images = open_streamed(server.url("large.tar"), 16)
    assert images is not None
    server.gets.clear()
    images.files.entry(9).read()
    asked = [re.fullmatch(r"bytes=(\d+)-(\d+)", each or "") for _, each in server.gets]
    assert sum(int(m[2]) - int(m[1]) + 1 for m in asked if m) <= 8 * BLOCK and all(asked)


def test_the_cache_stays_within_its_size(
    server: Server, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 3 * BLOCK
    monkeypatch.setenv(SIZE, f"{limit / 1000}KB")
    for i in range(3):
        server.files[f"shard-{i:03d}.tar"] = data = shard(i, count=6, side=400)  # 3 MB each
        (local / f"shard-{i:03d}.tar").write_bytes(data)
    there, here = open_streamed(pattern(server), 16), open_streamed(local, 16)
    assert there is not None and here is not None
    for _ in range(2):
        assert torch.equal(there.batch(range(18))[0], here.batch(range(18))[0])
        assert sum(f.stat().st_size for f in (tmp_path / "cache").iterdir()) <= limit


def test_the_piece_used_longest_ago_goes_first(tmp_path: Path) -> None:
    pieces = BlockCache(tmp_path, 3000)
    for name in "abc":
        pieces.write(name, bytes(1000))
        time.sleep(0.01)
    assert pieces.read("a", 10, 5) == bytes(5)
    pieces.write("d", bytes(1000))
    assert [pieces.has(name) for name in "abcd"] == [True, False, False, True]  # room for a tenth more
    pieces.write("e", bytes(4000))  # larger than all of it
    assert not pieces.has("e") and pieces.has("d")


def test_a_wrong_size_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE, "much")
    with pytest.raises(UserError, match="ORNSTEIN_CACHE_SIZE is a size such as 20GB"):
        cache()


def test_what_is_not_there_is_said_at_once(server: Server) -> None:
    began = time.monotonic()
    result = ornstein("train", "--data", server.url("nothing.tar?secret=1"), "--out", "never")
    refused(result, "nothing.tar: there is no such file on the server")
    assert "secret" not in result.stderr
    server.files["private.tar"] = shard(0)
    server.always = 403
    with pytest.raises(UserError, match="refuses it: check the address and your credentials"):
        open_streamed(server.url("private.tar"), 16)
    assert len(server.gets) == 1 and time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket/a.tar", "s3:// URLs need a package that is not installed: pip install s3fs"),
        ("nonsense://a.tar", "no package reads nonsense:// URLs"),
        ("https://a/b.tar,c.tar", "cannot be mixed"),
    ],
)
def test_urls_that_cannot_be_read(url: str, words: str, tmp_path: Path) -> None:
    refused(ornstein("train", "--data", url, "--out", tmp_path / "run"), words)


@pytest.mark.parametrize(("fault", "reason"), [(503, "HTTP status 503"), ("short", "")], ids=str)
def test_a_server_that_fails_for_good(server: Server, fault: int | str, reason: str) -> None:
    file = remote.RemoteFile(remote_shards([server.url("shard-001.tar")])[0])
    server.always = fault
    with pytest.raises(RunError, match=rf"cannot read http.*shard-001\.tar: .*{reason}.*6 times in a row.*--resume"):
        file.read(0, 512)
    assert server.sent == 6
    result = ornstein("train", "--data", pattern(server), "--size", 8, "--out", "never", "--device", "cpu")
    refused(result, "times in a row", code=1)


def test_a_file_that_is_cut_short_is_named(server: Server) -> None:
    server.files["cut.tar"] = shard(0)[:101_000]
    images = open_streamed(server.url("cut.tar"), 16)
    assert images is not None and 0 < len(images) < 24
    assert "the archive cut.tar is damaged after" in images.skipped[0][1]
    server.files["page.tar"] = b"<html>sign in</html>" * 100
    with pytest.raises(UserError, match=r"page\.tar is no sound tar archive"):
        open_streamed(server.url("page.tar"), 16)


def test_clips_of_a_shard(server: Server, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("a/1.gif", "b/2.gif"):
            picture = io.BytesIO()
            frames = [Image.new("L", (16, 16), 40 * i) for i in range(4)]
            frames[0].save(picture, "gif", save_all=True, append_images=frames[1:])
            info = tarfile.TarInfo(name)
            info.size = len(picture.getvalue())
            tar.addfile(info, io.BytesIO(picture.getvalue()))
    server.files["clips.tar"] = out.getvalue()
    (tmp_path / "clips.tar").write_bytes(out.getvalue())
    there, here = open_clips(server.url("clips.tar"), 4, 16), open_clips(tmp_path / "clips.tar", 4, 16)
    assert torch.equal(there.batch([0, 1])[0], here.batch([0, 1])[0]) and there.classes == here.classes == ["a", "b"]


@pytest.mark.slow
def test_a_stopped_training_goes_on_in_the_same_bits(server: Server, tmp_path: Path) -> None:
    def train(out: str, steps: int, *more: str) -> bytes:
        result = ornstein("train", "--out", tmp_path / out, "--steps", steps, "--no-report", "--device", "cpu", *more)
        assert result.exit_code == 0, result.output
        return (tmp_path / out / "model.safetensors").read_bytes()

    new = ("--data", pattern(server), "--size", "8", "--batch", "8", "--net", "xs", "--stream")
    whole = train("whole", 4, *new)
    train("parts", 2, *new)
    for file in cache().folder.iterdir():  # what is kept decides nothing
        file.unlink()
    server.faults = [503, "short"]
    assert train("parts", 4, "--resume") == whole
    assert not server.faults
