"""A video in, a video out: faces found, tracked, and swapped in segments that outlive a kill; the sound as it was.

The work lies in a folder `OUT.swap` until the output is complete: see `video_work`. Memory does not grow with the video
but for the landmarks, 44 bytes for each face of a frame.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.errors import RunError, UserError
from ornstein.faces import provenance
from ornstein.faces.detect import Face
from ornstein.faces.provenance import sidecar
from ornstein.faces.provenance.label import labelled
from ornstein.faces.settings import VideoSettings, parse_time
from ornstein.faces.shape import steadied
from ornstein.faces.swap import film
from ornstein.faces.swap.choose import LARGEST, Choice
from ornstein.faces.swap.film import Encoder, Film
from ornstein.faces.swap.look import Looker
from ornstein.faces.swap.noise import FaceNoise
from ornstein.faces.swap.photo import Order, beyond, check_output
from ornstein.faces.swap.swapper import Aligned, SwapModel, Swapper
from ornstein.faces.swap.tracks import Seen, Track, by_frame, fading, hold, identify, link
from ornstein.faces.swap.video_work import Work

__all__ = ["VideoReport", "VideoSettings", "frame_at", "opened", "resolved", "stated", "swap_video"]

_COMPARE = 10  # frames between two comparisons of one face with the references
_TURNED = "turned"  # in the state of a segment: the faces of frames so far that were turned too far
_NEAR = 0.5  # of a face's box: what is further away than in the frame before is another face

Tell = Callable[[str, int, int | None], object]


@dataclass(frozen=True)
class VideoReport:
    """The result of a video swap.

    frames: their number. without: the stretches (first, last) of frames without a swapped face. notes: what of the
    video is not in the output as it was, for people. held: faces of frames in which they were not seen, between two in
    which they were; faded: those beyond. turned: faces of frames that were turned too far, and left. shots: between
    cuts. people: tracks of faces.
    """

    frames: int
    without: list[tuple[int, int]]
    notes: list[str] = field(default_factory=list)
    held: int = field(default=0, compare=False)
    faded: int = field(default=0, compare=False)
    turned: int = field(default=0, compare=False)
    shots: int = field(default=1, compare=False)
    people: int = field(default=0, compare=False)

    @property
    def frames_without(self) -> int:
        return sum(last - first + 1 for first, last in self.without)


def swap_video(
    swapper: Swapper,
    model: SwapModel,
    choice: Choice,
    order: Order,
    settings: VideoSettings | None = None,
    resume: bool = False,
    tell: Tell = lambda stage, done, total: None,
) -> VideoReport:
    """Swap the faces in the video `order.target` and write `order.out`, labelled and signed as a photo is.

    Args:
        swapper: the model, and what finds faces.
        model: what is stated about the model in the manifest.
        choice: which faces become whose.
        order: the files, and the consent.
        settings: of the video.
        resume: go on after the last segment that was finished; the frames are the same as in one go.
        tell: called as tell(stage, frames done, frames in all or None).

    Raises:
        UserError: a file cannot be used, no frame has a face, all are turned too far, a protected face is seen, or an
            unfinished swap is not this one.
        RunError: the output cannot be written.
    """
    settings = settings or VideoSettings()
    check_output(order.out, film.SUFFIXES, order.target)
    codec = film.check_codec(settings.codec, order.out)
    source = opened(order.target, settings)
    whom = choice.every, choice.order, choice.indices
    choice = resolved(swapper, choice, source)
    statement = order.statement(model, stated(swapper, order, order.described(*whom), settings))
    work = Work(order.out.with_name(order.out.name + ".swap"), settings.segment)
    work.begin({k: v for k, v in statement.items() if k not in ("time", "consent")}, resume)
    try:
        _find(swapper, choice, source, work, settings, tell)
        tracks = _tracks(choice, work, settings)
        if not tracks:
            raise UserError(f"no face to swap found in {order.target}, in none of its {work.frames} frames")
        _paint(swapper, choice, source, work, tracks, replace(settings, codec=codec), tell)
        turned = _turned(swapper, order, work, tracks)
    except UserError:
        work.remove()  # there is nothing to go on with
        raise
    tell("writing", work.frames, work.frames)
    notes = [*work.notes, *_finish(source, work, order, statement)]
    if turned:
        limit = swapper.settings.max_turn
        notes.append(
            f"faces of frames that are turned too far against the source's, and were left: {turned}; {beyond(limit)}"
        )
    report = VideoReport(
        work.frames,
        _without(tracks, work.frames),
        notes,
        held=sum(track.filled for track in tracks),
        faded=sum(track.before + track.after for track in tracks),
        turned=turned,
        shots=1 + len(work.cuts),
        people=len(tracks),
    )
    order.record(
        statement,
        frames=report.frames,
        frames_without_a_face=report.without,
        faces_held=report.held,
        faces_faded=report.faded,
        faces_turned=report.turned,
        notes=notes,
    )
    work.remove()
    return report


def stated(swapper: Swapper, order: Order, faces: Any, settings: VideoSettings) -> dict[str, Any]:
    """The settings of a swap of a video, for its statement. `faces`: see `Order.described`."""
    return asdict(swapper.settings) | {"video": asdict(settings), "faces": faces}


def frame_at(source: Film, text: str) -> tuple[int, Tensor]:
    """A frame of a film by its number from 1 on, or by a time with a colon or a point in it: its number from 0, pixels.

    Raises:
        UserError: it is neither, or the film has no such frame.
    """
    by_time = ":" in text or "." in text
    if not by_time and not (text.isdecimal() and int(text) > 0):
        raise UserError(f"--preview {text!r}: the number of a frame from 1 on, or a time such as 0:12")
    wanted = parse_time(text, "--preview") if by_time else int(text)
    last = 0
    for frame in source.shown():
        last = frame.number + 1
        if last == wanted if not by_time else frame.end * source.time_base > Fraction(wanted or 0):
            return frame.number, frame.pixels
    raise UserError(f"--preview {text}: {source.path} has {last} frames")


def opened(target: Path, settings: VideoSettings) -> Film:
    """The part of a video that the settings name. Raises UserError as `Film.open`."""
    return Film.open(target, parse_time(settings.begin, "--from"), parse_time(settings.end, "--to"))


def resolved(swapper: Swapper, choice: Choice, source: Film) -> Choice:
    """A choice by numbers as one by references: the faces of the first frame that has so many.

    Raises:
        UserError: no frame has so many faces.
    """
    if not choice.indices:
        return choice
    most, looker = 0, Looker(swapper.scanner, swapper.detector)
    for number, _, image in source.frames():
        faces = looker(image, fresh=number == 0)
        most = max(most, len(faces))
        picked = choice.picked(faces)
        if picked is not None:
            return choice.of_these(swapper.recogniser(image, picked))
    raise UserError(f"--index {max(choice.indices)}: no frame of {source.path} has more than {most} faces")


def _tracks(choice: Choice, work: Work, settings: VideoSettings) -> list[Track]:
    """The faces that are swapped, through the frames."""
    gap = max(settings.gap, settings.every - 1)
    tracks = link(work.seen(), gap, choice.every == LARGEST, set(work.cuts), choice.distance)
    if choice.references is not None:
        tracks = identify(tracks, choice.distance)
    hold(tracks, settings.fade, work.frames, set(work.cuts))
    return tracks


def _turned(swapper: Swapper, order: Order, work: Work, tracks: list[Track]) -> int:
    """How many faces of frames were turned too far. Raises UserError if none was swapped for it."""
    stored = work.state(work.segments - 1)
    turned = int(stored[_TURNED]) if _TURNED in stored else 0
    if turned == sum(track.last - track.first + 1 for track in tracks):
        limit = swapper.settings.max_turn
        raise UserError(
            f"{order.target}: in every frame the face is turned too far against the source's, {beyond(limit)}"
        )
    return turned


def _finish(source: Film, work: Work, order: Order, statement: dict[str, Any]) -> list[str]:
    """Put the segments together, sign them and name the file; what could not be copied of the source."""
    joined = work.folder / f"joined{order.out.suffix}"
    segments = [work.segment(k) for k in range(work.segments)]
    dropped = film.join(segments, work.times(), source, joined, work.end)
    signed = work.folder / f"signed{order.out.suffix}"
    signed.unlink(missing_ok=True)
    if order.out.suffix.lower() in sidecar.SIDECARS:
        sidecar.write(joined, order.out, statement)
        joined.replace(order.out)
        return dropped
    with joined.open("rb") as plain, signed.open("x+b") as out:
        provenance.sign(plain, out, order.out.suffix.lower(), order.out.name, order.target, statement)
    signed.replace(order.out)
    return dropped


def _find(swapper: Swapper, choice: Choice, source: Film, work: Work, settings: VideoSettings, tell: Tell) -> None:
    """Find the faces, segment by segment, into the work folder."""
    if work.found():
        return
    stored = itertools.takewhile(Path.exists, map(work.faces, itertools.count()))
    count = sum(len(work.stored_times(number)) for number, _ in enumerate(stored))
    times: list[int] = []
    seen: list[list[Any]] = []
    cuts: list[int] = []
    notes: list[str] = []
    compared: list[tuple[int, Face]] = []  # the faces of the frame before, and when they were last compared
    looker = Looker(swapper.scanner, swapper.detector)
    segment, frame = -1, None

    def look(number: int, image: Tensor) -> list[Any]:
        nonlocal segment
        # Each segment begins with a full look that forgets what was before: a swap that goes on finds the same faces.
        fresh = number // work.length != segment
        faces = looker(image, fresh)
        if looker.cut:
            cuts.append(number)
        if fresh or looker.cut:
            compared.clear()
        segment = number // work.length
        chosen = _chosen(swapper, choice, image, faces, (number, compared), f"frame {number + 1} of {source.path}")
        return [[face.source, face.side, face.points, face.distances] for face in chosen]

    def store() -> None:
        if times:
            work.store_faces((count - 1) // work.length, times, seen, cuts)
            times.clear()
            seen.clear()
            cuts.clear()

    for frame in source.shown(count, notes):
        if len(times) == work.length:
            store()
        times.append(frame.start)
        seen.append(look(frame.number, frame.pixels) if frame.number % settings.every == 0 else [])
        count = frame.number + 1
        tell("finding faces", count, None)
    if frame is not None and (count - 1) % settings.every:
        seen[-1] = look(count - 1, frame.pixels)  # otherwise the last frames would have no face after them
    store()
    if not count:
        raise UserError(f"{source.path} ends before {float(source.begin):g} s: there is nothing from --from on")
    work.finish_faces(count, None if frame is None else frame.end, notes)


def _chosen(
    swapper: Swapper,
    choice: Choice,
    image: Tensor,
    faces: list[Face],
    before: tuple[int, list[tuple[int, Face]]],
    name: str,
) -> list[Seen]:
    """A frame's faces. A face is compared with the references, and with the protected ones, when it is first seen and
    every `_COMPARE` frames; its track tells who it is in between.

    `before`: the number of the frame, and the faces of the one before with the frame in which each was last compared;
    the list is replaced by this frame's.

    Raises:
        UserError: one of them is protected.
    """
    number, compared = before
    last = [
        next((when for when, other in compared if math.dist(face.centre, other.centre) < _NEAR * face.side), None)
        for face in faces
    ]
    asked = choice.references is not None or swapper.protected is not None
    due = [i for i, when in enumerate(last) if asked and (when is None or number - when >= _COMPARE)]
    away: dict[int, tuple[float, ...]] = {}
    if due:
        embeddings = swapper.recogniser(image, [faces[i] for i in due])
        wanted = torch.ones(len(due), dtype=torch.bool)
        if choice.references is not None:
            distances = choice.distances(embeddings)
            away = {i: tuple(round(each, 4) for each in row) for i, row in zip(due, distances.tolist(), strict=True)}
            wanted = distances.amin(1) < choice.distance
        if swapper.protected is not None:
            swapper.protected.check(embeddings[wanted], name)
    compared[:] = [(number if i in due else last[i] or 0, face) for i, face in enumerate(faces)]
    return [
        Seen(
            -1 if choice.references is not None else 0,
            round(face.side, 2),
            tuple(round(value, 3) for value in face.landmarks.flatten().tolist()),
            away.get(i, ()),
        )
        for i, face in enumerate(faces)
    ]


def _paint(
    swapper: Swapper,
    choice: Choice,
    source: Film,
    work: Work,
    tracks: list[Track],
    settings: VideoSettings,
    tell: Tell,
) -> None:
    """Swap and encode the segments that are not there yet."""
    done = next((k for k in range(work.segments) if not work.segment(k).exists()), work.segments)
    if done == work.segments:
        return
    start = done * work.length
    state = work.state(done - 1) if done else {}
    frames = source.frames(start)
    alive = by_frame(tracks, start, work.frames)
    noise = FaceNoise(settings.noise, swapper.settings.seed)
    tell("swapping", start, work.frames)
    for number in range(done, work.segments):
        length = min(work.length, work.frames - number * work.length)
        partial = work.folder / f".{work.segment(number).name}.partial"
        coding = {"codec": settings.codec or "h264", "quality": settings.quality}
        encoder = Encoder(partial, source.width, source.height, source.rate, source.colour, **coding)
        for low in range(0, length, settings.batch):
            size = min(settings.batch, length - low)
            images = [image for _, _, image in itertools.islice(frames, size)]
            if len(images) < size:
                raise RunError(f"{source.path} has fewer frames than before: it was changed during the swap")
            there = list(itertools.islice(alive, size))
            for image in _swapped(swapper, choice, images, there, noise, state, settings.fade):
                encoder.write(labelled(image)[0] if swapper.settings.label else image)
            tell("swapping", number * work.length + low + size, work.frames)
        encoder.close()
        work.store_state(number, state)
        partial.replace(work.segment(number))  # last: it says that the segment is finished


def _swapped(
    swapper: Swapper,
    choice: Choice,
    images: list[Tensor],
    there: list[tuple[int, list[Track]]],
    noise: FaceNoise,
    state: dict[str, Tensor],
    fade: int,
) -> list[Tensor]:
    """A few frames with their faces swapped.

    `state`: the last noise of each track, the points of its shape and the level of `fading`, replaced by the new last
    ones; and the faces that were turned too far.
    """
    by_track: dict[int, tuple[Track, list[int]]] = {}
    for i, (_, tracks) in enumerate(there):
        for track in tracks:
            by_track.setdefault(track.number, (track, []))[1].append(i)
    faces: list[Aligned] = []
    places: list[int] = []
    sources: list[int] = []
    starts: list[Tensor] = []
    previous = dict(state)
    state.clear()
    state[_TURNED] = previous.get(_TURNED, torch.zeros(1, dtype=torch.int64)).clone()
    for track, rows in by_track.values():
        frames = [there[i][0] for i in rows]
        z = noise(track.number, frames, swapper.model.size, previous.get(str(track.number)))
        state[str(track.number)] = z[-1].clone()
        placed: list[Aligned] = []
        for i, frame in zip(rows, frames, strict=True):
            points, share = track.at(frame)
            placed.append(swapper.placed(images[i], Face(torch.from_numpy(points).double(), 1.0), share))
        shapes = [each.points for each in placed if each.points is not None]
        if shapes:
            steady = steadied(torch.stack(shapes), previous.get(f"{track.number}.points"), swapper.model.size)
            state[f"{track.number}.points"] = steady[-1].clone()
            placed = [replace(each, points=points) for each, points in zip(placed, steady, strict=True)]
        far = [swapper.turn(each, choice.sources[track.source]) > swapper.settings.max_turn for each in placed]
        state[_TURNED] += sum(
            track.first <= frame <= track.last for frame, turned in zip(frames, far, strict=True) if turned
        )
        before = previous.get(f"{track.number}.level")
        levels = fading(far, fade, None if before is None else int(before))
        state[f"{track.number}.level"] = torch.tensor([levels[-1]])
        for k, (each, level) in enumerate(zip(placed, levels, strict=True)):
            if level and each.pasted is not None:
                faces.append(replace(each, pasted=each.pasted * (level / (fade + 1))))
                places.append(rows[k])
                sources.append(track.source)
                starts.append(z[k : k + 1])
    if not faces:
        return images
    process = swapper.model.denoiser.process
    z = torch.cat(starts)
    start = process.prior(tuple(z.shape), t=1.0).sample(z)
    made = swapper.painted(faces, [choice.sources[number] for number in sources], start)
    out = list(images)
    for i, face, new in zip(places, faces, made, strict=True):
        out[i] = swapper.put_back(out[i], [face], [new])
    return out


def _without(tracks: list[Track], frames: int) -> list[tuple[int, int]]:
    """The stretches (first, last) of frames without a track."""
    out: list[tuple[int, int]] = []
    for frame, there in by_frame(tracks, 0, frames):
        if any(track.first <= frame <= track.last for track in there):
            continue
        if out and out[-1][1] == frame - 1:
            out[-1] = (out[-1][0], frame)
        else:
            out.append((frame, frame))
    return out
