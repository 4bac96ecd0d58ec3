"""Settings as dataclasses: the default, the help text and the rules of a setting are declared once.

A field made by `setting` carries its help text, choices, range and unit. From such a dataclass follow the arguments of
the Python function, the options of the command (`ornstein.cli.options`), the stored JSON (`to_json`) and one validator
for all three (`read`, `check`).

    @dataclass(frozen=True)
    class Blur:
        radius: float = setting(2.0, "Radius of the blur.", unit="pixels", above=0)
        edge: Literal["mirror", "zero"] = setting("mirror", "Values outside of the picture.")

        def __post_init__(self) -> None:
            check(self)

    read(Blur, {"radius": -1}, "blur.json")     # UserError: blur.json: radius must be positive, not -1
"""

from __future__ import annotations

import json
import math
import tomllib
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ornstein.errors import UserError

__all__ = [
    "PRECISIONS", "About", "about", "again", "check", "choices", "default_text", "device_setting", "extent_of",
    "extent_text", "field_of", "members", "precision_setting", "read", "read_file", "setting", "settings_of",
    "size_setting", "to_json", "trust_sizes_setting", "type_hints", "values",
]  # fmt: skip

T = TypeVar("T")

PRECISIONS = ("auto", "float32", "bf16", "fp16")

_KEY = "ornstein"
_LARGEST = 2**22  # bytes of a file of settings
_SMALLEST, _WIDEST = 2, 2**16  # pixels of --size
_TEXT_LIMIT = 80  # characters of a wrong value that an error shows
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


@dataclass(frozen=True)
class About:
    """What a field says of itself besides its type and default; see `setting`."""

    help: str
    choices: tuple[str, ...] = ()
    other: str = ""
    unit: str = ""
    by_data: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    names: tuple[str, ...] = ()
    old_names: tuple[str, ...] = ()
    panel: str = ""
    argument: bool = False
    repeated: bool = False
    stored: bool = False
    random: bool = False


def setting(default: Any = MISSING, help: str = "", **about: Any) -> Any:
    """A dataclass field with its help text and its rules.

    Args:
        default: the default value; leave it out for a setting that must be given.
        help: one sentence, without the default, the unit and the choices: these are added where the help is shown.
        **about: the fields of `About`:
            choices: the texts that are allowed. A field of a Literal type has its own.
            other: what is allowed besides the choices, in words; then any text passes.
            unit: "pixels", "seconds", ...
            by_data: how the value follows from the data or the device if it is None, in words.
            minimum, maximum: bounds that are allowed themselves. above, below: bounds that are not.
            names: the spellings of the option, where they are not --name-of-the-field.
            old_names: spellings that are still accepted and not shown.
            panel: the group of options that the help shows it in.
            argument: positional on the command line.
            repeated: a list whose option, or argument, is given once for each value.
            stored: kept in the run directory, and no option.
            random: a seed, for which the command line takes the word "random" too.
    """
    return field(default=default, metadata={_KEY: About(help, **about)})


def again(cls: type, name: str, default: Any, **changed: Any) -> Any:
    """The field `name` of another settings class with another default, and what `About` says of it `changed`."""
    return field(default=default, metadata={_KEY: replace(about(field_of(cls, name)), **changed)})


def device_setting() -> Any:
    """The field of --device."""
    return setting("auto", "Device to compute on.", choices=("auto", "cpu", "cuda", "mps"), other="cuda:1, cuda:2, ...")


def precision_setting() -> Any:
    """The field of --precision; `ornstein.devices` decides what auto is."""
    return setting("auto", "Precision of convolutions and matrix products.", choices=PRECISIONS)


def size_setting(default: int | None = None, help: str = "Size of the images.", **about: Any) -> Any:
    """The field of --size, `int | str | None`; see `extent_of`."""
    return setting(default, help, **({"unit": "side of a square, or WIDTHxHEIGHT, in pixels"} | about))


