"""Write-then-rename: a file is complete or absent, whatever happens in between."""

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ornstein.errors import RunError, UserError

_SUFFIX = ".partial"
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file-size limit"}


def atomic_write(path: str | Path, data: bytes) -> None:
    """Replace the file `path` by `data`, or leave it as it was.

    Raises:
        RunError: the disk is full or the file cannot be written; the old file is intact.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{_SUFFIX}")
    try:
        with partial.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> RunError:
    """The one-line RunError for a failed write to `path`."""
    reason = _FULL.get(error.errno or 0)
    if reason:
        return RunError(f"cannot write {path}: {reason}; free some space and go on with --resume")
    return RunError(f"cannot write {path}: {error.strerror or error}")


def atomic_save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Replace the safetensors file `path`, or leave it as it was; raises RunError as `atomic_write`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, safetensors.torch.save(tensors, metadata))


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in the file `path`.

    Raises:
        UserError: there is no such file, or it is no JSON object.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


def remove_partial(folder: Path) -> None:
    """Delete what a killed process left half written in `folder`."""
    for partial in folder.glob(f".*{_SUFFIX}"):
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # a folder cannot be opened elsewhere; the rename is atomic all the same
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
