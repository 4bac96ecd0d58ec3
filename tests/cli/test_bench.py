"""`ornstein bench`, and sampling in another precision."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from ornstein import Data, Denoiser, Process, sample
from ornstein.cli import shards
from ornstein.cli.bench import timed
from ornstein.data.decode import to_array
from ornstein.devices import choose_precision
from ornstein.nets import UNet
from ornstein.noise import AR1
from ornstein.oracles import GaussianMixture
from ornstein.sampling import at_once
from ornstein.schedules import Cosine
from running import ornstein, refused


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    net = UNet(1, 8, 2, width=8, multipliers=(1, 2), depths=(1, 1), attention=())
    for parameter in net.parameters():
        if bool((parameter == 0).all()):
            nn.init.normal_(parameter, std=0.2)
    return Denoiser(net, Process(Cosine()), "v", data=Data((1, 8, 8), ("a", "b"))).eval()


@pytest.fixture(scope="module")
def model(denoiser: Denoiser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "model"
    denoiser.save(run)
    return run


def test_a_row_for_every_case(model: Path) -> None:
    result = ornstein(
        "bench", model, "--solvers", "ddim,heun", "--steps", "2,3", "--batch", 1, "--precision", "float32,bf16",
        "--repeats", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if "%" in line]
    assert len(rows) == 8 and "images/s" in result.output
    assert sum("bf16" in row for row in rows) == 4 and sum("heun" in row for row in rows) == 4


def test_json_has_every_figure_and_nothing_else(model: Path) -> None:
    result = ornstein(
        "bench", model, "--solvers", "ddim", "--steps", "2,3", "--batch", 2, "--precision", "float32,auto,float32",
        "--repeats", 1, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["run"] == str(model) and record["shape"] == [1, 8, 8] and record["compile_seconds"] is None
    precisions = {row["precision"] for row in record["results"]}
    assert len(record["results"]) == 2 * len(precisions) and "float32" in precisions
    for row in record["results"]:
        assert row["solver"] == "ddim" and row["batch"] == 2 and 0 < row["outside"] < 1
        # the images of a batch take `steps` evaluations of it
        assert row["images_per_second"] * row["steps"] * row["ms_per_evaluation"] == pytest.approx(1000 * 2)


def test_the_time_in_the_network_is_separated_from_the_rest(denoiser: Denoiser) -> None:
    t = timed(denoiser, "heun", 3, 2)
    assert t.calls == 5  # two a step, one in the last
    assert 0 < t.network < t.total and 0 < t.outside < 1
    assert isinstance(denoiser.net, UNet)


def test_mistakes(model: Path, tmp_path: Path) -> None:
    refused(ornstein("bench", model, "--solvers", "eular"), "--solvers 'eular' is unknown", "ddim")
    refused(ornstein("bench", model, "--steps", "a"), "--steps must be a whole number", "'a'")
    refused(ornstein("bench", model, "--batch", "0"), "--batch must be at least 1", "0")
    refused(ornstein("bench", model, "--precision", "half"), "--precision 'half' is unknown")
    refused(ornstein("sample", model, "--precision", "half"), "--precision: 'half'", "bf16")
    refused(ornstein("bench", tmp_path / "none"), "no such folder")


def test_bf16_is_near_and_leaves_the_network_as_it_was(denoiser: Denoiser) -> None:
    options = {"shape": (3, 1, 8, 8), "steps": 4, "cond": {"label": torch.tensor([0, 1, 0])}}
    whole, half = sample(denoiser, **options), sample(denoiser, precision=torch.bfloat16, **options)
    assert half.dtype == torch.float32
    assert 0 < float((whole - half).abs().max()) < 0.2
    assert torch.equal(sample(denoiser, **options), whole)
    with pytest.raises(ValueError, match="label"):
        sample(denoiser, **options | {"cond": {"label": torch.tensor([0, 9, 0])}}, precision=torch.bfloat16)
    assert denoiser.precision is None
    assert torch.equal(sample(denoiser, **options), whole)


def test_the_precision_of_the_command_reaches_the_network(model: Path, denoiser: Denoiser, tmp_path: Path) -> None:
    """Of images, and what is there of another precision is made again; by default it is what the hardware has."""
    pictures = {}
    for precision in ("float32", "bf16", "float32"):
        result = ornstein("sample", model, "-n", 3, "--steps", 4, "--precision", precision, "--out", tmp_path)
        assert result.exit_code == 0 and "already" not in result.output, result.output
        with Image.open(tmp_path / "00002.png") as picture:
            found = torch.from_numpy(to_array(picture).copy()).float()
        assert torch.equal(pictures.setdefault(precision, found), found)
    assert 0 < float((pictures["float32"] - pictures["bf16"]).abs().max()) < 30
    by_default = ornstein("sample", model, "-n", 3, "--steps", 4, "--out", tmp_path / "default")
    assert by_default.exit_code == 0, by_default.output
    with Image.open(tmp_path / "default" / "00002.png") as picture:
        found = torch.from_numpy(to_array(picture).copy()).float()
    kind = "float32" if choose_precision("auto", torch.device("cpu")) is None else "bf16"
    assert torch.equal(found, pictures[kind])
    dtypes: set[torch.dtype] = set()
    hook = denoiser.net.stem.register_forward_hook(lambda *a: dtypes.add(a[-1].dtype))
    sample(denoiser, (1, 1, 8, 8), steps=1, precision=torch.bfloat16)
    hook.remove()
    assert dtypes == {torch.bfloat16}


def test_many_samples_go_through_in_parts(denoiser: Denoiser) -> None:
    """About a million numbers at a time, so that memory does not grow with their number; and they are the same."""
    assert at_once((3, 32, 32)) == 341 and at_once((3, 2048, 2048)) == 1
    seen: list[int] = []

    class Watched:
        process = denoiser.process

        def __call__(self, x_t: torch.Tensor, t: Any, /) -> Any:
            seen.append(len(x_t))
            return self.process.convert(x_t, t, x0=x_t / 2)

    whole = sample(Watched(), (3, 1, 1024, 512), steps=1)
    assert seen == [2, 1]
    assert torch.equal(whole[2:], sample(Watched(), (1, 1, 1024, 512), steps=1, first=2))


def test_a_grid_of_very_many_is_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_GRID_PIXELS", 70 * 64**2)
    said: list[str] = []
    monkeypatch.setattr(shards, "say", said.append)
    shards.write_images(tmp_path, {}, 75, 40, lambda rows: torch.zeros(len(rows), 1, 8, 8))
    assert said == [f"75 samples in {tmp_path}, the first 70 in {tmp_path / 'grid.png'}"]
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size[0] * picture.size[1] < 90 * 72**2
    assert len(list(tmp_path.glob("0*.png"))) == 75


def test_the_noise_stays_in_the_precision_of_the_samples(denoiser: Denoiser) -> None:
    """Correlated noise is made by a matrix product, which autocast would round as well."""
    d, states = Denoiser(denoiser.net, Process(Cosine(), AR1(8, 0.9)), "v"), []
    sample(d, (2, 1, 8, 8), steps=1, callback=lambda s: states.append(s.x), precision=torch.bfloat16)
    sample(d, (2, 1, 8, 8), steps=1, callback=lambda s: states.append(s.x))
    assert torch.equal(states[0], states[2])


def test_what_has_no_network_has_no_precision() -> None:
    oracle = GaussianMixture([1.0], [[0.0]], [[[1.0]]]).denoiser(Process(Cosine()))
    with pytest.raises(ValueError, match="this denoiser has none"):
        sample(oracle, (2, 1), precision=torch.bfloat16)
