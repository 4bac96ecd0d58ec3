"""Runs of the studio: their names, renamed and deleted in its own folder only; the report in the page."""

import re
from pathlib import Path

import pytest

from ornstein.errors import UserError
from ornstein.training import lock

pytest.importorskip("gradio", reason="the extra `studio` is not installed")

from ornstein.studio.runs import Runs
from ornstein.studio.train import framed


def run_in(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "studio.log").write_text("")
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "runs"
    run_in(home, "one")
    run_in(home, "two")
    return home


def test_a_run_is_renamed_and_deleted_with_everything_in_it(home: Path) -> None:
    runs = Runs(home)
    (home / "one" / "model").write_text("x")
    assert runs.rename(home / "one", " three v1.2 ") == home / "three v1.2"
    assert (home / "three v1.2" / "model").read_text() == "x" and not (home / "one").exists()
    runs.delete(home / "three v1.2")
    assert [name for name, _ in runs.named(runs.all())] == ["two"]


@pytest.mark.parametrize(
    "name", ["", " ", "..", ".", "a/b", "../c", "/tmp/c", ".hidden", "a..b", "a\0", "a\nb", "x" * 81]
)
def test_what_is_no_name_is_refused(home: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be the name of a run"):
        Runs(home).rename(home / "one", name)
    assert sorted(path.name for path in home.iterdir()) == ["one", "two"]


def test_a_name_that_is_taken_is_refused(home: Path) -> None:
    (home / "link").symlink_to(home / "nowhere")
    for name in ("two", "link"):
        with pytest.raises(UserError, match=r"there is a run .* already"):
            Runs(home).rename(home / "one", name)
    assert (home / "one").is_dir()


def test_nothing_outside_the_folder_is_renamed_or_deleted(home: Path, tmp_path: Path) -> None:
    outside, below = run_in(tmp_path, "outside"), run_in(home / "two", "inner")
    (home / "linked").symlink_to(outside)
    runs = Runs(home, [outside, below])
    for path in (outside, below, home / "linked", home, home / "two" / ".."):
        with pytest.raises(UserError, match="is not in the studio's own folder"):
            runs.delete(path)
        with pytest.raises(UserError, match="is not in the studio's own folder"):
            runs.rename(path, "new")
    assert outside.is_dir() and below.is_dir() and (home / "one").is_dir()


def test_a_run_that_is_trained_stays(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(home)
    monkeypatch.setattr(lock, "holder", lambda path: 123 if path == home / "one" else None)
    for change in (lambda: runs.delete(home / "one"), lambda: runs.rename(home / "one", "new")):
        with pytest.raises(UserError, match="one is being trained: stop it first"):
            change()
    runs.delete(home / "two")
    assert (home / "one").is_dir() and not (home / "two").exists()


def test_equal_names_are_told_apart(home: Path, tmp_path: Path) -> None:
    other = run_in(tmp_path / "elsewhere", "one")
    runs = Runs(home, [other])
    names = dict(runs.named(runs.all()))
    assert names[f"one ({other.parent})"] == str(other) and names["two"] == str(home / "two")
    assert runs.find(f"one ({home})") == home / "one" and runs.find("two") == home / "two"
    with pytest.raises(UserError, match="no run 'one' is open here"):
        runs.find("one")


def test_the_report_is_in_a_frame_without_rights(tmp_path: Path) -> None:
    report = tmp_path / 'a"b<c' / "report.html"
    report.parent.mkdir()
    report.write_text("<script>alert(1)</script>")
    frame = framed(report)
    assert re.findall(r'sandbox="([^"]*)"', frame) == [""]
    assert frame.count("<") == 2 and 'a"b' not in frame and "a%22b%3Cc" in frame
