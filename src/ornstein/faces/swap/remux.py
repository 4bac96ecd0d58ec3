"""The swapped pictures put together with all that the video has beside them.

Copied: sound (encoded anew where the output's kind of file does not take it), subtitles as text, chapters, cover art,
titles, languages, and what players show of a stream. What cannot be copied is named. The place where it was filmed is
left out, as EXIF data are from photos.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ornstein.data.containers import open_container, picture_stream
from ornstein.data.kinds import is_animation, open_regular
from ornstein.data.names import printable
from ornstein.errors import RunError, UserError
from ornstein.extras import deferred

if TYPE_CHECKING:
    import av
    import av.error
    import av.stream
    from av.container import InputContainer, OutputContainer
else:
    av = deferred("av", "video", "a video")

__all__ = ["SUFFIXES", "check_codec", "join"]

_MP4 = ("h264", "hevc", "av1", "vp9")
# Of each kind of file its name in libav, the codecs of pictures that it takes here, and that of sound made anew.
_KINDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    ".mp4": ("mp4", _MP4, "aac"),
    ".m4v": ("mp4", _MP4, "aac"),
    ".mov": ("mov", ("h264", "hevc"), "aac"),
    ".webm": ("webm", ("vp9", "av1"), "libopus"),
    ".mkv": ("matroska", _MP4, "aac"),
}
SUFFIXES = tuple(_KINDS)
"""The kinds of files that are written."""
_OPUS_RATE, _USUAL_RATE = 48_000, 44_100
_TEXT = ("subrip", "srt", "ass", "ssa", "webvtt", "text", "mov_text")  # subtitles that become mov_text
_COVERS = ("mjpeg", "png", "bmp")
# Facts about the file that it was, not about the film.
_FILE_FACTS = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "vendor_id"}
_ASS_HEADER = (  # what the encoder of mov_text wants to know of subtitles without styles
    b"[Script Info]\nScriptType: v4.00+\n[V4+ Styles]\n"
    b"Format: Name, Fontname, Fontsize, PrimaryColour\nStyle: Default,Arial,16,&Hffffff\n"
    b"[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
)


class Film(Protocol):
    """What is needed of a film: see `ornstein.faces.swap.film.Film`."""

    @property
    def path(self) -> Path: ...

    @property
    def rate(self) -> Fraction: ...

    @property
    def time_base(self) -> Fraction: ...

    @property
    def begin(self) -> Fraction: ...

    @property
    def end(self) -> Fraction | None: ...


def check_codec(codec: str | None, out: Path) -> str:
    """The codec of the pictures in the file `out`. Raises UserError if it does not go into that kind of file."""
    known = _KINDS[out.suffix.lower()][1]
    if codec is not None and codec not in known:
        raise UserError(f"{out.suffix} does not take {codec}: it takes {', '.join(known)}")
    return codec or known[0]


def join(segments: Sequence[Path], times: Iterator[int], film: Film, out: Path, end: int | None = None) -> list[str]:
    """Write the segments, one behind another, with all that `film` has beside its pictures, packet by packet.

    No picture is encoded anew, and nothing is held but the packets at hand.

    Args:
        segments: encoded parts of the film.
        times: the start of each frame, in ticks of the film.
        film: the video whose frames these were.
        out: the file to write.
        end: the end of the last frame, in ticks; None: it is as long as the film's rate says.

    Returns:
        What could not be copied, and what was encoded anew, for people.

    Raises:
        RunError: that fails.
    """
    dropped: list[str] = []
    anew: list[str] = []
    try:
        with ExitStack() as stack:
            to = stack.enter_context(av.open(str(out), "w", format=_kind(out)))
            with av.open(str(segments[0])) as first:
                # opaque: the decoder of AV1 has another name than its encoder
                video = to.add_stream_from_template(first.streams.video[0], opaque=True)
                if first.streams.video[0].codec_context.name == "hevc" and _kind(out) in ("mp4", "mov"):
                    video.codec_context.codec_tag = "hvc1"
            video.time_base = film.time_base
            parts = [_pictures(segments, times, film, video, end)]
            source = _source(film.path, stack)
            copied: list[int] = []
            if source is not None:
                parts.append(_beside(source, to, video, film, out, (dropped, anew, copied)))
            for _, packet in heapq.merge(*parts, key=lambda item: item[0]):
                to.mux(packet)
        if source is not None:
            dropped += _lost_facts(film.path, out, copied)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise RunError(f"cannot put {out.name} together: {getattr(error, 'strerror', None) or error}") from error
    told = [("not copied", dropped), ("sound encoded anew", anew)]
    return [f"{what}: {', '.join(names)}" for what, names in told if names]


def _pictures(
    segments: Sequence[Path], times: Iterator[int], film: Film, stream: Any, end: int | None
) -> Iterator[tuple[Fraction, Any]]:
    """The packets of the segments. One is held back: its length is known by the next one's time."""
    held, begun = None, 0
    for segment in segments:
        with av.open(str(segment)) as container:
            for packet in container.demux(container.streams.video[0]):
                if packet.size == 0:
                    continue  # the end of the file
                time = next(times)
                if held is not None:
                    held.duration = time - begun
                    yield begun * film.time_base, held
                packet.pts = packet.dts = time
                packet.time_base, packet.stream = film.time_base, stream
                held, begun = packet, time
    if held is not None:
        usual = max(1, round(1 / (film.rate * film.time_base)))
        held.duration = usual if end is None else max(1, end - begun)
        yield begun * film.time_base, held


