"""Tracks of faces: detections linked from frame to frame, short gaps filled, jitter smoothed."""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Seen", "Track", "by_frame", "fading", "hold", "identify", "link", "smooth"]

_REACH = 0.5  # of a face's box: a face that moves further in one frame is another one, or in another shot
_STAY = 1.3  # ratio of sizes: another face must be larger by this to become the largest
# Standard deviation, in frames, of the weights of the local line through a track's landmarks.
_WIDTH = 1.5
_NEIGHBOURS = 4  # frames on each side that the line is fitted to
_FLOOR = 1e-6  # least weight: across a long gap the line goes through the landmarks on its two sides


@dataclass(frozen=True)
class Seen:
    """A detected face.

    source: the number of the source that replaces it, -1 while it is not known. side: of its box, in pixels. points:
    its five landmarks as x, y, x, y, ... in pixels. distances: from each reference, if it was compared.
    """

    source: int
    side: float
    points: tuple[float, ...]
    distances: tuple[float, ...] = ()

    @property
    def centre(self) -> tuple[float, float]:
        return sum(self.points[0::2]) / 5, sum(self.points[1::2]) / 5


@dataclass(eq=False)
class Track:
    """One face through consecutive frames, in compact arrays: a long video has a row of landmarks for each frame.

    before, after: frames that it is held for beyond the first and the last one, fading.
    """

    number: int
    source: int
    frames: array[int] = field(default_factory=lambda: array("l"))
    rows: array[float] = field(default_factory=lambda: array("f"))
    side: float = 0.0
    centre: tuple[float, float] = (0.0, 0.0)
    points: np.ndarray = field(default_factory=lambda: np.empty((0, 5, 2)))
    distances: list[tuple[float, ...]] = field(default_factory=list)
    before: int = 0
    after: int = 0

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
        if seen.distances:
            self.distances.append(seen.distances)

    @property
    def filled(self) -> int:
        """Frames between the first and the last one in which the face was not seen."""
        return self.last - self.first + 1 - len(self.frames)

    def at(self, frame: int) -> tuple[np.ndarray, float]:
        """The landmarks (5, 2) in a frame, and the share of the swap there: below 1 where the face is only held."""
        beyond = max(self.first - frame, frame - self.last, 0)
        if not beyond:
            return self.points[frame - self.first], 1.0
        # it moves on as it did over the last frames
        ends = self.points[:_NEIGHBOURS] if frame < self.first else self.points[::-1][:_NEIGHBOURS]
        speed = (ends[0] - ends[-1]) / max(len(ends) - 1, 1)
        held = self.before if frame < self.first else self.after
        return ends[0] + beyond * speed, 1 - beyond / (held + 1)

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


def link(
    frames: Iterable[Sequence[Seen]],
    gap: int,
    largest: bool = False,
    cuts: Collection[int] = (),
    distance: float = math.inf,
) -> list[Track]:
    """Link the faces of consecutive frames into tracks.

    A track ends if its face is missing in more than `gap` frames, or jumps, or another shot begins.

    Args:
        frames: the faces of each frame.
        gap: frames.
        largest: of each frame take the largest face alone; the same one as before unless another is a good deal larger.
        cuts: the frames that begin another shot.
        distance: a face that is nearer than this to another reference than the track's is another person's.

    Returns:
        The tracks, smoothed, in order of their first frame.
    """
    done: list[Track] = []
    open_: list[Track] = []
    count = 0
    for frame, seen in enumerate(frames):
        done += [track for track in open_ if frame - track.last > gap + 1]
        open_ = [track for track in open_ if frame - track.last <= gap + 1]
        if frame in cuts:
            done, open_ = done + open_, []
        faces = list(seen)
        if largest and len(faces) > 1:
            faces = [_largest(faces, open_)]
        pairs = sorted(
            (math.dist(track.centre, face.centre), t, f)
            for t, track in enumerate(open_)
            for f, face in enumerate(faces)
            if track.source == face.source
            and not _differ(track, face, distance)
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


def identify(tracks: Sequence[Track], distance: float) -> list[Track]:
    """The tracks of people who are replaced, each with the number of its reference.

    A track is of the reference whose median distance from its faces is least, if that is below `distance`. In no frame
    two tracks have one reference: the nearer one has it.
    """
    pairs = []
    for track in tracks:
        for reference, values in enumerate(zip(*track.distances, strict=True)):
            pairs.append((sorted(values)[len(values) // 2], track.number, reference, track))
    kept: list[Track] = []
    for value, _, reference, track in sorted(pairs, key=lambda pair: pair[:3]):
        rivals = (other for other in kept if other.source == reference)
        apart = all(other.last < track.first or track.last < other.first for other in rivals)
        if value < distance and track not in kept and apart:
            track.source = reference
            kept.append(track)
    return sorted(kept, key=lambda track: (track.first, track.number))


def hold(tracks: Sequence[Track], fade: int, frames: int, cuts: Collection[int]) -> None:
    """Hold each track for up to `fade` frames beyond its ends, but not into another shot or another of its source."""
    for track in tracks:
        others = [each for each in tracks if each is not track and each.source == track.source]

        def free(frame: int, others: list[Track] = others) -> bool:
            return 0 <= frame < frames and not any(each.first <= frame <= each.last for each in others)

        while track.before < fade and free(track.first - track.before - 1):
            if track.first - track.before in cuts:
                break
            track.before += 1
        while track.after < fade and free(track.last + track.after + 1):
            if track.last + track.after + 1 in cuts:
                break
            track.after += 1


def fading(turned: Iterable[bool], fade: int, level: int | None = None) -> list[int]:
    """The levels of a swap in consecutive frames, from 0, not shown, to `fade` + 1, shown whole.

    A level goes down by 1 in a frame in which the face is turned too far, and up by 1 in others.

    Args:
        turned: whether the face is, in each frame.
        fade: frames between whole and none.
        level: in the frame before; None at the beginning of a track, which has no fade.
    """
    out: list[int] = []
    for too_far in turned:
        if level is None:
            level = 0 if too_far else fade + 1
        level = max(level - 1, 0) if too_far else min(level + 1, fade + 1)
        out.append(level)
    return out


def by_frame(tracks: Sequence[Track], start: int, stop: int) -> Iterator[tuple[int, list[Track]]]:
    """Each frame from `start` to `stop` - 1 with its tracks, held ones too."""
    tracks = sorted(tracks, key=lambda track: (track.first - track.before, track.number))
    waiting = iter(tracks)
    coming = next(waiting, None)
    active: list[Track] = []
    for frame in range(start, stop):
        while coming is not None and coming.first - coming.before <= frame:
            active.append(coming)
            coming = next(waiting, None)
        active = [track for track in active if track.last + track.after >= frame]
        yield frame, list(active)


def _differ(track: Track, face: Seen, distance: float) -> bool:
    """Whether track and face are both surely of a reference, and not of the same."""
    if not (track.distances and face.distances):
        return False
    before, now = track.distances[-1], face.distances
    one, other = (min(range(len(each)), key=each.__getitem__) for each in (before, now))
    return one != other and before[one] < distance and now[other] < distance


def _largest(faces: list[Seen], open_: list[Track]) -> Seen:
    top = max(faces, key=lambda face: face.side)
    for track in open_:
        near = min(faces, key=lambda face: math.dist(face.centre, track.centre))
        if math.dist(near.centre, track.centre) < _REACH * track.side and top.side < _STAY * near.side:
            return near
    return top
