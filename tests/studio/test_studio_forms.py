"""Forms made from settings: what was entered becomes the options of the command, and defaults become none."""

from dataclasses import dataclass
from typing import Literal

import pytest

from ornstein.errors import UserError
from ornstein.settings import setting
from ornstein.training.settings import Settings

gradio = pytest.importorskip("gradio", reason="the extra `studio` is not installed")

from ornstein.studio import forms, train  # noqa: E402


@dataclass
class Kiln:
    heat: float = setting(2.5, "Heat.", unit="kW", above=0)
    bricks: int | None = setting(None, "Bricks.", by_data="as many as fit", minimum=1)
    sides: Literal[1, 3] | None = setting(None, "Sides.", by_data="by the bricks")
    glaze: str = setting("salt", "Glaze.", choices=("salt", "ash"))
    dry_first: bool = setting(False, "Dry first.")
    lid: bool = setting(True, "With a lid.")
    vent: bool | None = setting(None, "Open the vent.", by_data="by the weather")
    mark: str | None = setting(None, "Mark.")


NAMES = ("heat", "bricks", "sides", "glaze", "dry_first", "lid", "vent", "mark")
ENTERED = {"heat": 2.5, "bricks": None, "sides": "automatic", "glaze": "salt", "dry_first": False, "lid": True,
           "vent": "automatic", "mark": ""}  # fmt: skip


def words(**changed) -> list[str]:
    return forms.given(Kiln, NAMES, list((ENTERED | changed).values()))


def test_a_form_that_was_not_touched_gives_no_options() -> None:
    components = forms.components(Kiln, NAMES)
    assert [component.value for component in components] == list(ENTERED.values())
    assert words() == []
    names = (*train._BASIC, *train._MORE)
    untouched = [component.value for component in forms.components(Settings, names)]
    assert forms.given(Settings, names, untouched) == []


def test_labels_and_help_are_those_of_the_settings() -> None:
    heat, bricks, sides, glaze, *_, vent, mark = forms.components(Kiln, NAMES)
    assert (heat.label, heat.info) == ("Heat", "Heat. (kW)")
    assert bricks.info == "Bricks. (empty: as many as fit)" and bricks.precision == 0
    assert [each for each, _ in sides.choices] == ["automatic", "1", "3"]
    assert [each for each, _ in glaze.choices] == ["salt", "ash"]
    assert [each for each, _ in vent.choices] == ["automatic", "yes", "no"] and isinstance(mark, gradio.Textbox)


@pytest.mark.parametrize(
    ("entered", "expected"),
    [
        ({"heat": 0.123456789}, ["--heat", "0.123456789"]),
        ({"bricks": 12.0}, ["--bricks", "12"]),
        ({"sides": "3"}, ["--sides", "3"]),
        ({"glaze": "ash", "mark": " A B "}, ["--glaze", "ash", "--mark", "A B"]),
        ({"dry_first": True}, ["--dry-first"]),
        ({"lid": False}, ["--no-lid"]),
        ({"vent": "yes"}, ["--vent"]),
        ({"vent": "no"}, ["--no-vent"]),
        ({"vent": False}, ["--no-vent"]),
    ],
)
def test_what_was_entered_becomes_options(entered: dict, expected: list[str]) -> None:
    assert words(**entered) == expected


@pytest.mark.parametrize(
    ("entered", "message"),
    [
        ({"heat": 0}, "Heat must be positive, not 0"),
        ({"heat": float("nan")}, "Heat must be a finite number, not nan"),
        ({"bricks": 2.5}, r"Bricks must be a whole number, not 2\.5"),
        ({"bricks": 0}, "Bricks must be at least 1, not 0"),
        ({"sides": "2"}, "Sides '2' is unknown; known: 1, 3"),
        ({"glaze": "sugar"}, "Glaze 'sugar' is unknown; known: salt, ash"),
        ({"vent": "maybe"}, "Vent 'maybe' is unknown; known: automatic, yes, no"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(entered: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        words(**entered)
