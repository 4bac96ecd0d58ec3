"""Consent to a swap: stated by the user, and carried by the output."""

from __future__ import annotations

from dataclasses import dataclass

from ornstein.errors import UserError

__all__ = ["Consent"]

_LONGEST = 500
_LETTERS = 2  # of each part, at least
_EXAMPLE = '"Ann Lee and Bo Diaz, their wedding film"'


@dataclass(frozen=True)
class Consent:
    """A statement that the people shown agreed: "who, why", with at least two letters before and after the first comma.

    No swap of files is made without one. It is written into the output's manifest and into the log as it is.

    Raises:
        UserError: a part is missing or too short, or the statement is longer than 500 characters.
    """

    statement: str

    def __post_init__(self) -> None:
        text = " ".join(self.statement.split())
        who, comma, why = text.partition(",")
        if not comma:
            raise UserError(f"consent must say who agreed and to what, with a comma between: {_EXAMPLE}, not {text!r}")
        for part, what in ((who, "who agreed"), (why, "to what")):
            if sum(c.isalpha() for c in part) < _LETTERS:
                raise UserError(
                    f"consent must say who agreed and to what, each in at least {_LETTERS} letters: {what} is "
                    f"{part.strip()!r} in {text!r}; for example {_EXAMPLE}"
                )
        if len(text) > _LONGEST:
            raise UserError(f"the statement of consent has {len(text)} characters: {_LONGEST} at most")
        object.__setattr__(self, "statement", text)
