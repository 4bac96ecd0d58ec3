"""Options generated from a settings dataclass, and the group that imports a command when it is used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from ornstein.cli import COMMANDS, app
from ornstein.cli.command import run
from ornstein.cli.options import command, refuse
from ornstein.settings import check, setting


@dataclass(frozen=True, kw_only=True)
class Blur:
    """Blur a picture.

    Example: ornstein blur a.png --radius 3
    """

    picture: Path = setting(help="The picture.", argument=True)
    radius: float = setting(2.0, "Radius of the blur.", unit="pixels", above=0)
    edge: Literal["mirror", "zero"] = setting("mirror", "Values outside of the picture.")
    grid: str = setting("karras", "Time steps.", choices=("karras", "uniform"), other="times such as 1,0.5,0")
    steps: tuple[int, ...] = setting((5, 8), "Numbers of steps.")
    num: int = setting(64, "How many.", names=("-n", "--num"), old_names=("--count",), minimum=1)
    centre: bool = setting(False, "Centre it.")
    seed: int = setting(0, "Seed of the noise.", random=True)
    out: Path = setting(help="The file to write.", names=("-o", "--out"))
    fingerprint: str | None = setting(None, stored=True)

    def __post_init__(self) -> None:
        check(self)


def blur(*arguments: object) -> tuple[Any, Any]:
    """The result of the command, and the settings and given names that its body got."""
    got: list[Any] = []

    def body(asked: Blur, given: frozenset[str]) -> None:
        if asked.edge == "zero":
            refuse(Blur, given, ["centre"], "there is no edge to centre on")
        got.append((asked, given))

    one = typer.Typer(pretty_exceptions_enable=False)
    one.command()(run(command(Blur, body)))
    result = CliRunner().invoke(one, [str(a) for a in arguments])
    return result, got[0] if got else None


def settings(*arguments: object) -> Blur:
    result, got = blur(*arguments)
    assert result.exit_code == 0, result.output
    return got[0]


def refused(*arguments: object) -> str:
    result, got = blur(*arguments)
    assert result.exit_code == 2 and got is None
    return result.stderr.strip()


def test_options_are_read_by_their_types() -> None:
    asked, given = blur("a.png", "-o", "b.png", "--steps", "3,4", "--no-centre", "--num", 3, "--grid", "1,0")[1]
    assert asked == Blur(picture=Path("a.png"), out=Path("b.png"), steps=(3, 4), num=3, grid="1,0")
    assert given == {"picture", "out", "steps", "centre", "num", "grid"}
    assert settings("a.png", "--out", "b", "--count", 7).num == 7


def test_a_wrong_option_is_named_as_it_is_typed() -> None:
    assert refused("a.png", "-o", "b", "--radius", 0) == "error: --radius must be positive, not 0.0"
    assert refused("a.png", "-o", "b", "--num", 0) == "error: --num must be at least 1, not 0"
    assert refused("a.png", "-o", "b", "--steps", "3,x").startswith("error: --steps must be a whole number")
    assert refused("a.png") == "error: give --out: The file to write."
    assert refused("a.png", "-o", "b", "--edge", "zero", "--no-centre").startswith("error: --centre does nothing here")


def test_help_lists_choices_units_and_defaults_once() -> None:
    result, _ = blur("--help")
    text = " ".join(word for word in result.stdout.split() if word != "│")
    assert "Radius of the blur. (pixels; default: 2)" in text
    assert "(karras, uniform, or times such as 1,0.5,0; default: karras)" in text
    assert "mirror|zero" in text and "Example: ornstein blur" in text
    assert "--count" not in text and "--fingerprint" not in text and "[default:" not in text


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_a_file_of_settings_gives_way_to_options(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"blur.{kind}"
    stored = {"out": "b[1].png", "radius": 3, "steps": [2], "num": 9}
    text = "".join(f"{k} = {json.dumps(v)}\n" for k, v in stored.items()) if kind == "toml" else json.dumps(stored)
    file.write_text(text)
    asked = settings("a.png", "--config", file, "--num", 4)
    assert (asked.out, asked.radius, asked.steps, asked.num) == (Path("b[1].png"), 3.0, (2,), 4)
    file.write_text(text.replace("radius", "raduis"))
    assert "raduis" in refused("a.png", "--config", file) and f"blur.{kind}" in refused("a.png", "--config", file)
    file.write_text("[[[")
    assert "cannot be read" in refused("a.png", "--config", file)
    assert "no file" in refused("a.png", "--config", tmp_path / "none.toml")


def test_a_run_is_a_file_of_settings(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "net": {}}))
    (tmp_path / "train.json").write_text(json.dumps({"out": "c", "radius": 5.0, "fingerprint": "ab", "seed": None}))
    for path in (tmp_path, tmp_path / "config.json", tmp_path / "train.json"):
        asked = settings("a.png", "--config", path)
        assert asked.radius == 5.0 and asked.fingerprint is None and asked.seed == 0


def test_a_random_seed_is_shown() -> None:
    result, got = blur("a.png", "-o", "b", "--seed", "random")
    assert result.stdout.strip() == f"--seed {got[0].seed}"
    other = settings("a.png", "-o", "b", "--seed", "random").seed
    assert other != got[0].seed  # one time in 2^31 this fails
    assert settings("a.png", "-o", "b", "--seed", got[0].seed).seed == got[0].seed


def test_a_mistake_of_usage_is_one_line() -> None:
    for words in (["tarin"], ["train", "--otu", "x"], ["sample"], ["sample", "x", "--frames", "many"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert len(result.stderr.strip().splitlines()) == 1 and result.stderr.startswith("error: "), result.stderr


def test_every_command_is_there_and_has_an_example() -> None:
    group: Any = typer.main.get_command(app)
    for name in COMMANDS:
        built = group.commands[name]
        assert built.name == name
        for page in getattr(built, "commands", {name: built}).values():
            assert "Example: ornstein" in " ".join(page.help.split())
