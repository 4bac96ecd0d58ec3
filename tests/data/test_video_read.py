"""Every kind of video file, made here: each of its frames, when it is shown, its colours, and what is said of it."""

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from ornstein.data import open_clips
from ornstein.data.decode import BadImage
from ornstein.data.video_read import Video, open_video
from ornstein.errors import UserError

COLOUR = (200, 100, 50)


def read(path: Path, limit: int = 10**8) -> tuple[Video, list[tuple[Fraction, Fraction]], list[np.ndarray]]:
    """The video; (start, length) of each frame in milliseconds; the pictures."""
    with path.open("rb") as file, open_video(file, limit) as video:
        frames = list(video.frames)
        tick = 1000 * video.time_base
        return video, [(f.start * tick, f.length * tick) for f in frames], [f.picture() for f in frames]


def steps(count: int, width: int = 96, height: int = 64) -> list[np.ndarray]:
    return [np.full((height, width, 3), 20 + 30 * i, np.uint8) for i in range(count)]


def grey(pictures: list[np.ndarray]) -> list[int]:
    return [round((float(picture.mean()) - 20) / 30) for picture in pictures]


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.mp4", "libx264", None),
        ("a.mov", "mpeg4", None),
        ("a.mkv", "ffv1", None),
        ("a.webm", "libvpx-vp9", None),
        ("a.avi", "mpeg4", None),
        ("a.mpg", "mpeg2video", None),
        ("a.ts", "mpeg2video", None),
        ("a.ts", "libx264", None),
        ("a.flv", "libx264", None),
        ("a.wmv", "wmv2", "asf"),
        ("a.3gp", "mpeg4", None),
    ],
)
def test_every_container_gives_each_frame_once_at_its_time(
    films: SimpleNamespace, tmp_path: Path, name: str, codec: str, container: str | None
) -> None:
    path = films.write(tmp_path / name, steps(6), codec, container=container)
    _, times, pictures = read(path)
    assert grey(pictures) == list(range(6))
    starts = [start - times[0][0] for start, _ in times]
    assert starts == [40 * i for i in range(6)] and [length for _, length in times] == [40] * 6
    assert open_clips(path, frames=6, size=32).rate == 25


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
@pytest.mark.parametrize("begin", [0, 5000, 100_000])
def test_frames_keep_their_own_times_and_the_last_one_its_length(
    films: SimpleNamespace, tmp_path: Path, name: str, begin: int
) -> None:
    """A late start and a last frame that is held are no reason to call a Matroska cut short."""
    times = [begin + each for each in (0, 40, 77, 500, 600, 1100, 6760)]
    _, found, pictures = read(films.write(tmp_path / name, steps(6), times=times))
    assert grey(pictures) == list(range(6))
    assert [start for start, _ in found] == times[:-1]
    assert [length for _, length in found] == np.diff(times).tolist()


def animation(path: Path, durations: list[int], first: Image.Image | None = None) -> Path:
    pictures = [Image.fromarray(each) for each in steps(len(durations))]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, lossless=True)
    return path


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animations_have_their_pauses(tmp_path: Path, name: str) -> None:
    durations = [100, 20, 500, 100, 3000]
    video, found, pictures = read(animation(tmp_path / name, durations))
    assert grey(pictures) == list(range(5)) and [length for _, length in found] == durations
    assert [start for start, _ in found] == [0, 100, 120, 620, 720]
    assert video.rate == Fraction(5000, 3720)


def test_a_picture_without_a_time_is_shown_as_browsers_show_it(tmp_path: Path) -> None:
    _, found, _ = read(animation(tmp_path / "a.gif", [0, 10, 20]))
    assert [length for _, length in found] == [100, 100, 20]


@pytest.mark.parametrize(("name", "tail"), [("a.gif", b"junk"), ("a.gif", b"\0"), ("a.png", b"junk")])
def test_bytes_after_the_end_of_an_animation_are_ignored(tmp_path: Path, name: str, tail: bytes) -> None:
    path = animation(tmp_path / name, [100] * 4)
    path.write_bytes(path.read_bytes() + 9 * tail)
    assert grey(read(path)[2]) == list(range(4))


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_an_animation_that_is_cut_short(tmp_path: Path, name: str, share: float) -> None:
    path = animation(tmp_path / name, [100] * 7)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadImage, match="cut short"):
        read(path)