def _beside(
    source: InputContainer,
    to: OutputContainer,
    video: Any,
    film: Film,
    out: Path,
    told: tuple[list[str], list[str], list[int]],
) -> Iterator[tuple[Fraction, Any]]:
    """Prepare the output's streams, titles and chapters, and give the packets of all streams but the pictures.

    `told` is filled: with what is dropped, what is encoded anew, and the numbers of the source's streams that go into
    the output, in order.
    """
    dropped, anew, copied = told
    picture = picture_stream(source)
    _describe(picture, video)
    copied.append(picture.index)
    streams: dict[int, Any] = {}
    sounds: dict[int, _Sound] = {}
    chapters = source.chapters()
    for stream in source.streams:
        if stream.index == picture.index or _is_chapters(stream, bool(chapters)):
            continue
        copy = _copied(stream, to, out)
        if copy is None and stream.type == "audio" and stream.codec_context is not None:
            sounds[stream.index] = _Sound(stream, to, _KINDS[out.suffix.lower()][2])
            copy = sounds[stream.index].stream
            anew.append(f"{_codec(stream)} as {copy.codec_context.name}")
        if copy is None:
            dropped.append(_named(stream))
        else:
            _describe(stream, copy)
            streams[stream.index] = copy
            copied.append(stream.index)
    to.metadata.update({k: v for k, v in _facts(source).items() if not _is_place(k)})
    to.set_chapters(_within(chapters, film))
    to.start_encoding()
    return _trimmed(_packets(source, streams, sounds), film)


class _Sound:
    """A stream of sound that is decoded and encoded anew."""

    def __init__(self, stream: Any, to: OutputContainer, codec: str) -> None:
        rate = _OPUS_RATE if codec == "libopus" else stream.codec_context.sample_rate or _USUAL_RATE
        # the encoders here take these
        layout = {1: "mono", 2: "stereo", 6: "5.1"}.get(stream.codec_context.channels, "stereo")
        self.stream: Any = to.add_stream(codec, rate=rate, layout=layout)
        self._resampler: Any = None
        self._layout, self._rate, self._next = layout, rate, 0

    def encoded(self, packet: Any) -> list[Any]:
        """The packets that a packet of the source becomes; an empty one ends the stream."""
        coder = self.stream.codec_context
        if self._resampler is None:  # the size of the encoder's frames is known once it is open
            self._resampler = av.AudioResampler(coder.format, self._layout, self._rate, coder.frame_size or None)
        frames = [each for frame in packet.decode() for each in self._resampler.resample(frame)]
        if packet.size == 0:
            frames += self._resampler.resample(None)
        for frame in frames:
            if frame.pts is None:  # one that states no time follows the one before
                frame.pts, frame.time_base = self._next, Fraction(1, self._rate)
            self._next = round((frame.pts * frame.time_base) * self._rate) + frame.samples
        out = [made for frame in frames for made in self.stream.encode(frame)]
        return out + (self.stream.encode(None) if packet.size == 0 else [])


