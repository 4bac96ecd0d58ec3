"""A model's card: its licence, and what it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ornstein.settings import check, read, to_json
from ornstein.store import atomic_write, json_bytes, read_json

__all__ = ["CARD", "ModelCard", "read_card", "write_card"]

CARD = "card.json"


@dataclass(frozen=True)
class ModelCard:
    """What a model's maker states: `licence`, a note on the `data`, and whether it is for research only.

    Raises:
        UserError: a value of another type.
    """

    licence: str = "not stated"
    data: str = "not stated"
    research_only: bool = False

    def __post_init__(self) -> None:
        check(self)

    def __str__(self) -> str:
        text = f"licence {self.licence}; trained on {self.data}"
        return f"{text}; FOR RESEARCH ONLY, as its training data are" if self.research_only else text


def read_card(run: str | Path) -> ModelCard:
    """The card in a run directory; one that states nothing if there is none. Raises UserError on a damaged one."""
    path = Path(run) / CARD
    if not path.is_file():
        return ModelCard()
    return read(ModelCard, read_json(path), path)


def write_card(run: str | Path, card: ModelCard) -> None:
    """Write the card into a run directory; checkpoints leave it alone. Raises RunError if it cannot be written."""
    atomic_write(Path(run) / CARD, json_bytes(to_json(card)))
