"""Form fields made from a settings dataclass: labels, help, choices and units are those of the command's options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from types import MappingProxyType
from typing import Any, get_origin

import gradio as gr

from ornstein.errors import UserError
from ornstein.settings import about, choices, default_text, members, type_hints, values

__all__ = ["components", "described", "given"]

_AUTOMATIC, _YES, _NO = "automatic", "yes", "no"


def components(cls: type, names: Sequence[str], labels: Mapping[str, str] = MappingProxyType({})) -> list[Any]:
    """A component for each named field of a settings dataclass; an empty one leaves the setting to its default.

    Args:
        cls: the settings dataclass.
        names: its fields.
        labels: by name, for those whose label is not their name.
    """
    return [_component(cls, f, labels.get(f.name, _label(f))) for f in _fields(cls, names)]


def given(
    cls: type, names: Sequence[str], entered: Sequence[Any], labels: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Options of a command line for the values of `components` that differ from the defaults.

    Args:
        cls: the settings dataclass.
        names: its fields.
        entered: the value of the component of each.
        labels: as for `components`, for the messages.

    Raises:
        UserError: a value of the wrong type, out of range or not among the choices.
    """
    words: list[str] = []
    for f, value in zip(_fields(cls, names), entered, strict=True):
        option, label = "--" + f.name.replace("_", "-"), labels.get(f.name, _label(f))
        kinds = _kinds(cls, f)
        if isinstance(value, str):
            value = value.strip()
        if value in (None, "", _AUTOMATIC) or value == f.default:
            continue
        if bool in kinds:
            if value not in (True, False, _YES, _NO):
                raise UserError(f"{label} {value!r} is unknown; known: {_AUTOMATIC}, {_YES}, {_NO}")
            words.append(option if value in (True, _YES) else f"--no-{option.removeprefix('--')}")
            continue
        if int in kinds and isinstance(value, float) and value.is_integer():
            value = int(value)
        checked: Any = {str(each): each for each in choices(cls, f)}.get(str(value), value)  # menus show texts
        if _is_list(kinds):
            checked = [_number(part.strip()) for part in str(value).split(",")]
        values(cls, {f.name: checked}, name=lambda _: label)  # noqa: B023
        words += [option, f"{value:.15g}" if isinstance(value, float) else str(value)]
    return words


def _fields(cls: type, names: Sequence[str]) -> list[Field[Any]]:
    by_name = {f.name: f for f in fields(cls)}
    return [by_name[name] for name in names]


def _kinds(cls: type, f: Field[Any]) -> list[Any]:
    return [kind for kind in members(type_hints(cls)[f.name]) if kind is not type(None)]


def _label(f: Field[Any]) -> str:
    return f.name.replace("_", " ").capitalize()


def described(f: Field[Any], notes: Sequence[str] = ()) -> str:
    """The help text of a setting, with notes and what an empty field means."""
    empty = f"empty: {default_text(f)}" if f.default in (None, MISSING) and default_text(f) else ""
    shown = [note for note in (*notes, empty) if note]
    return f"{about(f).help} ({'; '.join(shown)})" if shown else about(f).help


def _is_list(kinds: Sequence[Any]) -> bool:
    return any(get_origin(kind) is tuple for kind in kinds)


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _component(cls: type, f: Field[Any], label: str) -> Any:
    allowed, kinds = choices(cls, f), _kinds(cls, f)
    default = None if f.default is MISSING else f.default
    info = described(f, [about(f).unit, "with commas between" if _is_list(kinds) else ""])
    if bool in kinds and default is None:
        return gr.Dropdown([_AUTOMATIC, _YES, _NO], value=_AUTOMATIC, label=label, info=info)
    if bool in kinds:
        return gr.Checkbox(default is True, label=label, info=info)
    if allowed:
        first = [] if default in allowed else [_AUTOMATIC]
        return gr.Dropdown(
            [*first, *map(str, allowed)],
            value=_AUTOMATIC if first else str(default),
            label=label,
            info=info,
            allow_custom_value=bool(about(f).other),
        )
    if int in kinds or float in kinds:
        return gr.Number(default, label=label, info=info, precision=None if float in kinds else 0)
    return gr.Textbox("" if default is None else str(default), label=label, info=info, max_lines=1)
