"""What the page Face swap shows: the target with its faces, the model's card, the provenance of a result."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from torch import Tensor

from ornstein.errors import UserError
from ornstein.faces import provenance
from ornstein.faces.blaze import BlazeDetector
from ornstein.faces.detect import Face, find_faces
from ornstein.faces.provenance.card import ModelCard, read_card
from ornstein.faces.swap import film
from ornstein.faces.swap.picture import read_picture
from ornstein.studio.studio import Studio
from ornstein.studio.work import note

__all__ = ["Target", "card_of", "facts", "read_target"]

_SEARCHED = 60  # frames of a film that are searched for a face, at most
_STEP = 5


@dataclass(frozen=True)
class Target:
    """A photo or film to swap in: the picture that the page shows, uint8 (3, H, W), and the faces in it."""

    path: Path
    shown: Tensor
    faces: list[Face]

    @property
    def names(self) -> list[str]:
        return [f"face {i + 1}" for i in range(len(self.faces))]

    def boxes(self) -> list[tuple[tuple[int, int, int, int], str]]:
        """(left, top, right, bottom) in pixels, and its name, of each face."""
        _, height, width = self.shown.shape
        out = []
        for face, name in zip(self.faces, self.names, strict=True):
            (x, y), half = face.centre, face.side / 2
            left, top = max(0, round(x - half)), max(0, round(y - half))
            out.append(((left, top, min(width, round(x + half)), min(height, round(y + half))), name))
        return out


def read_target(path: Path, studio: Studio) -> Target:
    """Find the faces of a photo, or of the first frame of a film that has any. Raises UserError if none is found."""
    detector = studio.detector or BlazeDetector()
    if not film.is_video(path):
        shown = read_picture(path).shown
        return Target(path, shown, _ordered(find_faces(detector, shown, path.name)))
    quick = studio.detector or BlazeDetector(thorough=False)
    for number, _, image in film.Film.open(path).frames():
        if number >= _SEARCHED * _STEP:
            break
        if number % _STEP == 0 and (faces := quick(image)):
            return Target(path, image, _ordered(faces))
    raise UserError(
        f"no face found in the first frames of {path.name}: give a film in which one is seen from the front"
    )


def _ordered(faces: list[Face]) -> list[Face]:
    return sorted(faces, key=lambda face: face.centre[0])


def card_of(run: Path) -> str:
    """The card of a model as HTML: its licence and its data. A warning if it is not for photographs."""
    try:
        card = read_card(run)
    except UserError as error:
        return note(f"The model's card cannot be read: {error}", "bad")
    if card == ModelCard():
        return note("This model has no card: its licence and its training data are not stated.")
    warning = card.research_only or "not for" in card.data.lower()
    return note(f"Model card: {card}.", "bad" if warning else "plain")


def facts(record: provenance.Provenance) -> str:
    """The provenance of a file as an HTML table."""
    stated = record.swap or {}
    model = stated.get("model", {})
    rows = {
        "Provenance": {
            provenance.INTACT: "signed; not changed since",
            provenance.CHANGED: "CHANGED since it was signed",
            provenance.UNSIGNED: "no manifest",
        }[record.state],
        "Signed": f"{'by this computer' if record.ours else 'by another key'} ({record.signer})",
        "Kind": (record.source_type or "").rpartition("/")[2],
        "Consent": stated.get("consent"),
        "Badge": "shown" if stated.get("label") else "removed when it was made",
        "Model": f"{str(model.get('sha256'))[:16]}…, licence {model.get('licence')}",
        "Made": stated.get("time"),
    }
    body = "".join(f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items() if value)
    return f'<table class="facts">{body}</table>'
