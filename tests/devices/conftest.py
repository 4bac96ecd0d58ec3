"""The fixture `gpu`: a pretended GPU, see `pretend`; the real one of a machine that has one."""

import getpass
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports by file here, so that tests do not find each other

from pretend import PretendedGPU, build, pretended_gpu

# on import: later tests run the autograd engine, which counts its devices once
_REASON = build(Path(tempfile.gettempdir()) / f"ornstein_pretend_cuda_{getpass.getuser()}")


class _RealGPU:
    """The GPU of this machine, where the pretended one is. Its waits and copies are not counted.

    A test that reads a counter has run on the hardware until there; the rest of it is left out.
    """

    report = reset = staticmethod(lambda: None)

    def __getattr__(self, name: str) -> int:
        pytest.skip(f"{name} of a real GPU are not counted; what came before passed on {torch.cuda.get_device_name()}")


@pytest.fixture
def gpu() -> Iterator[PretendedGPU | _RealGPU]:
    """A pretended GPU for the length of a test; the docstring of `pretend` is its manual."""
    if torch.cuda.is_available():
        yield _RealGPU()
        return
    if _REASON is not None:
        pytest.skip(_REASON)
    with pretended_gpu() as device:
        yield device