@pytest.mark.parametrize(
    ("name", "codec", "share"),
    [("a.mkv", "libx264", 0.97), ("a.mkv", "libx264", 0.5), ("a.webm", "libvpx-vp9", 0.9), ("a.mp4", "libx264", 0.97)],
)
def test_a_film_that_is_cut_short(films: SimpleNamespace, tmp_path: Path, name: str, codec: str, share: float) -> None:
    noise = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8) for i in range(30)]
    path = films.write(tmp_path / name, noise, codec)
    if name == "a.mp4":  # the table of frames first: otherwise nothing can be read
        whole = path.read_bytes()
        with (
            av.open(str(path)) as source,
            av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as to,
        ):
            stream = to.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    to.mux(packet)
        path = tmp_path / "b.mp4"
        assert path.stat().st_size > 0.9 * len(whole)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadImage, match="cut short"):
        read(path)


def test_an_mp4_with_bytes_after_its_end_is_whole(films: SimpleNamespace, tmp_path: Path) -> None:
    path = films.write(tmp_path / "a.mp4", steps(6))
    for tail in (b"\0" * 100, b"appended by a camera" * 10):
        longer = tmp_path / "longer.mp4"
        longer.write_bytes(path.read_bytes() + tail)
        assert grey(read(longer)[2]) == list(range(6))


