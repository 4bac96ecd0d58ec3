"""The site builds without a warning, needs nothing from elsewhere, and its figures are those that the code makes."""

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[2]
COURSE = ROOT / "docs" / "from-the-equations"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does: a page out of the navigation, a broken link or anchor is a warning, and ends it."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("ziamath")
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return out


class Needs(HTMLParser):
    """What a page makes a browser fetch by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.fetched.append(values.get("src") or "")
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.fetched.append(values.get("href") or "")


def test_the_site_needs_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        needs = Needs()
        needs.feed(page.read_text())
        assert len(needs.fetched) > 3
        for what in needs.fetched:
            assert not re.match(r"(https?:)?//", what), f"{page.name} fetches {what}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", sheet.read_text()), f"{sheet.name} fetches"
    assert (site / "assets" / "stix-two-math.woff").stat().st_size > 100_000


def test_formulas_are_mathematics(site: Path) -> None:
    for page in COURSE.glob("*.md"):
        built = (site / "from-the-equations" / f"{page.stem}.html").read_text()
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        blocks = len(re.findall(r"^\$\$ ", text, re.MULTILINE))
        assert built.count('<div class="formula">') == blocks, page.name
        assert "arithmatex" not in built and "\\frac" not in built.replace("\\\\frac", "")


def test_the_reference_has_the_public_names(site: Path) -> None:
    import ornstein as orn

    built = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    for package in ("schedules", "noise", "solvers", "nets", "likelihood"):
        for name in getattr(orn, package).__all__:
            value = getattr(getattr(orn, package), name)
            if isinstance(value, type) and value.__doc__:
                assert f'id="ornstein.{package}.{name}"' in built, f"{package}.{name}"
    for name in ("process.Process", "denoiser.Denoiser", "sample", "invert", "oracles.GaussianMixture"):
        assert f'id="ornstein.{name}"' in built, name


def test_every_equation_of_the_table_is_in_the_course() -> None:
    text = "".join(page.read_text() for page in COURSE.glob("*.md"))
    for number in range(1, 31):
        assert re.search(rf"\bE{number}\b", text), f"E{number}"


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_figures_and_pages_are_of_one_another(figures: ModuleType) -> None:
    """Each figure stands on a page, above the command that makes it, and on disk; no other does."""
    text = "".join(page.read_text() for page in COURSE.glob("*.md"))
    shown = re.findall(r"images/course/(\w+)\.png\)\n\n\*`python docs/figures\.py (\w+)`", text)
    assert sorted(figures.FIGURES) == sorted(a for a, _ in shown) == sorted(b for _, b in shown)
    assert {p.stem for p in (ROOT / "docs" / "images" / "course").iterdir()} == set(figures.FIGURES)


@pytest.mark.parametrize("name", ["forward", "posterior", "objectives", "sde", "guidance", "swap"])
def test_figures_are_made(figures: ModuleType, name: str) -> None:
    figure = figures.FIGURES[name]()
    assert all(axes.has_data() for axes in figure.get_axes())
    plt.close(figure)
