"""Finished parts of an evaluation, kept in its folder, so that an interrupted one measures only what is missing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ornstein import processes
from ornstein.errors import UserError
from ornstein.store import atomic_save_tensors, atomic_write, load_tensors, read_json

__all__ = ["FILE", "PICTURES", "Pieces"]

FILE = "pieces.json"
PICTURES = "pieces.safetensors"


class Pieces:
    """Results by name, of one model, data and settings.

    Of several processes the first one reads and writes, and all have the same results.

    Args:
        folder: where results are kept; None keeps nothing.
        key: what the results depend on. Results with another key are discarded.
    """

    def __init__(self, folder: Path | None = None, key: Mapping[str, Any] | None = None) -> None:
        self.folder, self.key = folder, json.loads(json.dumps(dict(key or {})))
        self._known: dict[str, Any] = {} if folder is None else processes.current().agreed(self._read)

    def __len__(self) -> int:
        """The number of results that are known."""
        return len(self._known)

    def get(self, name: str) -> dict[str, Any] | None:
        """The results of that name, None if they are not known."""
        return self._known.get(name)

    def pictures(self, name: str) -> Tensor | None:
        """The pictures that were stored with the results of that name."""
        if self.folder is None or name not in self._known:
            return None
        return processes.current().agreed(lambda: self._pictures(name))

    def put(self, name: str, results: Mapping[str, Any], pictures: Tensor | None = None) -> None:
        """Store results, and pictures with them, which are kept for one name only. RunError for a full disk."""
        self._known[name] = dict(results)
        if self.folder is None or not processes.current().main:
            return
        if pictures is not None:
            atomic_save_tensors(self.folder / PICTURES, {"pictures": pictures}, {"name": name})
        # after the pictures: results without theirs would be known to have none
        text = json.dumps({"key": self.key, "pieces": self._known}, indent=1)
        atomic_write(self.folder / FILE, (text + "\n").encode())

    @classmethod
    def sizes(cls, folder: Path, key: Mapping[str, Any]) -> dict[str, int]:
        """The sizes of the results in a folder, {"count": ..., "images": ...}, if the rest of their key is `key`."""
        with contextlib.suppress(UserError, ValueError, KeyError, TypeError):
            stored = read_json(folder / FILE)["key"]
            if {k: v for k, v in stored.items() if k not in ("n", "images")} == json.loads(json.dumps(dict(key))):
                return {"count": int(stored["n"]), "images": int(stored["images"])}
        return {}

    def _read(self) -> dict[str, Any]:
        assert self.folder is not None
        with contextlib.suppress(UserError, ValueError, KeyError, TypeError):
            stored = read_json(self.folder / FILE)
            if stored["key"] == self.key:
                return dict(stored["pieces"])
        return {}

    def _pictures(self, name: str) -> Tensor | None:
        assert self.folder is not None
        try:
            tensors, about = load_tensors(self.folder / PICTURES)
        except UserError:
            return None
        return tensors.get("pictures") if about.get("name") == name else None