def _trimmed(packets: Iterator[tuple[Fraction, Any]], film: Film) -> Iterator[tuple[Fraction, Any]]:
    """The packets of the part of the film, with its times."""
    for at, packet in packets:
        begin = packet.pts * packet.time_base
        is_cover = packet.stream.type == "video"
        if film.begin and not is_cover:
            length = (packet.duration or 0) * packet.time_base
            if begin + length <= film.begin:
                continue
            shift = round(film.begin / packet.time_base)
            packet.pts, packet.dts, at = packet.pts - shift, packet.dts - shift, at - film.begin
        if film.end is not None and not is_cover and begin >= film.end:
            continue
        yield at, packet


def _within(chapters: list[Any], film: Film) -> list[Any]:
    """The chapters of the part of the film, with its times."""
    if not film.begin and film.end is None:
        return chapters
    kept = []
    for chapter in chapters:
        base = Fraction(chapter["time_base"])
        start, end = (chapter[name] * base - film.begin for name in ("start", "end"))
        stop = end if film.end is None else min(end, film.end - film.begin)
        if stop > max(start, 0):
            kept.append(dict(chapter) | {"start": round(max(start, 0) / base), "end": round(stop / base)})
    return kept


def _copied(stream: Any, to: OutputContainer, out: Path) -> Any | None:
    """The output's stream for one of the source's; None if it cannot be copied."""
    name = _codec(stream)
    try:
        if stream.type == "audio":
            return to.add_stream_from_template(stream) if _takes(stream, out) else None
        if stream.type == "subtitle" and _kind(out) in ("webm", "matroska"):
            return to.add_stream_from_template(stream) if name != "mov_text" and _takes(stream, out) else None
        if stream.type == "subtitle" and name in _TEXT:
            if name == "mov_text":
                return to.add_stream_from_template(stream)
            text = to.add_stream("mov_text")
            text.codec_context.subtitle_header = stream.codec_context.subtitle_header or _ASS_HEADER
            text.codec_context.time_base = Fraction(1, 1000)
            return text
        # QuickTime's own kind of file has no place for a cover
        if stream.disposition & av.stream.Disposition.attached_pic and name in _COVERS and _kind(out) == "mp4":
            cover = to.add_mux_stream(name, width=stream.width, height=stream.height)
            cover.time_base = stream.time_base
            return cover
    except (av.error.FFmpegError, ValueError):
        return None
    return None


def _takes(stream: Any, out: Path) -> bool:
    """Whether the output's kind of file takes a stream as it is."""
    try:
        with av.open(io.BytesIO(), "w", format=_kind(out)) as probe:
            probe.add_stream_from_template(stream)
            probe.start_encoding()
    except (av.error.FFmpegError, ValueError):
        return False
    return True


def _packets(
    source: InputContainer, streams: dict[int, Any], sounds: dict[int, _Sound]
) -> Iterator[tuple[Fraction, Any]]:
    wanted = [stream for stream in source.streams if stream.index in streams]
    if not wanted:
        return
    packet: Any
    for packet in source.demux(*wanted):
        stream, copy = packet.stream, streams[packet.stream.index]
        if stream.index in sounds:
            for made in sounds[stream.index].encoded(packet):
                made.stream = copy
                yield made.dts * made.time_base, made
            continue
        if packet.dts is None and stream.disposition & av.stream.Disposition.attached_pic:
            packet.pts = packet.dts = 0
        # an empty subtitle ends the one before; the muxer writes its own
        if packet.dts is None or packet.size == 0 or (stream.type == "subtitle" and bytes(packet) == b"\0\0"):
            continue
        if stream.type == "subtitle" and _codec(stream) != "mov_text" and copy.codec_context.name == "mov_text":
            packet = _as_mov_text(packet, copy)
            if packet is None:
                continue
        at = packet.dts * packet.time_base
        packet.stream = copy
        yield at, packet


