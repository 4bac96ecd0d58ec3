"""A table with, at its head, what is needed to get the same figures again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ornstein.evaluation.markup import note, text


@dataclass(frozen=True)
class Table:
    """Rows under columns; header says what the figures are of, and of how many samples and seeds."""

    title: str
    header: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def table_section(table: Table) -> str:
    """The section of a table in a report, its header above it; every text in it is escaped."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in table.columns)
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>'
        + "".join(f'<td class="num">{text(value)}</td>' for value in row[1:])
        + "</tr>"
        for row in table.rows
    )
    return note(escape(table.header)) + (
        f'<div class="card"><div class="scroll" tabindex="0" role="region" aria-label="{text(table.title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )
