"""Videos of every kind, coded again: times, colours, and all that a video has beside its pictures."""

import io
import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ornstein.errors import UserError
from ornstein.faces.swap import film
from ornstein.faces.swap.film import Encoder, Film, is_video

TITLES = {"title": "Wedding", "artist": "Ann", "comment": "hello", "genre": "home"}
COVER, COMMENT, DEFAULT = (av.stream.Disposition[name] for name in ("attached_pic", "comment", "default"))


def again(path: Path, out: Path) -> tuple[Film, list[str]]:
    """The film coded anew without any swap, as a swap does it; and what is said of it."""
    source, notes, times, end = Film.open(path), [], [], None
    part = out.with_name("part.mp4")
    encoder = Encoder(part, source.width, source.height, source.rate, source.colour)
    for frame in source.shown(notes=notes):
        encoder.write(frame.pixels)
        times.append(frame.start)
        end = frame.end
    encoder.close()
    notes += film.join([part], iter(times), source, out, end)
    return source, notes


def shown(path: Path) -> tuple[list[float], list[av.VideoFrame]]:
    """The start of each frame and the end of the last, in seconds, by libav itself."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    base = frames[0].time_base
    assert base is not None
    last = frames[-1]
    assert last.pts is not None
    return [float(frame.time) for frame in frames] + [float((last.pts + last.duration) * base)], frames


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
@pytest.mark.parametrize("out", ["out.mp4", "out.mov"])
def test_uneven_times_and_a_long_last_frame(films: SimpleNamespace, tmp_path: Path, name: str, out: str) -> None:
    times = [0, 40, 77, 500, 600, 1100, 6760]
    frames = [np.full((64, 96, 3), 30 * i, np.uint8) for i in range(6)]
    again(films.write(tmp_path / name, frames, times=times), tmp_path / out)
    assert shown(tmp_path / out)[0] == pytest.approx([t / 1000 for t in times], abs=1e-4)


def test_pauses_of_an_animation(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (64, 48), (40 * i, 0, 0)) for i in range(4)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[100, 2000, 50, 3000])
    again(tmp_path / "a.gif", tmp_path / "out.mp4")
    assert shown(tmp_path / "out.mp4")[0] == pytest.approx([0, 0.1, 2.1, 2.15, 5.15], abs=1e-4)


@pytest.mark.parametrize("tags", [(1, 1, 1, 1), (1, 2, 1, 1), (6, 1, 6, 6), (5, 1, 5, 1), (6, 2, 2, 2), (1, 1, 1, 13)])
def test_colour_tags_stay_and_colours_with_them(
    films: SimpleNamespace, tmp_path: Path, tags: tuple[int, int, int, int]
) -> None:
    samples = [120, 110, 160]
    again(films.write(tmp_path / "a.mp4", [films.plain(samples)] * 3, colour=tags), tmp_path / "out.mp4")
    for frame in shown(tmp_path / "out.mp4")[1]:
        assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == tags
        coded = [np.frombuffer(bytes(plane), np.uint8)[0] for plane in frame.planes]
        assert np.abs(np.subtract(coded, samples, dtype=int)).max() <= 1


@pytest.mark.parametrize(("width", "height", "matrix"), [(96, 64, 6), (1280, 720, 1)])
def test_untagged_films_are_tagged_as_they_were_read(
    films: SimpleNamespace, tmp_path: Path, width: int, height: int, matrix: int
) -> None:
    samples = [120, 110, 160]
    again(films.write(tmp_path / "a.mp4", [films.plain(samples, width, height)] * 2), tmp_path / "out.mp4")
    frame = shown(tmp_path / "out.mp4")[1][0]
    assert frame.colorspace == matrix
    assert [int(np.frombuffer(bytes(p), np.uint8)[0]) for p in frame.planes] == pytest.approx(samples, abs=1)


def test_hdr_becomes_sdr_and_says_so(films: SimpleNamespace, tmp_path: Path) -> None:
    path = films.write(
        tmp_path / "a.mp4",
        [films.plain([572, 512, 512], form="yuv420p10le")] * 3,
        "libx265",
        "yuv420p10le",
        colour=(9, 1, 9, 16),
    )  # 203 cd/m2
    _, notes = again(path, tmp_path / "out.mp4")
    frame = shown(tmp_path / "out.mp4")[1][0]
    assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)
    assert frame.format.name == "yuv420p" and 205 < np.frombuffer(bytes(frame.planes[0]), np.uint8)[0] <= 235
    assert notes == ["HDR (PQ): tone-mapped to SDR, BT.709, 8 bits (BT.2390; 203 cd/m2 become white)"]


def rich(path: Path, **more: Any) -> Path:
    """A film with two languages, subtitles, chapters, a cover and titles."""
    matroska = path.suffix == ".mkv"
    cover = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 0, 0)).save(cover, "JPEG")
    with av.open(str(path), "w") as out:
        out.metadata.update(TITLES | more)
        video = out.add_stream("libx264", 25)
        video.width, video.height, video.pix_fmt, video.options = 96, 64, "yuv420p", {"bf": "0"}
        video.metadata.update({"language": "deu", "title": "Main"})
        sounds = [out.add_stream("aac", 8000, layout="mono") for _ in range(2)]
        for sound, language, disposition in zip(sounds, ("eng", "fra"), (DEFAULT, COMMENT), strict=True):
            sound.metadata["language"], sound.disposition = language, disposition
        sounds[1].metadata["title"] = "Commentary"
        text = out.add_stream("srt" if matroska else "mov_text")
        text.metadata.update({"language": "ita", "title": "Sotto"})
        text.codec_context.subtitle_header = b"[Script Info]\n[V4+ Styles]\nFormat: Name\nStyle: Default\n[Events]\n"
        text.codec_context.time_base = Fraction(1, 1000)
        picture = None
        if matroska:
            out.add_attachment("cover.jpg", "image/jpeg", cover.getvalue())
        else:
            picture = out.add_mux_stream("mjpeg", width=32, height=32)
            picture.disposition, picture.time_base = COVER, Fraction(1, 90000)
        millisecond = Fraction(1, 1000)
        out.set_chapters(
            [
                {"id": 0, "start": 0, "end": 400, "time_base": millisecond, "metadata": {"title": "One"}},
                {"id": 1, "start": 400, "end": 1000, "time_base": millisecond, "metadata": {"title": "Two"}},
            ]
        )
        out.start_encoding()
        if picture is not None:
            packet = av.Packet(cover.getvalue())
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = picture, 0, 0, True
            out.mux(packet)
        for i in range(25):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.full((64, 96, 3), 9 * i, np.uint8), format="rgb24")))
            for sound in sounds if i % 3 == 0 and i < 24 else ():
                part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                part.rate, part.pts = 8000, 1024 * (i // 3)
                out.mux(sound.encode(part))
        for stream in (video, *sounds):
            out.mux(stream.encode())
        for number, (start, end, line) in enumerate([(100, 300, b"Ciao"), (500, 900, b"Addio")]):
            dialogue = b"%d,0,Default,,0,0,0,,%s" % (number, line)
            lines = av.subtitles.subtitle.SubtitleSet.create(dialogue, 0, end - start, 1000 * start)
            packet = av.Packet(line) if matroska else text.codec_context.encode_subtitle(lines)
            packet.stream, packet.pts, packet.dts, packet.duration = text, start, start, end - start
            packet.time_base = millisecond
            out.mux(packet)
    return path


def beside(path: Path) -> dict[str, Any]:
    """All that a film has beside its pictures."""
    with av.open(str(path)) as container:
        streams = [s for s in container.streams if s.type in ("video", "audio", "subtitle")]
        facts = [
            (s.type, s.metadata.get("language"), s.metadata.get("title") or s.metadata.get("name"), s.disposition)
            for s in sorted(streams, key=lambda s: bool(s.disposition & COVER))
        ]
        chapters = [
            (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"]["title"])
            for c in container.chapters()
        ]
        titles = {key.lower(): value for key, value in container.metadata.items()}
        packets: dict[tuple[str, int], list[Any]] = {}
        lines = []
        for packet in container.demux():
            if packet.size == 0 or packet.stream.type not in ("audio", "subtitle", "video"):
                continue
            if packet.stream.type == "subtitle":
                said = bytes(packet)[2:] if packet.stream.codec_context.name == "mov_text" else bytes(packet)
                if said:
                    lines.append((packet.pts * packet.time_base, packet.duration * packet.time_base, said))
            elif packet.stream.type == "audio" or packet.stream.disposition & COVER:
                at = None if packet.pts is None or packet.stream.type == "video" else packet.pts * packet.time_base
                packets.setdefault((packet.stream.type, packet.stream.index), []).append((at, bytes(packet)))
        return {
            "streams": [(kind, language, title) for kind, language, title, _ in facts],
            "dispositions": [disposition for *_, disposition in facts if disposition & (COMMENT | COVER)],
            "chapters": chapters,
            "titles": {key: titles.get(key) for key in TITLES},
            "subtitles": lines,
            "packets": sorted(packets.values(), key=len),
        }


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_sound_subtitles_chapters_cover_and_titles_are_copied(tmp_path: Path, name: str) -> None:
    source = rich(tmp_path / name)
    _, notes = again(source, tmp_path / "out.mp4")
    before, after = beside(source), beside(tmp_path / "out.mp4")
    assert notes == [] and after["titles"] == TITLES
    assert len(before["packets"]) == 3 and len(before["subtitles"]) == 2
    for part, value in before.items():
        assert after[part] == value, part


def test_what_is_not_copied_is_named(tmp_path: Path) -> None:
    source = rich(tmp_path / "a.mkv", location="+48.1+011.5/", odd_key="x")
    _, notes = again(source, tmp_path / "out.mov")
    (line,) = notes
    for part in (
        "cover art (mjpeg)",
        "'odd_key'",
        "'location'",
        "language 'deu' of the video",
        "'comment' of the audio",
    ):
        assert part in line
    with av.open(str(tmp_path / "out.mov")) as container:
        assert not [key for key in container.metadata if "location" in key.lower()]


def test_a_data_track_and_an_attachment_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", 25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        out.add_attachment("notes\x1b[2J.ttf", "font/ttf", b"font")
        for _ in range(3):
            out.mux(video.encode(av.VideoFrame(96, 64, "yuv420p")))
        out.mux(video.encode())
    _, notes = again(path, tmp_path / "out.mp4")
    assert notes and "an attachment" in notes[0] and "\x1b" not in notes[0]


@pytest.mark.parametrize(
    ("written", "named", "video"),
    [
        ("a.mkv", "a.mp4", True),
        ("a.mp4", "a.jpg", True),
        ("a.mp4", "a", True),
        ("a.webp", "a.png", True),
        ("a.png", "a.mp4", False),
        ("a.jpg", "a.gif", False),
    ],
)
def test_what_a_file_is_decides_and_not_its_name(
    films: SimpleNamespace, tmp_path: Path, written: str, named: str, video: bool
) -> None:
    made, path = tmp_path / written, tmp_path / named
    if written in ("a.mkv", "a.mp4"):
        films.write(made, [films.plain([100, 128, 128])] * 3)
    elif written == "a.webp":
        pictures = [Image.new("RGB", (40, 40), (90 * i, 0, 0)) for i in range(3)]
        pictures[0].save(made, save_all=True, append_images=pictures[1:])
    else:
        Image.new("RGB", (40, 40), (200, 0, 0)).save(made)
    made.rename(path)
    assert is_video(path) is video
    if video:
        assert len(list(Film.open(path).frames())) == 3
    else:
        with pytest.raises(UserError, match=r"cannot be used: .*\(it is a (PNG|JPEG) picture\)"):
            Film.open(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.jpg", "a.gif", "a.ts"])
def test_files_that_are_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    with pytest.raises(UserError, match=r"is an empty file"):
        is_video(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"is a folder"):
        is_video(path)
    path.rmdir()
    with pytest.raises(UserError, match=r"cannot read .*: No such file"):
        is_video(path)
    os.mkfifo(path)
    for open_ in (is_video, Film.open):
        with pytest.raises(UserError, match=r"is not a regular file"):
            open_(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_a_film_that_is_cut_short_is_refused_before_any_work(films: SimpleNamespace, tmp_path: Path, name: str) -> None:
    codec = "libvpx-vp9" if name == "a.webm" else "libx264"
    frames = [np.random.default_rng(i).integers(0, 256, (64, 96, 3), np.uint8) for i in range(20)]
    path = films.write(tmp_path / name, frames, codec)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="cannot be used"):
        Film.open(path)


def test_times_finer_than_an_mp4_takes_and_absurd_rates(films: SimpleNamespace, tmp_path: Path) -> None:
    """A thousand million ticks a second, and frames a tick apart: the times stay in order, the rate is bounded."""
    frames = [films.plain([100, 128, 128])] * 4
    path = films.write(tmp_path / "a.mkv", frames, times=[0, 1, 2, 3, 5000])
    source, _ = again(path, tmp_path / "out.mp4")
    times = shown(tmp_path / "out.mp4")[0]
    assert times == pytest.approx([0, 0.001, 0.002, 0.003, 5], abs=1e-4)
    assert source.rate <= 1000 and all(a < b for a, b in pairwise(times))
