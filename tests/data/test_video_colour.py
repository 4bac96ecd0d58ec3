"""The colours of films, against their definitions: matrices, ranges, bit depths, HDR, wide primaries."""

from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from ornstein.data import open_clips, save_mp4
from ornstein.data.decode import BadImage
from ornstein.data.video_colour import Colour, colour_of, from_rgb, to_rgb
from ornstein.data.video_read import Video, open_video

LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
FORMS = {"yuv420p": 8, "yuv422p": 8, "yuv444p": 8, "yuv420p10le": 10, "yuv422p10le": 10, "yuv444p12le": 12}
COLOURS = np.random.default_rng(0).integers(0, 256, (12, 3))


def coded(rgb: np.ndarray, matrix: int, full: bool, bits: int) -> list[int]:
    """The samples of a colour in [0, 255] (ITU-T H.273, section 8.3)."""
    kr, kb = LUMA[matrix]
    r, g, b = rgb / 255
    y = kr * r + (1 - kr - kb) * g + kb * b
    u, v = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    step, top = 1 << (bits - 8), (1 << bits) - 1
    if full:
        values = [top * y, top * u + (1 << (bits - 1)), top * v + (1 << (bits - 1))]
    else:
        values = [step * (16 + 219 * y), step * (128 + 224 * u), step * (128 + 224 * v)]
    return [min(max(round(value), 0), top) for value in values]


def read(path: Path) -> tuple[Video, np.ndarray]:
    with path.open("rb") as file, open_video(file) as video:
        pictures = [frame.picture() for frame in video.frames]
        return video, pictures[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("matrix", [1, 5, 6, 7])
@pytest.mark.parametrize("full", [False, True])
def test_flat_colours_are_decoded_to_half_a_level(films: SimpleNamespace, form: str, matrix: int, full: bool) -> None:
    """libav's default path is 1.1 levels too dark in the mean for 4:2:0. (Full range of 12 bits: 0.5.)"""
    errors = []
    for rgb in COLOURS:
        frame = films.plain(coded(rgb, matrix, full, FORMS[form]), form=form)
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        errors.append(to_rgb(frame, colour_of(frame)).astype(float).mean((0, 1)) - rgb)
    assert abs(np.mean(errors)) < 0.7 and np.abs(errors).mean() < 0.7 and np.abs(errors).max() < 2.1


@pytest.mark.parametrize(
    ("codec", "name", "form", "matrix", "full"),
    [
        ("libx264", "a.mp4", "yuv420p", 1, False),
        ("libx264", "a.mp4", "yuv420p", 6, False),
        ("libx264", "a.mkv", "yuv420p", 1, True),
        ("ffv1", "a.mkv", "yuv444p", 1, True),
        ("libvpx-vp9", "a.webm", "yuv420p", 1, False),
        ("libx265", "a.mp4", "yuv420p10le", 1, False),
    ],
)
def test_tagged_films_are_decoded_by_their_tags(
    films: SimpleNamespace, tmp_path: Path, codec: str, name: str, form: str, matrix: int, full: bool
) -> None:
    rgb = np.array([200, 100, 50])
    values = coded(rgb, matrix, full, FORMS[form])
    tags = (matrix, 2 if full else 1, 1, 1)
    path = films.write(tmp_path / name, [films.plain(values, form=form)] * 3, codec, form, colour=tags)
    video, picture = read(path)
    assert np.abs(picture.astype(float).mean((0, 1)) - rgb).max() < 1.5
    assert (video.colour.matrix, video.colour.range) == tags[:2]


@pytest.mark.parametrize(
    ("width", "height", "matrix"), [(96, 64, 6), (720, 576, 6), (1280, 720, 1), (640, 578, 1), (1280, 64, 1)]
)
def test_untagged_films_are_decoded_as_players_do(
    films: SimpleNamespace, tmp_path: Path, width: int, height: int, matrix: int
) -> None:
    """BT.709 from 1280 columns or 577 rows on, BT.601 below: also in training clips."""
    rgb = np.array([200, 100, 50])
    frame = films.plain(coded(rgb, matrix, False, 8), width, height)
    path = films.write(tmp_path / "a.mp4", [frame] * 2, options={"crf": "1", "preset": "ultrafast"})
    video, picture = read(path)
    assert video.colour.matrix == matrix and np.abs(picture.astype(float).mean((0, 1)) - rgb).max() < 1.5
    clip = open_clips(path, frames=2, size=32).batch([0])[0]
    assert np.abs((clip.mean((0, 2, 3, 4)).numpy() + 1) * 127.5 - rgb).max() < 1.5


@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize("full", [1, 2])
def test_frames_are_coded_to_half_a_level_and_tagged(matrix: int, full: int) -> None:
    colour = Colour(matrix, full, 1, 13)
    errors = []
    for rgb in COLOURS:
        frame = from_rgb(np.broadcast_to(rgb.astype(np.uint8), (32, 48, 3)), colour)
        assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (matrix, full, 1, 13)
        samples = [float(np.frombuffer(bytes(p), np.uint8).reshape(p.height, -1)[4, 4]) for p in frame.planes]
        assert np.abs(np.subtract(samples, coded(rgb, matrix, full == 2, 8))).max() <= 1
        errors.append(to_rgb(frame, colour).mean((0, 1)) - rgb)
    assert np.abs(errors).mean() < 1 and abs(np.mean(errors)) < 0.3


def test_edges_of_colour_stay_where_they_are(tmp_path: Path) -> None:
    """Each colour sample lies on the left of its two columns, as H.264 means it: an edge is not shifted."""
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, :, 0] = 255 / (1 + np.exp(-(np.arange(64) - 31.5) / 3))
    picture[:, :, 2] = 255 - picture[:, :, 0]
    save_mp4(torch.from_numpy(picture).permute(2, 0, 1)[:, None], tmp_path / "a.mp4")
    shifted = np.abs(np.diff(picture.astype(float), axis=1)).max() / 2  # by half a pixel
    assert np.abs(read(tmp_path / "a.mp4")[1].astype(float) - picture)[:, 4:-4].max() < shifted / 2


