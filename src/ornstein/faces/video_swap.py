"""A video in, a video out: found, tracked, swapped in segments that outlive a kill, with its sound as it was.

Beside the output lies a folder `OUT.swap` while the work goes on: `plan.json`, what is swapped and how;
`faces-00000.json`, where the faces are in the frames of a segment; `segment-00000.mp4`, its frames swapped, with
`segment-00000.safetensors`, what the next one begins from. It goes when the output is there. Memory does not grow with
the video but for the landmarks, 44 bytes for each face of a frame.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ornstein.errors import RunError, UserError
from ornstein.faces import film, provenance
from ornstein.faces.detect import Face
from ornstein.faces.film import Encoder, Film
from ornstein.faces.provenance.label import labelled
from ornstein.faces.swap import LARGEST, Aligned, Choice, SwapModel, Swapper
from ornstein.faces.swap.noise import FaceNoise
from ornstein.faces.swap.photo import Order, check_output
from ornstein.faces.tracks import Seen, Track, by_frame, link
from ornstein.store import atomic_save_tensors, atomic_write, read_json, remove_partial, write_error

Tell = Callable[[str, int, int | None], object]

_PLAN, _FOUND = "plan.json", "found.json"


@dataclass(frozen=True)
class VideoSettings:
    """How the frames of a video hang together.

    Args:
        noise: "shared", "independent" or "ar1:RHO", over the frames of a face.
        gap: a face that is not found in up to so many frames is put where it must have been.
        every: faces are looked for in each so-manyth frame only.
        segment: frames that are lost at most when the work is killed.
        batch: frames in memory at a time.

    Raises:
        UserError: a value out of range.
    """

    noise: str = "shared"
    gap: int = 5
    every: int = 1
    segment: int = 50
    batch: int = 8

    def __post_init__(self) -> None:
        FaceNoise(self.noise, 0)
        for name, low in (("gap", 0), ("every", 1), ("segment", 1), ("batch", 1)):
            if getattr(self, name) < low:
                raise UserError(f"{name} must be at least {low}, not {getattr(self, name)}")


@dataclass(frozen=True)
class VideoReport:
    """What was done: frames in all, and the stretches (first, last) of frames in which no face was swapped."""

    frames: int
    without: list[tuple[int, int]]

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

    `resume` goes on after the last segment that was finished, and the frames are the same as in one go.
    `tell(stage, frames done, frames in all or None)` is called as it goes. Raises UserError where a file cannot be
    used, no frame has a face, a protected face is seen, or an unfinished swap is not this one; RunError where the
    output cannot be written.
    """
    settings = settings or VideoSettings()
    check_output(order.out, film.SUFFIXES, order.target)
    source = Film.open(order.target)
    film.check_sound(source, order.out)
    chosen = asdict(swapper.settings) | {"video": asdict(settings), "faces": order.described(choice)}
    statement = order.statement(model, chosen)
    work = _Work(order.out.with_name(order.out.name + ".swap"), settings.segment)
    work.begin({k: v for k, v in statement.items() if k not in ("time", "consent")}, resume)
    try:
        _find(swapper, choice, source, work, settings, tell)
        tracks = link(work.seen(), max(settings.gap, settings.every - 1), choice.every == LARGEST)
        if not tracks:
            raise UserError(f"no face to swap found in {order.target}, in none of its {work.frames} frames")
    except UserError:
        work.remove()  # there is nothing to go on with
        raise
    _paint(swapper, choice, source, work, tracks, settings, tell)
    tell("writing", work.frames, work.frames)
    joined = work.folder / f"joined{order.out.suffix}"
    film.join([work.segment(k) for k in range(work.segments)], work.times(), source, joined)
    signed = order.out.with_name(f".{order.out.name}.partial")
    with joined.open("rb") as plain, signed.open("w+b") as out:
        provenance.sign(plain, out, order.out.suffix.lower(), order.out.name, order.target, statement)
    signed.replace(order.out)
    report = VideoReport(work.frames, _without(tracks, work.frames))
    order.record(statement, frames=report.frames, frames_without_a_face=report.without)
    work.remove()
    return report


