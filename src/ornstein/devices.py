"""Where to compute and in which precision: the one place that decides for every command."""

from __future__ import annotations

import math
import os
from typing import Literal, get_args

import torch

from ornstein.errors import UserError
from ornstein.launch import local_rank

__all__ = [
    "PRECISIONS", "Precision", "choose_device", "choose_precision", "float64_device", "free_memory",
    "has_float64", "in_float64",
]  # fmt: skip

Precision = Literal["auto", "float32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

_SHARE = 0.8  # of a device's memory; the rest is for what is not counted
_WITHOUT_FLOAT64 = {"mps"}  # kinds of devices; a test adds one


def choose_device(text: str | torch.device = "auto") -> torch.device:
    """The device to compute on.

    Args:
        text: "auto" is the GPU of this process if there is one (under a launcher, that of its local rank), else Apple's
            MPS, else the CPU; "cpu", "cuda", "cuda:1" or "mps" name one.

    Raises:
        UserError: there is no such device; it says which there are.
    """
    name = str(text)
    if name == "auto":
        if torch.cuda.is_available():
            return _own_gpu()
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind == "mps" and not index:
        if torch.backends.mps.is_available():
            return torch.device("mps")
        raise UserError(f"--device mps: no Apple GPU is usable here; use {_available()}")
    if kind == "cuda" and (not index or index.isdecimal()):
        if not torch.cuda.is_available():
            built = "" if torch.version.cuda else " (this build of PyTorch is for CPUs)"
            raise UserError(f"--device {name}: no CUDA device is usable here{built}; use {_available()}")
        count = torch.cuda.device_count()
        if index and int(index) >= count:
            raise UserError(f"--device {name}: there {'is' if count == 1 else 'are'} only {_available()}")
        return torch.device("cuda", int(index)) if index else _own_gpu()
    raise UserError(f"unknown device {name!r}: give auto, cpu, cuda, cuda:0, cuda:1, ... or mps")


def _own_gpu() -> torch.device:
    """The GPU of this process: that of its local rank, in turn if there are more processes than GPUs."""
    return torch.device("cuda", local_rank() % max(1, torch.cuda.device_count()))


def _available() -> str:
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return ", ".join(names)


def choose_precision(text: str, device: torch.device) -> torch.dtype | None:
    """The dtype that networks are autocast to on `device`; None for float32.

    Args:
        text: "auto" is bf16 if the hardware multiplies it (an emulation is slower than float32), else float32.

    Raises:
        UserError: an unknown precision, or one that the device does not have.
    """
    if text not in PRECISIONS:
        raise UserError(f"unknown precision {text!r}: give {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    if text == "float32":
        return None
    if text == "fp16":
        if device.type == "cpu":
            raise UserError("precision fp16 is for GPUs: on a CPU use bf16 or float32")
        return torch.float16
    native = _multiplies_bf16(device)
    if text == "bf16" and device.type == "cuda" and not native:
        raise UserError("this GPU has no bf16: use precision fp16 or float32")
    return torch.bfloat16 if native or text == "bf16" else None


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # there is no public test
        # with ATEN_CPU_CAPABILITY=avx2 or default the kernels are of that kind, and attention in bf16 raises an error
        return supported is not None and supported() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return False


def free_memory(device: torch.device) -> float:
    """Bytes of a device that may be filled: of a GPU those that are free, else the machine's; inf where unknown."""
    if device.type == "cuda":
        return _SHARE * torch.cuda.mem_get_info(device)[0]
    try:
        return _SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # another system than POSIX
        return math.inf


def has_float64(device: torch.device) -> bool:
    """Whether `device` has tensors of float64: MPS has none."""
    return device.type not in _WITHOUT_FLOAT64


def float64_device(device: torch.device) -> torch.device:
    """Where to do float64 arithmetic for tensors on `device`: there, or on the CPU if it has no float64."""
    return device if has_float64(device) else torch.device("cpu")


def in_float64(x: torch.Tensor) -> torch.Tensor:
    """x in float64: on its device, or on the CPU if that has no float64."""
    return x.to(float64_device(x.device)).double()
