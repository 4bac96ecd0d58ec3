"""Clips from the videos of a folder or archive, decoded once; or from a bundled source."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from ornstein.data import identity, sets
from ornstein.data.classes import group
from ornstein.data.clip_sources import SourceVideo, file_entry, find_videos
from ornstein.data.clips import ClipSet
from ornstein.data.decode import LIMIT_PIXELS, BadImage, check_form, strict_pillow
from ornstein.data.entry import IMAGE_SUFFIXES, Listing, nothing_usable, reason_of
from ornstein.data.frame_store import FrameStore
from ornstein.data.framing import Crop, Framing, Size, framing
from ornstein.data.images import Progress
from ornstein.data.motion import MOTIONS, MotionClips
from ornstein.data.names import natural_key
from ornstein.data.sources import open_source
from ornstein.data.video_read import VIDEO_SUFFIXES
from ornstein.errors import UserError
from ornstein.settings import extent_text

__all__ = ["open_clips"]

_NO_LIMIT = sys.maxsize  # of a video file's bytes: it is never in memory as a whole


def open_clips(
    path: str | Path,
    frames: int,
    size: Size = None,
    channels: int | None = None,
    *,
    stride: int = 1,
    hop: int | None = None,
    crop: Crop = "centre",
    limit_pixels: int = LIMIT_PIXELS,
    progress: Progress = None,
) -> ClipSet | MotionClips:
    """Open clips of `frames` frames: a folder, a .zip archive (read in place), a video file, or a bundled source.

    A video is a file (mp4, mov, webm, mkv, avi, mpg, ts, flv, wmv, 3gp and their kin), an animation (GIF, WebP, PNG,
    AVIF), or a folder of images of one size in natural order. Images in a folder with videos are skipped, and so are
    folders of images that are named as videos are: thumbnails. If all videos lie in sub-folders, and in several, the
    first folder on the path is the class. Each frame is turned upright, and its centre, of the aspect ratio of `size`,
    is resized. Frames are decoded as a stream; above 2 GB they go to a temporary file.

    The bundled sources are "moving-digits", "bouncing-balls" and "drifting-textures", see `MotionClips`. A folder of
    such a name is given as "./moving-digits".

    Args:
        path: the source.
        frames: of a clip.
        size: pixels a side, or (height, width); None keeps the size that all videos have (32 for a bundled source).
        channels: 3 (RGB) or 1 (luma); None: 3, and 1 for a bundled source.
        stride: every `stride`-th frame of a video is taken.
        hop: a clip begins every `hop` of those; None: where the last one ended.
        crop: "centre", or "none" for whole frames, resized in both directions.
        limit_pixels: the most pixels of a frame.
        progress: called as progress(done, total) after each video.

    Returns:
        The clips. Videos that cannot be used, among them those shorter than a clip, are listed in `skipped`.

    Raises:
        UserError: there is no such source, nothing usable in it, the sizes differ and `size` is None, or an argument is
            out of range.
        RunError: the disk has no room for the temporary file.
    """
    if frames < 1 or stride < 1 or (hop is not None and hop < 1):
        raise UserError(f"frames, stride and hop must be at least 1, not {frames}, {stride} and {hop}")
    check_form(size, channels)
    frame = framing(size, crop)
    if str(path) in MOTIONS and (isinstance(path, str) or not path.exists()):
        if stride != 1 or hop is not None:
            raise UserError(f"{path} is generated clip by clip: stride and hop are for videos")
        height, width = frame.size or (32, 32)
        if height != width:
            raise UserError(f"{path} is generated in squares: --size {height}, not {extent_text((height, width))}")
        return MotionClips(str(path), frames, height, 1 if channels is None else channels)
    if channels not in (None, 1, 3):
        raise UserError(f"the channels of clips must be 1 (grey) or 3 (RGB), not {channels}")
    cut = _Cut(frames, frame, channels or 3, stride, hop or frames, limit_pixels)
    file = Path(path)
    if file.suffix.lower() in VIDEO_SUFFIXES and file.exists() and not file.is_dir():
        return _cut(path, Listing([file_entry(file)]), cut, progress)
    with open_source(path, VIDEO_SUFFIXES | IMAGE_SUFFIXES, _NO_LIMIT, by_folder=False) as listing:
        return _cut(path, listing, cut, progress)


@dataclass(frozen=True)
class _Cut:
    """How clips are cut: frames, in frames; hop, in strides; the size and channels of each frame."""

    frames: int
    size: Framing
    channels: int
    stride: int
    hop: int
    limit_pixels: int


def _cut(path: str | Path, listing: Listing, cut: _Cut, progress: Progress) -> ClipSet:
    """The clips of all videos of a source."""
    videos, labels, skipped, ignored = _labelled(path, listing)
    store = FrameStore()
    used: list[int] = []
    starts: list[int] = []
    owners: list[int] = []
    with strict_pillow():
        for i, video in enumerate(videos):
            try:
                begins = _decode(video, cut, store)
            except (BadImage, OSError) as bad:
                skipped.append((video.name, reason_of(bad)))
            else:
                starts += begins
                owners += [len(used)] * len(begins)
                used.append(i)
            if progress is not None:
                progress(i + 1, len(videos))
    skipped.sort(key=lambda item: natural_key(item[0]))
    if not used:
        raise nothing_usable(path, skipped, ignored, "video")
    classes = sorted({labels[i] for i in used if labels}, key=natural_key)
    videos = [videos[i] for i in used]
    rates = [each.rate for video in videos for each in video.opened]
    return ClipSet(
        source=str(path),
        frames=cut.frames,
        pixels=store.finish(),
        starts=torch.tensor(starts),
        videos=torch.tensor(owners),
        names=[video.name for video in videos],
        file_sizes=[video.size for video in videos],
        sums=_sums(videos),
        labels=sets.number_labels([labels[used[owner]] for owner in owners], classes) if len(classes) > 1 else None,
        classes=classes if len(classes) > 1 else [],
        skipped=skipped,
        ignored=ignored,
        rate=float(median(rates)) / cut.stride if rates else None,
    )


def _decode(video: SourceVideo, cut: _Cut, store: FrameStore) -> range:
    """Add the frames of a video to the store; where its clips begin. If it raises, the store is as it was."""
    begin = len(store)
    try:
        for frame in video.frames(cut.size, cut.channels, cut.stride, cut.limit_pixels):
            store.append(frame, video.name)
        count = len(store) - begin
        if count < cut.frames:
            strided = f" at stride {cut.stride}" if cut.stride > 1 else ""
            raise BadImage(f"too short: {count} frames{strided}, a clip has {cut.frames}")
    except (BadImage, OSError):
        store.truncate(begin)
        raise
    begins = range(begin, begin + count - cut.frames + 1, cut.hop)
    store.truncate(begins[-1] + cut.frames)
    return begins


def _labelled(
    path: str | Path, listing: Listing
) -> tuple[list[SourceVideo], list[str], list[tuple[str, str]], Counter[str]]:
    """The videos of a source that belong to the data and their classes, if any; what is skipped and ignored."""
    folder = Path(path).is_dir()
    videos, beside = find_videos(listing, Path(path))
    names = [video.name.split("/", 1)[-1] if listing.prefixed else video.name for video in videos]
    groups = group(names, not folder or listing.prefixed, [video.entries[0].label for video in videos])
    skipped = [*listing.skipped, *beside, *((videos[i].name, why) for i, why in groups.skipped.items())]
    kept = [i for i in range(len(videos)) if i not in groups.skipped and i not in groups.ignored]
    labels = [] if groups.labels is None else [groups.labels[i] for i in kept]
    return [videos[i] for i in kept], labels, skipped, listing.ignored + Counter(groups.ignored.values())


def _sums(videos: Sequence[SourceVideo]) -> list[int]:
    """A checksum of the contents of each video."""
    entries = [entry for video in videos for entry in video.entries]
    sizes = [entry.size for entry in entries]
    sums = iter(identity.checksums(len(entries), entries.__getitem__, sizes).tolist())
    of_videos = [[next(sums) for _ in video.entries] for video in videos]
    return [each[0] if len(each) == 1 else identity.checksum(str(each).encode()) for each in of_videos]
