"""Swaps of videos: in and out frame by frame, sound as it was, memory that does not grow, and going on after a kill."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ornstein.errors import RunError, UserError
from ornstein.faces import provenance
from ornstein.faces.provenance.blocklist import BlockList
from ornstein.faces.provenance.card import ModelCard
from ornstein.faces.provenance.consent import Consent
from ornstein.faces.swap import Choice, Source, SwapModel, Swapper, SwapSettings, film
from ornstein.faces.swap.film import Encoder, Film, is_video
from ornstein.faces.swap.photo import Order
from ornstein.faces.swap.swapper import Aligned
from ornstein.faces.swap.video import VideoReport, VideoSettings, swap_video

HEIGHT, WIDTH = 64, 96
SHORT = VideoSettings(segment=6, batch=4, gap=2, noise="ar1:0.7")


class Slow(Swapper):
    """Waits before it paints: there is time to kill it."""

    def painted(self, faces: Sequence, sources: Sequence, start: Tensor | None = None, first: int = 0) -> list[Tensor]:
        time.sleep(0.25)
        return super().painted(faces, sources, start, first)


class Idle(Swapper):
    """Paints nothing."""

    def painted(self, faces: Sequence, sources: Sequence, start: Tensor | None = None, first: int = 0) -> list[Tensor]:
        return [face.crop / 255 for face in faces]

    def put_back(self, pixels: Tensor, faces: Sequence, made: Sequence[Tensor]) -> Tensor:
        return pixels


class Turning(Swapper):
    """Sees in each frame an angle of a list, and keeps the weights with which faces are put back."""

    angles: Iterator[float]
    shares: list[float]

    def turn(self, face: Aligned, source: Source) -> float:
        return next(self.angles)

    def put_back(self, pixels: Tensor, faces: Sequence, made: Sequence[Tensor]) -> Tensor:
        self.shares += [float(face.pasted.max()) for face in faces]
        return super().put_back(pixels, faces, made)


def frames_of(stubs: SimpleNamespace, count: int, without: Sequence[int] = ()) -> list[Tensor]:
    """Red walks to and fro."""
    places = [(24 + round(10 * math.sin(i / 5)), 20, 24) for i in range(count)]
    return [stubs.scenery(HEIGHT, WIDTH, **({} if i in without else {"red": p})) for i, p in enumerate(places)]


def write(path: Path, frames: Sequence[Tensor], sound: bool = False, fps: int = 24) -> Path:
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", Fraction(fps))
        video.width, video.height, video.pix_fmt, video.options = WIDTH, HEIGHT, "yuv420p", {"crf": "10"}
        audio = container.add_stream("aac", 8000, layout="mono") if sound else None
        for frame in frames:
            array = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
            container.mux(video.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(video.encode())
        if audio is not None:
            for i in range(len(frames) * 8000 // fps // 1024):
                wave = 0.3 * np.sin(0.1 * (np.arange(1024) + 1024 * i), dtype=np.float32)[None]
                part = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                part.rate, part.pts = 8000, 1024 * i
                container.mux(audio.encode(part))
            container.mux(audio.encode())
    return path


def decoded(path: Path) -> Tensor:
    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)])


def packets(path: Path) -> list[tuple[Fraction | None, bytes]]:
    with av.open(str(path)) as container:
        return [(p.pts and p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.size]


def parts(stubs: SimpleNamespace, kind: type[Swapper] = Swapper) -> tuple[Swapper, SwapModel, Choice]:
    settings = SwapSettings(steps=1, guidance=1.0, label=False)
    swapper = kind(stubs.untrained(), settings, stubs.Squares(), stubs.Colours())
    source = stubs.someone([1.0, -2.0, 0.5])
    return swapper, SwapModel(swapper.model, ModelCard(), "ab" * 32), Choice([source])


def order(folder: Path, target: str = "t.mp4", out: str = "out.mp4") -> Order:
    (folder / "s.png").write_bytes(b"the photo of the source")
    return Order([[folder / "s.png"]], folder / target, folder / out, Consent("Red, a test"))


def test_a_video_comes_out_with_its_sound_and_all_its_frames(
    own_key: None, stubs: SimpleNamespace, tmp_path: Path
) -> None:
    shown = frames_of(stubs, 20, without=(3, 12, 13, 14, 15))
    write(tmp_path / "t.mp4", shown, sound=True)
    told: list[tuple[str, int, int | None]] = []
    report = swap_video(*parts(stubs), order(tmp_path), SHORT, tell=lambda *a: told.append(a))
    assert report == VideoReport(20, [(12, 15)]) and report.frames_without == 4  # the gap of one frame is filled
    target, out = decoded(tmp_path / "t.mp4").float(), decoded(tmp_path / "out.mp4").float()
    assert out.shape == target.shape
    difference = (out - target).abs().mean(3)
    face = difference[:, 26:38, 30:40].mean((1, 2))
    assert bool((face[[0, 5, 19]] > 4).all()) and float(face[12:16].max()) < 3
    assert float(difference[:, :, 75:].mean()) < 2  # the rest is coded anew and else as it was
    assert packets(tmp_path / "out.mp4") == packets(tmp_path / "t.mp4") and len(packets(tmp_path / "t.mp4")) > 4
    with av.open(str(tmp_path / "out.mp4")) as a, av.open(str(tmp_path / "t.mp4")) as b:
        times = [[f.time for f in each.decode(video=0)] for each in (a, b)]
    assert times[0] == pytest.approx(times[1])
    assert told[0] == ("finding faces", 1, None) and told[-1] == ("writing", 20, 20) and ("swapping", 20, 20) in told
    assert sorted(each.name for each in tmp_path.iterdir() if each.is_dir()) == ["configuration"]
    found = provenance.read(tmp_path / "out.mp4")
    assert found.state == provenance.INTACT and found.ours and found.swap is not None
    assert found.swap["settings"]["video"]["noise"] == "ar1:0.7"
    (line,) = (tmp_path / "ornstein-swaps.jsonl").read_text().splitlines()
    assert json.loads(line)["frames_without_a_face"] == [[12, 15]]
    data = bytearray((tmp_path / "out.mp4").read_bytes())
    data[data.rindex(b"mdat") + 60] ^= 1
    (tmp_path / "changed.mp4").write_bytes(data)
    assert provenance.read(tmp_path / "changed.mp4").state == provenance.CHANGED


def test_a_face_that_turns_away_fades_out_and_in_and_is_counted(
    own_key: None, stubs: SimpleNamespace, tmp_path: Path
) -> None:
    write(tmp_path / "t.mp4", frames_of(stubs, 18))
    swapper, model, choice = parts(stubs, Turning)
    assert isinstance(swapper, Turning)
    angles = [20.0] * 6 + [35.1] * 6 + [35.0] * 6
    swapper.angles, swapper.shares = iter(angles), []
    report = swap_video(swapper, model, choice, order(tmp_path), replace(SHORT, fade=2))
    assert report.turned == 6 and report.frames_without == 0 and report.people == 1
    assert any("were left: 6; the limit is 35: choose a photo of the source from that side" in n for n in report.notes)
    (line,) = (tmp_path / "ornstein-swaps.jsonl").read_text().splitlines()
    assert json.loads(line)["faces_turned"] == 6
    # four of the frames are as they were: the fade goes on from one segment of six frames to the next
    shares = [each / swapper.shares[0] for each in swapper.shares]
    assert shares == pytest.approx([1] * 6 + [2 / 3, 1 / 3] + [1 / 3, 2 / 3] + [1] * 4, abs=1e-5)
    swapper.angles = iter([90.0] * 18)
    with pytest.raises(UserError, match=r"t\.mp4: in every frame the face is turned too far"):
        swap_video(swapper, model, choice, order(tmp_path, out="none.mp4"), SHORT)
    assert not list(tmp_path.glob("none.mp4*"))


def test_a_killed_swap_goes_on_and_gives_the_same_frames(own_key: None, stubs: SimpleNamespace, tmp_path: Path) -> None:
    write(tmp_path / "t.mp4", frames_of(stubs, 26))
    swap_video(*parts(stubs), order(tmp_path, out="whole.mp4"), SHORT)
    here = Path(__file__)
    script = f"""
