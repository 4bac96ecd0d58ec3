"""The fixture `gpu`: a pretended GPU, see `pretend`."""

import getpass
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports by file here, so that tests do not find each other

from pretend import PretendedGPU, build, pretended_gpu

# on import: later tests run the autograd engine, which counts its devices once
_REASON = build(Path(tempfile.gettempdir()) / f"ornstein_pretend_cuda_{getpass.getuser()}")


@pytest.fixture
def gpu() -> Iterator[PretendedGPU]:
    """A pretended GPU for the length of a test; the docstring of `pretend` is its manual."""
    if _REASON is not None:
        pytest.skip(_REASON)
    with pretended_gpu() as device:
        yield device
