"""Preparation of photographs: faces are detected, aligned and embedded, in shards that survive a kill.

The folder of a set holds one file `faces-00017-of-00182.safetensors` for each 64 files of the source: images uint8
(n, 3, S, S), embeddings float32 (n, 128), landmarks float32 (n, 5, 2) and the points of the mesh float32 (n, 470, 3) in
crop pixels, transforms float64 (n, 2, 3) from the photograph to the crop; names, people, and the skipped files with the
reasons are in its metadata. Shards made on several machines form one set if they lie in one folder; `index.json` is
written once all are there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ornstein import processes
from ornstein.data import identity
from ornstein.data.entry import BadImage, Entry, nothing_usable
from ornstein.data.sources import open_source
from ornstein.errors import RunError, UserError
from ornstein.faces.align import alignment, crop
from ornstein.faces.detect import Detector, FaceDetector, subject
from ornstein.faces.models import LANDMARKS_5, RECOGNITION, require_models
from ornstein.faces.read import decode_photo
from ornstein.faces.recognise import FaceRecogniser, Recogniser
from ornstein.faces.shape import shape_in
from ornstein.faces.train.face_set import FaceSet, open_faces
from ornstein.faces.train.shards import INDEX, PATTERN, Row, read_header, shard_name, write_shard
from ornstein.store import atomic_write, read_json, remove_partial

__all__ = ["NO_FACE", "SIZES", "FaceSet", "Summary", "open_faces", "prepare"]

SIZES = (64, 128, 256)
FILES_PER_SHARD = 64
NO_FACE = "no face found"
_LARGEST_INDEX = 2**30  # bytes: it names every skipped file


@dataclass(frozen=True)
class Plan:
    """What is prepared and where; the same in every process that takes part.

    fingerprint: of the contents of the source; names: of the names and sizes of its files alone.
    """

    source: str
    out: str
    size: int
    fingerprint: str
    files: int
    names: str

    @property
    def shards(self) -> int:
        return -(-self.files // FILES_PER_SHARD)

    def path(self, shard: int) -> Path:
        return Path(self.out) / shard_name(shard, self.shards)

    def described(self) -> dict[str, Any]:
        """What a shard must agree with to belong to this set: not where it lies."""
        return {key: value for key, value in asdict(self).items() if key in ("size", "fingerprint", "files")}


@dataclass
class Summary:
    """The result of a preparation: of this call's part, or of the whole set once it is complete."""

    faces: int = 0
    people: int = 0
    files: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    missing: int = 0

    @property
    def without_face(self) -> int:
        return sum(reason == NO_FACE for _, reason in self.skipped)


