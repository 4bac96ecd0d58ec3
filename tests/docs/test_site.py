"""The site builds without a warning and needs no network; its formulas, reference and figures are complete."""

import importlib
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
DOCS = ROOT / "docs"
COURSE = DOCS / "from-the-equations"
# pages with formulas
FORMULAS = ("equations", "compress", "likelihood", "solvers", "structured-noise", "latent", "training")


def page_script(name: str) -> ModuleType:
    """A script of docs/, loaded anew."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def prose(html: str) -> str:
    """The article of a built page without its code and its formulas, tags left in."""
    article = re.search(r"<article.*?</article>", html, re.DOTALL)
    assert article is not None
    return re.sub(r"<(math|pre|code|style|script)\b.*?</\1>", "", article[0], flags=re.DOTALL)


def raw_mathematics(html: str) -> list[str]:
    """What is left of LaTeX in the prose of a built page, and emphasis that cuts through a formula."""
    text = prose(html)
    found = re.findall(r"\S*(?:[_^]\{|\\[a-z]{2,}|\$\$|\$[^\s$][^$]*\$)\S*", re.sub(r"<[^>]+>", " ", text))
    found += re.findall(r"\w<em>[^<]*</em>|<em>[^<]*[|=_{}^][^<]*</em>", text)
    return found


@pytest.mark.parametrize(
    ("html", "wrong"),
    [
        ("a<em>{t|s} = a_t/a</em>s", True),
        ("q(x_{n-1} | x_n)", True),
        ("where $x$ is", True),
        (r"\bar\alpha", True),
        ("an <em>emphasised</em> word, x_t and <code>x_{n}</code>", False),
        ("<math><mi>x</mi></math> is data", False),
    ],
)
def test_raw_mathematics_is_found(html: str, wrong: bool) -> None:
    assert bool(raw_mathematics(f"<article>{html}</article>")) is wrong


def test_no_page_shows_raw_mathematics(site: Path) -> None:
    pages = [page for page in sorted(site.rglob("*.html")) if page.name not in ("404.html", "changelog.html")]
    bad = {str(page.relative_to(site)): raw_mathematics(page.read_text())[:3] for page in pages}
    assert not {name: found for name, found in bad.items() if found}


@pytest.mark.parametrize("page", [*sorted(COURSE.glob("*.md")), *(DOCS / f"{n}.md" for n in FORMULAS)], ids=str)
def test_every_formula_is_mathematics(site: Path, page: Path) -> None:
    built = (site / page.relative_to(DOCS).with_suffix(".html")).read_text()
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    blocks = len(re.findall(r"^\$\$ ", text, re.MULTILINE))
    inline = len(re.findall(r"(?<!\$)\$(?![\s$])[^$]+?(?<!\s)\$(?!\$)", text))
    assert built.count('<div class="formula">') == blocks
    assert built.count("<math") == blocks + inline
    assert "arithmatex" not in built


def test_the_reference_has_every_public_name(site: Path) -> None:
    api = page_script("api")
    built = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    anchors = re.findall(r'id="(ornstein[\w.]*)"', built)
    public = [f"{module}.{name}" for module, names in api.exports().items() for name in names]
    assert len(public) > 700
    assert not sorted(set(public) - set(anchors))
    for package in ("noise", "solvers", "likelihood", "process"):
        module = importlib.import_module(f"ornstein.{package}")
        assert set(module.__all__) == set(api.exports()[f"ornstein.{package}"])
    assert {"ornstein.sample", "ornstein.invert", "ornstein.Denoiser", "ornstein.denoiser.Denoiser"} <= set(anchors)


def test_a_module_that_no_page_claims_is_an_error() -> None:
    api = page_script("api")
    api.exports()["ornstein_other.module"] = {"f": "ornstein_other.module.f"}
    with pytest.raises(ValueError, match=r"no page of docs/reference claims ornstein_other\.module"):
        api.on_page_markdown("<!-- modules: ornstein.noise -->")


def test_every_equation_of_the_table_is_in_the_course() -> None:
    text = "".join(page.read_text() for page in COURSE.glob("*.md"))
    for number in range(1, 31):
        assert re.search(rf"\bE{number}\b", text), f"E{number}"


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    return page_script("figures")


def test_the_gallery_has_the_pictures_and_commands_of_its_script() -> None:
    gallery = page_script("gallery")
    text = (DOCS / "gallery.md").read_text() + (ROOT / "README.md").read_text()
    assert set(re.findall(r"`python docs/gallery\.py (\w+)`", text)) == set(gallery.PICTURES)
    made = {path.stem for path in gallery.FOLDER.iterdir()}
    assert made == set(gallery.PICTURES) - {"hero"} and gallery.HERO.is_file()
    assert sum(path.stat().st_size for path in [gallery.HERO, *gallery.FOLDER.iterdir()]) < 3e6


def test_each_figure_is_on_a_page_with_its_command(figures: ModuleType) -> None:
    """Each figure is on a page, above its command, and on disk; no other file is there."""
    text = "".join(page.read_text() for page in COURSE.glob("*.md"))
    shown = re.findall(r"images/course/(\w+)\.png\)\n\n\*`python docs/figures\.py (\w+)`", text)
    assert sorted(figures.FIGURES) == sorted(a for a, _ in shown) == sorted(b for _, b in shown)
    assert {p.stem for p in (ROOT / "docs" / "images" / "course").iterdir()} == set(figures.FIGURES)


@pytest.mark.parametrize("name", ["forward", "posterior", "objectives", "sde", "guidance", "swap"])
def test_figures_are_made(figures: ModuleType, name: str) -> None:
    figure = figures.FIGURES[name]()
    assert all(axes.has_data() for axes in figure.get_axes())
    plt.close(figure)
