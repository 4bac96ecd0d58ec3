"""Sets of clips: cut from the videos of a folder or archive, decoded once; or generated from known motion."""

import hashlib
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from statistics import median
from typing import IO, Protocol

import numpy as np
import torch
from torch import Tensor

from ornstein.data import identity, images, sets
from ornstein.data.classes import group
from ornstein.data.decode import LIMIT_PIXELS, MIN_SIDE, BadImage, strict_pillow
from ornstein.data.entry import IMAGE_SUFFIXES, Entry, Listing, nothing_usable, reason_of
from ornstein.data.kinds import is_animation, open_regular
from ornstein.data.motion import MOTIONS, MotionClips
from ornstein.data.names import natural_key, tidy
from ornstein.data.pixels import to_unit
from ornstein.data.sources import open_source
from ornstein.data.video_read import VIDEO_SUFFIXES, Video, read_folder, read_video
from ornstein.errors import RunError, UserError

__all__ = ["ClipSet", "Clips", "open_clips"]

_MAY_MOVE = {".webp", ".png", ".apng", ".avif"}
_NO_LIMIT = sys.maxsize  # of a video file's bytes: it is never in memory as a whole


class Clips(Protocol):
    """What training and evaluation read: `ClipSet` and `MotionClips`."""

    source: str

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor | Sequence[int], /) -> tuple[Tensor, Tensor | None]: ...

    def split(self, fraction: float, seed: int, every_class: bool = False) -> "tuple[Clips, Clips]": ...

    @property
    def classes(self) -> list[str]: ...

    @property
    def skipped(self) -> list[tuple[str, str]]: ...

    @property
    def shape(self) -> tuple[int, int, int, int]: ...

    @property
    def summary(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def names_fingerprint(self) -> str: ...

    @property
    def rate(self) -> float | None: ...


@dataclass(eq=False, repr=False)
class ClipSet:
    """Clips of one size and length, decoded: windows into the frames of whole videos.

    pixels: uint8 (T, C, H, W), all videos one after the other. starts: int64 (N,), where each clip begins in it.
    videos: int64 (N,), the video each clip was cut from, into `names`, `file_sizes` (bytes) and `sums` (checksums).
    labels: int64 (N,) into `classes`, or None. skipped: (name, reason) of every video that could not be used.
    ignored: numbers of other files by suffix.
    """

    source: str
    frames: int
    pixels: Tensor
    starts: Tensor
    videos: Tensor
    names: list[str]
    file_sizes: list[int]
    sums: list[int]
    labels: Tensor | None = None
    classes: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    rate: float | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __repr__(self) -> str:
        line = sets.read_line(len(self), "clip", self.classes, self.labels, Counter(), [])
        return f"ClipSet({self.source!r}: {line}, {'x'.join(map(str, self.shape))})"

    @property
    def summary(self) -> str:
        """One line: how many clips of how many videos and of which classes, and what was left out."""
        notes = [f"from {len(self.names):,} video{'' if len(self.names) == 1 else 's'}"]
        return sets.read_line(len(self), "clip", self.classes, self.labels, self.ignored, self.skipped, notes)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, F, H, W) of a clip."""
        _, c, h, w = self.pixels.shape
        return c, self.frames, h, w

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The clips at `indices`, float32 (B, C, F, H, W) in [-1, 1], and their labels int64 (B,) or None."""
        rows = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        taken = self.starts[rows][:, None] + torch.arange(self.frames)
        clips = to_unit(self.pixels[taken]).transpose(1, 2).contiguous()
        return clips, None if self.labels is None else self.labels[rows]

    def split(self, fraction: float, seed: int, every_class: bool = False) -> tuple["ClipSet", "ClipSet"]:
        """(train, held-out): whole videos, drawn at random by `seed`, until `fraction` of the clips are held out.

        Clips of one video are never on both sides: neighbours in time are near copies. A single video is cut in two
        in time, its end held out, and a clip that crosses the cut is in neither part. The pixels are shared. With
        `every_class`, one video of each class is never held out.

        Raises:
            ValueError: unless 0 < fraction < 1.
            UserError: on fewer than 2 clips.
        """
        sets.check_fraction(fraction, len(self), self.source, "clip")
        wanted = min(max(round(len(self) * fraction), 1), len(self) - 1)
        present = self.videos.unique()
        if len(present) == 1:
            cut = self.starts[len(self) - wanted]
            train = self.starts + self.frames <= cut
            if not bool(train.any()):
                raise UserError(f"{self.source} is too short to hold clips out that do not overlap the others")
            return self._subset(train), self._subset(self.starts >= cut)
        order = present[torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))]
        if every_class and self.labels is not None:
            label = {int(v): int(label) for v, label in zip(self.videos, self.labels, strict=True)}
            last = {label[v]: v for v in order.tolist()}
            free = torch.tensor([v for v in order.tolist() if last[label[v]] != v], dtype=torch.int64)
            if len(free):
                order = torch.cat([free, torch.tensor(list(last.values()))])
        counts = torch.bincount(self.videos, minlength=len(self.names))[order].cumsum(0)
        some = min(int((counts < wanted).sum()) + 1, len(present) - 1)
        held_out = torch.isin(self.videos, order[:some])
        return self._subset(~held_out), self._subset(held_out)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell whether two runs cut the same clips from the same videos.

        It is a hash of the clip length and of names, sizes, contents, labels and places of the clips.
        """
        classes = [] if self.labels is None else [f" {self.classes[i]}" for i in self.labels.tolist()]
        sums = [f" {self.sums[video]:08x}" for video in self.videos.tolist()]
        return self._hash([f"{a}{b}" for a, b in zip(sums, classes or [""] * len(self), strict=True)])

    @property
    def names_fingerprint(self) -> str:
        """The hash without contents and labels, by which runs of version 0.1 are recognised."""
        return self._hash([""] * len(self))

    def _hash(self, notes: Sequence[str]) -> str:
        digest = hashlib.sha256(f"{self.frames}\n".encode())
        offset = {int(v): int(self.starts[self.videos == v].min()) for v in self.videos.unique()}
        for start, video, note in zip(self.starts.tolist(), self.videos.tolist(), notes, strict=True):
            digest.update(f"{self.names[video]}\0{self.file_sizes[video]}\0{start - offset[video]}{note}\n".encode())
        return digest.hexdigest()[:16]

    def _subset(self, chosen: Tensor) -> "ClipSet":
        return replace(
            self,
            starts=self.starts[chosen],
            videos=self.videos[chosen],
            labels=None if self.labels is None else self.labels[chosen],
        )


@dataclass(frozen=True)
class _Video:
    """One video of a source: a file, or a folder of frames."""

    name: str
    entries: list[Entry]
    frames: Callable[[int | None, int, int, int], Iterator[np.ndarray]]
    opened: list[Video] = field(default_factory=list)  # what the file states, once it was read

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.entries)


def open_clips(
    path: str | Path,
    frames: int,
    size: int | None = None,
    channels: int | None = None,
    *,
    stride: int = 1,
    hop: int | None = None,
    limit_pixels: int = LIMIT_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> ClipSet | MotionClips:
    """Open clips of `frames` frames: a folder, a .zip archive (read in place), a video file, or a bundled source.

    A video is a file (mp4, mov, webm, mkv, avi, mpg, ts, flv, wmv, 3gp and their kin), an animation (GIF, WebP, PNG,
    AVIF), or a folder of images of one size in natural order. Images beside videos are no frames: they are skipped, and
    so are those that are named as a video is (its thumbnail). Of the frames every `stride`-th is taken; a clip begins
    every `hop` of those, by default where the last one ended. Where all
    videos lie in sub-folders, and in several, the first folder on the path is the class. Each frame is turned
    upright, its centre square cut out and resized to `size` pixels a side; size=None keeps the size that all have.
    `channels` is 3 (RGB) or 1 (luma); None means 3, and 1 for the bundled sources. Videos that cannot be used, among
    them those shorter than a clip, are listed in `skipped`. `progress(done, total)` is called after each video.
    Frames are decoded as a stream; above 2 GB they go to a temporary file.

    The bundled sources are "moving-digits", "bouncing-balls" and "drifting-textures", see `MotionClips`; size=None is
    32 there. A folder of such a name is given as "./moving-digits".

    Raises UserError where there is no such source, nothing usable in it, the sizes differ and size=None, or an
    argument is out of range; RunError where the disk has no room for the temporary file.
    """
    if frames < 1 or stride < 1 or (hop is not None and hop < 1):
        raise UserError(f"frames, stride and hop must be at least 1, not {frames}, {stride} and {hop}")
    if size is not None and size < MIN_SIDE:
        raise UserError(f"--size must be at least {MIN_SIDE} pixels, not {size}")
    if channels not in (None, 1, 3):
        raise UserError(f"channels must be 1 (grey) or 3 (RGB), not {channels}")
    if str(path) in MOTIONS and (isinstance(path, str) or not path.exists()):
        if stride != 1 or hop is not None:
            raise UserError(f"{path} is generated clip by clip: stride and hop are for videos")
        return MotionClips(str(path), frames, 32 if size is None else size, 1 if channels is None else channels)
    path = Path(path)
    if path.suffix.lower() in VIDEO_SUFFIXES and path.exists() and not path.is_dir():
        return _cut(path, Listing([_entry(path)]), frames, size, channels or 3, stride, hop, limit_pixels, progress)
    with open_source(path, VIDEO_SUFFIXES | IMAGE_SUFFIXES, _NO_LIMIT, by_folder=False) as listing:
        return _cut(path, listing, frames, size, channels or 3, stride, hop, limit_pixels, progress)


def _cut(
    path: Path,
    listing: Listing,
    frames: int,
    size: int | None,
    channels: int,
    stride: int,
    hop: int | None,
    limit_pixels: int,
    progress: Callable[[int, int], None] | None,
) -> ClipSet:
    listed, beside = _videos(listing, path)
    names = [video.name.split("/", 1)[-1] if listing.prefixed else video.name for video in listed]
    groups = group(names, path.is_file() or listing.prefixed, [video.entries[0].label for video in listed])
    skipped, hop, ignored = [*listing.skipped, *beside], hop or frames, Counter(listing.ignored)
    skipped += [(listed[i].name, why) for i, why in groups.skipped.items()]
    ignored.update(groups.ignored.values())
    chosen = [i for i in range(len(listed)) if i not in groups.skipped and i not in groups.ignored]
    videos = [listed[i] for i in chosen]
    label_of = {} if groups.labels is None else {listed[i].name: groups.labels[i] for i in chosen}
    store = _Store()
    used: list[_Video] = []
    starts: list[int] = []
    owners: list[int] = []
    with strict_pillow():
        for done, video in enumerate(videos, start=1):
            begin = len(store)
            try:
                for frame in video.frames(size, channels, stride, limit_pixels):
                    store.append(frame, video.name)
                count = len(store) - begin
                if count < frames:
                    strided = f" at stride {stride}" if stride > 1 else ""
                    raise BadImage(f"too short: {count} frames{strided}, a clip has {frames}")
            except (BadImage, OSError) as bad:
                store.truncate(begin)
                skipped.append((video.name, reason_of(bad)))
            else:
                begins = range(begin, begin + count - frames + 1, hop)
                store.truncate(begins[-1] + frames)
                starts += begins
                owners += [len(used)] * len(begins)
                used.append(video)
            if progress is not None:
                progress(done, len(videos))
    skipped.sort(key=lambda item: natural_key(item[0]))
    if not used:
        raise nothing_usable(path, skipped, ignored, "video")
    classes = sorted({label_of[video.name] for video in used if label_of}, key=natural_key)
    labels = None
    if len(classes) > 1:
        labels = torch.tensor([classes.index(label_of[used[owner].name]) for owner in owners])
    rates = [each.rate for video in used for each in video.opened]
    return ClipSet(
        source=str(path),
        frames=frames,
        pixels=store.finish(),
        starts=torch.tensor(starts),
        videos=torch.tensor(owners),
        names=[video.name for video in used],
        file_sizes=[video.size for video in used],
        sums=_sums(used),
        labels=labels,
        classes=classes if labels is not None else [],
        skipped=skipped,
        ignored=ignored,
        rate=float(median(rates)) / stride if rates else None,
    )


def _entry(path: Path) -> Entry:
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
    return Entry(tidy(path.name), size, partial(open_regular, path))


def _sums(videos: Sequence[_Video]) -> list[int]:
    """A checksum of the contents of each video."""
    entries = [entry for video in videos for entry in video.entries]
    sums = iter(identity.checksums(len(entries), entries.__getitem__, [entry.size for entry in entries]))
    of_videos = [[next(sums) for _ in video.entries] for video in videos]
    return [each[0] if len(each) == 1 else identity.checksum(str(each).encode()) for each in of_videos]


def _videos(listing: Listing, path: Path) -> tuple[list[_Video], list[tuple[str, str]]]:
    """The videos of a source in natural order, each file and each folder of frames; (folder, reason) of what is none.

    Pictures in a folder with video files are their covers, not frames; so are pictures that are named as a video is.
    """
    videos: list[_Video] = []
    folders: dict[str, list[Entry]] = {}
    for entry in listing.entries:
        if Path(entry.name).suffix.lower() in VIDEO_SUFFIXES or _is_animation(entry):
            opened: list[Video] = []
            videos.append(_Video(entry.name, [entry], partial(_read_file, entry.open, opened), opened))
        else:
            folders.setdefault(entry.name.rpartition("/")[0], []).append(entry)
    busy = {video.name.rpartition("/")[0] for video in videos}
    stems = {PurePosixPath(video.name).stem for video in videos}
    beside: list[tuple[str, str]] = []
    for folder, pictures in folders.items():
        frames = [] if folder in busy else [each for each in pictures if not stems & _stems(each.name)]
        if len(frames) < len(pictures):
            count = len(pictures) - len(frames)
            beside.append((folder or path.name, f"pictures beside videos, no frames of one: {count:,}"))
        if frames:
            videos.append(_Video(folder or path.name, frames, partial(read_folder, frames)))
    return sorted(videos, key=lambda video: natural_key(video.name)), beside


def _stems(name: str) -> set[str]:
    """What a video is called whose thumbnail this is: "a" for a.jpg and for a.mp4.jpg."""
    stem = PurePosixPath(name).stem
    return {stem, PurePosixPath(stem).stem} if PurePosixPath(stem).suffix.lower() in VIDEO_SUFFIXES else {stem}


def _is_animation(entry: Entry) -> bool:
    if Path(entry.name).suffix.lower() not in _MAY_MOVE:
        return False
    try:
        with entry.open() as file:
            return is_animation(file)
    except (OSError, BadImage, UserError):  # what is wrong with it is said when it is read
        return False


def _read_file(
    opener: Callable[[], IO[bytes]],
    opened: list[Video],
    size: int | None,
    channels: int,
    stride: int,
    limit_pixels: int,
) -> Iterator[np.ndarray]:
    with opener() as file:
        yield from read_video(file, size, channels, stride, limit_pixels, opened)


class _Store:
    """A growing uint8 array (T, C, H, W): in memory up to the budget, above it in a temporary file."""

    def __init__(self) -> None:
        self.memory = bytearray()
        self.file: IO[bytes] | None = None
        self.bytes = 0
        self.shape: tuple[int, ...] = ()
        self.first = ""

    def __len__(self) -> int:
        return self.bytes // (int(np.prod(self.shape)) or 1)

    def append(self, frame: np.ndarray, name: str) -> None:
        """Add a frame (C, H, W) of the video `name`. Raises UserError if it differs in size from the first."""
        if not self.bytes:
            self.shape, self.first = frame.shape, name
        if frame.shape != self.shape:
            sizes = f"{self.first} gives {self.shape[1]} pixels a side, {name} {frame.shape[1]}"
            raise UserError(f"the videos are not all one size ({sizes}): choose one with --size")
        try:
            if self.file is None and self.bytes + frame.nbytes > images.MEMORY_BUDGET:
                self.file = tempfile.TemporaryFile()  # noqa: SIM115  (it goes with the array that maps it)
                self.file.write(self.memory)
                self.memory = bytearray()
            if self.file is None:
                self.memory += frame.tobytes()
            else:
                self.file.write(frame.tobytes())
        except OSError as error:
            raise RunError(
                f"the frames fill {tempfile.gettempdir()} ({error.strerror or error}): choose a smaller --size, a "
                "larger stride, or set TMPDIR to a larger disk"
            ) from error
        self.bytes += frame.nbytes

    def truncate(self, frames: int) -> None:
        self.bytes = frames * int(np.prod(self.shape)) if frames else 0
        if self.file is None:
            del self.memory[self.bytes :]
        else:
            self.file.seek(self.bytes)
            self.file.truncate()

    def finish(self) -> Tensor:
        shape = (len(self), *self.shape)
        if self.file is None:
            return torch.frombuffer(self.memory, dtype=torch.uint8).view(shape)
        self.file.flush()
        with self.file:
            return torch.from_numpy(np.memmap(self.file, dtype=np.uint8, mode="r+", shape=shape))
