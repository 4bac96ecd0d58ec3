"""The frames of one video, one at a time: a video file, an animation, or a folder of images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from ornstein.data import video_colour
from ornstein.data.animation import read_animation
from ornstein.data.containers import declared_end, missing_bytes, open_container, picture_stream, stated_size
from ornstein.data.decode import LIMIT_PIXELS, BadImage, check_side, decode_entry, fit, to_array
from ornstein.data.entry import MAX_FILE_BYTES, VIDEO_SUFFIXES, Entry
from ornstein.data.framing import Size
from ornstein.data.kinds import is_animation
from ornstein.data.video_colour import Colour, colour_of
from ornstein.extras import deferred

if TYPE_CHECKING:
    import av
    import av.error
    import av.filter
    from av.container import InputContainer
    from av.filter import Graph
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
else:
    av = deferred("av", "video", "a video")

__all__ = ["GIF", "VIDEO_SUFFIXES", "Shown", "Video", "open_video", "read_folder", "read_video"]

GIF = ".gif"
_ENOUGH = 0.9  # a stream of which less than this share is there was cut short
_BROADCAST = {"mpegts", "mpeg"}  # containers whose recordings end anywhere, in the middle of a frame
_RATE = Fraction(25)  # of a video that states none
_MILLISECOND = Fraction(1, 1000)


class Shown(NamedTuple):
    """A frame: when it is shown and for how long, in ticks; and its pixels, uint8 (H, W, 3), made when asked for."""

    start: int
    length: int
    picture: Callable[[], np.ndarray]


@dataclass
class Video:
    """A video that is being read.

    time_base: seconds a tick. rate: frames a second, on average. sound: the codecs of its sound. frames: each frame,
    once, in order; start times rise by a tick at least. colour: how its colours are coded, known once the first frame
    was read. notes: what is not in the pictures as it is in the file, for people; they grow while frames are read.
    """

    time_base: Fraction
    rate: Fraction
    sound: tuple[str, ...] = ()
    frames: Generator[Shown, None, None] = field(init=False)
    colour: Colour = video_colour.SDR
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)


@contextmanager
def open_video(file: IO[bytes], limit_pixels: int = LIMIT_PIXELS) -> Iterator[Video]:
    """Read the video in an open file.

    Raises:
        BadImage: with the reason, if it is no video, or damaged or cut short: the last two possibly after many frames,
            from `frames`.
    """
    if is_animation(file) or file.read(4) == b"GIF8":
        video = Video(_MILLISECOND, Fraction(10))
        video.frames = _animated(file, video, limit_pixels)
        yield video
        return
    try:
        missing = missing_bytes(file)  # before the demuxer reads: it relies on the file's position
        container = open_container(file)
    except av.error.FFmpegError as error:
        raise _bad(error) from None
    except Exception as error:  # an archive raises its own while it is read
        raise BadImage(f"cannot be read: {error or type(error).__name__}".replace("\n", " ")) from None
    with container:
        stream = picture_stream(container)
        stated_size(stream, limit_pixels)
        rate = Fraction(stream.average_rate or stream.guessed_rate or _RATE)
        codecs = [each.codec_context for each in container.streams.audio]
        sound = tuple("unknown" if codec is None else codec.name for codec in codecs)
        video = Video(Fraction(stream.time_base or 1 / rate), rate, sound)
        video.frames = _coded(container, stream, video, missing, limit_pixels)
        yield video


def _bad(error: av.error.FFmpegError) -> BadImage:
    return BadImage(f"not a video, or damaged: {error.strerror or type(error).__name__}")


def _animated(file: IO[bytes], video: Video, limit_pixels: int) -> Generator[Shown, None, None]:
    start = count = 0
    for array, length in read_animation(file, limit_pixels):
        video.colour = Colour(video_colour.default_matrix(array.shape[1], array.shape[0]))
        yield Shown(start, length, lambda array=array: array)
        start, count = start + length, count + 1
        video.rate = Fraction(1000 * count, start)


def _coded(
    container: InputContainer, stream: VideoStream, video: Video, missing: int, limit_pixels: int
) -> Generator[Shown, None, None]:
    """The frames of a container: with times that rise, deinterlaced, and checked for being all of them."""
    count, begin, end = 0, None, Fraction(0)
    try:
        with closing(_timed(container, stream, video, limit_pixels)) as frames:
            for frame in frames:
                begin = frame.start * video.time_base if begin is None else begin
                end = (frame.start + frame.length) * video.time_base
                yield frame
                count += 1
    except BadImage:
        if not missing:
            raise
    except av.error.FFmpegError as error:
        if not missing:
            raise _bad(error) from None
    except Exception as error:
        raise BadImage(f"cannot be read: {error or type(error).__name__}".replace("\n", " ")) from None
    length = float(end - (begin or 0))
    seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    # By number where the file was edited, by time where the rate varies, one of the two may fall short.
    if stream.frames and count < _ENOUGH * stream.frames and length < _ENOUGH * seconds:
        raise BadImage(f"cut short: {length:.1f} of {seconds:.1f} seconds can be read")
    if missing:
        raise BadImage(f"cut short: {missing:,} bytes are missing at its end")
    if count == 0:
        raise BadImage("not a single frame can be decoded")


def _timed(
    container: InputContainer, stream: VideoStream, video: Video, limit_pixels: int
) -> Generator[Shown, None, None]:
    """The frames with their times. One frame is held back: it is shown until the next one."""
    base = video.time_base
    usual = max(1, round(1 / (video.rate * base)))
    held: tuple[int, int, VideoFrame] | None = None
    aspect, place = Fraction(stream.sample_aspect_ratio or 1), (0, False)
    for frame in _deinterlaced(_decoded(container, stream, video, limit_pixels), video):
        if held is None:
            video.colour, place = colour_of(frame), _orientation(frame)
            _note_colours(frame, video)
        after = 0 if held is None else held[0] + held[1]
        start = frame.pts if frame.pts is not None else after
        if held is not None:
            start = max(start, held[0] + 1)
            yield Shown(held[0], start - held[0], _picture(held[2], video.colour, aspect, place))
        held = start, frame.duration or usual, frame
    if held is not None:
        length = held[1]
        end = declared_end(container, stream)
        if end is not None:  # Matroska states when the last frame ends, and not how long it is shown
            length = max(length, round(end / base) - held[0])
        yield Shown(held[0], length, _picture(held[2], video.colour, aspect, place))


def _decoded(container: InputContainer, stream: VideoStream, video: Video, limit_pixels: int) -> Iterator[VideoFrame]:
    decoder = _alpha_decoder(stream)
    broken = 0
    for count, frame in enumerate(decoder(container) if decoder else container.decode(stream), start=1):
        if broken or (frame.is_corrupt and container.format.name not in _BROADCAST):
            raise BadImage(f"damaged: frame {broken or count} cannot be decoded")
        if frame.is_corrupt:
            broken = count
            continue
        if frame.width * frame.height > limit_pixels:
            raise BadImage(f"{frame.width}x{frame.height} pixels: more than the limit of {limit_pixels:,}")
        yield frame
    if broken:
        video.note("its last frame is incomplete: left out")


def _alpha_decoder(stream: VideoStream) -> Callable[[InputContainer], Iterator[VideoFrame]] | None:
    """What decodes the transparency of a WebM beside its pictures; libav's own decoders leave it out."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return None

    def frames(container: InputContainer) -> Iterator[VideoFrame]:
        context: Any = av.CodecContext.create(name, "r")
        for packet in container.demux(stream):
            # the decoder that belongs to the stream is left out, and its end mark with it
            yield from context.decode(packet if packet.size else None)

    return frames


