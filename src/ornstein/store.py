"""Files of a run: names, complete-or-absent writing, and reading that trusts nothing.

A file is written beside its place under a random name and then renamed, so that it is complete or absent at any moment.
A run directory may come from a stranger: no link in it is followed when writing, only regular files of bounded size are
read, and nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ornstein.errors import RunError, UserError

__all__ = [
    "CONFIG",
    "FORMAT",
    "MODEL",
    "SCALE",
    "atomic_save_tensors",
    "atomic_write",
    "check_regular",
    "dequantised",
    "file_hash",
    "json_bytes",
    "keep_previous",
    "load_tensors",
    "load_weights",
    "make_folder",
    "open_in_place",
    "partial_name",
    "read_bytes",
    "read_config",
    "read_json",
    "refuse_links",
    "remove_partial",
    "sync_folder",
    "write_error",
]

FORMAT = 1
CONFIG = "config.json"
MODEL = "model.safetensors"
SCALE = ".scale"  # after the name of a tensor of 8 bits: its scale by row

CHECKSUM = "sha256"  # a field in the header of a safetensors file
JSON_LIMIT = 64 * 2**20  # bytes; the largest file of ours, the metrics of a long run, stays far below
_SUFFIX = ".partial"
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
_NEW = os.O_CREAT | os.O_EXCL | _NO_LINKS
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file-size limit"}


def atomic_write(path: str | Path, data: bytes, mode: int = 0o666) -> None:
    """Replace the file `path` by `data`, or leave it unchanged if that fails.

    Args:
        mode: the permissions of the new file from its first byte on, less the user's umask.

    Raises:
        UserError: `path` is a link, or lies in a folder of a run that is one.
        RunError: the disk is full or the file cannot be written; the old file is intact.
    """
    path = Path(path)
    refuse_links(path)
    partial = partial_name(path)
    try:
        with os.fdopen(os.open(partial, _NEW | os.O_WRONLY, mode), "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise write_error(path, error) from error


def partial_name(path: Path) -> Path:
    """An unguessable name beside `path` for a file that is not complete yet; `remove_partial` deletes such files."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{_SUFFIX}")


def open_in_place(path: Path, flags: int) -> int:
    """A descriptor of the file `path`, created if missing, to be changed in place.

    Args:
        flags: such as os.O_WRONLY | os.O_APPEND.

    Raises:
        UserError: it is a link or not a regular file, or lies in a folder of a run that is a link.
        OSError: it cannot be opened.
    """
    refuse_links(path)
    if path.exists():
        check_regular(path)
    return os.open(path, flags | os.O_CREAT | _NO_LINKS, 0o666)


def json_bytes(value: Any) -> bytes:
    """`value` as the JSON text that files of a run hold."""
    return (json.dumps(value, indent=1) + "\n").encode()


def make_folder(path: str | Path) -> Path:
    """Create the folder `path`, one of a run's own, and its parents; return it.

    Raises:
        UserError: `path` is a link, whose target lies outside the run, or a file.
        RunError: it cannot be created.
    """
    path = Path(path)
    refuse_links(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{path} is a file, but a folder is needed there: move it away") from None
    except OSError as error:
        raise write_error(path, error) from error
    return path


def refuse_links(path: Path) -> None:
    """Raise UserError if `path` is a link, or if it lies in a run and one of the folders down to it is a link.

    A link in a run directory from a stranger would have files written outside of it. A run directory that is itself a
    link is the user's own choice.
    """
    for each in (path, *path.parents):
        if each.is_symlink() and (each == path or _is_run(each.parent)):
            raise UserError(f"{each} is a link: nothing is written through links; remove it, or give the target itself")


def _is_run(folder: Path) -> bool:
    return (folder / "train.json").exists() or ((folder / CONFIG).exists() and (folder / MODEL).exists())


def write_error(path: Path, error: OSError) -> RunError:
    """The one-line RunError for a failed write to `path`."""
    reason = _FULL.get(error.errno or 0)
    if reason:
        return RunError(f"cannot write {path}: {reason}; free some space and continue with --resume")
    return RunError(f"cannot write {path}: {error.strerror or error}")


def atomic_save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Replace the safetensors file `path`, or leave it unchanged; raises as `atomic_write`.

    The header gets a checksum of tensors and metadata, which `load_tensors` verifies.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, safetensors.torch.save(tensors, metadata | {CHECKSUM: _checksum(tensors, metadata)}))


