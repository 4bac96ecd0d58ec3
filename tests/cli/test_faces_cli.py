"""`ornstein faces` as a user types it."""

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from ornstein.cli import app
from ornstein.faces.align import TEMPLATE
from ornstein.faces.shape import POINTS
from ornstein.faces.train.shards import Row, shard_name, write_shard


def prepare(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["faces", "prepare", *(str(a) for a in arguments)])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The portrait that scikit-image ships, a picture without a face and one that is damaged."""
    pytest.importorskip("dlib", reason="the extra `faces` is not installed")
    data = pytest.importorskip("skimage.data", reason="scikit-image, whose portrait this test needs, is not installed")
    root = tmp_path / "photos"
    (root / "Ann").mkdir(parents=True)
    Image.fromarray(data.astronaut()[0:260, 90:350]).save(root / "Ann" / "1.png")
    Image.linear_gradient("L").resize((48, 48)).save(root / "Ann" / "wall.png")
    (root / "Ann" / "bad.png").write_bytes(b"no picture")
    return root


def test_prepare_says_what_it_wrote_and_what_it_passed_over(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    result = prepare(photos, "--out", out, "--size", 64, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert f"wrote {out}: 1 faces of 1 people" in result.output
    assert "skipped Ann/bad.png: not an image" in result.output
    assert "no face found in 1 of 3 photos, the first Ann/wall.png" in result.output
    refused = prepare(photos, "--out", out)
    assert refused.exit_code == 2 and "already holds 1 of these shards" in refused.output
    assert len(refused.output.strip().splitlines()[-1]) > 0 and "Traceback" not in refused.output
    again = prepare(photos, "--out", out, "--resume")
    assert again.exit_code == 0 and "1 faces of 1 people" in again.output


def test_a_part_says_what_is_missing(photos: Path, tmp_path: Path) -> None:
    result = prepare(photos, "--out", tmp_path / "set", "--shard", "2/2", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "0 faces in this part; 1 shards of other parts are not in" in result.output


@pytest.mark.parametrize("shard", ["1", "a/b", "-1/2", "1/2/3"])
def test_a_part_that_is_none(photos: Path, tmp_path: Path, shard: str) -> None:
    result = prepare(photos, "--out", tmp_path / "set", f"--shard={shard}")
    assert result.exit_code == 2 and "write I/N, for example 1/4" in result.output


def test_the_missing_extra_is_named(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    result = prepare(photos, "--out", tmp_path / "set")
    assert result.exit_code == 2 and "pip install -e '.[faces]'" in result.output
    assert not (tmp_path / "set").exists()


def test_help_shows_an_example() -> None:
    assert "ornstein faces prepare photos.zip" in " ".join(prepare("--help").output.split())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("train", "nowhere", "--out", "run"), ("nowhere",)),
        (("train", "nowhere", "--out", "run", "--net", "huge"), ("huge", "xs")),
        (("train", "nowhere", "--out", "run", "--minutes", "-1"), ("minutes",)),
        (("evaluate", "nowhere", "--data", "nowhere"), ("nowhere",)),
    ],
)
def test_wrong_trainings_and_judgements_are_refused(command: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["faces", *command])
    assert result.exit_code == 2, result.output
    assert all(word in result.stderr for word in words), result.stderr


def test_train_evaluate_and_go_on(tmp_path: Path) -> None:
    pytest.importorskip("dlib", reason="the extra `faces` is not installed")
    draw = torch.Generator().manual_seed(0)
    crop = (torch.tensor(TEMPLATE) * 32 - 0.5).float()
    rows = [
        Row(
            f"p{i // 2}/{i}.png",
            f"p{i // 2}",
            torch.randint(256, (3, 32, 32), generator=draw, dtype=torch.uint8),
            torch.randn(128, generator=draw),
            crop,
            torch.eye(3, dtype=torch.float64)[:2],
            32 * torch.rand(POINTS, 3, generator=draw),
            1.0,
        )
        for i in range(40)
    ]
    faces, run = tmp_path / "faces", tmp_path / "run"
    faces.mkdir()
    write_shard(faces / shard_name(0, 1), rows, [], {"size": 32}, 128)
    train = ("train", faces, "--out", run, "--recogniser", 0.01, "--net", "xs", "--batch", 4, "--research-only")
    done = CliRunner().invoke(app, ["faces", *map(str, train), "--minutes", "0.01"])
    assert done.exit_code == 0, done.output
    assert "36 faces of 18 people; 2 people held out" in done.output
    assert "FOR RESEARCH ONLY" in CliRunner().invoke(app, ["faces", "card", str(run)]).output
    refused = CliRunner().invoke(app, ["faces", *map(str, train)])
    assert refused.exit_code == 2 and "already holds a run" in refused.output
    more = CliRunner().invoke(app, ["faces", *map(str, train), "--minutes", "0.02", "--resume"])
    assert more.exit_code == 0, more.output
    judged = CliRunner().invoke(app, ["faces", "evaluate", str(run), "--data", str(faces), "-n", "2", "--steps", "1"])
    assert judged.exit_code == 0, judged.output
    scores = json.loads((run / "scores.json").read_text())
    assert scores["among"] == 2 and scores["background"] is None  # outside the masks nothing was touched
