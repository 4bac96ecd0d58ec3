"""`ornstein train` on shards that are streamed."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ornstein.training import recipe
from running import ornstein

QUICK = ("--size", 8, "--net", "xs", "--batch", 4, "--sample-every", 0, "--held-out", 0.25)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three archives of sixteen pictures in two classes, one of them damaged."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for i in range(16):
                data = io.BytesIO()
                pixels = np.random.default_rng(16 * shard + i).integers(0, 255, (10, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(data, "PNG")
                content = data.getvalue()[: -30 if (shard, i) == (1, 5) else None]
                for name, part in ((f"{i:02d}.png", content), (f"{i:02d}.cls", b"cat" if i % 2 else b"dog")):
                    member = tarfile.TarInfo(name)
                    member.size = len(part)
                    archive.addfile(member, io.BytesIO(part))
    return folder


def test_a_set_that_does_not_fit_is_streamed_and_the_run_keeps_to_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "MEMORY_BUDGET", 48 * 3 * 8 * 8 - 1)
    out = tmp_path / "run"
    result = ornstein("train", "--data", shards, *QUICK, "--steps", 12, "--out", out)
    assert result.exit_code == 0, result.output
    assert "36 images of (3, 8, 8)" in result.output and "decoded as needed" in result.output
    assert json.loads((out / "train.json").read_text())["stream"] is True
    assert json.loads((out / "config.json").read_text())["data"]["classes"] == ["cat", "dog"]
    # in twelve steps of four all training images were read, or it is held out: the report names it either way
    assert "1/05.png" in (out / "report.html").read_text()
    # with room enough now it goes on as it began
    monkeypatch.undo()
    result = ornstein("train", "--out", out, "--resume", "--steps", 14)
    assert result.exit_code == 0, result.output
    assert "decoded as needed" in result.output
    result = ornstein(
        "evaluate", out, "-n", 8, "--solvers", "ddim", "--steps", 1, "--seeds", 1, "--features", "pixels",
        "--likelihood", "none",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads((out / "evaluation" / "evaluation.json").read_text())["training_images"] is not None
    again = ornstein("train", "--out", out, "--resume", "--no-stream", "--steps", 16)
    assert again.exit_code == 2 and "error: " in again.stderr


def test_what_fits_is_not_streamed_unless_asked_and_arrays_never(shards: Path, tmp_path: Path) -> None:
    result = ornstein("train", "--data", shards, *QUICK, "--steps", 1, "--out", tmp_path / "a")
    assert result.exit_code == 0 and "decoded as" not in result.output
    assert json.loads((tmp_path / "a" / "train.json").read_text())["stream"] is False
    result = ornstein("train", "--data", "digits", "--stream", "--out", tmp_path / "b")
    assert result.exit_code == 2 and "digits holds arrays, which are not decoded: leave out --stream" in result.stderr
    result = ornstein("train", "--data", shards, "--stream", "--frames", 4, "--out", tmp_path / "c")
    assert result.exit_code == 2 and "--stream is for images" in result.stderr
