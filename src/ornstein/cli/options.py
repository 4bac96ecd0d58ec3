"""A command whose options are generated from a settings dataclass.

To give a command its options from one dataclass:

1. Declare the dataclass with `ornstein.settings.setting`, in a module that does not import torch: help and tab
   completion import it, and must be fast. Its docstring is the help of the command. It may extend the settings of the
   Python function that the command calls, with what only the command has (`run`, `out`, `resume`).
2. Write the body `def blur(asked: BlurCommand, given: frozenset[str]) -> None` in `ornstein/cli/blur.py`, which may
   import torch: it is imported when the command runs. `asked` is the dataclass; `given` are the names of the settings
   that the user gave, as an option or in the file of --config.
3. Add a line to `COMMANDS` in `ornstein/cli/__init__.py`:
   `"blur": Lazy("Blur pictures.", "ornstein.faces.settings:BlurCommand", "ornstein.cli.blur:blur")`.

The option of a field is --name-of-the-field, or its `names`; a `bool` is --name/--no-name; choices are listed by the
help and by tab completion. The default is said once, by the generated help text. Every command has --config FILE.toml
or FILE.json, whose keys are the names of the fields; options on the command line win over it. A run's own config.json,
train.json or folder is such a file. `refuse` is for options that do nothing in this call.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from ornstein.errors import UserError
from ornstein.progress import console
from ornstein.settings import about, choices, default_text, members, read_file, type_hints, values

__all__ = ["command", "option", "refuse", "resolve"]

_CONFIG = "Read options from this .toml or .json file, or from a run; options given here win."
_QUIET = "Show errors and warnings of Python only."
# Files in a run directory that hold the settings of a command.
_STORED = ("train.json", "distil.json")


def command(cls: type, body: str | Callable[[Any, frozenset[str]], None]) -> Callable[..., None]:
    """A function for `typer.Typer.command`: it reads the options of `cls` and calls `body` with the settings.

    Args:
        cls: the settings dataclass; its docstring is the help of the command.
        body: f(asked, given), or "module:function", which is imported when the command runs.
    """
    shown = [f for f in fields(cls) if f.init and not about(f).stored]

    def run(**options: Any) -> None:
        file, quiet, before = options.pop("config"), options.pop("quiet"), console.quiet
        console.quiet = quiet or before
        try:
            obey(file, options)
        finally:
            console.quiet = before

    def obey(file: Path | None, options: dict[str, Any]) -> None:
        for f in shown:
            for i in range(len(about(f).old_names)):
                old = options.pop(f"{f.name}_old_{i}")
                options[f.name] = old if options[f.name] is None else options[f.name]
        given = _from_options(cls, {name: value for name, value in options.items() if value is not None})
        if file is not None:
            given = _from_file(cls, file) | given
        for f in shown:
            if f.name not in given and f.default is MISSING and f.default_factory is MISSING:
                raise UserError(f"give {option(f)}: {about(f).help}")
        (resolve(body) if isinstance(body, str) else body)(cls(**given), frozenset(given))

    signature = [parameter for f in shown for parameter in _parameters(cls, f)]
    for name, default, annotation in (
        ("config", None, Annotated[Path | None, typer.Option("--config", help=_CONFIG)]),
        ("quiet", False, Annotated[bool, typer.Option("--quiet", "-q", help=_QUIET)]),
    ):
        signature.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    run.__signature__ = inspect.Signature(signature)  # pyright: ignore[reportFunctionMemberAccess]
    run.__annotations__ = {p.name: p.annotation for p in signature}
    run.__doc__ = inspect.cleandoc(cls.__doc__ or "")
    run.__name__ = cls.__name__
    return run


def option(f: Field[Any]) -> str:
    """How the command line spells a field: "--held-out"."""
    told = about(f)
    if told.argument:
        return f.name.upper()
    return max(told.names, key=len) if told.names else "--" + f.name.replace("_", "-")


def refuse(cls: type, given: Collection[str], names: Collection[str], why: str) -> None:
    """Raise UserError if an option of `names` was given: it does nothing in this call, and `why` says why."""
    for f in fields(cls):
        if f.name in names and f.name in given:
            raise UserError(f"{option(f)} does nothing here: {why}")


def resolve(name: str) -> Any:
    """The object that "module:attribute" names, or the module itself; it is imported now."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute) if attribute else import_module(module)


