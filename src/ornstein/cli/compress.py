"""`ornstein compress`: a smaller model from a trained one."""

from __future__ import annotations

from ornstein.compress.run import compress as compress_run
from ornstein.compress.settings import Compress, CompressSettings
from ornstein.progress import say

__all__ = ["compress"]


def compress(asked: Compress, given: frozenset[str]) -> None:
    """Compress a run: `ornstein.compress` with the options that were given."""
    names = given & CompressSettings.__dataclass_fields__.keys()
    compress_run(
        asked.run,
        asked.out,
        resume=asked.resume,
        report=asked.report,
        device=asked.device,
        trust_sizes=asked.trust_sizes,
        **{name: getattr(asked, name) for name in names},
    )
    say(f"done: {asked.out}; samples with `ornstein sample {asked.out}`")
