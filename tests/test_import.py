"""Importing the package is cheap: nothing slow is pulled in before it is used."""

import subprocess
import sys

SLOW = ("sklearn", "matplotlib", "plotly", "diffusers", "transformers", "gradio", "dlib", "scipy", "pandas")


def test_importing_the_package_pulls_in_nothing_slow() -> None:
    code = f"import ornstein, ornstein.cli, sys; print([m for m in {SLOW!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
