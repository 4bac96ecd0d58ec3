"""The group of commands: a command is imported when it is used, so that help and tab completion are fast."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from ornstein.cli.command import fail, run
from ornstein.cli.options import command, resolve

__all__ = ["Group", "Lazy"]


@dataclass(frozen=True)
class Lazy:
    """A command by names ("module:attribute").

    help: the line in the list of commands.
    what: the settings dataclass of the command; or without a `body`, a function for typer or a `typer.Typer`.
    body: the function that the command calls; see `ornstein.cli.options`.
    """

    help: str
    what: str
    body: str = ""

    def build(self, name: str) -> Any:
        """The command for click. Imports the module of `what`, not that of `body`."""
        what = resolve(self.what)
        if isinstance(what, typer.Typer):
            group = typer.main.get_command(what)
            group.name = name
            return group
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, context_settings=HELP)
        app.command(name)(run(command(what, self.body) if self.body else what))
        return typer.main.get_command(app)


HELP = {"help_option_names": ["-h", "--help"]}


class Group(TyperGroup):
    """A group whose commands are `Lazy` ones; subclasses set `table`. A mistake of usage is told in one line."""

    table: Mapping[str, Lazy]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = cast(Any, _Commands(self.table))

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command without its options, for listings; `resolve_command` gives the whole of it."""
        known = self.table.get(cmd_name)
        return None if known is None else TyperCommand(cmd_name, help=known.help)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, stub, rest = super().resolve_command(ctx, args)
        return name, None if stub is None else self.commands[str(name)], rest

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        try:
            code = super().main(*args, standalone_mode=False, **extra)
        except _UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                path = error.ctx.command_path if error.ctx is not None else "ornstein"
                message = error.format_message().rstrip(".").replace("Value error, ", "")
                message = re.sub(r"^Invalid value for '([^']*)'", r"\1", message)
                fail(f"{message}; see {path} --help")
            code = error.exit_code
        sys.exit(code if isinstance(code, int) else 0)


_UsageError: Any = typer.BadParameter.__mro__[1]


class _Commands(Mapping[str, Any]):
    """The commands by name, each built when it is asked for."""

    def __init__(self, table: Mapping[str, Lazy]) -> None:
        self._table = table
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = self._table[name].build(name)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)
