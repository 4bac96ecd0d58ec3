"""Importing the package is cheap: nothing slow is pulled in before it is used."""

import subprocess
import sys

import pytest

SLOW = ("sklearn", "matplotlib", "plotly", "diffusers", "transformers", "gradio", "dlib", "scipy", "pandas")


def test_importing_the_package_pulls_in_nothing_slow() -> None:
    code = f"import ornstein, ornstein.cli, sys; print([m for m in {SLOW!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help"), ("evaluate", "--help"), ("faces", "--help")])
def test_help_imports_no_torch(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from ornstein.cli import app; "
        f"result = CliRunner().invoke(app, {list(arguments)!r}); "
        "print(result.exit_code, 'Usage' in result.output, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["0", "True", "False"]
