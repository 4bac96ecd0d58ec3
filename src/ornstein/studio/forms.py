"""Form fields made from a settings dataclass: labels, help, choices and units are those of the command's options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

import gradio as gr

from ornstein.errors import UserError
from ornstein.settings import about, choices, default_text, members, type_hints, values

__all__ = ["components", "given"]

_AUTOMATIC, _YES, _NO = "automatic", "yes", "no"


def components(cls: type, names: Sequence[str]) -> list[Any]:
    """A component for each named field of a settings dataclass; an empty one leaves the setting to its default."""
    return [_component(cls, f) for f in _fields(cls, names)]


def given(cls: type, names: Sequence[str], entered: Sequence[Any]) -> list[str]:
    """Options of a command line for the values of `components` that differ from the defaults.

    Args:
        cls: the settings dataclass.
        names: its fields.
        entered: the value of the component of each.

    Raises:
        UserError: a value of the wrong type, out of range or not among the choices.
    """
    words: list[str] = []
    for f, value in zip(_fields(cls, names), entered, strict=True):
        option = "--" + f.name.replace("_", "-")
        kinds = _kinds(cls, f)
        if isinstance(value, str):
            value = value.strip()
        if value in (None, "", _AUTOMATIC) or value == f.default:
            continue
        if bool in kinds:
            if value not in (True, False, _YES, _NO):
                raise UserError(f"{_label(f)} {value!r} is unknown; known: {_AUTOMATIC}, {_YES}, {_NO}")
            words.append(option if value in (True, _YES) else f"--no-{option.removeprefix('--')}")
            continue
        if int in kinds and isinstance(value, float) and value.is_integer():
            value = int(value)
        numbers = {str(each): each for each in choices(cls, f)}  # menus show texts
        values(cls, {f.name: numbers.get(str(value), value)}, name=lambda _: _label(f))  # noqa: B023
        words += [option, f"{value:.15g}" if isinstance(value, float) else str(value)]
    return words


def _fields(cls: type, names: Sequence[str]) -> list[Field[Any]]:
    by_name = {f.name: f for f in fields(cls)}
    return [by_name[name] for name in names]


def _kinds(cls: type, f: Field[Any]) -> list[Any]:
    return [kind for kind in members(type_hints(cls)[f.name]) if kind is not type(None)]


def _label(f: Field[Any]) -> str:
    return f.name.replace("_", " ").capitalize()


def _component(cls: type, f: Field[Any]) -> Any:
    described, allowed, kinds = about(f), choices(cls, f), _kinds(cls, f)
    default = None if f.default is MISSING else f.default
    notes = [described.unit, f"empty: {default_text(f)}" if default is None and default_text(f) else ""]
    info = " ".join([described.help, *([f"({'; '.join(n for n in notes if n)})"] if any(notes) else [])])
    if bool in kinds and default is None:
        return gr.Dropdown([_AUTOMATIC, _YES, _NO], value=_AUTOMATIC, label=_label(f), info=info)
    if bool in kinds:
        return gr.Checkbox(default, label=_label(f), info=info)
    if allowed:
        first = [] if default in allowed else [_AUTOMATIC]
        return gr.Dropdown(
            [*first, *map(str, allowed)],
            value=_AUTOMATIC if first else str(default),
            label=_label(f),
            info=info,
            allow_custom_value=bool(described.other),
        )
    if int in kinds or float in kinds:
        return gr.Number(default, label=_label(f), info=info, precision=None if float in kinds else 0)
    return gr.Textbox("" if default is None else str(default), label=_label(f), info=info, max_lines=1)
