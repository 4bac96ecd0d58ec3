"""Tracks of faces: detections linked from frame to frame, short gaps filled, jitter smoothed."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Seen", "Track", "by_frame", "link", "smooth"]

_REACH = 0.5  # of a face's box: a face that moves further in one frame is another one, or in another shot
_STAY = 1.3  # ratio of sizes: another face must be larger by this to become the largest
# Standard deviation, in frames, of the weights of the local line through a track's landmarks.
_WIDTH = 1.5
_NEIGHBOURS = 4  # frames on each side that the line is fitted to
_FLOOR = 1e-6  # least weight: across a long gap the line goes through the landmarks on its two sides


@dataclass(frozen=True)
class Seen:
    """A detected face.

    source: the number of the source that replaces it. side: of its box, in pixels. points: its five landmarks as x, y,
    x, y, ... in pixels.
    """

    source: int
    side: float
    points: tuple[float, ...]

    @property
    def centre(self) -> tuple[float, float]:
        return sum(self.points[0::2]) / 5, sum(self.points[1::2]) / 5


@dataclass(eq=False)
class Track:
    """One face through consecutive frames, in compact arrays: a long video has a row of landmarks for each frame."""

    number: int
    source: int
    frames: array[int] = field(default_factory=lambda: array("l"))
    rows: array[float] = field(default_factory=lambda: array("f"))
    side: float = 0.0
    centre: tuple[float, float] = (0.0, 0.0)
    points: np.ndarray = field(default_factory=lambda: np.empty((0, 5, 2)))

    @property
    def first(self) -> int:
        return self.frames[0]

    @property
    def last(self) -> int:
        return self.frames[-1]

    def add(self, frame: int, seen: Seen) -> None:
        self.frames.append(frame)
        self.rows.extend(seen.points)
        self.side, self.centre = seen.side, seen.centre

    def finish(self) -> None:
        """Smooth the landmarks and fill the gaps: float32 (last - first + 1, 5, 2)."""
        rows = np.frombuffer(self.rows, np.float32).reshape(-1, 10)
        filled = smooth(np.frombuffer(self.frames, np.dtype("l")), rows)
        self.points, self.rows = filled.reshape(-1, 5, 2), array("f")


def smooth(frames: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Smooth and interpolate by a local line (Cleveland, "Robust Locally Weighted Regression", 1979).

    Around each frame a line is fitted to its neighbours, with Gaussian weights: even motion is not delayed, and gaps
    are bridged.

    Args:
        frames: int (N,), increasing: the frames with values.
        rows: (N, D), the values.

    Returns:
        float32 (F, D): the values at every frame from the first to the last.
    """
    first, last = int(frames[0]), int(frames[-1])
    out = np.empty((last - first + 1, rows.shape[1]), np.float32)
    for at in range(first, last + 1):
        low, high = np.searchsorted(frames, (at - _NEIGHBOURS, at + _NEIGHBOURS + 1))
        # across a gap that is wider than the window, the rows on its two sides
        low, high = (
            min(low, max(np.searchsorted(frames, at, "right") - 1, 0)),
            max(high, np.searchsorted(frames, at) + 1),
        )
        x = (frames[low:high] - at).astype(np.float64)
        y = rows[low:high].astype(np.float64)
        w = np.exp(-0.5 * (x / _WIDTH) ** 2) + _FLOOR
        w /= w.sum()
        mean_x, mean_y = w @ x, w @ y
        spread = w @ (x - mean_x) ** 2
        slope = (w * (x - mean_x)) @ y / spread if spread > 1e-9 else np.zeros_like(mean_y)
        out[at - first] = mean_y - slope * mean_x
    return out


def link(frames: Iterable[Sequence[Seen]], gap: int, largest: bool = False) -> list[Track]:
    """Link the faces of consecutive frames into tracks.

    A track ends if its face is missing in more than `gap` frames, or jumps.

    Args:
        frames: the faces of each frame.
        gap: frames.
        largest: of each frame take the largest face alone; the same one as before unless another is a good deal larger.

    Returns:
        The tracks, smoothed, in order of their first frame.
    """
    done: list[Track] = []
    open_: list[Track] = []
    count = 0
    for frame, seen in enumerate(frames):
        done += [track for track in open_ if frame - track.last > gap + 1]
        open_ = [track for track in open_ if frame - track.last <= gap + 1]
        faces = list(seen)
        if largest and len(faces) > 1:
            faces = [_largest(faces, open_)]
        pairs = sorted(
            (math.dist(track.centre, face.centre), t, f)
            for t, track in enumerate(open_)
            for f, face in enumerate(faces)
            if track.source == face.source
            and math.dist(track.centre, face.centre)
            < _REACH * max(track.side, face.side) * math.sqrt(frame - track.last)
        )
        taken: dict[int, int] = {}
        for _, t, f in pairs:
            if t not in taken.values() and f not in taken:
                taken[f] = t
        if largest and taken:  # the other tracks end here
            done += [track for t, track in enumerate(open_) if t not in taken.values()]
        for f, face in enumerate(faces):
            if f in taken:
                open_[taken[f]].add(frame, face)
            else:
                track = Track(count, face.source)
                track.add(frame, face)
                open_.append(track)
                count += 1
        if largest and taken:
            open_ = [track for track in open_ if track.last == frame]
    tracks = sorted(done + open_, key=lambda track: (track.first, track.number))
    for track in tracks:
        track.finish()
    return tracks


def by_frame(tracks: Sequence[Track], start: int, stop: int) -> Iterator[tuple[int, list[Track]]]:
    """Each frame from `start` to `stop` - 1 with its tracks. `tracks` is in order of first frames."""
    waiting = iter(tracks)
    coming = next(waiting, None)
    active: list[Track] = []
    for frame in range(start, stop):
        while coming is not None and coming.first <= frame:
            active.append(coming)
            coming = next(waiting, None)
        active = [track for track in active if track.last >= frame]
        yield frame, list(active)


def _largest(faces: list[Seen], open_: list[Track]) -> Seen:
    top = max(faces, key=lambda face: face.side)
    for track in open_:
        near = min(faces, key=lambda face: math.dist(face.centre, track.centre))
        if math.dist(near.centre, track.centre) < _REACH * track.side and top.side < _STAY * near.side:
            return near
    return top
