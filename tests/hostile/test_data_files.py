"""Data from a stranger: each of these files is refused in one line, or counted and skipped, in little memory and time.

All are opened in a process of their own, which may take 600 MB beyond what it has after its imports, and 20 seconds.
"""

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

GB = 2**30
SECONDS = 20

CHILD = f"""
import json, os, resource, signal, sys
from ornstein.data import open_clips, open_images, open_streamed
from ornstein.errors import RunError, UserError

open_images("digits")
used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
for path in sys.argv[1:]:
    for opener in (open_images, open_streamed, lambda path: open_clips(path, 2, 8)):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)
            signal.alarm({SECONDS})
            try:
                opened = opener(path)
                result = None if opened is None else [opened.names if hasattr(opened, "names") else len(opened),
                                                      opened.skipped, opened.summary]
            except (UserError, RunError) as error:
                result = [type(error).__name__, str(error)]
            except BaseException as error:
                result = ["crash", type(error).__name__, str(error)]
            sys.stdout.write(json.dumps(result) + "\\n")
            sys.stdout.flush()
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.stdout.write(json.dumps(["killed"]) + "\\n")
"""


def png(side: int = 8, value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def png_of(width: int, height: int, *between: tuple[bytes, bytes], body: bytes = b"") -> bytes:
    """A PNG with these sizes in its header, and chunks between the header and the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    inner = b"".join(chunk(kind, data) for kind, data in between)
    return b"\x89PNG\r\n\x1a\n" + head + inner + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def tar_with(*parts: bytes, sparse: int = 0) -> Callable[[Path], Path]:
    """A tar archive with a good picture, then these blocks; the file is made `sparse` bytes longer, of holes."""

    def make(root: Path) -> Path:
        path = root / "a.tar"
        with path.open("wb") as file:
            file.write(header("good.png", len(png())) + padded(png()) + b"".join(parts))
            file.truncate(file.tell() + sparse)
        return path

    return make


def sparse_map(root: Path) -> Path:
    """A GNU sparse file whose map goes on through 2 GB."""
    head = bytearray(header("holes.png", 512, tarfile.GNUTYPE_SPARSE))
    head[482] = 1
    head[148:156] = b"        "
    head[148:156] = b"%06o\0 " % sum(head)
    path = tar_with()(root)
    more = bytearray(512)
    more[504] = 1
    with path.open("ab") as file:
        file.write(bytes(head) + bytes(more) * 40_000)
    return path


def raw_zip(name: str, packed: bytes, size: int, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of one file of `size` bytes, already packed; its checksum is not right."""
    encoded = name.encode()
    common = struct.pack("<HHHHHIII", 20, 0, method, 0, 0, 0, len(packed), size) + struct.pack("<H", len(encoded))
    local = b"PK\3\4" + common + struct.pack("<H", 0) + encoded + packed
    entry = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHHII", 0, 0, 0, 0, 0, 0) + encoded
    return local + entry + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)


