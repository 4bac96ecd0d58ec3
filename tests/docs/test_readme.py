"""The README: its Python runs, its pictures and commands exist, and `.ci/readme.py` can walk all of it."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("range(500)", "range(2)"), names)
    digits = names["digits"]
    assert isinstance(digits, torch.Tensor) and digits.shape == (10, 1, 8, 8) and bool(digits.isfinite().all())


def test_the_pictures_of_the_readme_exist() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    for path in pictures:
        assert (ROOT / path).is_file(), path


def test_every_substitution_of_the_walk_is_in_the_readme() -> None:
    readme = script("readme")
    assert len(readme.blocks(README)) >= 6
    with pytest.raises(SystemExit, match="no longer has"):
        readme.blocks(README.replace("range(500)", "range(600)"))


@pytest.mark.slow
def test_the_readme_can_be_walked() -> None:
    walk = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "readme.py")], capture_output=True, text=True, check=False
    )
    assert walk.returncode == 0, walk.stdout + walk.stderr


def test_links_are_absolute_on_a_package_index() -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    text = script("readme_hook").absolute(README, "https://example.org/o")
    assert not re.search(r"\]\((?![a-z]+:|#)", text)
    assert "![" in text and "](https://example.org/o/raw/main/docs/images/" in text
    assert "[Apache-2.0](https://example.org/o/blob/main/LICENSE)" in text
