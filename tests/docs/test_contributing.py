"""What the page on contributing builds passes the checks that it names: those of the tests of its own kind."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ornstein.oracles import GaussianMixture

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contributing.md").read_text()


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page defines; what it runs to show them is run elsewhere."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        if re.search(r"^(@dataclass|class|def (?!end))", block, re.MULTILINE) and "assert" not in block:
            exec(block, names)
    return names


def module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("length", [1, 5, 90])
def test_the_covariance_passes_the_algebra_of_all(page: dict[str, Any], length: int) -> None:
    operators = module("tests/noise/test_operators.py")
    c = page["Matern32"](length, 1.3)
    d = 3**0.5 / 1.3
    rows = [
        [(1 + d * abs(i - j)) * 2.718281828459045 ** (-d * abs(i - j)) for j in range(length)] for i in range(length)
    ]
    matrix = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(c.dense(), matrix, rtol=1e-12, atol=1e-12)
    operators.check_algebra(c, matrix, operators.randn(2, length))
    with pytest.raises(ValueError, match="positive scale in frames, got 0"):
        page["Matern32"](4, 0)


def test_the_solver_commutes_with_a_change_of_coordinates(page: dict[str, Any]) -> None:
    every = module("tests/solvers/test_every_solver.py")
    covs = torch.stack([torch.diag(torch.tensor([0.3, 0.1, 0.2])), 0.2 * torch.eye(3) + 0.1]).double()
    mixture = GaussianMixture([0.5, 0.5], [[1.0, -0.5, 0.2], [-1.0, 0.4, 1.0]], covs)
    assert every.distance_from_whitened(page["ralston"], mixture) < 1e-9


def test_the_network_keeps_what_is_asked_of_all(page: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = page["MLP"](size=3, width=8, classes=2)
    x, log_snr = torch.randn(4, 3), torch.tensor([float("inf"), 20.0, float("-inf"), -20.0])
    assert torch.equal(net(x, log_snr), torch.zeros(4, 3))
    with torch.no_grad():
        net.out.weight.normal_()
    one = x[:1].expand(4, 3)
    level = net(one, log_snr)
    torch.testing.assert_close(level[0], level[1])
    torch.testing.assert_close(level[2], level[3])
    by_label = net(one[:3], torch.zeros(3), torch.tensor([-1, 0, 1]))
    torch.testing.assert_close(by_label[:1], net(one[:1], torch.zeros(1)))
    assert (torch.cdist(by_label, by_label) + torch.eye(3)).min() > 1e-4
    again = page["MLP"](**net.config)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x, log_snr), net(x, log_snr))


def test_the_places_that_it_names_exist() -> None:
    for where, what in {
        "src/ornstein/noise/config.py": "TYPES",
        "src/ornstein/solvers/__init__.py": "SOLVERS",
        "src/ornstein/nets/__init__.py": "NETS",
        "tests/noise/test_operators.py": "FRAMES SINGULAR expected test_bad_arguments",
    }.items():
        for name in what.split():
            assert f"`{name}`" in PAGE
            assert re.search(rf"^(def {name}\(|{name}\b)", (ROOT / where).read_text(), re.MULTILINE), f"{where}: {name}"
