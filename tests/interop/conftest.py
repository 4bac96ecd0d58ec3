"""Tiny pipelines of each family, built once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the tiny pipeline of a family."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from interop import tiny

    root, built = tmp_path_factory.mktemp("pipelines"), {}

    def folder(name: str) -> Path:
        if name not in built:
            built[name] = tiny.build(name, root / name)
        return built[name]

    return folder