def bars(count: int) -> list[np.ndarray]:
    """Fields of a bar that moves by two pixels from field to field, woven into frames."""
    frames = []
    for i in range(count):
        frame = np.full((64, 96, 3), 40, np.uint8)
        for field in (0, 1):
            left = 4 * i + 2 * field
            frame[field::2, left : left + 12] = 220
        frames.append(frame)
    return frames


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mpg", "mpeg2video", {"flags": "+ildct+ilme", "qscale": "2"}),
        ("a.ts", "mpeg2video", {"flags": "+ildct+ilme", "qscale": "2"}),
        ("a.mp4", "libx264", {"x264-params": "tff=1", "crf": "5"}),
    ],
)
def test_interlaced_films_are_made_whole(
    films: SimpleNamespace, tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = films.write(tmp_path / name, bars(12), codec, options=options)
    video, times, pictures = read(path)
    assert len(pictures) == 12 and [length for _, length in times] == [40] * 12
    assert [start - times[0][0] for start, _ in times] == [40 * i for i in range(12)]
    assert video.notes == ["interlaced: deinterlaced (bwdif), as many frames as before"]
    combed = np.abs(np.diff(bars(12)[6].astype(int), axis=0)).mean()
    for picture in pictures[2:-2]:
        assert np.abs(np.diff(picture.astype(int), axis=0)).mean() < combed / 5


def test_progressive_films_are_not_touched(films: SimpleNamespace, tmp_path: Path) -> None:
    sharp = [np.kron(np.indices((32, 48)).sum(0) % 2 * 200 + 20, np.ones((2, 2)))[..., None].repeat(3, 2)] * 3
    path = films.write(tmp_path / "a.mkv", [frame.astype(np.uint8) for frame in sharp], "ffv1", form="bgr0")
    video, _, pictures = read(path)
    assert video.notes == [] and np.array_equal(pictures[1], sharp[1])


def matrix(path: Path, values: tuple[int, ...]) -> Path:
    """State how an mp4 is to be shown: the matrix of its track header (ISO/IEC 14496-12, 8.3.2)."""
    unit = b"".join(v.to_bytes(4, "big") for v in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
    data = bytearray(path.read_bytes())
    at = data.index(unit, data.index(b"tkhd"))
    data[at : at + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in values)
    path.write_bytes(data)
    return path


ONE, END = 0x10000, 0x40000000
MATRICES: list[tuple[tuple[int, ...], Callable[[np.ndarray], np.ndarray]]] = [
    ((0, ONE, 0, -ONE, 0, 0, 64 << 16, 0, END), lambda a: np.rot90(a, -1)),
    ((-ONE, 0, 0, 0, -ONE, 0, 96 << 16, 64 << 16, END), lambda a: np.rot90(a, 2)),
    ((0, -ONE, 0, ONE, 0, 0, 0, 96 << 16, END), lambda a: np.rot90(a, 1)),
    ((-ONE, 0, 0, 0, ONE, 0, 96 << 16, 0, END), lambda a: a[:, ::-1]),  # a mirror, as front cameras write it
    ((ONE, 0, 0, 0, -ONE, 0, 0, 64 << 16, END), lambda a: a[::-1]),
]


@pytest.mark.parametrize(("values", "shown"), MATRICES)
def test_films_are_turned_and_mirrored_as_they_state(
    films: SimpleNamespace, tmp_path: Path, values: tuple[int, ...], shown: Callable[[np.ndarray], np.ndarray]
) -> None:
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:32, :48] = 250
    frame[32:, :48] = 120
    path = matrix(films.write(tmp_path / "a.mp4", [frame] * 3), values)
    for picture in read(path)[2]:
        assert np.abs(picture.astype(int) - shown(frame)).mean() < 3


def rgba(path: Path, codec: str, form: str) -> Path:
    """Half transparent COLOUR at the left, clear at the right."""
    frame = np.zeros((64, 96, 4), np.uint8)
    frame[:, :48] = (*COLOUR, 128)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, 25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, form
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba").reformat(format=form)))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [
        ("a.mov", "qtrle", "argb"),
        ("b.mov", "prores_ks", "yuva444p10le"),
        ("c.mov", "png", "rgba"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_transparency_is_laid_over_white(tmp_path: Path, name: str, codec: str, form: str) -> None:
    video, _, pictures = read(rgba(tmp_path / name, codec, form))
    assert "transparent: laid over white" in video.notes and len(pictures) == 3
    expected = [c * 128 / 255 + 255 * 127 / 255 for c in COLOUR]
    for picture in pictures:
        assert np.abs(picture[8:-8, 8:40].mean((0, 1)) - expected).max() < 2
        assert picture[8:-8, 56:].mean() > 253


def test_a_cover_is_not_the_film(films: SimpleNamespace, tmp_path: Path) -> None:
    source = films.write(tmp_path / "plain.mp4", steps(6))
    Image.new("RGB", (32, 32), (255, 0, 0)).save(tmp_path / "cover.jpg")
    for place in (0, 1):
        path = tmp_path / f"{place}.mp4"
        with av.open(str(source)) as film, av.open(str(path), "w") as out:
            if place:
                stream = out.add_stream_from_template(film.streams.video[0])
            cover = out.add_mux_stream("mjpeg", width=32, height=32)
            cover.disposition, cover.time_base = av.stream.Disposition.attached_pic, Fraction(1, 90000)
            if not place:
                stream = out.add_stream_from_template(film.streams.video[0])
            out.start_encoding()
            picture = av.Packet((tmp_path / "cover.jpg").read_bytes())
            picture.stream, picture.pts, picture.dts, picture.is_keyframe = cover, 0, 0, True
            out.mux(picture)
            for packet in film.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
        assert grey(read(path)[2]) == list(range(6))


def test_sizes_are_refused_before_anything_is_decoded(films: SimpleNamespace, tmp_path: Path) -> None:
    path = films.write(tmp_path / "a.mp4", steps(2))
    with pytest.raises(BadImage, match=r"96x64 pixels: more than the limit of 6,000"):
        read(path, 6000)
    assert len(read(path, 96 * 64)[2]) == 2
    # Pixels 20 times as wide as high: made square, the frames would be 1,920 pixels wide.
    wide = films.write(tmp_path / "wide.mkv", steps(2), options={"x264-params": "sar=20/1"})
    with pytest.raises(BadImage, match=r"1920x64 pixels: more than the limit"):
        read(wide, 100_000)
    gif = tmp_path / "a.gif"
    animation(gif, [100] * 3)
    data = bytearray(gif.read_bytes())
    data[6:10] = b"\xff\xff\xff\xff"
    gif.write_bytes(data)
    with pytest.raises(BadImage, match=r"more pixels than the limit of 100,000,000"):
        read(gif)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have names on POSIX alone")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(UserError, match="not a regular file"):
        open_clips(tmp_path / "a.mp4", frames=2)


def test_pictures_beside_films_are_no_film(films: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in "abcd":
        films.write(tmp_path / "set" / f"{name}.mp4", steps(4))
        Image.new("RGB", (96, 64), (255, 0, 0)).save(tmp_path / "set" / f"{name}.jpg")
    (tmp_path / "set" / "thumbs").mkdir()
    for name in "abcd":
        Image.new("RGB", (96, 64), (255, 0, 0)).save(tmp_path / "set" / "thumbs" / f"{name}.mp4.jpg")
    (tmp_path / "set" / "frames").mkdir()
    for i, frame in enumerate(steps(4)):
        Image.fromarray(frame).save(tmp_path / "set" / "frames" / f"{i}.png")
    clips = open_clips(tmp_path / "set", frames=4, size=32)
    assert clips.names == ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "frames"]
    assert dict(clips.skipped) == {
        "set": "pictures beside videos, no frames of one: 4",
        "thumbs": "pictures beside videos, no frames of one: 4",
    }
    red = clips.batch(range(5))[0][:, 0] - clips.batch(range(5))[0][:, 1]
    assert float(red.abs().max()) < 0.1


def test_photos_of_different_sizes_are_no_film(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (60 + 10 * (i == 2), 40)).save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match=r"not the frames of one video: 0\.png has 60x40 pixels, 2\.png 70x40"):
        open_clips(tmp_path, frames=2, size=16)


def test_each_animation_is_a_film_of_its_own(tmp_path: Path) -> None:
    for name in ("a.webp", "b.png", "c.gif"):
        animation(tmp_path / name, [50] * 4)
    clips = open_clips(tmp_path, frames=4, size=32)
    assert clips.names == ["a.webp", "b.png", "c.gif"] and clips.rate == 20
    frames = clips.batch(range(3))[0].mean((1, 3, 4))
    assert [[round((float(v) * 127.5 + 107.5) / 30) for v in film] for film in frames] == [[0, 1, 2, 3]] * 3


def test_the_rate_of_clips_is_that_of_their_films(films: SimpleNamespace, tmp_path: Path) -> None:
    for i, rate in enumerate((24, Fraction(30000, 1001), 60)):
        films.write(tmp_path / f"{i}.mp4", steps(4), rate=rate)
    clips = open_clips(tmp_path, frames=2, size=32)
    assert clips.rate == pytest.approx(30000 / 1001) and clips.split(0.4, 0)[0].rate == clips.rate
    assert open_clips(tmp_path, frames=2, size=32, stride=2).rate == pytest.approx(15000 / 1001)
    (tmp_path / "set").mkdir()
    for i, frame in enumerate(steps(4)):
        Image.fromarray(frame).save(tmp_path / "set" / f"{i}.png")
    assert open_clips(tmp_path / "set", frames=2, size=32).rate is None


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize(("first", "last"), [(0.3, 1.0), (0.0, 0.7), (0.25, 0.8)])
def test_a_recording_may_begin_and_end_anywhere(
    films: SimpleNamespace, tmp_path: Path, codec: str, first: float, last: float
) -> None:
    """A transport stream is cut where the recorder was stopped: what can be decoded is there, and nothing broken."""
    rng = np.random.default_rng(0)
    frames = [np.kron(rng.integers(0, 256, (8, 12, 1)), np.ones((8, 8, 3))).astype(np.uint8) for _ in range(60)]
    path = films.write(
        tmp_path / "a.ts", frames, codec, options={"g": "12", "qscale": "2"} if codec == "mpeg2video" else {"g": "12"}
    )
    data = path.read_bytes()
    path.write_bytes(data[int(first * len(data)) // 188 * 188 : int(last * len(data))])
    video, times, pictures = read(path)
    assert len(pictures) >= 60 * (last - first) - 13 and [length for _, length in times] == [40] * len(pictures)
    assert set(video.notes) <= {"its last frame is incomplete: left out"}
    offset = next(i for i, frame in enumerate(frames) if np.abs(frame.astype(int) - pictures[0]).mean() < 8)
    for frame, picture in zip(frames[offset:], pictures, strict=False):
        assert np.abs(frame.astype(int) - picture).mean() < 8


def test_frames_that_share_a_name_with_a_film_elsewhere_are_frames(films: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "frames").mkdir()
    films.write(tmp_path / "films" / "1.mp4", steps(4))
    for i, frame in enumerate(steps(4)):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{i}.png")
    clips = open_clips(tmp_path, frames=4, size=32)
    assert clips.names == ["films/1.mp4", "frames"] and clips.skipped == []
