"""The pages name tests, code, files and make targets that exist."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_test_that_the_equations_name_exists() -> None:
    text = (ROOT / "docs" / "equations.md").read_text()
    file, found = "", 0
    for name, test in re.findall(r"`(tests/[\w/]+\.py)?::(test_\w+)`", text):
        file = name or file
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"
        found += 1
    assert found > 40


def test_every_symbol_that_the_equations_name_exists() -> None:
    text = (ROOT / "docs" / "equations.md").read_text()
    floors = "process|schedules|noise|solvers|objectives|oracles|denoiser|likelihood|autoencoders|few_steps|contrast"
    symbols = set(re.findall(rf"`((?:{floors})\.[\w.]+)`", text))
    assert len(symbols) > 20
    for symbol in symbols:
        module, *path = symbol.split(".")
        if module in ("few_steps", "contrast"):
            module = f"{module}.{path.pop(0)}"
        value = importlib.import_module(f"ornstein.{module}")
        for part in path:
            fields = getattr(value, "__dataclass_fields__", {})
            assert hasattr(value, part) or part in fields, symbol
            value = getattr(value, part, None)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!#)([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_make_targets_and_scripts_exist(page: Path) -> None:
    text, rules = page.read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", rules, re.MULTILINE), f"{page.name}: make {target}"
    for script in re.findall(r"python ((?:evidence|benchmarks|docs)/\w+\.py)", text):
        assert (ROOT / script).is_file(), f"{page.name}: {script}"
