"""Clips from real files: encoded here with PyAV, read back through `open_clips`."""

import io
import os
import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import images, open_clips
from ornstein.errors import RunError, UserError

LEVELS = 9  # grey steps of 9 survive any coding here, and tell frame i from frame i + 1


def moving(count: int, width: int = 32, height: int = 32, offset: int = 0) -> np.ndarray:
    """RGB frames (count, H, W, 3): the background's grey is the frame's number, the left upper quarter is white."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for i in range(count):
        frames[i] = (offset + i) * LEVELS % 200
        frames[i, : height // 2, : width // 2] = 255
    return frames


def encode(path: Path, frames: np.ndarray, codec: str = "libx264", **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, Fraction(12))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "5"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def gif(path: Path, frames: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [Image.fromarray(frame[..., 0]) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=80)
    return path


def folder(path: Path, frames: np.ndarray) -> Path:
    path.mkdir(parents=True)
    for i, frame in enumerate(frames):  # no leading zeros: 10 comes after 9 in natural order
        Image.fromarray(frame).save(path / f"{i}.png")
    return path


def numbers(clips: torch.Tensor) -> list[list[int]]:
    """The number of each frame of each clip, by the grey of its lower right corner."""
    corner = (clips[:, :, :, -6:-2, -6:-2].mean((1, 3, 4)) + 1) * 127.5
    return (corner / LEVELS).round().int().tolist()


def read(clip_set) -> torch.Tensor:
    return clip_set.batch(range(len(clip_set)))[0]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mov", "libx264"), ("a.webm", "libvpx-vp9"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")],
)
def test_every_container_gives_its_frames_in_order(tmp_path, name, codec):
    path = encode(tmp_path / name, moving(10), codec)
    clips = open_clips(path, frames=3, size=32)
    assert (len(clips), clips.shape, clips.skipped, clips.classes) == (3, (3, 3, 32, 32), [], [])
    x, labels = clips.batch(torch.tensor([2, 0]))
    assert x.dtype == torch.float32 and x.shape == (2, 3, 3, 32, 32) and labels is None
    assert numbers(x) == [[6, 7, 8], [0, 1, 2]]
    assert x[..., 2:12, 2:12].min() > 0.8  # the quarter that is white: upper left


def test_gif_and_frame_folder_are_exact(tmp_path):
    frames = moving(12)
    for path in (gif(tmp_path / "g" / "a.gif", frames), folder(tmp_path / "f", frames)):
        x = read(open_clips(path, frames=6))
        expected = torch.from_numpy(frames.reshape(2, 6, 32, 32, 3)).permute(0, 4, 1, 2, 3) / 127.5 - 1
        torch.testing.assert_close(x, expected)
        grey = read(open_clips(path, frames=6, channels=1))
        torch.testing.assert_close(grey, expected[:, :1])


def test_stride_hop_and_what_is_left_over(tmp_path):
    path = folder(tmp_path / "f", moving(11))
    assert numbers(read(open_clips(path, frames=4))) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert numbers(read(open_clips(path, frames=3, stride=3))) == [[0, 3, 6]]
    assert numbers(read(open_clips(path, frames=4, hop=3))) == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    video = encode(tmp_path / "a.mp4", moving(11))
    assert numbers(read(open_clips(video, frames=2, stride=4))) == [[0, 4]]
    assert numbers(read(open_clips(video, frames=4, hop=3))) == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


def test_frames_are_cut_square_and_resized(tmp_path):
    frames = np.zeros((4, 32, 96, 3), np.uint8)
    frames[:, :, 32:64] = 255  # the centre square of a wide picture
    for path in (encode(tmp_path / "a.mp4", frames), folder(tmp_path / "f", frames)):
        x = read(open_clips(path, frames=4, size=16))
        assert x.shape == (1, 3, 4, 16, 16) and x[..., 2:-2].min() > 0.9
        assert open_clips(path, frames=4).shape == (3, 4, 32, 32)


def test_a_video_turned_by_its_metadata_is_turned_back(tmp_path):
    path = encode(tmp_path / "a.mp4", moving(4))
    data = bytearray(path.read_bytes())
    # The track header's matrix, by the book (ISO/IEC 14496-12, 8.3.2): rotate by 90 degrees clockwise to show it.
    unit = b"".join(v.to_bytes(4, "big") for v in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
    turned = b"".join(
        v.to_bytes(4, "big", signed=True) for v in (0, 0x10000, 0, -0x10000, 0, 0, 32 << 16, 0, 0x40000000)
    )
    at = data.index(unit, data.index(b"tkhd"))
    data[at : at + 36] = turned
    path.write_bytes(data)
    x = read(open_clips(path, frames=4, size=32))
    assert x[..., 2:12, 20:30].min() > 0.8  # the white quarter, upper left in the file, is upper right
    assert x[..., 2:12, 2:12].max() < 0.5


def test_zip_of_videos_is_read_in_place_with_classes(tmp_path):
    a = encode(tmp_path / "a.mp4", moving(5)).read_bytes()
    b = encode(tmp_path / "b.webm", moving(6, offset=10), "libvpx-vp9").read_bytes()
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("set/run/a.mp4", a)
        archive.writestr("set/jump/b.webm", b)
        archive.writestr("../../evil.mp4", a)
        archive.writestr("set/readme.txt", "hello")
        for i, frame in enumerate(moving(5, offset=4)):
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, "PNG")
            archive.writestr(f"set/run/frames/{i}.png", buffer.getvalue())
    before = sorted(tmp_path.rglob("*"))
    clips = open_clips(path, frames=5, size=32)
    assert clips.names == ["set/jump/b.webm", "set/run/a.mp4", "set/run/frames"]
    assert clips.classes == ["jump", "run"]
    x, labels = clips.batch(range(3))
    assert labels is not None and labels.tolist() == [0, 1, 1]
    assert [clip[0] for clip in numbers(x)] == [10, 0, 4]
    assert clips.skipped == [("../../evil.mp4", "its path leads out of the archive")]
    assert sorted(tmp_path.rglob("*")) == before and not (tmp_path.parent.parent / "evil.mp4").exists()


def test_one_folder_is_no_class(tmp_path):
    encode(tmp_path / "only" / "a.mp4", moving(4))
    encode(tmp_path / "only" / "b.mp4", moving(4))
    clips = open_clips(tmp_path, frames=4, size=16)
    assert clips.classes == [] and clips.batch([0])[1] is None


def test_what_cannot_be_used_is_skipped_with_the_reason(tmp_path):
    sound = encode(tmp_path / "sound.mp4", moving(30))
    noise = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
    fast = encode(tmp_path / "fast.mp4", noise, movflags="faststart").read_bytes()
    web = encode(tmp_path / "web.webm", moving(60), "libvpx-vp9", cluster_time_limit="300").read_bytes()
    (tmp_path / "fast.mp4").write_bytes(fast[: int(0.7 * len(fast))])
    (tmp_path / "web.webm").write_bytes(web[: int(0.5 * len(web))])
    (tmp_path / "cut.mp4").write_bytes(sound.read_bytes()[:-400])
    (tmp_path / "text.mp4").write_text("dear diary\n" * 100)
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{sound}\n#EXT-X-ENDLIST\n")
    (tmp_path / "empty.mp4").touch()
    encode(tmp_path / "short.mp4", moving(7))
    animation = gif(tmp_path / "cut.gif", moving(20)).read_bytes()
    (tmp_path / "cut.gif").write_bytes(animation[:-200])
    folder(tmp_path / "pictures", moving(9))
    (tmp_path / "pictures" / "3.png").write_bytes((tmp_path / "pictures" / "3.png").read_bytes()[:60])
    clips = open_clips(tmp_path, frames=8, size=32)
    assert clips.names == ["sound.mp4"] and len(clips) == 3
    assert numbers(read(clips))[1] == list(range(8, 16))  # what the broken ones gave is gone
    reasons = dict(clips.skipped)
    assert reasons.pop("short.mp4") == "too short: 7 frames, a clip has 8"
    assert reasons.pop("empty.mp4") == "empty file"
    assert reasons.pop("fast.mp4").startswith("cut short: 1.")
    assert reasons.pop("web.webm").startswith("cut short: ")
    assert reasons.pop("cut.gif") == "cut short: its end mark is missing"
    for name in ("cut.mp4", "text.mp4", "list.mp4"):
        assert reasons.pop(name).startswith("not a video, or damaged"), name
    assert reasons.pop("pictures").startswith("3.png: damaged")
    assert not reasons


def test_errors_name_what_was_wrong(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text.mp4").write_text("hello")
    with pytest.raises(UserError, match=r"no usable video in .*notes: files: 1 skipped \(text.mp4: not a video"):
        open_clips(tmp_path / "notes", frames=4, size=16)
    with pytest.raises(UserError, match="no such folder or file"):
        open_clips(tmp_path / "nothing", frames=4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty: give a folder or zip archive of videos"):
        open_clips(tmp_path / "empty", frames=4)
    folder(tmp_path / "two" / "a", moving(4))
    folder(tmp_path / "two" / "b", moving(4, 48, 48))
    with pytest.raises(UserError, match=r"not all one size \(a gives 32 pixels a side, b 48\): choose one with --size"):
        open_clips(tmp_path / "two", frames=4)
    for settings, message in (
        ({"frames": 0}, "at least 1"),
        ({"frames": 4, "stride": 0}, "at least 1"),
        ({"frames": 4, "size": 1}, "--size must be at least 2"),
        ({"frames": 4, "channels": 2}, "channels of clips must be 1"),
    ):
        with pytest.raises(UserError, match=message):
            open_clips(tmp_path / "two", **settings)


def test_split_holds_out_whole_videos(tmp_path):
    for i in range(6):
        folder(tmp_path / f"v{i}", moving(6, 16, 16))
    clips = open_clips(tmp_path, frames=2)
    train, held_out = clips.split(1 / 3, seed=0)
    assert (len(train), len(held_out)) == (12, 6)
    assert not set(train.videos.tolist()) & set(held_out.videos.tolist())
    assert clips.split(1 / 3, seed=0)[1].fingerprint == held_out.fingerprint
    assert len({clips.split(1 / 3, seed=s)[1].fingerprint for s in range(8)}) > 1
    assert len({s.fingerprint for s in (clips, train, held_out, open_clips(tmp_path, frames=3))}) == 4
    assert open_clips(tmp_path, frames=2).fingerprint == clips.fingerprint
    with pytest.raises(ValueError, match="between 0 and 1"):
        clips.split(1.0, seed=0)


def test_split_of_one_video_is_in_time_without_overlap(tmp_path):
    clips = open_clips(folder(tmp_path / "v", moving(20, 32, 32)), frames=4, hop=2)
    train, held_out = clips.split(0.34, seed=0)
    shown, kept = ([n for clip in numbers(read(part)) for n in clip] for part in (train, held_out))
    assert max(shown) < min(kept) and len(held_out) == 3
    with pytest.raises(UserError, match="at least 2 are needed"):
        open_clips(tmp_path / "v", frames=20).split(0.5, seed=0)


def test_above_the_budget_the_frames_live_in_a_file(tmp_path, monkeypatch):
    for i in range(3):
        folder(tmp_path / f"v{i}", moving(5, 16, 16, offset=5 * i))
    (tmp_path / "v1" / "4.png").write_text("broken")
    expected = open_clips(tmp_path, frames=2)
    monkeypatch.setattr(images, "MEMORY_BUDGET", 6 * 3 * 16 * 16)  # in the middle of the second video, which breaks
    clips = open_clips(tmp_path, frames=2)
    assert torch.equal(read(clips), read(expected)) and len(clips) == 4
    assert clips.skipped[0][0] == "v1"

    class Full(io.BytesIO):
        def write(self, *_):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("ornstein.data.frame_store.tempfile.TemporaryFile", Full)
    with pytest.raises(RunError, match=r"No space left on device.*smaller --size"):
        open_clips(tmp_path, frames=2)


def test_progress_counts_videos(tmp_path):
    for i in range(3):
        folder(tmp_path / f"v{i}", moving(3, 16, 16))
    seen: list[tuple[int, int]] = []
    open_clips(tmp_path, frames=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


PEAK = """
import resource, sys
from ornstein.data import open_clips
for path in sys.argv[1:]:
    clips = open_clips(path, frames=8, size=8, channels=1)
    print(len(clips), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_long_video_takes_no_more_memory_than_a_short_one(tmp_path):
    frame = moving(1, 128, 128)
    paths = []
    for count in (104, 2000):
        frames = np.broadcast_to(frame, (count, *frame.shape[1:]))
        paths.append(str(encode(tmp_path / f"{count}.avi", frames, "mpeg4")))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", PEAK, *paths], env=environment, capture_output=True, check=True)
    clips, kilobytes = zip(*(map(int, line.split()) for line in run.stdout.splitlines()), strict=True)
    assert clips == (13, 250)
    # decoded it would be 98 MB; what is kept is 0.1 MB
    assert kilobytes[1] - kilobytes[0] < 20 * 1024