def _as_mov_text(packet: Any, copy: Any) -> Any | None:
    """One subtitle of another text format as mov_text; None if it holds none, or is damaged."""
    try:
        lines = packet.stream.codec_context.decode2(packet)
        if lines is None or not len(lines):
            return None
        text = copy.codec_context.encode_subtitle(lines)
    except (av.error.FFmpegError, ValueError):
        return None
    text.pts, text.dts, text.duration = packet.pts, packet.pts, packet.duration
    text.time_base = packet.time_base
    return text


def _describe(stream: Any, copy: Any) -> None:
    """Language, title and what players do with a stream. (In an mp4 the title of a stream is called its name.)"""
    facts = {key.lower(): value for key, value in stream.metadata.items()}
    title = facts.get("title") or facts.get("name")
    named = {"language": facts.get("language"), "title": title, "handler_name": facts.get("handler_name")}
    copy.metadata.update({key: value for key, value in named.items() if value})
    copy.disposition = stream.disposition


def _facts(container: InputContainer) -> dict[str, str]:
    """The container's titles: what Matroska and MP4 call the same is called the same."""
    facts = {key.lower(): value for key, value in container.metadata.items()}
    return {key: value for key, value in facts.items() if key not in _FILE_FACTS}


def _is_place(key: str) -> bool:
    return "location" in key or "gps" in key


def _lost_facts(path: Path, out: Path, copied: Sequence[int]) -> list[str]:
    """What the output does not state of what the source does: titles, languages, what players do with a stream."""
    with ExitStack() as stack:
        before, after = _source(path, stack), _source(out, stack)
        assert before is not None and after is not None
        kept = _facts(after)
        lost = [f"metadata {printable(key)!r}" for key in _facts(before) if key not in kept]
        # the output's streams come back in another order if it has chapters or a cover: only by type it is the same
        for kind in ("video", "audio", "subtitle"):
            new = [each for each in after.streams if each.type == kind]
            old = [before.streams[index] for index in copied if before.streams[index].type == kind]
            for one, other in zip(old, new, strict=False):
                language = one.metadata.get("language", "und")
                if language not in ("und", other.metadata.get("language")):
                    lost.append(f"language {printable(language)!r} of the {kind}")
                if gone := one.disposition & ~other.disposition:
                    names = [flag.name for flag in av.stream.Disposition if flag & gone]
                    lost.append(f"{' and '.join(map(str, names))!r} of the {kind}")
    return lost


def _is_chapters(stream: Any, chapters: bool) -> bool:
    """Whether it is the text track in which an MP4 keeps its chapters' titles: they are copied as chapters."""
    return chapters and stream.type == "data" and stream.metadata.get("handler_name") == "SubtitleHandler"


def _named(stream: Any) -> str:
    name = _codec(stream) or stream.metadata.get("filename") or stream.metadata.get("handler_name") or "unknown"
    what = {"subtitle": "subtitles", "video": "another video", "attachment": "an attachment"}.get(stream.type, "data")
    what = "cover art" if stream.disposition & av.stream.Disposition.attached_pic else what
    return f"{what} ({printable(str(name))})"


def _codec(stream: Any) -> str | None:
    return stream.codec_context.name if stream.codec_context is not None else None


def _source(path: Path, stack: ExitStack) -> InputContainer | None:
    """The demuxer of a film; None if it is an animation, which has nothing beside its pictures."""
    file = stack.enter_context(open_regular(path))
    return None if is_animation(file) else stack.enter_context(open_container(file))


def _kind(out: Path) -> str:
    return _KINDS[out.suffix.lower()][0]