def extent_of(size: int | str | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size: the side of a square, or WIDTHxHEIGHT as people write the size of a picture.

    A tuple is (height, width) already, as the shapes of tensors are.

    Raises:
        UserError: it is none of these, or below 2 pixels.
    """
    if isinstance(size, str):
        parts = size.lower().replace("×", "x").replace(",", "x").split("x")
        numbers = [int(part) if part.strip().isdecimal() else 0 for part in parts]
        if len(numbers) not in (1, 2) or not all(numbers):
            raise UserError(f"size {_short(size)}: write the side of a square, 64, or WIDTHxHEIGHT, 96x64")
        width, height = numbers[0], numbers[-1]
    else:
        height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < _SMALLEST:
        raise UserError(f"--size must be at least {_SMALLEST} pixels, not {extent_text((height, width))}")
    if max(height, width) > _WIDEST:
        raise UserError(f"--size must be at most {_WIDEST:,} pixels, not {extent_text((height, width))}")
    return height, width


def extent_text(extent: tuple[int, int]) -> str:
    """A (height, width) as --size writes it: "64", or "96x64" for 96 pixels wide and 64 high."""
    height, width = extent
    return str(height) if height == width else f"{width}x{height}"


def trust_sizes_setting() -> Any:
    """The field of --trust-sizes; see `ornstein.sizes`."""
    return setting(False, "Lift the limits on the sizes of network and samples, for a run whose author you trust.")


def field_of(cls: type, name: str) -> Field[Any]:
    """The field of that name."""
    return next(f for f in fields(cls) if f.name == name)


def about(f: Field[Any]) -> About:
    """What a field says of itself; an empty one for a plain field."""
    return f.metadata.get(_KEY) or About("")


def choices(cls: type, f: Field[Any]) -> tuple[str, ...]:
    """The texts that a field allows: those of its Literal type or of its `choices`; empty if it allows any."""
    literal = [kind for kind in members(type_hints(cls)[f.name]) if get_origin(kind) is Literal]
    return get_args(literal[0]) if literal else about(f).choices


def default_text(f: Field[Any]) -> str:
    """The default in words: "" if there is none to speak of."""
    told = about(f)
    if told.by_data:
        return told.by_data
    if f.default is MISSING or f.default is None or f.default is False:
        return ""
    if isinstance(f.default, tuple):
        return ",".join(str(value) for value in f.default)
    return f"{f.default:g}" if isinstance(f.default, float) else str(f.default)


def read(cls: type[T], mapping: Mapping[str, Any], where: str | Path) -> T:
    """The settings in a mapping that was read from JSON or TOML.

    Args:
        cls: a dataclass, with fields made by `setting` or plain ones.
        mapping: values by field name. What it lacks takes the default.
        where: the file, for the message.

    Raises:
        UserError: an unknown key, a missing one, or a value of the wrong type or out of range; in one line that names
            the file and the key.
    """
    given = values(cls, mapping, where)
    for f in fields(cls):  # pyright: ignore[reportArgumentType]
        if f.init and f.name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{where}: {f.name} is missing")
    try:
        return cls(**given)
    except UserError as error:  # a rule over several fields
        raise UserError(f"{where}: {error}") from None


def values(
    cls: type, mapping: Mapping[str, Any], where: str | Path = "", name: Callable[[str], str] = str
) -> dict[str, Any]:
    """The values of a mapping in the types of the fields of `cls`; `name` is how a message calls a field.

    Raises UserError as `read`, but not for missing keys.
    """
    prefix = f"{where}: " if str(where) else ""
    known = {f.name: f for f in fields(cls) if f.init}
    hints = type_hints(cls)
    given: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in known:
            raise UserError(f"{prefix}unknown key {_short(key)}; known: {', '.join(known)}")
        try:
            given[key] = _converted(hints[key], value, about(known[key]))
        except ValueError as error:
            raise UserError(f"{prefix}{name(key)} {error}") from None
    return given


def check(settings: Any) -> None:
    """Validate a settings object that was just made; call it first in `__post_init__`.

    Values are put in the types of their fields (a path for a text, a tuple for a list).

    Raises UserError as `read`.
    """
    given = {f.name: getattr(settings, f.name) for f in fields(settings) if f.init}
    for name, value in values(type(settings), given).items():
        object.__setattr__(settings, name, value)


def read_file(path: str | Path) -> dict[str, Any]:
    """The mapping in a .toml or .json file.

    Raises:
        UserError: there is no such regular file, it is too large or it holds no mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path} is too large for a file of settings: {path.stat().st_size:,} bytes")
        text = path.read_text(encoding="utf-8")
        mapping = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(mapping, dict):
        raise UserError(f"{path} holds no settings")
    return mapping