def test_written_clips_state_their_colours(tmp_path: Path) -> None:
    for side, matrix in ((64, 6), (720, 1)):
        clip = torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None, None].expand(3, 3, side, side)
        save_mp4(clip, tmp_path / "a.mp4", rate=30000 / 1001, comment='{"seed": 3}')
        video, picture = read(tmp_path / "a.mp4")
        assert (video.colour.matrix, video.colour.range) == (matrix, 1)
        assert np.abs(picture.astype(float).mean((0, 1)) - [200, 100, 50]).max() < 1.5
        with av.open(str(tmp_path / "a.mp4")) as film:
            assert film.metadata["comment"] == '{"seed": 3}'
            assert film.streams.video[0].average_rate * 1001 == 30000
            assert next(film.decode(video=0)).colorspace == matrix


# ---- HDR


def pq(light: float) -> float:
    """SMPTE ST 2084: the signal in [0, 1] of light in cd/m2."""
    power = (light / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(scene: float) -> float:
    """ARIB STD-B67: the signal of scene light in [0, 1]."""
    return (3 * scene) ** 0.5 if scene <= 1 / 12 else 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073


def hdr(films: SimpleNamespace, path: Path, signal: list[float], transfer: int, codec: str = "libx265") -> Path:
    values = coded(np.array(signal) * 255, 9, False, 10)
    frame = films.plain(values, form="yuv420p10le")
    return films.write(path, [frame] * 2, codec, "yuv420p10le", colour=(9, 1, 9, transfer))


def mapped(light: float, peak: float = 1000.0) -> float:
    """The level in [0, 255] that light becomes: ITU-R BT.2390-8, section 5.4.1, to 203 cd/m2, and gamma 2.4."""
    top, most = pq(peak), pq(203) / pq(peak)
    knee, e = 1.5 * most - 0.5, pq(light) / top
    if e > knee:
        t = (e - knee) / (1 - knee)
        e = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    low, high = 0.0, 10_000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if pq(middle) < e * top else (low, middle)
    return 255 * min(low / 203, 1) ** (1 / 2.4)


@pytest.mark.parametrize("light", [0.5, 5, 26, 50, 100, 203, 400, 1000])
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx265"), ("a.mkv", "ffv1")])
def test_pq_greys_become_the_sdr_levels_of_bt_2390(
    films: SimpleNamespace, tmp_path: Path, light: float, name: str, codec: str
) -> None:
    video, picture = read(hdr(films, tmp_path / name, [pq(light)] * 3, 16, codec))
    assert np.abs(picture.mean((0, 1)) - mapped(light)).max() < 1.6
    assert video.colour.hdr == "PQ" and video.colour.shown == Colour(1, 1, 1, 1)
    assert video.notes == ["HDR (PQ): tone-mapped to SDR, BT.709, 8 bits (BT.2390; 203 cd/m2 become white)"]


def test_hdr_white_and_mid_grey_are_where_a_viewer_expects_them() -> None:
    """A film graded with white paper at 203 cd/m2 and skin at 60 must not come out grey, as it does untouched."""
    assert mapped(203) > 225 and 140 < mapped(60) < 160 and mapped(1000) == pytest.approx(255, abs=0.5)


@pytest.mark.parametrize("scene", [0.002, 0.02, 0.1, 0.265, 0.5, 1.0])
def test_hlg_greys_become_the_same_levels(films: SimpleNamespace, tmp_path: Path, scene: float) -> None:
    """A display of 1,000 cd/m2 shows grey of scene light E as 1000 E^1.2 (ITU-R BT.2100)."""
    video, picture = read(hdr(films, tmp_path / "a.mp4", [hlg(scene)] * 3, 18))
    assert np.abs(picture.mean((0, 1)) - mapped(1000 * scene**1.2)).max() < 1.6
    assert video.colour.hdr == "HLG"


@pytest.mark.parametrize("light", [(60, 20, 10), (10, 40, 20), (5, 10, 60)])
def test_hdr_colours_keep_their_hue(films: SimpleNamespace, tmp_path: Path, light: tuple[float, float, float]) -> None:
    """Colours of BT.709 coded in BT.2020 primaries, below the knee: they come back as they were."""
    primaries = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087
    signal = [pq(value) for value in primaries @ light]
    _, picture = read(hdr(films, tmp_path / "a.mp4", signal, 16))
    expected = 255 * (np.array(light) / 203) ** (1 / 2.4)
    assert np.abs(picture.mean((0, 1)) - expected).max() < 3


@pytest.mark.parametrize(("primaries", "matrix"), [(9, 9), (12, 1)])
def test_wide_primaries_are_converted(films: SimpleNamespace, tmp_path: Path, primaries: int, matrix: int) -> None:
    """Grey is not changed; a colour gets the numbers that it has in BT.709."""
    to_xyz = {
        1: np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]),
        9: np.array([[0.6370, 0.1446, 0.1689], [0.2627, 0.6780, 0.0593], [0.0, 0.0281, 1.0610]]),
        12: np.array([[0.4866, 0.2657, 0.1982], [0.2290, 0.6917, 0.0793], [0.0, 0.0451, 1.0439]]),
    }
    for rgb in ((120, 120, 120), (160, 110, 90), (90, 140, 110)):
        linear = np.linalg.inv(to_xyz[primaries]) @ to_xyz[1] @ (np.array(rgb) / 255) ** 2.4
        values = coded(255 * linear ** (1 / 2.4), matrix, False, 10)
        frame = films.plain(values, form="yuv420p10le")
        path = films.write(tmp_path / "a.mkv", [frame] * 2, "ffv1", "yuv420p10le", colour=(matrix, 1, primaries, 1))
        video, picture = read(path)
        assert np.abs(picture.mean((0, 1)) - rgb).max() < 1.5
        assert video.notes == ["colours beyond BT.709: converted to BT.709, 8 bits"]


def test_a_matrix_that_cannot_be_decoded_is_named(films: SimpleNamespace, tmp_path: Path) -> None:
    path = films.write(tmp_path / "a.mp4", [films.plain([100, 128, 128])] * 2, colour=(8, 1, 1, 1))  # YCgCo
    with pytest.raises(BadImage, match=r"number 8 of H\.273"):
        read(path)
