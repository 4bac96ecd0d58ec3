"""One declaration of a setting gives its default, its validation and its stored form."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest

from ornstein.errors import UserError
from ornstein.settings import check, default_text, read, setting, settings_of, to_json


@dataclass(frozen=True, kw_only=True)
class Blur:
    out: Path = setting(help="The file to write.")
    radius: float = setting(2.0, "Radius of the blur.", unit="pixels", above=0)
    share: float | None = setting(None, "Share of the picture.", minimum=0, maximum=1, by_data="all of it")
    edge: Literal["mirror", "zero"] = setting("mirror", "Values outside of the picture.")
    solver: str = setting("ddim", "The solver.", choices=("ddim", "heun"))
    grid: str = setting("karras", "Time steps.", choices=("karras",), other="times such as 1,0.5,0")
    steps: tuple[int, ...] = setting((5, 8), "Numbers of steps.", minimum=1)
    betas: tuple[float, float] = setting((0.9, 0.99), "Decay rates.", minimum=0, below=1)
    centre: bool = setting(False, "Centre it.")
    count: int | None = setting(None, "How many.", minimum=1)

    def __post_init__(self) -> None:
        check(self)


def test_what_is_stored_is_read_back() -> None:
    blur = Blur(out=Path("a/b.png"), radius=3, share=0.25, steps=(1, 2), grid="1,0.5,0", count=7)
    stored = json.loads(json.dumps(to_json(blur)))
    assert read(Blur, stored, "blur.json") == blur
    assert isinstance(blur.radius, float) and stored["steps"] == [1, 2] and stored["out"] == "a/b.png"
    assert read(Blur, {"out": "x"}, "") == Blur(out=Path("x"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("radius", 0, "radius must be positive, not 0"),
        ("radius", math.nan, "radius must be a finite number, not nan"),
        ("radius", math.inf, "radius must be a finite number"),
        ("radius", 10**400, "radius must be a number"),
        ("radius", "2", "radius must be a number, not '2'"),
        ("radius", True, "radius must be a number, not True"),
        ("radius", None, "radius must be a number, not None"),
        ("radius", {"a": [1]}, "radius must be a number"),
        ("share", 1.5, "share must lie between 0 and 1, not 1.5"),
        ("share", [], "share must be a number"),
        ("edge", "wrap", "edge 'wrap' is unknown; known: mirror, zero"),
        ("edge", 1, "edge 1 is unknown"),
        ("solver", "magic", "solver 'magic' is unknown; known: ddim, heun"),
        ("solver", ["ddim"], "solver must be text"),
        ("grid", 3, "grid must be text"),
        ("steps", 5, "steps must be a list, not 5"),
        ("steps", [5, 0], "steps must be at least 1, not 0"),
        ("steps", [5, 2.5], "steps must be a whole number, not 2.5"),
        ("betas", [0.9], "betas must have 2 values, not 1"),
        ("betas", [0.9, 1.0], "betas must be below 1, not 1.0"),
        ("centre", 1, "centre must be true or false, not 1"),
        ("centre", "yes", "centre must be true or false"),
        ("count", 0, "count must be at least 1, not 0"),
        ("count", 2.0, "count must be a whole number, not 2.0"),
        ("count", False, "count must be a whole number"),
        ("out", "", "out must be a path, not ''"),
        ("out", 3, "out must be a path"),
        ("raduis", 3, "unknown key 'raduis'; known: out, radius"),
        ("radius", "x" * 10_000, "radius must be a number"),
        ("\x1b[31m" + "k" * 10_000, 1, r"unknown key '\x1b[31m"),
    ],
)
def test_a_wrong_value_is_named_in_one_short_line(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(Blur, {"out": "x", key: value}, "dir/blur.json")
    text = str(error.value)
    assert text.startswith("dir/blur.json: ") and message in text
    assert "\n" not in text and "\x1b" not in text and len(text) < 250


def test_a_missing_value_is_named() -> None:
    with pytest.raises(UserError, match=r"blur\.json: out is missing"):
        read(Blur, {}, "blur.json")


def test_the_constructor_checks_as_the_reader_does() -> None:
    with pytest.raises(UserError, match=r"^steps must be at least 1, not 0"):
        Blur(out=Path("x"), steps=(0,))


def test_defaults_in_words() -> None:
    texts = {f.name: default_text(f) for f in fields(Blur)}
    assert texts["out"] == texts["count"] == texts["centre"] == ""
    assert (texts["radius"], texts["share"], texts["steps"]) == ("2", "all of it", "5,8")


def test_shared_fields_go_from_one_to_another() -> None:
    @dataclass(frozen=True)
    class Lens:
        radius: float = 1.0
        glass: str = "crown"

    assert settings_of(Lens, Blur(out=Path("x"), radius=4.0), glass="flint") == Lens(4.0, "flint")
