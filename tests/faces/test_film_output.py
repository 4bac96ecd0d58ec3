"""What a swapped film is written as: codec, quality, kind of file, sound made anew, and a part of the film."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ornstein.data.video_write import CODECS, Encoder
from ornstein.errors import UserError
from ornstein.faces import provenance
from ornstein.faces.provenance import sidecar
from ornstein.faces.settings import parse_time
from ornstein.faces.swap import film
from ornstein.faces.swap.film import Film

RATE = 48_000


def clicking(path: Path, frames: int = 40, fps: int = 20, codec: str = "aac", uneven: bool = False) -> Path:
    """Frame k is as bright as 6 k; at the same moment as every tenth frame a tone of 1/20 s begins."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4" if path.suffix == ".asf" else "libx264", Fraction(fps))
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream(codec, RATE, layout="mono", bit_rate=96_000)
        video.codec_context.time_base = Fraction(1, 1000)
        for k in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 6 * k, np.uint8), format="rgb24")
            picture.pts = k * 1000 // fps + 7 * (k % 3) * uneven
            container.mux(video.encode(picture))
        container.mux(video.encode())
        time = np.arange(frames * RATE // fps) / RATE
        wave = np.sin(6000 * time) * ((time * fps).astype(int) % 10 == 0) * 0.8
        size = audio.codec_context.frame_size or 1024
        for low in range(0, len(wave) - size, size):
            frame = av.AudioFrame.from_ndarray(
                wave[None, low : low + size].astype(np.float32), format="fltp", layout="mono"
            )
            frame.rate, frame.pts, frame.time_base = RATE, low, Fraction(1, RATE)
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return path


def again(path: Path, out: Path, codec: str | None = None, **part: float) -> tuple[Film, list[str]]:
    source, times, end = Film.open(path, **part), [], None
    segment = out.with_name("segment.mp4")
    encoder = Encoder(segment, source.width, source.height, source.rate, codec=film.check_codec(codec, out))
    for frame in source.shown():
        encoder.write(frame.pixels)
        times.append(frame.start)
        end = frame.end
    encoder.close()
    return source, film.join([segment], iter(times), source, out, end)


def played(path: Path) -> tuple[list[tuple[float, float]], np.ndarray]:
    """(time, brightness) of each frame, and the sound at RATE from time 0 on."""
    with av.open(str(path)) as container:
        frames = [(float(f.time), float(f.to_ndarray(format="rgb24").mean())) for f in container.decode(video=0)]
    sound = np.zeros(RATE * 4)
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("flt", "mono", RATE)
        for frame in container.decode(audio=0):
            for piece in resampler.resample(frame):
                at = round(piece.pts * piece.time_base * RATE)
                values = piece.to_ndarray()[0]
                low = max(-at, 0)
                sound[at + low : at + len(values)] = values[low:][: max(len(sound) - at - low, 0)]
    return frames, sound


def tones(sound: np.ndarray) -> list[float]:
    """When tones begin, in seconds."""
    loud = np.convolve(np.abs(sound), np.ones(240) / 240, "same") > 0.2
    starts = np.flatnonzero(loud & ~np.roll(loud, 1)) / RATE
    return [float(s) for i, s in enumerate(starts) if i == 0 or s - starts[i - 1] > 0.2]


@pytest.mark.parametrize(
    ("out", "codec", "named"),
    [("o.mp4", None, "h264"), ("o.mov", "hevc", "hevc"), ("o.mkv", "av1", "av1"), ("o.webm", None, "vp9")],
)
def test_codecs_and_kinds_of_files(tmp_path: Path, out: str, codec: str | None, named: str) -> None:
    if CODECS[named][0] not in av.codecs_available:
        pytest.skip(f"there is no encoder of {named}")
    _, notes = again(clicking(tmp_path / "t.mp4"), tmp_path / out, codec)
    with av.open(str(tmp_path / out)) as container:
        context = container.streams.video[0].codec_context
        assert {"libdav1d": "av1"}.get(context.name, context.name) == named
        assert container.streams.audio[0].codec_context.name == ("opus" if out == "o.webm" else "aac")
    assert notes == (["sound encoded anew: aac as libopus"] if out == "o.webm" else [])
    frames, sound = played(tmp_path / out)
    first = frames[0][0]  # Matroska has no times below 0: all of it is later by what an encoder of sound needs first
    assert first < 0.03 and [t - first for t, _ in frames] == pytest.approx([k / 20 for k in range(40)], abs=2e-3)
    assert [value for _, value in frames] == pytest.approx([6 * k for k in range(40)], abs=4)
    assert [t - first for t in tones(sound)][1:] == pytest.approx([0.5, 1, 1.5], abs=0.01)


def test_sound_that_the_kind_of_file_does_not_take_is_encoded_anew(tmp_path: Path) -> None:
    _, notes = again(clicking(tmp_path / "t.asf", codec="wmav2"), tmp_path / "o.mp4")
    assert notes == ["sound encoded anew: wmav2 as aac"]
    assert tones(played(tmp_path / "o.mp4")[1])[1:] == pytest.approx([0.5, 1, 1.5], abs=0.06)  # wma's own delay


@pytest.mark.parametrize("out", ["o.mp4", "o.webm"])
def test_a_part_of_a_film_keeps_pictures_and_sound_together(tmp_path: Path, out: str) -> None:
    source, _ = again(clicking(tmp_path / "t.mp4", uneven=True), tmp_path / out, begin=0.42, end=1.57)
    assert source.trimmed
    frames, sound = played(tmp_path / out)
    starts = [(k, (50 * k + 7 * (k % 3)) / 1000) for k in range(40)]
    expected = [(max(t - 0.42, 0), 6 * k) for k, t in starts if starts[min(k + 1, 39)][1] > 0.42 and t < 1.57]
    assert [t for t, _ in frames] == pytest.approx([t for t, _ in expected], abs=2e-3)
    assert [value for _, value in frames] == pytest.approx([value for _, value in expected], abs=4)
    # frame 10 came at 0.507 s and the tone at 0.5 s: both 0.42 s earlier now
    assert tones(sound) == pytest.approx([0.08, 0.58, 1.08], abs=0.012)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.webm does not take h264: it takes vp9, av1"):
        film.check_codec("h264", Path("o.webm"))
    for text in ("x", "1:2:3:4", "1:60", "-1", "1.5:3", ""):
        with pytest.raises(UserError, match="write seconds, MM:SS or H:MM:SS"):
            parse_time(text, "--from")
    assert [parse_time(t, "--to") for t in ("2.5", "1:02.5", "1:00:00", None)] == [2.5, 62.5, 3600, None]


def test_a_statement_beside_a_film(own_key: None, tmp_path: Path) -> None:
    path = tmp_path / "o.webm"
    path.write_bytes(b"a film")
    assert provenance.read(path).state == provenance.UNSIGNED
    sidecar.write(path, path, {"consent": "Ann Lee, a test"})
    found = provenance.read(path)
    assert found.state == provenance.INTACT and found.ours and found.swap == {"consent": "Ann Lee, a test"}
    stored = json.loads(sidecar.sidecar_of(path).read_text())
    for changed in (
        stored | {"statement": {"consent": "Bo Diaz, a test"}},
        stored | {"file_sha256": "00"},
    ):
        sidecar.sidecar_of(path).write_text(json.dumps(changed))
        assert provenance.read(path).state == provenance.CHANGED and not provenance.read(path).ours
    sidecar.sidecar_of(path).write_text(json.dumps(stored))
    path.write_bytes(b"another film")
    assert provenance.read(path).reasons == ["the film is not the one that was signed"]
    sidecar.sidecar_of(path).write_text("{}")
    with pytest.raises(UserError, match="is no signed statement"):
        provenance.read(path)