def settings_of(cls: type[T], other: Any, **changed: Any) -> T:
    """`cls` with the values of another settings object for the fields that both have, and `changed` ones."""
    shared = {f.name for f in fields(cls) if f.init} & {f.name for f in fields(other)}  # pyright: ignore[reportArgumentType]
    return cls(**({name: getattr(other, name) for name in shared} | changed))


def to_json(settings: Any) -> dict[str, Any]:
    """The settings in JSON types; `read` of it gives them back."""
    return {f.name: _plain(getattr(settings, f.name)) for f in fields(settings) if f.init}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    if isinstance(value, Path):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


@cache
def type_hints(cls: type) -> dict[str, Any]:
    """The types of the fields, by name."""
    return get_type_hints(cls)


def members(kind: Any) -> tuple[Any, ...]:
    """The types of a union; a type that is no union by itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _TEXT_LIMIT else f"{text[:_TEXT_LIMIT]}..."


def _converted(kind: Any, value: Any, rules: About) -> Any:
    """The value in the type `kind`. ValueError, "must be ...", if it is none of it or breaks a rule."""
    kinds = members(kind)
    if value is None and (types.NoneType in kinds or kind is Any):
        return None
    kinds = [each for each in kinds if each is not types.NoneType]
    for each in kinds[:-1]:
        try:
            return _converted(each, value, rules)
        except ValueError:
            if type(value) is each or (each is float and type(value) is int):
                raise  # of this type, and out of range
    kind = kinds[-1]
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return _chosen(value, arguments)
    if origin in (tuple, list):
        return _sequence(origin, arguments, value, rules)
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e300 else value
    if origin is Path and isinstance(value, str) and value:
        value = Path(value)
    if is_dataclass(origin) and isinstance(value, Mapping):
        return read(origin, value, "")  # pyright: ignore[reportArgumentType]
    wrong = isinstance(value, bool) and origin is not bool
    if origin is not Any and (wrong or not isinstance(value, origin)):
        raise ValueError(f"must be {_KINDS.get(origin, f'a {origin.__name__}')}, not {_short(value)}")
    if isinstance(value, str) and rules.choices and not rules.other:
        return _chosen(value, rules.choices)
    if isinstance(value, int | float) and not isinstance(value, bool):
        _within(value, rules)
    return value


def _chosen(value: Any, allowed: tuple[Any, ...]) -> Any:
    if not any(value == each and type(value) is type(each) for each in allowed):
        raise ValueError(f"{_short(value)} is unknown; known: {', '.join(map(str, allowed))}")
    return value


def _sequence(origin: Any, arguments: tuple[Any, ...], value: Any, rules: About) -> Any:
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list, not {_short(value)}")
    fixed = origin is tuple and arguments[1:] != (...,)
    if fixed and len(value) != len(arguments):
        raise ValueError(f"must have {len(arguments)} values, not {len(value)}")
    kinds = arguments if fixed else arguments[:1] * len(value)
    return origin(_converted(kind, each, rules) for kind, each in zip(kinds, value, strict=True))


def _within(value: float, rules: About) -> None:
    low, high, above, below = rules.minimum, rules.maximum, rules.above, rules.below
    if not math.isfinite(value):
        broken = "be a finite number"
    elif low is not None and high is not None and not low <= value <= high:
        broken = f"lie between {low:g} and {high:g}"
    elif low is not None and value < low:
        broken = f"be at least {low:g}" if low else "not be negative"
    elif high is not None and value > high:
        broken = f"be at most {high:g}"
    elif above is not None and value <= above:
        broken = f"be above {above:g}" if above else "be positive"
    elif below is not None and value >= below:
        broken = f"be below {below:g}"
    else:
        return
    raise ValueError(f"must {broken}, not {_short(value)}")
