"""Edited config.json files of runs from strangers: each is opened as if nothing were wrong, or refused in one line.

Every value in the config of every kind of model is replaced in turn by values of other types and sizes. A child process
with limited memory and time opens the results: it must neither crash nor allocate what an edit names.
"""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = Path(__file__).parents[1] / "compatibility" / "version_0_1"
# fmt: off
VALUES = [
    None, True, "x", "", [], {}, [[]], {"a": 1}, -1, 0, 0.5, 1e300, float("nan"), 2**40, 10**30, 50_000, "../../x",
]
# fmt: on
MODELS = ["digits", "clips", "latent", "few-steps", "preconditioned", "face", "relit", "autoencoder"]
MEMORY = 6 * 2**30  # of address space; PyTorch itself takes two

CHILD = """
import json, sys, time
from pathlib import Path
import torch
import ornstein as orn
from ornstein import autoencoders
from ornstein.errors import UserError
torch.set_num_threads(1)
runs = Path(sys.argv[1])
for line in sys.stdin:
    name, where, config = json.loads(line)
    folder = runs / name
    (folder / "config.json").write_text(json.dumps(config))
    start = time.monotonic()
    try:
        (autoencoders.load if name == "autoencoder" else orn.load)(folder)
        outcome = "opened"
    except UserError as error:
        text = str(error)
        outcome = "refused" if "\\n" not in text and 10 < len(text) < 1000 else "bad text: " + text[:200]
    except BaseException as error:
        outcome = f"crashed: {type(error).__name__}: {error}"[:300]
    took = time.monotonic() - start
    print(json.dumps([where, outcome if took < 60 else f"took {took:.0f} s, {outcome}"]), flush=True)
"""


def edits(value, path=()):
    """(path, replacement) for each value in a JSON tree."""
    if path:
        yield from ((path, other) for other in VALUES if not same(other, value))
        yield path, ...  # left out
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from edits(inner, (*path, key))


def same(a, b) -> bool:
    return type(a) is type(b) and a == b


def edited(config, path, value):
    config = json.loads(json.dumps(config))
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return config


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def opened(runs: Path, configs) -> list[list[str]]:
    """(where, outcome) of each (run, where, config)."""
    lines = "".join(json.dumps(each) + "\n" for each in configs)
    out = subprocess.run(
        [sys.executable, "-c", CHILD, str(runs)],
        input=lines,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limited,
        check=False,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    return [json.loads(line) for line in out.stdout.splitlines()]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUNS, tmp_path / "runs"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_edit_of_a_config_opens_or_is_refused_in_one_line(runs, name):
    config = json.loads((runs / name / "config.json").read_text())
    config.pop("training", None)
    configs = [(name, "/".join(map(str, path)), edited(config, path, value)) for path, value in edits(config)]
    results = opened(runs, configs)
    assert len(results) == len(configs)
    wrong = [f"{where}: {outcome}" for where, outcome in results if outcome not in ("opened", "refused")]
    assert not wrong, "\n".join(wrong)


REFUSED = {
    "digits": [
        (("data", "classes", 0), {"a": 1}),
        (("data", "classes"), "abc"),
        (("data", "shape", 1), 0),
        (("data", "shape"), [3, 60_000, 60_000]),
        (("data", "value_range"), [1, -1]),
        (("data_std",), float("nan")),
        (("net", "width"), 8192),
        (("net", "depths"), [1, 1_000_000]),
        (("net", "depths"), [1, 30_000]),
        (("net", "type"), "Linear"),
        (("net", "type"), "../UNet"),
    ],
    "few-steps": [
        (("distilled", "guidance"), float("nan")),
        (("distilled", "guidance"), float("inf")),
        (("distilled", "times"), [0.0, 1.0]),
    ],
    "latent": [
        (("latent", "std", 0), 0.0),
        (("latent", "std", 0), -1.0),
        (("latent", "mean"), [0.0]),
    ],
    "clips": [
        (("noise", "length"), 5),
    ],
    "preconditioned": [
        (("data_covariance", "length"), 3),
        (("noise", "first_row"), [1.0, 0.5]),
    ],
    "autoencoder": [
        (("autoencoder", "width"), 65_536),
    ],
}


def test_nonsense_is_refused(runs):
    whole = {name: json.loads((runs / name / "config.json").read_text()) for name in REFUSED}
    configs = [(name, f"{name}: {edit}", edited(whole[name], *edit)) for name, all_ in REFUSED.items() for edit in all_]
    results = opened(runs, configs)
    assert len(results) == len(configs)
    assert [each for each in results if each[1] != "refused"] == []


def test_deep_nesting_is_refused(runs):
    text = (runs / "digits" / "config.json").read_text()
    for deep in ('{"a":' * 50_000 + "1" + "}" * 50_000, "[" * 200 + "]" * 200):
        (runs / "digits" / "config.json").write_text(text.rstrip().rstrip("}") + f', "x": {deep}}}')
        out = subprocess.run(
            [sys.executable, "-m", "ornstein", "sample", str(runs / "digits"), "-n", "1"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert out.returncode == 2 and "nested" in out.stderr and "Traceback" not in out.stderr, out.stderr[-500:]
