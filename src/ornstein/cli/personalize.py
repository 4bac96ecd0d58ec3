"""`ornstein personalize`: a model of text learns a person, thing or style from a few pictures."""

from __future__ import annotations

from typing import Any

from ornstein.errors import UserError
from ornstein.personalization.recipe import REPORT, personalize
from ornstein.personalization.settings import Personalize, PersonalizeSettings
from ornstein.progress import say

__all__ = ["personalise"]


def personalise(asked: Personalize, given: frozenset[str]) -> None:
    """Train, report, and say what to do with the run."""
    if "out" not in given:
        raise UserError("give --out: the run directory to write")
    own = given & PersonalizeSettings.__dataclass_fields__.keys()
    settings: dict[str, Any] = {name: getattr(asked, name) for name in own}
    first = {name: settings.pop(name, None) for name in ("base", "images", "prompt")}
    options = {"resume": asked.resume, "report": asked.report, "device": asked.device}
    run = personalize(first["base"], first["images"], first["prompt"], asked.out, **options, **settings)
    page = run.path / REPORT
    say(f"done: {page if page.is_file() else run.path}; `ornstein sample {run.path} --prompt {run.settings.prompt!r}`")
