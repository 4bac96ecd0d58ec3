import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import grid, save_grid, to_uint8, to_unit
from ornstein.errors import RunError, UserError


def test_all_256_values_survive_the_round_trip() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    unit = to_unit(pixels)
    assert unit.dtype == torch.float32
    assert (unit[0], unit[-1]) == (-1, 1)
    assert torch.allclose(unit.diff(), torch.tensor(2 / 255))
    assert torch.equal(to_uint8(unit), pixels)


def test_clamps_and_rounds_to_the_nearest() -> None:
    step = 2 / 255
    x = torch.tensor([-9.0, float("inf"), -1 + 0.49 * step, -1 + 0.51 * step, 1 - 0.49 * step])
    assert to_uint8(x).tolist() == [0, 255, 0, 1, 255]
    assert to_uint8(x.double().requires_grad_()).tolist() == [0, 255, 0, 1, 255]


def test_wrong_kinds_of_numbers() -> None:
    with pytest.raises(ValueError, match="uint8"):
        to_unit(torch.zeros(3))
    with pytest.raises(ValueError, match="floating"):
        to_uint8(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(RunError, match="NaN"):
        to_uint8(torch.tensor([0.0, float("nan")]))


def test_grid_puts_image_i_in_its_row_and_column() -> None:
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).repeat(1, 3, 2, 4)
    picture = grid(images, columns=3)
    assert picture.shape == (3, 4, 12)
    cells = picture[:, ::2, ::4]
    assert cells[0].tolist() == [[0, 1, 2], [3, 4, 255]]
    assert torch.equal(picture, cells.repeat_interleave(2, 1).repeat_interleave(4, 2))
    assert grid(images).shape == (3, 4, 12)
    assert torch.equal(grid(to_unit(images), 3)[:, :, :8], picture[:, :, :8])


@pytest.mark.parametrize("channels", [1, 3])
def test_save_grid_writes_what_grid_shows(tmp_path: Path, channels: int) -> None:
    images = torch.randint(0, 256, (6, channels, 3, 3), generator=torch.Generator().manual_seed(0)).byte()
    path = tmp_path / "new" / "samples.png"
    save_grid(images, path, columns=2, upscale=5)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.size == (2 * 3 * 5, 3 * 3 * 5)
        read = torch.from_numpy(np.array(picture)).view(45, 30, channels).permute(2, 0, 1)
    assert torch.equal(read[:, 2::5, 2::5], grid(images, 2))
    assert [file.name for file in path.parent.iterdir()] == ["samples.png"]


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "samples.png"
    save_grid(torch.zeros(1, 1, 2, 2), path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot write .*samples\.png: the disk is full"):
        save_grid(torch.ones(1, 1, 2, 2), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["samples.png"]


def test_wrong_grids(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        grid(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="at least one"):
        grid(torch.zeros(0, 3, 4, 4))
    with pytest.raises(ValueError, match="columns"):
        grid(torch.zeros(1, 3, 4, 4), columns=0)
    with pytest.raises(ValueError, match="upscale"):
        save_grid(torch.zeros(1, 1, 4, 4), tmp_path / "x.png", upscale=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, but a folder is needed"):
        save_grid(torch.zeros(1, 1, 4, 4), tmp_path / "file" / "x.png")


def test_a_gap_parts_the_images_and_frames_none() -> None:
    sheet = grid(torch.zeros(4, 1, 2, 3, dtype=torch.uint8), columns=2, gap=1)
    assert sheet.shape == (1, 5, 7)
    assert bool((sheet[0, 2] == 255).all()) and bool((sheet[0, :, 3] == 255).all())
    assert int((sheet == 0).sum()) == 4 * 6
    with pytest.raises(ValueError, match="gap"):
        grid(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), gap=-1)
