"""Networks compiled by `torch.compile`: once per machine, the code is kept, and the time that it takes is reported."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ornstein.denoiser import Denoises
from ornstein.errors import RunError
from ornstein.wrapper import device_of, module_of

__all__ = ["cache_folder", "compile_network", "compiled", "is_of_compiler"]

_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


def cache_folder() -> Path:
    """Where compiled code is kept between processes: $TORCHINDUCTOR_CACHE_DIR, or a folder in the user's cache.

    It is not kept in a run: code that came with somebody else's model would be executed.
    """
    given = os.environ.get(_FOLDER)
    if given and given.startswith(str(Path(tempfile.gettempdir()) / "torchinductor_")):
        given = None  # PyTorch's own default, which some of its imports set
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ornstein"


@contextmanager
def compiled(networks: Sequence[nn.Module]) -> Iterator[None]:
    """The networks compiled in place, forwards and backwards, within the block: at their next call, each shape anew.

    CUDA graphs are left out: gradients accumulate over the calls of a step, and graphs reuse their memory.
    """
    os.environ[_FOLDER] = str(cache_folder())
    for net in networks:
        net.compile(dynamic=False)
    try:
        yield
    finally:
        for net in networks:
            net._compiled_call_impl = None


def is_of_compiler(error: BaseException) -> bool:
    """Whether an error came from `torch.compile`, not from what was compiled."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def compile_network(d: Denoises, once: Callable[[], object]) -> float:
    """Compile the network of `d` in place.

    On a GPU its calls are recorded as CUDA graphs ("reduce-overhead").

    Args:
        once: runs the network on the shapes to come, such as one batch of samples; another batch size or precision
            compiles it again.

    Returns:
        The seconds that it took.

    Raises:
        ValueError: `d` has no network.
        RunError: the network cannot be compiled, for example without a C++ compiler.
    """
    module = module_of(d)
    if module is None:
        raise ValueError("there is no network to compile in this denoiser")
    net: Any = getattr(module, "net", module)
    os.environ[_FOLDER] = str(cache_folder())
    start = time.perf_counter()
    graphs = device_of(d).type == "cuda"
    # a graph writes every result to the same memory, but solvers hold predictions over several steps
    net.reuses_output = graphs  # `Denoiser` then keeps a copy
    net.compile(mode="reduce-overhead" if graphs else None, dynamic=False)
    try:
        once()
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise RunError(f"torch.compile does not work here: {reason[0] if reason else type(error).__name__}") from error
    return time.perf_counter() - start
