"""A model's card: under which licence it may be used, and what it was trained on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ornstein.errors import UserError
from ornstein.store import atomic_write, read_json

CARD = "card.json"


@dataclass(frozen=True)
class ModelCard:
    """What a model's maker says of it: `licence`, a note on the `data`, and whether it is for research only."""

    licence: str = "not stated"
    data: str = "not stated"
    research_only: bool = False

    def __str__(self) -> str:
        text = f"licence {self.licence}; trained on {self.data}"
        return f"{text}; FOR RESEARCH ONLY, as its training data are" if self.research_only else text


def read_card(run: str | Path) -> ModelCard:
    """The card in a run folder; one that states nothing where there is none. Raises UserError on a damaged one."""
    path = Path(run) / CARD
    if not path.is_file():
        return ModelCard()
    try:
        return ModelCard(**read_json(path))
    except TypeError as error:
        raise UserError(f"{path} is no model card: {error}") from None


def write_card(run: str | Path, card: ModelCard) -> None:
    """Write the card into a run folder; checkpoints leave it alone. Raises RunError where it cannot be written."""
    atomic_write(Path(run) / CARD, (json.dumps(asdict(card), indent=1) + "\n").encode())
