"""The settings of a captioned run of a few steps."""

from __future__ import annotations

from typing import Any

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 230)}
SETTINGS: dict[str, Any] = {
    "captions": "auto", "size": 8, "net": "xs", "batch": 4, "steps": 4, "checkpoint_every": 2, "warmup": 1,
    "report": False, "device": "cpu",
}  # fmt: skip


def changed(**settings: Any) -> dict[str, Any]:
    """The settings with others in their place."""
    return SETTINGS | settings
