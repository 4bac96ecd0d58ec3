"""The runs that the studio shows: their names and kinds, and their models, each loaded once."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from ornstein import checkpoint
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_device
from ornstein.errors import UserError
from ornstein.nets import FaceUNet, RelitUNet
from ornstein.store import read_json, write_error
from ornstein.training import lock

__all__ = ["AUTOENCODER", "CLIPS", "FACES", "IMAGES", "Runs", "checked_name"]

IMAGES, CLIPS, FACES, AUTOENCODER = "images", "clips", "faces", "autoencoder"
_NETS = {FaceUNet.__name__: FACES, RelitUNet.__name__: FACES}


_NAME = re.compile(r"[\w][\w .-]{0,79}")


def checked_name(name: str) -> str:
    """The name of a run without spaces around it. Raises UserError if it cannot be the name of a folder here."""
    name = name.strip()
    if not _NAME.fullmatch(name) or ".." in name:
        raise UserError(f"{name!r} cannot be the name of a run: use letters, digits, spaces, dots and dashes")
    return name


class Runs:
    """Runs given by name, and those in the folder `home`, where new ones are written; their models go to `device`."""

    def __init__(self, home: Path, given: Sequence[Path] = (), device: torch.device | None = None) -> None:
        self.home, self.given, self.device = home, list(given), device or choose_device()
        self._models: dict[tuple[Path, int], Denoiser] = {}
        self._lock = threading.Lock()

    def all(self) -> list[Path]:
        """Every run folder, finished or under way: those given first, then those in `home` by name."""
        inside = [p for p in sorted(self.home.iterdir()) if p.is_dir()] if self.home.is_dir() else []
        started = [p for p in inside if (p / checkpoint.CONFIG).is_file() or (p / "studio.log").is_file()]
        return list(dict.fromkeys([*self.given, *started]))

    def of(self, *kinds: str) -> list[tuple[str, str]]:
        """(name, path) of the runs that hold a model of these kinds."""
        return self.named([run for run in self.all() if self.kind(run) in kinds])

    def named(self, runs: Sequence[Path]) -> list[tuple[str, str]]:
        """(name, path) of runs; the name is that of the folder, with its parent if two are equal."""
        names = [run.name for run in runs]
        return [(run.name if names.count(run.name) == 1 else f"{run.name} ({run.parent})", str(run)) for run in runs]

    def kind(self, run: Path) -> str | None:
        """What the run's model makes; None if there is no model yet."""
        try:
            config = read_json(run / checkpoint.CONFIG)
        except UserError:
            return None
        if "autoencoder" in config:
            return AUTOENCODER
        net, shape = config.get("net") or {}, (config.get("data") or {}).get("shape") or ()
        return _NETS.get(str(net.get("type")), {3: IMAGES, 4: CLIPS}.get(len(shape)))

    def of_text(self) -> list[tuple[str, str]]:
        """(name, path) of the runs that take prompts."""
        found = []
        for run in self.all():
            try:
                config = read_json(run / checkpoint.CONFIG)
            except UserError:
                continue
            found += [run] if "text" in config or "personal" in config else []
        return self.named(found + [run for run in self.given if checkpoint.is_pipeline(run)])

    def find(self, name: str | None) -> Path:
        """The run with that name or path. Raises UserError if the studio does not show it: no other folder is read."""
        known = {str(run): run for run in self.all()}
        by_name = {shown: Path(path) for shown, path in self.named(self.all())}
        if not name:
            raise UserError("choose a run first, or train one on the page Train")
        if name not in known and name not in by_name:
            raise UserError(f"no run {name!r} is open here: start `ornstein studio {name}` to add it")
        return known.get(name) or by_name[name]

    def rename(self, run: Path, name: str) -> Path:
        """Give a run of `home` another name. Raises UserError if it is none of those, or the name is taken or bad."""
        self._check_own(run)
        new = self.home / checked_name(name)
        if new.exists() or new.is_symlink():
            raise UserError(f"there is a run {new.name!r} already: choose another name")
        try:
            run.rename(new)
        except OSError as error:
            raise write_error(new, error) from error
        return new

    def delete(self, run: Path) -> None:
        """Delete a run of `home` with everything in it. Raises UserError if it is none of those."""
        self._check_own(run)
        try:
            shutil.rmtree(run)
        except OSError as error:
            raise write_error(run, error) from error

    def _check_own(self, run: Path) -> None:
        if run.is_symlink() or run.resolve().parent != self.home.resolve():
            raise UserError(f"{run.name} is not in the studio's own folder, {self.home}: change it there yourself")
        if lock.holder(run) is not None:
            raise UserError(f"{run.name} is being trained: stop it first")

    def model(self, run: Path) -> Denoiser:
        """The run's model on the device that computes, loaded again if its file has changed.

        Raises:
            UserError: there is no model yet, or it has no sample spec.
        """
        try:
            key = (run, (run / checkpoint.MODEL).stat().st_mtime_ns)
        except OSError:
            raise UserError(f"{run} has no model yet: its first checkpoint is still to be written") from None
        with self._lock:
            if key not in self._models:
                self._models = {k: v for k, v in self._models.items() if k[0] != run}
                self._models[key] = checkpoint.load(run).to(self.device)
            denoiser = self._models[key]
        if denoiser.data is None:
            raise UserError(f"{run.name} has no sample spec: train it with `ornstein train`")
        return denoiser
