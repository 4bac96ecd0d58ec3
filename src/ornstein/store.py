"""Write-then-rename: a file is complete or absent, whatever happens in between."""

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ornstein.errors import RunError, UserError

CHECKSUM = "sha256"  # the field of a header
_SUFFIX = ".partial"
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file-size limit"}


def atomic_write(path: str | Path, data: bytes, mode: int | None = None) -> None:
    """Replace the file `path` by `data`, or leave it as it was; `mode` are its permissions from the first byte on.

    Raises:
        RunError: the disk is full or the file cannot be written; the old file is intact.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{_SUFFIX}")
    try:
        with partial.open("wb") as f:
            if mode is not None:
                partial.chmod(mode)
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
    """Replace the safetensors file `path`, or leave it as it was; raises RunError as `atomic_write`.

    A checksum of all of it goes into its header, for `load_tensors`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, safetensors.torch.save(tensors, metadata | {CHECKSUM: _checksum(tensors, metadata)}))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, held against its checksum where it has one.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    told = metadata.pop(CHECKSUM, None)
    if told is not None and told != _checksum(tensors, metadata):
        raise UserError(f"{path} is damaged: it is not what was written, by its checksum")
    return tensors, metadata


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # the bytes as they lie: numpy knows no bfloat16, but bytes of any kind
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


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


def keep_previous(path: Path, previous: Path) -> None:
    """Make `previous` what `path` is now, which stays where it is; at any moment one of them is whole.

    Raises:
        RunError: the folder cannot be written.
    """
    partial = previous.with_name(f".{previous.name}{_SUFFIX}")
    try:
        partial.unlink(missing_ok=True)
        try:
            partial.hardlink_to(path)
        except OSError:  # a file system without links
            path.replace(previous)
        else:
            partial.replace(previous)
    except OSError as error:
        raise write_error(previous, error) from error


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
