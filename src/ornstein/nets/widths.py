"""The widths of a network's parts by name: those that a pruned network records, else the full ones."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Widths"]


class Widths:
    """Widths by the names of parts. A constructor asks for each part once; then `check` finds names that fit none.

    Args:
        pruned: the widths of the parts that are narrower than full, by name.
    """

    def __init__(self, pruned: Mapping[str, int] | None) -> None:
        self.pruned = dict(pruned or {})
        self.full: dict[str, int] = {}

    def of(self, name: str, full: int, parts: int = 1, *, least: int = 1) -> int:
        """The width of the part `name`, a multiple of `parts`, at most `full`. Raises ValueError for another one.

        `least` is 0 for a residual branch, which can be left out.
        """
        self.full[name] = full
        width = self.pruned.get(name, full)
        if type(width) is not int or not least <= width <= full or width % parts:
            multiple = f" and a multiple of {parts}" if parts > 1 else ""
            raise ValueError(f"the width of {name} is {least} to {full}{multiple}, not {width!r}")
        return width

    def check(self) -> None:
        """Raise ValueError for a width of a part that the network does not have."""
        unknown = sorted(self.pruned.keys() - self.full.keys())
        if unknown:
            raise ValueError(f"widths names {unknown[0]!r}, which is no part of this network")
