import av
import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import clip_grid, open_clips, save_gif, save_mp4, save_sheet, to_uint8
from ornstein.errors import RunError, UserError


def clip(channels=3, frames=5, height=16, width=16):
    torch.manual_seed(0)
    coarse = torch.rand(1, channels, frames, 2, 2) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (frames, height, width))[0]


def frames_of(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
        return frames, stream.average_rate, stream.codec_context


@pytest.mark.parametrize("channels", [1, 3])
def test_mp4_plays_the_clip_at_its_rate(tmp_path, channels):
    x = clip(channels)
    save_mp4(x, tmp_path / "new" / "a.mp4", fps=12.5, upscale=4)
    frames, rate, codec = frames_of(tmp_path / "new" / "a.mp4")
    assert frames.shape == (5, 64, 64, 3) and rate == 12.5 and codec.pix_fmt == "yuv420p"
    assert codec.name == ("h264" if "libx264" in av.codecs_available else "mpeg4")
    expected = to_uint8(x).expand(3, -1, -1, -1).permute(1, 2, 3, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert np.abs(frames.astype(int) - expected.numpy()).mean() < 4
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.mp4"]  # no partial file is left


def test_mp4_of_odd_sides_repeats_the_last_row_and_column(tmp_path):
    save_mp4(clip(height=15, width=17), tmp_path / "a.mp4")
    assert frames_of(tmp_path / "a.mp4")[0].shape == (5, 16, 18, 3)


def test_without_h264_it_is_mpeg4(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    save_mp4(clip(), tmp_path / "a.mp4")
    frames, _, codec = frames_of(tmp_path / "a.mp4")
    assert len(frames) == 5 and codec.name == "mpeg4"


def test_gif_keeps_greys_exactly_and_repeats(tmp_path):
    x = clip(1)
    save_gif(x, tmp_path / "a.gif", fps=10, upscale=2)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.info["loop"] == 0 and gif.info["duration"] == 100
    read = open_clips(tmp_path / "a.gif", frames=5, channels=1).batch([0])[0][0]
    assert torch.equal(to_uint8(read), to_uint8(x).repeat_interleave(2, 2).repeat_interleave(2, 3))
    save_gif(clip(3), tmp_path / "colour.gif")
    assert open_clips(tmp_path / "colour.gif", frames=5).shape == (3, 5, 16, 16)


def test_sheet_has_a_row_for_each_clip_and_shows_first_and_last(tmp_path):
    x = torch.stack([clip(1, 31), -clip(1, 31)])
    save_sheet(x, tmp_path / "sheet.png", most_frames=4)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 17, 4 * 17) and (sheet[16] == 128).all() and (sheet[:, 16] == 128).all()
    for row in range(2):
        for column, frame in enumerate((0, 10, 20, 30)):
            cell = sheet[row * 17 : row * 17 + 16, column * 17 : column * 17 + 16]
            assert np.array_equal(cell, to_uint8(x[row, 0, frame]).numpy())


def test_grid_of_clips_is_the_grid_of_each_frame():
    x = to_uint8(torch.stack([clip(3), -clip(3), clip(3)]))
    together = clip_grid(x, columns=2)
    assert together.shape == (3, 5, 32, 32)
    assert torch.equal(together[:, :, :16, 16:], x[1]) and (together[:, :, 16:, 16:] == 255).all()


def test_wrong_arguments_and_places(tmp_path):
    for wrong in (clip(2), clip()[None], clip()[:, :0]):
        with pytest.raises(ValueError, match="expected a clip"):
            save_mp4(wrong, tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="fps must be positive"):
        save_gif(clip(), tmp_path / "a.gif", fps=0)
    with pytest.raises(ValueError, match="expected clips"):
        save_sheet(clip(), tmp_path / "a.png")
    with pytest.raises(RunError, match="NaN"):
        save_mp4(clip() * torch.nan, tmp_path / "a.mp4")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, but a folder is needed"):
        save_gif(clip(), tmp_path / "file" / "a.gif")
    assert not (tmp_path / "a.mp4").exists()
