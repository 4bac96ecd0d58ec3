"""`ornstein train`: images or videos in, a run directory out."""

from __future__ import annotations

from ornstein.cli.commands import Train
from ornstein.progress import say
from ornstein.training import recipe
from ornstein.training.settings import Settings

__all__ = ["train"]


def train(asked: Train, given: frozenset[str]) -> None:
    """Train a model: `ornstein.train` with the options that were given."""
    names = given & Settings.__dataclass_fields__.keys()
    recipe.train(
        asked.data,
        asked.out,
        resume=asked.resume,
        report=asked.report,
        choose_solver=asked.choose_solver,
        device=asked.device,
        **{name: getattr(asked, name) for name in names - {"data"}},
    )
    page = asked.out / recipe.REPORT
    say(f"done: {page if page.is_file() else asked.out}; more samples with `ornstein sample {asked.out}`")
