"""Only the core dependencies are needed to import the package; the others are extras, named when they are missing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ornstein.errors import UserError
from ornstein.extras import deferred, install, require

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {"torch", "numpy", "safetensors", "pillow", "typer", "rich", "scikit-learn"}
OPTIONAL = "av matplotlib plotly skimage scipy.ndimage gradio diffusers accelerate datasets dlib c2pa tensorboard wandb"


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[><=]", requirement)[0] for requirement in requirements}


def test_the_core_is_small_and_all_has_every_extra_of_a_user() -> None:
    assert names(PROJECT["dependencies"]) == CORE
    extras = PROJECT["optional-dependencies"]
    for_users = set(extras) - {"all", "dev", "docs"}
    (everything,) = extras["all"]
    assert set(re.findall(r"[\w-]+", everything)) - {"ornstein"} == for_users


def test_importing_needs_no_optional_package() -> None:
    code = (
        "import sys\n"
        f"for name in {OPTIONAL.split()!r}: sys.modules[name] = None\n"
        "import ornstein.cli, ornstein.data.video, ornstein.faces.swap.film\n"
        "import ornstein.evaluation.report, ornstein.training\n"
        "import typer; typer.main.get_command(ornstein.cli.app)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_named_with_its_extra() -> None:
    missing = "no_such_package.part"
    with pytest.raises(UserError, match=r"^--plot needs no_such_package, .*: pip install -e '\.\[report\]'$"):
        require(missing, "report", "--plot")
    stand_in = deferred(missing, "video", "a video")
    with pytest.raises(UserError, match=r"^a video needs no_such_package, .*: pip install -e '\.\[video\]'$"):
        stand_in.open("x")


def test_a_stand_in_is_the_module() -> None:
    import fractions

    assert deferred("fractions", "report").Fraction is fractions.Fraction


def test_the_extras_that_messages_name_exist() -> None:
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r'(?:require|deferred)\(\s*"[\w.]+",\s*"(\w+)"', source))
    named |= set(re.findall(r"install\(['\"](\w+)['\"]\)", source))
    assert {"report", "video", "faces", "studio", "interop", "distributed", "datasets"} <= named
    assert named <= set(PROJECT["optional-dependencies"])
    assert install("video") == "pip install -e '.[video]'"
    assert "pip install 'ornstein[" not in source