def _deinterlaced(frames: Iterator[VideoFrame], video: Video) -> Iterator[VideoFrame]:
    """The frames, those of them that are interlaced made whole (bwdif); as many as before, at the same times."""
    graph: Graph | None = None
    times: deque[tuple[int | None, int]] = deque()
    shape = None
    for frame in frames:
        if graph is None and frame.interlaced_frame:
            video.note("interlaced: deinterlaced (bwdif), as many frames as before")
            graph, shape = _bwdif(frame), (frame.width, frame.height, frame.format.name)
        if graph is None:
            yield frame
            continue
        if shape != (frame.width, frame.height, frame.format.name):
            raise BadImage("its frames change their size or format, and it is interlaced")
        times.append((frame.pts, frame.duration))
        graph.vpush(frame)
        yield from _pulled(graph, times)
    if graph is not None:
        graph.vpush(None)
        yield from _pulled(graph, times)


def _bwdif(frame: VideoFrame) -> Graph:
    graph = av.filter.Graph()
    # A frame's own times are put back afterwards: the filter's are of another base.
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or _MILLISECOND
    )
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph


def _pulled(graph: Graph, times: deque[tuple[int | None, int]]) -> Iterator[VideoFrame]:
    while True:
        try:
            frame = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        frame.pts, frame.duration = times.popleft()
        yield frame


