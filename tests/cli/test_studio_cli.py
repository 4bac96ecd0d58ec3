"""`ornstein studio` as a user types it: what it refuses, and in which words."""

import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from ornstein.cli import app


def studio(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["studio", *map(str, arguments)])


def refused(result: Result, words: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ") and words in line


def test_an_address_that_others_reach_needs_a_password(tmp_path: Path) -> None:
    refused(studio("--host", "0.0.0.0"), "give --user and --password-file")
    refused(studio("--host", "192.168.1.4", "--user", "ann"), "give the password of ann in a file")
    refused(studio("--host", "0.0.0.0", "--user", "ann", "--password-file", tmp_path / "none"), "cannot read")
    (tmp_path / "short").write_text("short\n")
    refused(studio("--user", "ann", "--password-file", tmp_path / "short"), "at least 8 characters")
    (tmp_path / "empty").write_text("")
    refused(studio("--host", "0.0.0.0", "--user", "ann", "--password-file", tmp_path / "empty"), "at least 8")
    (tmp_path / "long").write_text("a long password\n")
    refused(studio("--password-file", tmp_path / "long"), "a user needs a password and a password a user")


def test_what_is_no_run_is_said_before_anything_starts(tmp_path: Path) -> None:
    refused(studio(tmp_path / "none"), "is no run: there is no such folder")


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.startswith("ornstein.studio")]:
        monkeypatch.delitem(sys.modules, name)  # as in a process that has not imported it yet
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused(studio("--home", tmp_path), "pip install -e '.[studio]'")


def test_help_shows_an_example() -> None:
    assert "ornstein studio runs/photos --open" in " ".join(studio("--help").output.split())