def prepare(
    source: str | Path,
    out: str | Path,
    size: int = 64,
    *,
    part: tuple[int, int] = (1, 1),
    workers: int | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Detect, align and embed the face of every photograph in a folder or zip archive; write a set for `open_faces`.

    The person is the first folder on a file's path; files outside of folders are a person each. Of several faces in a
    photograph the main subject is kept: large and near the middle. A killed call loses the shards being made. The
    processes of a launch take turns with the shards, and all have the same summary.

    Args:
        source: the photographs.
        out: the folder of the set.
        size: side of the aligned crops in pixels, one of `SIZES`.
        part: (i, n), i from 1 to n: make every n-th shard only, so that n calls, also on n machines with the same
            source, share the work; the set is complete when all shards lie in one folder.
        workers: processes; all cores by default, or the share of each process of a launch.
        resume: go on after the shards that are there.
        progress: called as progress(done, total) with numbers of files.

    Raises:
        UserError: the source has no usable file or no face; a size or part that is none; `out` holds files of another
            set, or shards of this one without `resume`.
        RunError: a worker dies.
    """
    if size not in SIZES:
        raise UserError(f"--size is one of {', '.join(map(str, SIZES))}, not {size}")
    index, parts = part
    if not 1 <= index <= parts:
        raise UserError(f"--shard {index}/{parts}: the first number counts from 1 to the second")
    out = Path(out)
    group = processes.current()
    plan, skipped, there = group.agreed(lambda: _begin(source, out, size, part, resume))
    mine = range(index - 1, plan.shards, parts)
    todo = sorted(set(mine) - set(there))[group.rank :: group.world]
    done = sum(_files_in(plan, shard) for shard in there)
    total = done + sum(_files_in(plan, shard) for shard in todo)
    if progress is not None:
        progress(done, total)

    def make() -> None:
        nonlocal done
        for shard in _run(plan, todo, workers or max(1, (os.cpu_count() or 1) // group.here)):
            done += _files_in(plan, shard)
            if progress is not None:
                progress(done, total)

    group.each(make)
    return group.agreed(lambda: _finish(plan, mine, skipped))


def _begin(
    source: str | Path, out: Path, size: int, part: tuple[int, int], resume: bool
) -> tuple[Plan, list[tuple[str, str]], list[int]]:
    """The plan, the files that cannot be read, and the shards of this part that are there."""
    with open_source(Path(source)) as listing:
        if not listing.entries:
            raise nothing_usable(source, listing.skipped, listing.ignored, "photo")
        plan = _plan(source, out, size, listing.entries)
        skipped = listing.skipped
    _check_index(out)
    there = [shard for shard in range(part[0] - 1, plan.shards, part[1]) if _is_there(plan, shard)]
    if there and not resume:
        raise UserError(
            f"{out} already holds {len(there)} of these shards: go on with --resume or choose another --out"
        )
    require_models(LANDMARKS_5, RECOGNITION)  # said now, in one line, and not by a broken pool of processes
    out.mkdir(parents=True, exist_ok=True)
    if part[1] == 1:
        remove_partial(out)
    return plan, skipped, there


def _plan(source: str | Path, out: Path, size: int, entries: Sequence[Entry]) -> Plan:
    names, sizes = [entry.name for entry in entries], [entry.size for entry in entries]
    by_name = identity.names_fingerprint(names, sizes)
    # sets of version 0.1 know names and sizes only
    there = next(iter(sorted(out.glob(PATTERN))), None)
    old = there is not None and read_header(there)["plan"].get("fingerprint") == by_name
    if old:
        content = by_name
    else:
        sums = identity.checksums(len(entries), entries.__getitem__, sizes)
        content = identity.fingerprint(names, sizes, sums, None)
    return Plan(str(source), str(out), size, content, len(entries), by_name)


def _check_index(out: Path) -> None:
    """Raises UserError if `out` holds an index.json of something else."""
    path = out / INDEX
    if path.is_symlink() or path.exists():
        try:
            ours = {"size", "fingerprint", "faces"} <= read_json(path, _LARGEST_INDEX).keys() and not path.is_symlink()
        except UserError:
            ours = False
        if not ours:
            raise UserError(f"{path} is not of a set of faces: choose another --out")


def _finish(plan: Plan, mine: Sequence[int], unread: Sequence[tuple[str, str]]) -> Summary:
    """Count what the shards hold; write the index once all of the set's are there."""
    missing = sum(not plan.path(shard).exists() for shard in range(plan.shards))
    headers = [read_header(plan.path(shard)) for shard in (mine if missing else range(plan.shards))]
    skipped = [*unread, *((name, why) for header in headers for name, why in header["skipped"])]
    people = Counter(person for header in headers for person in header["people"])
    files = sum(len(header["names"]) + len(header["skipped"]) for header in headers)
    summary = Summary(people.total(), len(people), files, skipped, missing)
    if not missing:
        if not summary.faces:
            for shard in range(plan.shards):  # of no use, and they would block another call
                plan.path(shard).unlink()
            raise UserError(f"no face found in any photo of {plan.source}: {summary.files} looked at")
        index = {
            **plan.described(),
            "source": Path(plan.source).name,
            "faces": summary.faces,
            "people": summary.people,
            "skipped": [{"file": name, "reason": why} for name, why in skipped],
        }
        atomic_write(Path(plan.out) / INDEX, (json.dumps(index, indent=1, ensure_ascii=False) + "\n").encode())
    return summary


def _files_in(plan: Plan, shard: int) -> int:
    return min(FILES_PER_SHARD, plan.files - shard * FILES_PER_SHARD)


def _is_there(plan: Plan, shard: int) -> bool:
    path = plan.path(shard)
    if not path.exists():
        return False
    if read_header(path)["plan"] != plan.described():
        raise UserError(f"{path} was made from other files or with another --size: choose another --out")
    return True


class _Worker:
    """One process's models and its open source."""

    def __init__(self, plan: Plan, detector: FaceDetector, recogniser: FaceRecogniser) -> None:
        self.plan = plan
        self._detector = detector
        self._recogniser = recogniser
        self._stack = ExitStack()
        self._entries = self._stack.enter_context(open_source(Path(plan.source))).entries
        names, sizes = [entry.name for entry in self._entries], [entry.size for entry in self._entries]
        if identity.names_fingerprint(names, sizes) != plan.names:
            raise UserError(f"{plan.source} changed while it was read: start again with --resume")

    def close(self) -> None:
        self._stack.close()

    def make(self, shard: int) -> int:
        """Write the shard and return its number."""
        first = shard * FILES_PER_SHARD
        rows: list[Row] = []
        skipped: list[tuple[str, str]] = []
        for entry in self._entries[first : first + FILES_PER_SHARD]:
            try:
                rows.append(self._face(entry))
            except BadImage as bad:
                skipped.append((entry.name, str(bad)))
        write_shard(self.plan.path(shard), rows, skipped, self.plan.described(), self._recogniser.dimension)
        return shard

    def _face(self, entry: Entry) -> Row:
        """The main subject of a photo. Raises BadImage if there is no face."""
        image = decode_photo(entry.read())
        faces = self._detector(image)
        if not faces:
            raise BadImage(NO_FACE)
        face = subject(faces, image)
        transform = alignment(face.landmarks, self.plan.size)
        return Row(
            name=entry.name,
            person=entry.label or entry.name,
            image=crop(image, transform, self.plan.size),
            embedding=self._recogniser(image, [face])[0],
            landmarks=transform(face.landmarks).float(),
            transform=transform.matrix,
            points=shape_in(image, face.landmarks, transform),
            score=face.score,
        )


def _run(plan: Plan, shards: Sequence[int], workers: int) -> Iterator[int]:
    """Make the shards and yield the number of each as it is done."""
    count = min(workers, len(shards))
    if count <= 1:
        if shards:
            worker = _Worker(plan, Detector(all_looks=False), Recogniser())
            try:
                yield from map(worker.make, shards)
            finally:
                worker.close()
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pool = ProcessPoolExecutor(count, context, initializer=_start, initargs=(plan,))
    try:
        waiting: set[Future[int]] = {pool.submit(_make, shard) for shard in shards}
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    except BrokenProcessPool:
        raise RunError("a worker died, perhaps for lack of memory: go on with --resume and fewer --workers") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: _Worker


def _start(plan: Plan) -> None:
    """Initialise a worker process."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the work
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker = _Worker(plan, Detector(all_looks=False), Recogniser())


def _end_with_the_parent() -> None:
    """Stop this worker if the parent was killed, which then cannot stop it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make(shard: int) -> int:
    return _worker.make(shard)
