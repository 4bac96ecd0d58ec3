"""What `mkdocs build` does beyond Markdown: formulas become MathML, and the commands list themselves.

The built site needs no script and no network. arithmatex finds the formulas; latex2mathml turns them into MathML,
which every browser lays out by itself with a mathematical font: STIX Two Math, which ziamath ships.
"""

import html
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from fontTools.ttLib import TTFont
from latex2mathml.converter import convert

from ornstein.cli import app

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
FUNCTION = re.compile(r"\\(log|det)\b")
NUMBER = re.compile(r"\\tag\{(E\d+)\}")
TEXT = re.compile(r"<(pre|code|math)\b.*?</\1>|<[^>]+>|([^<]+)", re.DOTALL)  # a group of its own for what is read
INDEX = re.compile(r"([_^])\{([^{}]*)\}")
TAGS = {"_": "sub", "^": "sup"}
COMMANDS = "<!-- commands -->"
FILE = re.compile(r"^<!-- file: (\S+) -->$", re.MULTILINE)  # a file of the repository, in the place of this line
ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with the options of all commands, or a file of the repository, where it asks for them."""
    markdown = FILE.sub(lambda match: (ROOT / match[1]).read_text(encoding="utf-8"), markdown)
    if COMMANDS not in markdown:
        return markdown
    return markdown.replace(COMMANDS, "\n".join(_command("ornstein", typer.main.get_command(app))))


def _command(name: str, command: Any) -> Iterator[str]:
    if subcommands := getattr(command, "commands", None):
        for sub, inner in subcommands.items():
            yield from _command(f"{name} {sub}", inner)
        return
    text, _, example = (command.help or "").partition("Example:")
    yield f"\n## {name}\n\n{text.strip()}\n"
    if example:
        yield f"```sh\n{' '.join(example.split())}\n```\n"
    yield "| | | default |\n|---|---|---|"
    for parameter in command.params:
        if "--help" not in parameter.opts and not getattr(parameter, "hidden", False):
            names = ", ".join(f"`{n if n.startswith('-') else n.upper()}`" for n in parameter.opts)
            given = parameter.default if parameter.show_default and not getattr(parameter, "is_flag", False) else None
            default = f"`{given}`" if isinstance(given, int | float | str | Path) else ""
            yield f"| {names} | {(parameter.help or '').replace('|', '&#124;')} | {default} |"


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """The page with its formulas as MathML; a formula that cannot be read ends the build."""
    if page.file.src_uri.startswith("reference/"):
        content = re.sub("</?em>", "*", content)  # in a docstring a star is a shape
        content = TEXT.sub(_indices, content)
    return FORMULA.sub(_mathml, content)


def _indices(match: re.Match[str]) -> str:
    """The text of a docstring with `x_{n-1}` and `x^{-1}` as indices; code and tags as they are."""
    if match[2] is None:
        return match[0]
    text = match[2]
    while INDEX.search(text):  # the inner ones first
        text = INDEX.sub(lambda m: f"<{TAGS[m[1]]}>{m[2]}</{TAGS[m[1]]}>", text)
    return text


def _mathml(found: re.Match[str]) -> str:
    tag, source = found[1], html.unescape(found[2])
    number = NUMBER.search(source)
    source = source.replace(r"\bar", r"\overline")  # the accent of the font is hardly wider than a dot
    source = FUNCTION.sub(r"\\\1\\,", NUMBER.sub("", source))  # the space that TeX puts after a function
    formula = convert(source, display="block" if tag == "div" else "inline")
    if "<mi>&</mi>" in formula or "<mtext>\\" in formula:
        raise ValueError(f"a formula has what latex2mathml cannot read: {source}")
    if tag == "span":
        return formula
    label = f'<span class="number">{number[1]}</span>' if number else ""
    return f'<div class="formula">{formula}{label}</div>'


def on_post_build(config: Any, **_: Any) -> None:
    """STIX Two Math in the format of the web."""
    package = importlib.util.find_spec("ziamath")  # found, not imported: only its font is wanted
    assert package is not None and package.origin is not None
    font = TTFont(Path(package.origin).parent / "fonts" / "STIXTwoMath-Regular.ttf")
    font.flavor = "woff"
    font.save(Path(config["site_dir"]) / "assets" / "stix-two-math.woff")