def _parameters(cls: type, f: Field[Any]) -> list[inspect.Parameter]:
    """The parameters of a field: its option, and a hidden one for each old spelling."""
    told, kind = about(f), _annotation(cls, f)
    default: Any = None
    if told.argument:
        info: Any = typer.Argument(help=_help(cls, f))
        default = ... if f.default is MISSING else None
    else:
        names = told.names or (option(f),)
        if kind is bool and "/" not in option(f):
            long = option(f)
            names = (*(n for n in names if n != long), f"{long}/--no-{long.removeprefix('--')}")
        info = typer.Option(
            *names,
            help=_help(cls, f),
            rich_help_panel=told.panel or None,
            show_default=False,
            autocompletion=_completion(cls, f),
        )
    old = [(f"{f.name}_old_{i}", typer.Option(name, hidden=True)) for i, name in enumerate(told.old_names)]
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=Annotated[annotated, each])
        for name, each, value, annotated in [
            (f.name, info, default, kind if default is ... else kind | None),
            *((name, each, None, kind | None) for name, each in old),
        ]
    ]


def _completion(cls: type, f: Field[Any]) -> Callable[[str], list[str]] | None:
    """Tab completion of choices that typer cannot list itself, since other texts pass too."""
    allowed = choices(cls, f) if about(f).other else ()
    return (lambda incomplete: [name for name in allowed if name.startswith(incomplete)]) if allowed else None


def _annotation(cls: type, f: Field[Any]) -> Any:
    """The type by which typer reads an option: text for what `_from_text` takes apart."""
    told = about(f)
    kinds = [each for each in members(type_hints(cls)[f.name]) if each is not type(None)]
    if told.repeated:
        return kinds[0]
    if told.random or len(kinds) != 1 or get_origin(kinds[0]) in (tuple, list):
        return str
    allowed = choices(cls, f)
    return Literal[allowed] if allowed and not told.other else kinds[0]


def _help(cls: type, f: Field[Any]) -> str:
    """The help text with unit, choices and default, each said once."""
    told, allowed = about(f), choices(cls, f)
    parts = []
    if allowed and told.other:
        parts.append(f"{', '.join(allowed)}, or {told.other}")
    elif told.other:
        parts.append(told.other)
    if told.random:
        parts.append("or random")
    if told.unit:
        parts.append(told.unit)
    if default_text(f):
        parts.append(f"default: {default_text(f)}")
    elif f.default is MISSING and not told.argument:
        parts.append("required")
    return f"{told.help} ({'; '.join(parts)})" if parts else told.help


def _from_options(cls: type, options: dict[str, Any]) -> dict[str, Any]:
    """The values of the options that were given, in the types of the fields."""
    by_name = {f.name: f for f in fields(cls)}
    for name, value in options.items():
        if about(by_name[name]).random and value == "random":
            options[name] = random.SystemRandom().randrange(2**31)
            console.print(f"{option(by_name[name])} {options[name]}")
        elif isinstance(value, str):
            options[name] = _from_text(type_hints(cls)[name], value)
    return values(cls, options, name=lambda name: option(by_name[name]))


def _from_text(kind: Any, text: str) -> Any:
    """A text of the command line as the number or list that a field takes; the text itself where it is neither."""
    for each in members(kind):
        if get_origin(each) in (tuple, list):
            return [_from_text(get_args(each)[0], part.strip()) for part in text.split(",")]
        if each in (int, float):
            try:
                return each(text)
            except ValueError:
                continue
    return text


def _from_file(cls: type, path: Path) -> dict[str, Any]:
    """The settings of a --config file. UserError if it cannot be read or has an unknown key."""
    path, mapping = _read(path)
    stored = {f.name for f in fields(cls) if about(f).stored}
    named = {key.replace("-", "_"): value for key, value in mapping.items()}
    return values(cls, {key: value for key, value in named.items() if key not in stored and value is not None}, path)


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    """The mapping in a file, or the one that a run stored, and where it is from."""
    if path.is_dir() or path.name == "config.json":
        folder = path if path.is_dir() else path.parent
        path = next((folder / name for name in reversed(_STORED) if (folder / name).is_file()), path)
    return path, read_file(path)
