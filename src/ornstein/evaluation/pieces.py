"""Finished parts of an evaluation, kept in its folder: one that was cut off does what is missing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ornstein.errors import UserError
from ornstein.store import atomic_save_tensors, atomic_write, load_tensors
from ornstein.training import processes

FILE = "pieces.json"
_PICTURES = "pieces.safetensors"


class Pieces:
    """Figures by name, of one model, data and settings, which are `key`; those of another key are forgotten.

    Of several processes the first reads and writes, and all know the same. Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None = None, key: Mapping[str, Any] | None = None) -> None:
        self.folder, self.key = folder, json.loads(json.dumps(dict(key or {})))
        self._known: dict[str, Any] = {} if folder is None else processes.current().agreed(self._read)
        self.found = len(self._known)

    def get(self, name: str) -> dict[str, Any] | None:
        """The figures of that name, None where they are not known."""
        return self._known.get(name)

    def pictures(self, name: str) -> Tensor | None:
        """The pictures that were put with the figures of that name."""
        if self.folder is None or name not in self._known:
            return None
        return processes.current().agreed(lambda: self._pictures(name))

    def put(self, name: str, figures: Mapping[str, Any], pictures: Tensor | None = None) -> None:
        """Keep figures, and pictures with them; those of one name alone are kept. Raises RunError for a full disk."""
        self._known[name] = dict(figures)
        if self.folder is None or not processes.current().main:
            return
        if pictures is not None:
            atomic_save_tensors(self.folder / _PICTURES, {"pictures": pictures}, {"name": name})
        # second: figures without their pictures are known to have none
        text = json.dumps({"key": self.key, "pieces": self._known}, indent=1)
        atomic_write(self.folder / FILE, (text + "\n").encode())

    def _read(self) -> dict[str, Any]:
        assert self.folder is not None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads((self.folder / FILE).read_text(encoding="utf-8"))
            if found["key"] == self.key:
                return dict(found["pieces"])
        return {}

    def _pictures(self, name: str) -> Tensor | None:
        assert self.folder is not None
        try:
            tensors, about = load_tensors(self.folder / _PICTURES)
        except UserError:
            return None
        return tensors.get("pictures") if about.get("name") == name else None
