"""The network as compiled code: compiled once a machine, kept, and never without saying how long it took."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from ornstein.denoiser import Denoises
from ornstein.errors import RunError
from ornstein.wrapper import device_of, module_of

_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


def cache_folder() -> Path:
    """Where compiled code is kept between processes: what TORCHINDUCTOR_CACHE_DIR says, or a folder of the user's own.

    It is not kept in a run: code that came with somebody else's model would be run unseen.
    """
    told = os.environ.get(_FOLDER)
    return Path(told) if told else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ornstein"


def compile_network(d: Denoises, once: Callable[[], object]) -> float:
    """Compile the network of `d` in place and call `once`, which runs it; the seconds that took.

    `once` should be a sampling of the shapes to come: another batch size or precision is compiled anew. On a GPU the
    calls are recorded as CUDA graphs ("reduce-overhead"). Raises ValueError where there is no network, and RunError
    where it cannot be compiled, such as without a C++ compiler.
    """
    module = module_of(d)
    if module is None:
        raise ValueError("what is compiled is a network; this denoiser has none")
    net = getattr(module, "net", module)
    os.environ[_FOLDER] = str(cache_folder())
    start = time.perf_counter()
    net.compile(mode="reduce-overhead" if device_of(d).type == "cuda" else None, dynamic=False)
    try:
        once()
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise RunError(f"torch.compile does not work here: {reason[0] if reason else type(error).__name__}") from error
    return time.perf_counter() - start