class _Work:
    """The folder of an unfinished swap."""

    def __init__(self, folder: Path, length: int) -> None:
        self.folder, self.length = folder, length
        self.frames = 0

    @property
    def segments(self) -> int:
        return -(-self.frames // self.length)

    def begin(self, plan: dict[str, Any], resume: bool) -> None:
        plan = json.loads(json.dumps(plan))
        if self.folder.exists():
            if not resume:
                raise UserError(f"{self.folder} holds an unfinished swap: go on with --resume, or delete it")
            if (self.folder / _PLAN).exists() and read_json(self.folder / _PLAN) != plan:
                raise UserError(
                    f"{self.folder} holds an unfinished swap of other files or settings: repeat those, or delete it"
                )
            remove_partial(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.folder, error) from error
        atomic_write(self.folder / _PLAN, json.dumps(plan).encode())

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def segment(self, number: int) -> Path:
        return self.folder / f"segment-{number:05d}.mp4"

    def state(self, number: int) -> Path:
        return self.folder / f"segment-{number:05d}.safetensors"

    def faces(self, number: int) -> Path:
        return self.folder / f"faces-{number:05d}.json"

    def times(self) -> Iterator[int]:
        """The time of each frame, in ticks."""
        for number in range(self.segments):
            yield from read_json(self.faces(number))["times"]

    def seen(self) -> Iterator[list[Seen]]:
        """The faces of each frame."""
        for number in range(self.segments):
            for frame in read_json(self.faces(number))["seen"]:
                yield [Seen(who, side, tuple(points)) for who, side, points in frame]


def _find(swapper: Swapper, choice: Choice, source: Film, work: _Work, settings: VideoSettings, tell: Tell) -> None:
    """Where the faces are, segment by segment, into the work folder."""
    if (work.folder / _FOUND).exists():
        work.frames = read_json(work.folder / _FOUND)["frames"]
        return
    stored = itertools.takewhile(Path.exists, map(work.faces, itertools.count()))
    count = sum(len(read_json(path)["times"]) for path in stored)
    times: list[int] = []
    seen: list[list[Any]] = []

    def look(number: int, image: Tensor) -> list[Any]:
        faces = _look(swapper, choice, image, source.path, number)
        return [[face.source, face.side, face.points] for face in faces]

    def store() -> None:
        if times:
            body = json.dumps({"times": times, "seen": seen})
            atomic_write(work.faces((count - 1) // work.length), body.encode())
            times.clear()
            seen.clear()

    image = None
    for number, time, image in source.frames(count):
        if len(times) == work.length:
            store()
        times.append(time)
        seen.append(look(number, image) if number % settings.every == 0 else [])
        count = number + 1
        tell("finding faces", count, None)
    if image is not None and (count - 1) % settings.every:
        seen[-1] = look(count - 1, image)  # or the last frames would have no face behind them
    store()
    work.frames = count
    atomic_write(work.folder / _FOUND, json.dumps({"frames": count}).encode())


def _look(swapper: Swapper, choice: Choice, image: Tensor, path: Path, number: int) -> list[Seen]:
    faces = swapper.scanner(image)
    if not faces:
        return []
    who = [0] * len(faces)
    if choice.references is not None or swapper.protected is not None:
        embeddings = swapper.recogniser(image, faces)
        if choice.references is not None:
            who = choice.who(embeddings)
        if swapper.protected is not None:
            kept = torch.tensor([number >= 0 for number in who])
            swapper.protected.check(embeddings[kept], f"frame {number + 1} of {path}")
    return [
        Seen(source, round(face.side, 2), tuple(round(value, 3) for value in face.landmarks.flatten().tolist()))
        for source, face in zip(who, faces, strict=True)
        if source >= 0
    ]


def _paint(
    swapper: Swapper,
    choice: Choice,
    source: Film,
    work: _Work,
    tracks: list[Track],
    settings: VideoSettings,
    tell: Tell,
) -> None:
    """The segments that are not there yet."""
    done = next((k for k in range(work.segments) if not work.segment(k).exists()), work.segments)
    if done == work.segments:
        return
    start = done * work.length
    state = _load_state(work.state(done - 1)) if done else {}
    frames = source.frames(start)
    alive = by_frame(tracks, start, work.frames)
    noise = FaceNoise(settings.noise, swapper.settings.seed)
    tell("swapping", start, work.frames)
    for number in range(done, work.segments):
        length = min(work.length, work.frames - number * work.length)
        partial = work.folder / f".{work.segment(number).name}.partial"
        encoder = Encoder(partial, source.width, source.height, source.rate)
        for low in range(0, length, settings.batch):
            size = min(settings.batch, length - low)
            images = [image for _, _, image in itertools.islice(frames, size)]
            if len(images) < size:
                raise RunError(f"{source.path} has fewer frames than before: it was changed during the swap")
            there = list(itertools.islice(alive, size))
            for image in _swapped(swapper, choice, images, there, noise, state):
                encoder.write(labelled(image)[0] if swapper.settings.label else image)
            tell("swapping", number * work.length + low + size, work.frames)
        encoder.close()
        atomic_save_tensors(work.state(number), state, {})
        partial.replace(work.segment(number))  # last: it says that the segment is finished


def _swapped(
    swapper: Swapper,
    choice: Choice,
    images: list[Tensor],
    there: list[tuple[int, list[Track]]],
    noise: FaceNoise,
    state: dict[str, Tensor],
) -> list[Tensor]:
    """A few frames with their faces swapped. `state` is what each track's next frame begins from."""
    by_track: dict[int, tuple[Track, list[int]]] = {}
    for i, (_, tracks) in enumerate(there):
        for track in tracks:
            by_track.setdefault(track.number, (track, []))[1].append(i)
    faces: list[Aligned] = []
    places: list[int] = []
    sources: list[int] = []
    starts: list[Tensor] = []
    begun = dict(state)
    state.clear()
    for track, rows in by_track.values():
        frames = [there[i][0] for i in rows]
        z = noise(track.number, frames, swapper.model.size, begun.get(str(track.number)))
        state[str(track.number)] = z[-1].clone()
        for i, frame in zip(rows, frames, strict=True):
            points = torch.from_numpy(track.points[frame - track.first]).double()
            faces.append(swapper.aligned(images[i], Face(points, 1.0)))
            places.append(i)
            sources.append(track.source)
        starts.append(z)
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


def _load_state(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is damaged ({error}): delete the folder {path.parent} and begin anew") from None


def _without(tracks: list[Track], frames: int) -> list[tuple[int, int]]:
    """Stretches (first, last) of frames without a track."""
    out: list[tuple[int, int]] = []
    for frame, there in by_frame(tracks, 0, frames):
        if there:
            continue
        if out and out[-1][1] == frame - 1:
            out[-1] = (out[-1][0], frame)
        else:
            out.append((frame, frame))
    return out