def _picture(frame: VideoFrame, colour: Colour, aspect: Fraction, place: tuple[int, bool]) -> Callable[[], np.ndarray]:
    """The frame in RGB as it is to be seen: its pixels made square, turned and mirrored as the file states."""
    turns, mirrored = place

    def made() -> np.ndarray:
        width = max(1, round(frame.width * aspect)) if aspect != 1 else None
        array = video_colour.to_rgb(frame, colour, width)
        return np.ascontiguousarray(np.rot90(array[:, ::-1] if mirrored else array, turns))

    return made


def _orientation(frame: VideoFrame) -> tuple[int, bool]:
    """(quarter turns counterclockwise, whether it is mirrored before) of the frame's display matrix."""
    stated = video_colour.side_data(frame, "DISPLAYMATRIX")
    if stated is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(stated, np.int32)[:5].astype(np.float64)
    mirrored = bool(a * d - b * c < 0)
    if mirrored:
        a, b = -a, -b
    return round(np.degrees(np.arctan2(-b, a)) / 90) % 4, mirrored


def _note_colours(frame: VideoFrame, video: Video) -> None:
    colour = video.colour
    bits = max(part.bits for part in frame.format.components)
    if colour.hdr:
        video.note(f"HDR ({colour.hdr}): tone-mapped to SDR, BT.709, 8 bits (BT.2390; 203 cd/m2 become white)")
    elif colour.wide:
        video.note("colours beyond BT.709: converted to BT.709, 8 bits")
    elif bits > 8:
        video.note(f"{bits} bits a colour: 8 bits")
    if any(part.is_alpha for part in frame.format.components):
        video.note("transparent: laid over white")


def read_video(
    file: IO[bytes],
    size: Size,
    channels: int,
    stride: int = 1,
    limit_pixels: int = LIMIT_PIXELS,
    opened: list[Video] | None = None,
) -> Iterator[np.ndarray]:
    """Every `stride`-th frame of a video file or animation, uint8 (C, H, W), decoded as the file is read.

    Each frame is turned upright by the rotation that the file states, deinterlaced if need be, tone-mapped if it is
    HDR, laid over white if it is transparent; its centre square is cut out and resized as in `decode`. Pixels that are
    not square are made so. One or two frames are in memory at a time (and what the codec keeps). What the file states
    is appended to `opened`.

    Raises:
        BadImage: with the reason, if it is no video, or damaged or cut short: possibly after many frames.
    """
    with open_video(file, limit_pixels) as video:
        if opened is not None:
            opened.append(video)
        for count, frame in enumerate(video.frames):
            if count % stride == 0:
                yield framed(frame.picture(), size, channels)


def framed(array: np.ndarray, size: Size, channels: int) -> np.ndarray:
    """The part of uint8 (H, W, 3) that `size` frames, by default the centre, resized: uint8 (C, H, W)."""
    check_side(array.shape[1], array.shape[0], size)
    return to_array(fit(Image.fromarray(array).convert("L" if channels == 1 else "RGB"), size))


def read_folder(
    entries: Sequence[Entry], size: Size, channels: int, stride: int = 1, limit_pixels: int = LIMIT_PIXELS
) -> Iterator[np.ndarray]:
    """Every `stride`-th image of a folder, uint8 (C, H, W), in the order of `entries`.

    Raises:
        BadImage: with the file and the reason, if one is no sound image, or not as large as the first: pictures of
            different sizes are not the frames of one video.
    """
    first: tuple[str, tuple[int, int]] | None = None
    for entry in entries[::stride]:
        name = entry.name.rsplit("/", 1)[-1]
        if entry.size > MAX_FILE_BYTES:
            raise BadImage(f"{name}: more than the limit of {MAX_FILE_BYTES // 2**20} MB a file")
        try:
            array, extent, _ = decode_entry(entry, size, channels, limit_pixels)
        except BadImage as bad:
            raise BadImage(f"{name}: {bad}") from None
        if first is None:
            first = name, extent
        if extent != first[1]:
            sizes = f"{first[0]} has {first[1][0]}x{first[1][1]} pixels, {name} {extent[0]}x{extent[1]}"
            raise BadImage(f"its pictures are not the frames of one video: {sizes}")
        yield array
