"""What the README says to type in Python runs as it stands, only shorter."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("range(500)", "range(2)"), names)
    digits = names["digits"]
    assert isinstance(digits, torch.Tensor) and digits.shape == (10, 1, 8, 8) and bool(digits.isfinite().all())


def test_the_pictures_of_the_readme_exist() -> None:
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text()):
        assert (README.parent / path).is_file(), path
