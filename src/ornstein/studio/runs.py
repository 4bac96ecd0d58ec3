"""The runs that the studio knows: which there are, of what kind, and their models, loaded once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from ornstein import checkpoint
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.nets import FaceUNet, RelitUNet
from ornstein.store import read_json

IMAGES, CLIPS, FACES, AUTOENCODER = "images", "clips", "faces", "autoencoder"
_NETS = {FaceUNet.__name__: FACES, RelitUNet.__name__: FACES}


class Runs:
    """Runs given by name, and those in the folder `home`, where new ones are written."""

    def __init__(self, home: Path, given: Sequence[Path] = ()) -> None:
        self.home, self.given = home, list(given)
        self._models: dict[tuple[Path, int], Denoiser] = {}
        self._lock = threading.Lock()

    def all(self) -> list[Path]:
        """Every run folder, finished or under way: those given first, then those in `home` by name."""
        inside = [p for p in sorted(self.home.iterdir()) if p.is_dir()] if self.home.is_dir() else []
        started = [p for p in inside if (p / checkpoint.CONFIG).is_file() or (p / "studio.log").is_file()]
        return list(dict.fromkeys([*self.given, *started]))

    def of(self, *kinds: str) -> list[str]:
        """The names of the runs that hold a model of these kinds."""
        return [str(run) for run in self.all() if self.kind(run) in kinds]

    def kind(self, run: Path) -> str | None:
        """What the run's model makes; None where there is no model yet."""
        try:
            config = read_json(run / checkpoint.CONFIG)
        except UserError:
            return None
        if "autoencoder" in config:
            return AUTOENCODER
        net, shape = config.get("net") or {}, (config.get("data") or {}).get("shape") or ()
        return _NETS.get(str(net.get("type")), {3: IMAGES, 4: CLIPS}.get(len(shape)))

    def find(self, name: str | None) -> Path:
        """The run of that name. Raises UserError where the studio does not know it: no other folder is read."""
        known = {str(run): run for run in self.all()}
        if not name:
            raise UserError("choose a run first, or train one on the page Train")
        if name not in known:
            raise UserError(f"no run {name!r} is open here: start `ornstein studio {name}` to add it")
        return known[name]

    def model(self, run: Path) -> Denoiser:
        """The run's model, loaded anew where it was written since. Raises UserError where there is none."""
        try:
            key = (run, (run / checkpoint.MODEL).stat().st_mtime_ns)
        except OSError:
            raise UserError(f"{run} has no model yet: its first checkpoint is still to be written") from None
        with self._lock:
            if key not in self._models:
                self._models = {k: v for k, v in self._models.items() if k[0] != run}
                self._models[key] = checkpoint.load(run)
            denoiser = self._models[key]
        if denoiser.data is None:
            raise UserError(f"{run} does not say what its samples look like; train it with `ornstein train`")
        return denoiser
