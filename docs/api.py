"""The reference pages: every public name of the package, so that none can be missing.

A page of docs/reference has one line such as `<!-- modules: ornstein.noise ornstein.errors -->`. In its place come all
modules at or below these names, except those that another page claims more precisely. A module's section has its
docstring and each of its public names: its `__all__`, or, without one, the classes and functions that it defines.
A name that several modules export is described once, where the outermost of them exports it, and linked elsewhere.
A public module that no page claims ends the build. All of it is read from the source by griffe, so that no optional
package has to be installed.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[1]
LINE = re.compile(r"^<!-- modules: (.+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with the sections of the modules that it claims."""
    return LINE.sub(lambda match: "\n".join(map(_section, _claimed(match[1].split()))), markdown)


@cache
def _package() -> Any:
    return griffe.load("ornstein", search_paths=[ROOT / "src"])


def _object(path: str) -> Any:
    return _package()[path.removeprefix("ornstein.")]


@cache
def exports() -> dict[str, dict[str, str]]:
    """The public names of each module that has some, with the path of the object that each one is."""
    found: dict[str, dict[str, str]] = {}

    def visit(module: Any) -> None:
        own = [member for member in module.members.values() if not member.is_alias]
        if module.exports is not None:
            names = [str(getattr(name, "name", name)) for name in module.exports]
        else:
            names = [m.name for m in own if (m.is_class or m.is_function) and not m.name.startswith("_")]
        if names and module.name != "__main__":
            found[module.path] = {name: _path(module, name) for name in names}
        for member in own:
            if member.is_module:
                visit(member)

    visit(_package())
    for path in [path for names in found.values() for path in names.values() if path]:
        if path.startswith("ornstein.") and _object(path).is_module:
            found.setdefault(path, {})  # exported by its package: it has a section, though no names
    return found


def _path(module: Any, name: str) -> str:
    """Where the object of a module's name is defined; empty where the source does not tell (`A, B = 1, 2`)."""
    member = module.members.get(name)
    try:
        return "" if member is None else member.final_target.path if member.is_alias else member.path
    except griffe.AliasResolutionError:
        return ""


@cache
def described_at() -> dict[str, str]:
    """For the path of each public object, the exported name that the reference describes it under.

    The package itself comes last: `ornstein.sample` is described with the rest of `ornstein.sampling`.
    """
    at: dict[str, str] = {}
    for module in sorted(exports(), key=lambda path: (path == "ornstein", path.count("."), path)):
        for name, path in exports()[module].items():
            at.setdefault(path or f"{module}.{name}", f"{module}.{name}")
    return at


def _claimed(claims: list[str]) -> list[str]:
    """The modules that a page with these claims describes."""
    everyone = {
        claim
        for page in (ROOT / "docs" / "reference").glob("*.md")
        for match in LINE.finditer(page.read_text())
        for claim in match[1].split()
    }

    def best(module: str) -> str:
        fitting = [claim for claim in everyone if module == claim or module.startswith(f"{claim}.")]
        if not fitting:
            raise ValueError(f"no page of docs/reference claims {module}: add it to a line <!-- modules: ... -->")
        return max(fitting, key=len)

    mine = [(claims.index(best(module)), module) for module in exports() if best(module) in claims]
    return [module for _, module in sorted(mine)]


def _section(module: str) -> str:
    """The docstring of a module, its public names, and links to those that are described elsewhere."""
    lines = [
        f"\n::: {module}\n    options: {{members: [], show_root_full_path: true, show_if_no_docstring: true, "
        "heading_level: 2}\n"
    ]
    links = []
    for name, path in exports()[module].items():
        if not path:
            lines.append(f"\n### `{name}` {{#{module}.{name}}}\n\nA constant.\n")
            continue
        here = described_at()[path] == f"{module}.{name}"
        if path in exports() or not here:
            target = path if path in exports() else described_at()[path]
            links.append(f"[`{name}`][{target}]")
            continue
        also = {f"{m}.{n}" for m, names in exports().items() for n, p in names.items() if p == path} | {path}
        lines += [f"[](){{#{alias}}}\n" for alias in sorted(also - {f"{module}.{name}"})]
        bare = "" if _object(path).has_docstring else ", show_if_no_docstring: true"
        lines.append(f"\n::: {module}.{name}\n    options: {{heading_level: 3{bare}}}\n")
    return "\n".join([*lines, *(["\nAlso: " + ", ".join(links) + ".\n"] if links else [])])
