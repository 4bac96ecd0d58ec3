"""Links and special files in a run from a stranger: nothing outside of the run is written, and nothing hangs."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from ornstein.cli import app

RUNS = Path(__file__).parents[1] / "compatibility" / "version_0_1"
PRECIOUS = "what must not be lost\n"


def ornstein(*arguments: object) -> Result:
    """The command in this process; an alarm ends it if it hangs."""
    signal.alarm(120)
    try:
        return CliRunner().invoke(app, [str(a) for a in arguments])
    finally:
        signal.alarm(0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUNS / "digits", tmp_path / "run"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file.txt").write_text(PRECIOUS)
    return folder


def untouched(outside: Path) -> bool:
    return [p.name for p in outside.iterdir()] == ["file.txt"] and (outside / "file.txt").read_text() == PRECIOUS


def refused(result: Result) -> bool:
    lines = [line for line in result.stderr.splitlines() if line.startswith("error")]
    return result.exit_code == 2 and len(lines) == 1 and isinstance(result.exception, SystemExit)


SAMPLE = ("sample", "-n", "1", "--steps", "1")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("samples", SAMPLE),
        ("samples/grid.png", SAMPLE),
        ("samples/samples.json", SAMPLE),
    ],
)
def test_samples_are_not_written_through_links(run, outside, name, command):
    place = run / name
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(outside if "." not in name else outside / "file.txt")
    result = ornstein(command[0], run, *command[1:])
    assert refused(result), result.stderr
    assert "link" in result.stderr or "was not written by this command" in result.stderr
    assert untouched(outside)


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "state", "progress", "samples.png", "report.html"])
def test_a_resumed_training_does_not_write_through_links(run, outside, name):
    settings = (run / "train.json").read_text().replace('"sample_every": 0', '"sample_every": 1')
    (run / "train.json").write_text(settings)
    (run / "model.safetensors").unlink()
    (run / "config.json").unlink()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside if name in ("state", "progress") else outside / "file.txt")
    result = ornstein("train", "--out", run, "--resume", "--steps", "3")
    assert untouched(outside)
    assert refused(result) and "link" in result.stderr, result.stderr


def test_half_written_files_of_a_guessed_name_are_not_written_through(run, outside):
    (run / "samples").mkdir()
    for name in (".samples.json.partial", ".grid.png.partial", ".00000.png.partial"):
        (run / "samples" / name).symlink_to(outside / "file.txt")
    ornstein("sample", run, "-n", "1", "--steps", "1")
    assert untouched(outside)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tuned.json", "train.json"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_special_files_in_place_of_ours_are_refused_at_once(run, name, kind):
    (run / name).unlink()
    if kind == "fifo":
        os.mkfifo(run / name)
    elif kind == "device":
        (run / name).symlink_to("/dev/zero")
    else:
        (run / name).mkdir()
    if name == "train.json":
        result = ornstein("train", "--out", run, "--resume", "--steps", "151")
    else:
        result = ornstein("sample", run, "-n", "1", "--steps", "4")
    # a folder in place of the tuned solvers is as if there were none
    assert refused(result) or (name == "tuned.json" and result.exit_code == 0), result.stderr


def test_a_run_directory_that_is_a_link_is_the_users_own_choice(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    result = ornstein("sample", tmp_path / "link", "-n", "1", "--steps", "1")
    assert result.exit_code == 0, result.stderr
    assert (run / "samples" / "grid.png").is_file()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "metrics.jsonl", "train.json", "tuned.json"])
def test_a_run_with_a_pipe_in_it_is_described_at_once(run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    for command in (("info", run), ("ls", run.parent)):
        result = ornstein(*command)
        assert result.exit_code in (0, 2) and isinstance(result.exception, SystemExit | None), result.stderr
