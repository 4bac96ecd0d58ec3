"""Whose face may be swapped, and what for: said by whoever asks for it, and carried by what comes out."""

from __future__ import annotations

from dataclasses import dataclass

from ornstein.errors import UserError

_LONGEST = 500
_EXAMPLE = '"Ann Lee and Bo Diaz, their wedding film"'


@dataclass(frozen=True)
class Consent:
    """A statement that the people shown agreed, as "who, why": at least a name and a purpose, a comma between them.

    No swap of files is made without one. It is written into the output's manifest and into the log as it is. Raises
    UserError where a part is missing.
    """

    statement: str

    def __post_init__(self) -> None:
        text = " ".join(self.statement.split())
        who, _, why = text.partition(",")
        if min(sum(c.isalpha() for c in part) for part in (who, why)) < 2:
            raise UserError(f"consent must say who agreed and to what, with a comma between: {_EXAMPLE}, not {text!r}")
        if len(text) > _LONGEST:
            raise UserError(f"the statement of consent has {len(text)} characters: {_LONGEST} at most")
        object.__setattr__(self, "statement", text)