def check_regular(path: Path, limit: int | None = None) -> None:
    """Check that `path` is a regular file of at most `limit` bytes, before it is opened.

    Opening a FIFO would wait for a writer, and a device may have no end.

    Raises:
        UserError: it is missing, something else, or larger.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is not a regular file")
    if limit is not None and found.st_size > limit:
        raise UserError(f"{path} has {found.st_size / 2**20:,.0f} MiB, more than the {limit / 2**20:,.0f} it may have")


def read_bytes(path: str | Path, limit: int = JSON_LIMIT) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises UserError as `check_regular` does."""
    path = Path(path)
    check_regular(path, limit)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def file_hash(path: str | Path) -> Any:
    """A SHA-256 hash object (`hashlib.sha256`) of a regular file's bytes. Raises UserError if it cannot be read."""
    path = Path(path)
    check_regular(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, verified against its checksum if it has one.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    path = Path(path)
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    stored = metadata.pop(CHECKSUM, None)
    if stored is not None and stored != _checksum(tensors, metadata):
        raise UserError(f"{path} is damaged: its content does not match its checksum")
    return tensors, metadata


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # raw bytes: numpy has no bfloat16
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def load_weights(net: nn.Module, file: Path) -> None:
    """Load the safetensors file `file` into `net`.

    Raises:
        UserError: names or shapes differ from the network's, or values are not finite.
    """
    tensors = dequantised(load_tensors(file)[0])
    expected = net.state_dict()
    missing, foreign = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or foreign:
        what = f"lacks {missing[0]}" if missing else f"has an unknown tensor {foreign[0]}"
        raise UserError(
            f"{file} does not belong to this network: it {what} ({len(missing)} missing, {len(foreign)} unknown)"
        )
    for name, value in expected.items():
        if value.shape != tensors[name].shape:
            raise UserError(f"{file}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(value.shape)}")
        if not bool(torch.isfinite(tensors[name]).all()):
            raise UserError(f"{file}: {name} has values that are not finite; the file is damaged")
    net.load_state_dict(tensors)


def dequantised(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as float32 that are stored in 8 bits: int8 values, and a scale for each row under "NAME.scale"."""
    out = dict(tensors)
    for name, values in tensors.items():
        scale = tensors.get(name + SCALE)
        if values.dtype == torch.int8 and scale is not None and scale.shape == values.shape[:1]:
            out[name] = values.float() * scale.view(-1, *[1] * (values.ndim - 1))
            del out[name + SCALE]
    return out


def read_json(path: str | Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The JSON object in the file `path`.

    Raises:
        UserError: there is no such file, it is larger than `limit` bytes, or it holds no JSON object.
    """
    path = Path(path)
    data = read_bytes(path, limit)
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"cannot read {path} as JSON: {reason}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value


def read_config(path: str | Path) -> dict[str, Any]:
    """config.json of a model's folder.

    Raises:
        UserError: the folder is missing or holds no model, or the file cannot be read or has another format.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run: there is no such folder")
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder} is not a run: it has no {CONFIG}; train one with `ornstein train --out {folder}`")
    config = read_json(folder / CONFIG)
    if config.get("format") != FORMAT:
        raise UserError(f"{folder / CONFIG} is not a model of format {FORMAT}, the only one that this version reads")
    return config


def keep_previous(path: Path, previous: Path) -> None:
    """Make `previous` a copy of what `path` is now; at any moment one of the two is complete.

    Raises:
        RunError: the folder cannot be written.
    """
    refuse_links(previous)
    partial = partial_name(previous)
    try:
        try:
            partial.hardlink_to(path)
        except OSError:  # a file system without hard links
            path.replace(previous)
        else:
            partial.replace(previous)
    except OSError as error:
        raise write_error(previous, error) from error


def remove_partial(folder: Path) -> None:
    """Delete what a killed process left half written in `folder`."""
    for partial in folder.glob(f".*{_SUFFIX}"):
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power failure."""
    if os.name != "posix":
        return  # a folder cannot be opened elsewhere; the rename is atomic all the same
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
