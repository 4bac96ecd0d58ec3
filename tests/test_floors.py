"""The layout: each floor imports only from itself and the floors below it, and there is no circle of imports.

An import inside a function is allowed for optional packages alone: there, an import of the project itself is a fault.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ornstein

ROOT = Path(ornstein.__file__).parent
FLOORS = [
    # mathematics: torch and the standard library alone
    "errors extras launch progress settings request",
    "store runs metrics seal sizes devices schedules noise",
    "process randomness",
    "denoiser preconditioning oracles wrapper",
    "guidance solvers",
    "sampling likelihood objectives compiling sharding processes",
    "few_steps inverse",
    "edit",
    # material: networks, data, pictures as latents, other people's models
    "nets data",
    "autoencoders video text",
    "checkpoint",
    "interop",
    # runs: data in, a model out, evaluated
    "evaluation",
    "training",
    "faces contrast editing personalization compress",
    "cli studio",
    "__init__ __main__",
]
FLOOR_OF = {name: level for level, names in enumerate(FLOORS) for name in names.split()}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {module_name(file): file for file in sorted(ROOT.rglob("*.py"))}


def imported_modules(node: ast.AST) -> list[str]:
    """Modules of the project that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return []
    found = []
    for name in names:
        parts = name.split(".")
        if parts[0] == "ornstein":
            found.append(
                next((m for n in range(len(parts), 1, -1) if (m := ".".join(parts[1:n])) in FILES), "__init__")
            )
    return found


def imports_of(module: str) -> set[str]:
    """What `module` imports when it runs: not what only a type checker reads."""
    tree = ast.parse(FILES[module].read_text())
    for_checkers = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    nodes = (node for node in ast.walk(tree) if id(node) not in for_checkers)
    return {m for node in nodes for m in imported_modules(node)} - {module}


def floor(module: str) -> int:
    return FLOOR_OF[module.split(".")[0]]


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_from_its_own_floor_and_those_below(module):
    above = sorted(m for m in imports_of(module) if m != "__init__" and floor(m) > floor(module))
    assert not above, f"{module} imports from above: {above}"


@pytest.mark.parametrize("module", FILES)
def test_functions_import_nothing_of_the_project(module):
    tree = ast.parse(FILES[module].read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = sorted({m for f in functions for node in ast.walk(f) for m in imported_modules(node)})
    assert not inside, f"functions of {module} import {inside}"


def test_there_is_no_circle_of_imports():
    try:
        TopologicalSorter({m: imports_of(m) for m in FILES}).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(error.args[1])}")


def test_folders_of_a_floor_do_not_import_each_other_both_ways():
    graph: dict[str, set[str]] = {}
    for module in FILES:
        graph.setdefault(module.split(".")[0], set()).update(m.split(".")[0] for m in imports_of(module))
    for name, others in graph.items():
        others.discard(name)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"packages import each other in a circle: {' -> '.join(error.args[1])}")