def zeros_packed(head: bytes, size: int) -> bytes:
    """`head` and zeros up to `size` bytes, deflated, without 1,000 times the work: the same block again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes((size - len(head)) % 2**24)) + packer.flush(zlib.Z_FINISH)
    return first + block * ((size - len(head)) // 2**24) + rest


def npy_head(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def packed_npy(head: bytes, size: int) -> bytes:
    return raw_zip("x.npy", zeros_packed(head, size), size)


def file(name: str, make: Callable[[], bytes], sparse: int = 0) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        with (root / name).open("wb") as opened:
            opened.write(make())
            opened.truncate(opened.tell() + sparse)
        return root / name

    return write


def beside(name: str, make: Callable[[], bytes], sparse: int = 0) -> Callable[[Path], Path]:
    """A folder with a good picture and this file."""

    def write(root: Path) -> Path:
        (root / "set").mkdir()
        (root / "set" / "good.png").write_bytes(png())
        file(name, make, sparse)(root / "set")
        return root / "set"

    return write


def zipped(name: str, head: Callable[[], bytes], size: int) -> Callable[[Path], Path]:
    return file("a.zip", lambda: raw_zip(name, zeros_packed(head(), size), size))


def deep(root: Path) -> Path:
    (root / "set").mkdir()
    (root / "set" / "good.png").write_bytes(png())
    here = os.open(root / "set", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    return root / "set"


def pipe(name: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        os.mkfifo(root / name)
        return root / name

    return make


def inside(make: Callable[[Path], object]) -> Callable[[Path], Path]:
    """A folder with a good picture and what `make` puts there."""

    def write(root: Path) -> Path:
        (root / "set").mkdir()
        (root / "set" / "good.png").write_bytes(png())
        make(root / "set")
        return root / "set"

    return write


def links(root: Path) -> None:
    (root / "a.png").symlink_to(root / "b.png")
    (root / "b.png").symlink_to(root / "a.png")
    (root / "round").symlink_to(root)
    (root / "zero.png").symlink_to("/dev/zero")
    (root / "secret.png").symlink_to("/etc/passwd")


def specials(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "pipe.tar")
    os.mkfifo(root / "train.json")
    (root / "folder.png").mkdir()
    (root / "folder.tar").mkdir()


def loop(root: Path) -> Path:
    (root / "x").symlink_to(root / "y")
    (root / "y").symlink_to(root / "x")
    return root / "x"


def tiff_with_its_header_last(size: int) -> bytes:
    """A TIFF of 8 x 8 pixels whose directory lies behind `size` bytes of nothing."""
    entries = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    entries += [(278, 3, 1, 8), (279, 4, 1, 64)]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHI", *e[:3]) + struct.pack("<I", e[3]) for e in entries) + bytes(4)
    return directory


def zipped_tiff(root: Path) -> Path:
    size = 480 * 2**20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(b"II*\0" + struct.pack("<I", 2**24 * 28 + 8)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    tail = tiff_with_its_header_last(size)
    last = packer.compress(tail) + packer.flush(zlib.Z_FINISH)
    (root / "a.zip").write_bytes(raw_zip("a.tif", packed + block * 28 + last, 2**24 * 28 + 8 + len(tail)))
    return root / "a.zip"


def mixed_zip(root: Path) -> Path:
    with zipfile.ZipFile(root / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("good.png", "../up.png", "/abs.png", "a/../../b.png", "c\x1b[31m\n.png", "C:\\d.png"):
            archive.writestr(name, png())
    return root / "a.zip"


def nameless_zip(root: Path) -> Path:
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        archive.writestr("good.png", png())
        archive.writestr("x", png())
    data = bytearray((root / "a.zip").read_bytes())
    entry, end = data.rindex(b"PK\1\2"), data.rindex(b"PK\5\6")
    struct.pack_into("<I", data, end + 12, struct.unpack_from("<I", data, end + 12)[0] - 1)
    struct.pack_into("<H", data, entry + 28, 0)
    del data[entry + 46]  # the name of one letter
    (root / "a.zip").write_bytes(data)
    return root / "a.zip"


def damaged_animation(root: Path) -> Path:
    buffer = io.BytesIO()
    frames = [Image.new("L", (8, 8), 40 * i) for i in range(4)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    with zipfile.ZipFile(root / "a.zip", "w") as archive:  # stored: only the checksum is wrong
        archive.writestr("good.png", png())
        archive.writestr("film.gif", buffer.getvalue())
    data = bytearray((root / "a.zip").read_bytes())
    data[data.index(b"GIF8") + len(buffer.getvalue()) // 2] ^= 1
    (root / "a.zip").write_bytes(data)
    return root / "a.zip"


# name: (how it is made, the error, or None if the good picture is read; words of the error or of the summary)
CASES: dict[str, tuple[Callable[[Path], Path], str | None, str]] = {
    "a tar's extended header claims 3 GB": (tar_with(header("x", 3 * GB, b"x"), sparse=3 * GB), None, "damaged"),
    "a tar's long name claims 3 GB": (tar_with(header("x", 3 * GB, b"L"), sparse=3 * GB), None, "damaged"),
    "a tar's first header claims 3 GB": (
        lambda root: file("a.tar", lambda: header("x", 3 * GB, b"x"), 3 * GB)(root),
        "UserError",
        "no sound tar archive",
    ),
    "a tar's picture claims 3 GB": (tar_with(header("x.png", 3 * GB), sparse=3 * GB), None, "3,072 MB"),
    "a tar's picture claims 2**60 bytes": (tar_with(header("x.png", 2**60)), None, "damaged"),
    "the map of a sparse file goes on": (sparse_map, None, "damaged"),
    "a folder 1,500 deep": (deep, None, "more than 64 folders"),
    "a zip's member of 500 MB is nothing": (zipped("a.png", bytes, 500 * 2**20), "UserError", "not an image"),
    "a zip's member of 500 MB is 8 x 8": (zipped("a.png", png, 500 * 2**20), "UserError", "500 MB"),
    "a zip's member claims 30,000 x 30,000": (
        zipped("a.png", lambda: png_of(30_000, 30_000), 500 * 2**20),
        "UserError",
        "pixels",
    ),
    "a zip's TIFF has its header at its end": (zipped_tiff, "UserError", "MB"),
    "a zip's table of contents claims 3 GB": (
        file("a.zip", lambda: b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 3 * GB, 0, 0)),
        "UserError",
        "table of contents",
    ),
    "paths that lead out of a zip": (mixed_zip, None, "leads out"),
    "a file without a name in a zip": (nameless_zip, None, ""),
    "a damaged animation in a zip": (damaged_animation, None, ""),
    "a sparse file of 500 MB": (beside("a.png", bytes, 500 * 2**20), None, "not an image"),
    "a sparse file of 3 GB": (beside("a.png", bytes, 3 * GB), None, "3,072 MB"),
    "a picture and 500 MB": (beside("a.png", png, 500 * 2**20), None, "500 MB"),
    "a header of 100,000 x 100,000": (beside("a.png", lambda: png_of(100_000, 100_000)), None, "pixels"),
    "a profile of 1 GB, packed": (
        beside("a.png", lambda: png_of(8, 8, (b"iCCP", b"x\0\0" + zlib_zeros(GB)), body=bytes(200))),
        None,
        "damaged",
    ),
    "a comment of 1 GB, packed": (
        beside("a.png", lambda: png_of(8, 8, (b"zTXt", b"x\0\0" + zlib_zeros(GB)), body=bytes(200))),
        None,
        "",
    ),
    "an npz that grows to 8 GB": (
        file("a.npz", lambda: packed_npy(npy_head((2**21, 36, 36, 1)), 2**21 * 1296 + 128)),
        "UserError",
        "grows from",
    ),
    "an npz whose header is 4 GB long": (
        file("a.npz", lambda: packed_npy(b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1), 300 * 2**20)),
        "UserError",
        "cannot be read",
    ),
    "an npz with a row of 2**31 pixels": (
        file("a.npz", lambda: packed_npy(npy_head((1, 2**16, 2**15)), 2**20)),
        "UserError",
        "cut short",
    ),
    "an npy whose header is 4 GB long": (
        file("a.npy", lambda: b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1), 5 * GB),
        "UserError",
        "no .npy file",
    ),
    "an npy with a row of 2**31 pixels": (
        file("a.npy", lambda: npy_head((1, 2**16, 2**15)), 2**31),
        "UserError",
        "pixels",
    ),
    "an npy of pickled objects": (
        file("a.npy", lambda: npy_head((2,), "|O") + b"cos\nsystem\n(S'true'\ntR."),
        "UserError",
        "Python objects",
    ),
    "a pipe": (pipe("a"), "UserError", "not a regular file"),
    "a pipe called zip": (pipe("a.zip"), "UserError", "not a regular file"),
    "a pipe called tar": (pipe("a.tar"), "UserError", "not a regular file"),
    "a pipe called npy": (pipe("a.npy"), "UserError", "not a regular file"),
    "a device": (lambda root: Path("/dev/zero"), "UserError", "not a regular file"),
    "links in circles and out": (inside(links), None, "link"),
    "pipes and folders with the names of pictures": (inside(specials), None, "not a regular file"),
    "a link to itself": (loop, "UserError", "no such folder or file"),
}  # fmt: skip


def zlib_zeros(size: int) -> bytes:
    return zlib.compress(b"", 9)[:2] + zeros_packed(b"", size)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each opener makes of each case: [images, streamed, clips]."""
    roots = [tmp_path_factory.mktemp("case") for _ in CASES]
    try:
        paths = [str(make(root)) for root, (make, _, _) in zip(roots, CASES.values(), strict=True)]
        run = subprocess.run(
            [sys.executable, "-c", CHILD, *paths],
            capture_output=True,
            text=True,
            timeout=SECONDS * 3 * len(CASES),
            check=True,
        )
    finally:
        # Python's own removal of a folder 1,500 deep overflows its stack
        subprocess.run(["rm", "-rf", *roots], check=True)
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(lines) == 3 * len(CASES), run.stderr
    return {name: lines[3 * i : 3 * i + 3] for i, name in enumerate(CASES)}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_or_skipped(name: str, outcomes: dict[str, list[Any]]) -> None:
    _, error, words = CASES[name]
    images, streamed, clips = outcomes[name]
    for result in (images, streamed, clips):
        assert result is None or result[0] not in ("crash", "killed"), result
    if error is not None:
        assert images[0] == error and words in images[1], images
        for result in (images, streamed, clips):
            assert result is None or (result[0] in ("UserError", "RunError") and "\n" not in result[1]), result
    else:
        assert "good.png" in images[0], images
        reasons = " ".join(f"{name}: {why}" for name, why in images[1])
        assert words in reasons and "\n" not in images[2] and "\x1b" not in reasons, images