import importlib.util, sys
def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
stubs, me = load("stubs", {str(here.with_name("conftest.py"))!r}), load("me", {str(here)!r})
from pathlib import Path
me.swap_video(*me.parts(stubs, me.Slow), me.order(Path({str(tmp_path)!r})), me.SHORT)
"""
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"})
    work = tmp_path / "out.mp4.swap"
    deadline = time.monotonic() + 240
    while not (work / "segment-00001.mp4").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)  # into the next segment
    process.kill()
    assert process.wait() == -9
    assert not (tmp_path / "out.mp4").exists()
    finished = len(list(work.glob("segment-*.mp4")))
    assert 2 <= finished < 5
    kept = {path: path.stat().st_mtime_ns for path in work.glob("segment-*.mp4")}
    with pytest.raises(UserError, match=r"unfinished swap: go on with --resume"):
        swap_video(*parts(stubs), order(tmp_path), SHORT)
    swapper, model, choice = parts(stubs)
    swapper.settings = SwapSettings(steps=2)
    with pytest.raises(UserError, match="other files or settings"):
        swap_video(swapper, model, choice, order(tmp_path), SHORT, resume=True)
    seen: list[tuple[str, int, int | None]] = []
    assert {path: path.stat().st_mtime_ns for path in work.glob("segment-*.mp4")} == kept
    swap_video(*parts(stubs), order(tmp_path), SHORT, resume=True, tell=lambda *a: seen.append(a))
    assert seen[0] == ("swapping", 6 * finished, 26)
    assert torch.equal(decoded(tmp_path / "out.mp4"), decoded(tmp_path / "whole.mp4"))
    assert not work.exists()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory in use is read from /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(own_key: None, stubs: SimpleNamespace, tmp_path: Path) -> None:
    """2,000 frames of 18 kB: to hold them would take 37 MB, or 147 MB as floats."""
    count = 2000
    write(tmp_path / "t.mp4", frames_of(stubs, 50) * (count // 50))
    used: dict[str, dict[int, int]] = {"finding faces": {}, "swapping": {}, "writing": {}}

    def tell(stage: str, done: int, total: int | None) -> None:
        used[stage][done] = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    report = swap_video(*parts(stubs, Idle), order(tmp_path), VideoSettings(every=5), tell=tell)
    assert report == VideoReport(count, [])
    for stage in ("finding faces", "swapping"):
        early = max(bytes_ for done, bytes_ in used[stage].items() if done <= count // 5)
        late = max(bytes_ for done, bytes_ in used[stage].items() if done > count // 5)
        assert late - early < 12e6, stage


def test_the_noise_of_a_face_decides_how_much_it_flickers(
    own_key: None, stubs: SimpleNamespace, tmp_path: Path
) -> None:
    still = [stubs.scenery(HEIGHT, WIDTH, red=(24, 20, 24))] * 8
    write(tmp_path / "t.mp4", still)
    flicker = {}
    for noise in ("independent", "ar1:0.9", "shared"):
        name = f"{noise[:2]}.mp4"
        swap_video(*parts(stubs), order(tmp_path, out=name), VideoSettings(noise=noise))
        flicker[noise] = float(decoded(tmp_path / name).float().diff(dim=0)[:, 24:40, 28:44].square().mean())
    assert flicker["independent"] > 2 * flicker["ar1:0.9"] > 4 * flicker["shared"]


def test_no_face_in_any_frame(own_key: None, stubs: SimpleNamespace, tmp_path: Path) -> None:
    write(tmp_path / "t.mp4", frames_of(stubs, 5, without=range(5)))
    asked = order(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"no face to swap found in .*t\.mp4, in none of its 5 frames"):
        swap_video(*parts(stubs), asked, SHORT)
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_video(own_key: None, stubs: SimpleNamespace, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mp4", frames_of(stubs, 30)).read_bytes()
    (tmp_path / "t.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    asked = [order(tmp_path, name) for name in ("t.mp4", "text.mp4", "none.mp4")]
    before = sorted(tmp_path.iterdir())
    for each, message in zip(asked, ("cannot be used", "not a video, or damaged", "cannot read"), strict=True):
        with pytest.raises(UserError, match=message):
            swap_video(*parts(stubs), each, SHORT)
    assert sorted(tmp_path.iterdir()) == before


def test_a_protected_face_ends_the_work(own_key: None, stubs: SimpleNamespace, tmp_path: Path) -> None:
    write(tmp_path / "t.mp4", [stubs.scenery(HEIGHT, WIDTH), *frames_of(stubs, 3)])
    swapper, model, choice = parts(stubs)
    swapper.protected = BlockList(torch.tensor([stubs.PEOPLE["red"]]) / 50)
    with pytest.raises(UserError, match=r"a face in frame 2 of .*t\.mp4 is on the list"):
        swap_video(swapper, model, choice, order(tmp_path), SHORT)
    assert not (tmp_path / "out.mp4.swap").exists()


def test_a_reference_follows_one_person(own_key: None, stubs: SimpleNamespace, tmp_path: Path) -> None:
    pictures = [stubs.scenery(HEIGHT, WIDTH, red=(6, 20, 20), blue=(60 - i, 20, 24)) for i in range(8)]
    write(tmp_path / "t.mp4", pictures)
    swapper, model, choice = parts(stubs)
    red = Choice(choice.sources, references=torch.tensor([stubs.PEOPLE["red"]]) / 50)
    swap_video(swapper, model, red, order(tmp_path), SHORT)
    change = (decoded(tmp_path / "out.mp4").float() - decoded(tmp_path / "t.mp4").float()).abs().mean((0, 3))
    assert float(change[26:34, 12:20].mean()) > 4 * float(change[26:34, 64:74].mean())


def test_an_animated_gif_is_a_video(own_key: None, stubs: SimpleNamespace, tmp_path: Path) -> None:
    pictures = [Image.fromarray(f.permute(1, 2, 0).numpy()) for f in frames_of(stubs, 6)]
    pictures[0].save(tmp_path / "t.gif", save_all=True, append_images=pictures[1:], duration=100)
    pictures[0].save(tmp_path / "one.gif")
    assert is_video(tmp_path / "t.gif") and not is_video(tmp_path / "one.gif")
    assert swap_video(*parts(stubs), order(tmp_path, "t.gif"), SHORT).frames == 6
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [f.time for f in container.decode(video=0)] == pytest.approx([0.1 * i for i in range(6)])
    with pytest.raises(UserError, match=r"is written as \.mp4"):
        swap_video(*parts(stubs), order(tmp_path, "t.gif", "out.gif"), SHORT)


@pytest.mark.parametrize(("name", "out"), [("t.jpg", "out.mp4"), ("t.avi", "out.mov"), ("t", "out.m4v")])
def test_the_name_of_the_target_does_not_matter(
    own_key: None, stubs: SimpleNamespace, tmp_path: Path, name: str, out: str
) -> None:
    """An mp4 of another name was swapped in full before the signature failed."""
    write(tmp_path / "t.mp4", frames_of(stubs, 5)).rename(tmp_path / name)
    assert swap_video(*parts(stubs), order(tmp_path, name, out), SHORT) == VideoReport(5, [])
    assert provenance.read(tmp_path / out).state == provenance.INTACT
    assert len(decoded(tmp_path / out)) == 5


def test_a_photo_named_as_a_video_is_refused_before_any_work(
    own_key: None, stubs: SimpleNamespace, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "t.png")
    (tmp_path / "t.png").rename(tmp_path / "t.mp4")
    made = order(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"t\.mp4 cannot be used: .*it is a PNG picture"):
        swap_video(*parts(stubs), made, SHORT)
    assert sorted(tmp_path.iterdir()) == before and not is_video(tmp_path / "t.mp4")


def test_a_swap_that_failed_at_its_end_goes_on(
    own_key: None, stubs: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "t.mp4", frames_of(stubs, 14))

    def fails(*_: object) -> None:
        raise RunError("cannot sign")

    with monkeypatch.context() as patched:
        patched.setattr(provenance, "sign", fails)
        with pytest.raises(RunError, match="cannot sign"):
            swap_video(*parts(stubs), order(tmp_path), SHORT)
    assert not (tmp_path / "out.mp4").exists()
    seen: list[str] = []
    report = swap_video(*parts(stubs), order(tmp_path), SHORT, True, lambda stage, *_: seen.append(stage))
    assert report == VideoReport(14, []) and seen == ["writing"]  # nothing is done twice
    assert not (tmp_path / "out.mp4.swap").exists() and len(decoded(tmp_path / "out.mp4")) == 14


def test_the_folder_of_the_work(own_key: None, stubs: SimpleNamespace, tmp_path: Path) -> None:
    """One from before there was a plan is taken; one of something else, or of an earlier version, is not touched."""
    write(tmp_path / "t.mp4", frames_of(stubs, 3))
    work = tmp_path / "out.mp4.swap"
    work.mkdir()
    (work / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="it holds files of something else"):
        swap_video(*parts(stubs), order(tmp_path), SHORT)
    assert (work / "mine.txt").read_text() == "mine"
    (work / "mine.txt").unlink()
    (work / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="unfinished swap: go on with --resume"):
        swap_video(*parts(stubs), order(tmp_path), SHORT)
    with pytest.raises(UserError, match="other files or settings"):
        swap_video(*parts(stubs), order(tmp_path), SHORT, resume=True)
    (work / "plan.json").rename(work / ".plan.json.partial")
    assert swap_video(*parts(stubs), order(tmp_path), SHORT).frames == 3
    (tmp_path / "elsewhere").mkdir()
    work.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is in the way"):
        swap_video(*parts(stubs), order(tmp_path), SHORT)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_link_beside_the_output_is_not_followed(own_key: None, stubs: SimpleNamespace, tmp_path: Path) -> None:
    write(tmp_path / "t.mp4", frames_of(stubs, 3))
    (tmp_path / "other.txt").write_text("other")
    (tmp_path / ".out.mp4.partial").symlink_to(tmp_path / "other.txt")
    swap_video(*parts(stubs), order(tmp_path), SHORT)
    assert (tmp_path / "other.txt").read_text() == "other"


@pytest.mark.parametrize("every", [1, 4])
def test_the_last_frame_keeps_its_length_and_nothing_is_lost_silently(
    own_key: None, stubs: SimpleNamespace, films: SimpleNamespace, tmp_path: Path, every: int
) -> None:
    times = [0, 40, 77, 500, 600, 1100, 6760]
    shown = [frame.permute(1, 2, 0).numpy() for frame in frames_of(stubs, 6)]
    films.write(tmp_path / "t.mkv", shown, times=times)
    settings = VideoSettings(segment=4, batch=4, every=every)
    assert swap_video(*parts(stubs), order(tmp_path, "t.mkv"), settings) == VideoReport(6, [])
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
        base = container.streams.video[0].time_base
    assert base is not None and frames[-1].pts is not None
    assert [frame.time for frame in frames] == pytest.approx([t / 1000 for t in times[:-1]], abs=1e-4)
    assert (frames[-1].pts + frames[-1].duration) * base == pytest.approx(6.76, abs=1e-3)


def test_what_is_not_as_it_was_is_in_the_report_and_the_log(
    own_key: None, stubs: SimpleNamespace, films: SimpleNamespace, tmp_path: Path
) -> None:
    shown = [frame.permute(1, 2, 0).numpy() for frame in frames_of(stubs, 6)]
    options = {"x264-params": "tff=1", "crf": "10"}
    films.write(tmp_path / "t.mp4", shown, options=options)
    report = swap_video(*parts(stubs), order(tmp_path), SHORT)
    assert report.notes == ["interlaced: deinterlaced (bwdif), as many frames as before"]
    assert json.loads((tmp_path / "ornstein-swaps.jsonl").read_text())["notes"] == report.notes


def test_odd_sides_and_uneven_times(stubs: SimpleNamespace, tmp_path: Path) -> None:
    """Frames come at the times they had, and odd sides are made even by repeating the last row and column."""
    picture = torch.zeros(3, 31, 45, dtype=torch.uint8)
    picture[0] = torch.arange(45) * 5
    encoder = Encoder(tmp_path / "s.mp4", 45, 31, Fraction(10))
    for _ in range(3):
        encoder.write(picture)
    encoder.close()
    silent = Film(tmp_path / "s.mp4", 45, 31, Fraction(10), Fraction(1, 1000), ())
    film.join([tmp_path / "s.mp4"], iter([40, 77, 500]), silent, tmp_path / "out.mp4")
    out = decoded(tmp_path / "out.mp4")
    assert out.shape == (3, 32, 46, 3)
    assert float((out[:, :31, 2:43].permute(0, 3, 1, 2).float() - picture[:, :, 2:43]).abs().mean()) < 6
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [frame.time for frame in frames] == pytest.approx([0.04, 0.077, 0.5])
    # BT.601, as it is coded: it must be said, for a player takes BT.709 for a large picture that says nothing
    assert frames[0].colorspace == 6
    assert int(frames[0].to_ndarray(format="yuv420p")[4, 40]) == pytest.approx(16 + 0.299 * 200 * 219 / 255, abs=3)


def test_settings_of_videos() -> None:
    for wrong in ({"noise": "pink"}, {"gap": -1}, {"every": 0}, {"segment": 0}, {"batch": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            VideoSettings(**wrong)
