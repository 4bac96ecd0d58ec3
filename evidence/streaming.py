"""Memory of a set that is streamed, and what a shuffle by windows is worth, for sets of growing size.

    python evidence/streaming.py [--shards 4,16,64]

Writes archives of 1,000 pictures each (one of them linked under many names: each name is read as an archive of its
own), reads a whole epoch of each set in batches of 64 in a process of its own, and prints what that process held at
most, beside what the pictures are decoded. Tables for docs/training.md.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

SIDE, EACH, BATCH = 96, 1000, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="4,16,64")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--how", default="streamed", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read(arguments.read, arguments.how)
        return
    print("| images | decoded, MB | held when opened, MB | at most, streamed, MB | at most, decoded at the start, MB |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        one = write(Path(scratch) / "one.tar")
        for shards in map(int, arguments.shards.split(",")):
            folder = Path(scratch) / str(shards)
            folder.mkdir()
            for i in range(shards):
                (folder / f"{i:05d}.tar").hardlink_to(one)
            (opened, streamed), (_, whole) = (measured(folder, how) for how in ("streamed", "whole"))
            decoded = shards * EACH * 3 * SIDE**2 / 1e6
            print(f"| {shards * EACH:,} | {decoded:,.0f} | {opened} | {streamed} | {whole} |", flush=True)


def write(path: Path) -> Path:
    """An archive of smooth pictures as JPEG, with classes."""
    from PIL import Image

    numbers = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for i in range(EACH):
            rough = Image.fromarray(numbers.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            data = io.BytesIO()
            rough.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
            for name, content in ((f"{i:05d}.jpg", data.getvalue()), (f"{i:05d}.cls", b"%d" % (i * 10 // EACH))):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def measured(folder: Path, how: str) -> tuple[int, int]:
    """MB when the set is open, and at most."""
    command = [sys.executable, __file__, "--read", str(folder), "--how", how]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    return int(told[0]), int(told[1])


def read(folder: Path, how: str) -> None:
    from ornstein.data import open_images, open_streamed
    from ornstein.training.loader import Loader
    from ornstein.training.task import Part

    images = open_streamed(folder, SIDE) if how == "streamed" else open_images(folder, SIDE)
    assert images is not None
    opened = held()
    loader = Loader(images, BATCH, 0, [Part(0, BATCH, BATCH)])
    began = time.perf_counter()
    for step in range(len(images) // BATCH):
        loader.batches(step)
    loader.close()
    print(opened, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000, time.perf_counter() - began)


def held() -> int:
    """Resident memory now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 10**6


if __name__ == "__main__":
    main()
