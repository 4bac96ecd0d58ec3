"""Face swaps: faces are detected, aligned, embedded, repainted and pasted back. The extra `faces` brings the models.

`nets`, `world`, `train`, `swap` and `provenance` are packages; the modules beside them are shared by all of these.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__: list[str] = []

# Import paths of earlier versions, which keep working.
_MOVED = {
    "blend": "swap.blend",
    "blocklist": "provenance.blocklist",
    "card": "provenance.card",
    "colour": "swap.colour",
    "consent": "provenance.consent",
    "demo": "world.demo",
    "evaluate": "train.evaluate",
    "face_noise": "swap.noise",
    "face_set": "train.face_set",
    "film": "swap.film",
    "label": "provenance.label",
    "log": "provenance.log",
    "photo_swap": "swap.photo",
    "picture": "swap.picture",
    "poisson": "swap.poisson",
    "prepare": "train.prepare",
    "runs": "train.runs",
    "sampling": "swap.sampling",
    "shards": "train.shards",
    "signing": "provenance.signing",
    "tracks": "swap.tracks",
    "training": "train.objective",
    "video_swap": "swap.video",
    "world_scores": "world.scores",
    "world_training": "world.training",
}


class _Moved(Loader):
    """Loads a module under its earlier name: the same module object under both names."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has replaced it


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, module = fullname.rpartition(".")
        if package != __name__ or module not in _MOVED:
            return None
        return ModuleSpec(fullname, _Moved(importlib.import_module(f"{package}.{_MOVED[module]}")))


sys.meta_path.append(_Finder())
