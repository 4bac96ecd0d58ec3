"""`sample --compile`: the same pictures by compiled code, which is told of, kept, and not made twice."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch._inductor.exc import InductorError
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from typer.testing import CliRunner

from ornstein import Data, Denoiser, Process
from ornstein.cli import app
from ornstein.compiling import cache_folder, compile_network, compiled
from ornstein.data import open_images
from ornstein.data.decode import to_array
from ornstein.errors import RunError
from ornstein.nets import UNet, VideoUNet
from ornstein.oracles import GaussianMixture
from ornstein.schedules import Cosine
from ornstein.training import TrainConfig, recipe, train

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def model(run: Path) -> None:
    torch.manual_seed(0)
    net = UNet(1, 8, 2, width=8, multipliers=(1,), depths=(1,), attention=())
    for parameter in net.parameters():
        if bool((parameter == 0).all()):
            nn.init.normal_(parameter, std=0.2)
    Denoiser(net, Process(Cosine()), "v", data=Data((1, 8, 8), ("a", "b"))).save(run)


def pictures(folder: Path, n: int) -> torch.Tensor:
    found = []
    for i in range(n):
        with Image.open(folder / f"{i:05d}.png") as picture:
            found.append(torch.from_numpy(to_array(picture).copy()).int())
    return torch.stack(found)


@pytest.mark.slow
@needs_compiler
def test_the_same_pictures_and_a_second_run_finds_the_code(tmp_path: Path) -> None:
    """Five samples in batches of two: the last batch is filled up, not compiled anew."""
    run, cache = tmp_path / "run", tmp_path / "cache"
    model(run)
    seconds = []
    for out in ("a", "b", "c"):
        options = [] if out == "c" else ["--compile"]
        exact = ["--precision", "float32", *options]  # fused operations round bf16 elsewhere
        command = [sys.executable, "-m", "ornstein", "sample", run, "-n", 5, "--batch", 2, "--steps", 3, *exact]
        start = time.perf_counter()
        result = subprocess.run(
            [str(word) for word in (*command, "--out", tmp_path / out)],
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds.append(time.perf_counter() - start)
        assert result.returncode == 0, result.stderr
        assert (f"kept in {cache}" in result.stdout) == bool(options), result.stdout
    assert any(cache.rglob("*.so")) or any(cache.rglob("*.py"))
    plain = pictures(tmp_path / "c", 5)
    for out in ("a", "b"):
        assert int((pictures(tmp_path / out, 5) - plain).abs().max()) <= 1  # a grey level, where rounding tips it


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "told"))
    assert cache_folder() == tmp_path / "told"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    assert cache_folder() == tmp_path / "ornstein"  # PyTorch has set it, not the user
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ornstein"


def test_what_cannot_be_compiled_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    oracle = GaussianMixture([1.0], [[0.0]], [[[1.0]]]).denoiser(Process(Cosine()))
    with pytest.raises(ValueError, match="no network to compile"):
        compile_network(oracle, lambda: None)

    def broken() -> None:
        raise RuntimeError("no compiler\nand a long trace")

    with pytest.raises(RunError, match=r"^torch.compile does not work here: no compiler$"):
        compile_network(Denoiser(nn.Identity(), Process(Cosine())), broken)


@pytest.mark.slow
@needs_compiler
def test_a_compiled_training_learns_the_same_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    images = open_images("digits")

    def trained(name: str, until: int = 4, resume: bool = False, compile: bool = True) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = Denoiser(UNet(1, 8, 10, width=16, multipliers=(1,), depths=(1,), attention=()), Process(Cosine()))
        settings = {"batch": 16, "precision": "float32", "compile": compile, "checkpoint_every": 2}
        states = train(model, images, TrainConfig(steps=4, **settings), tmp_path / name, resume)
        for state in states:
            if state.step == until < 4:
                break
        states.close()
        assert model.net._compiled_call_impl is None  # the result is an ordinary network
        return load_file(tmp_path / name / "model.safetensors")

    plain, whole = trained("plain", compile=False), trained("whole")
    for name, value in whole.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-3, atol=1e-4)
    trained("cut", until=2)
    resumed = trained("cut", resume=True)
    for name, value in resumed.items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.slow
@needs_compiler
def test_clips_of_compiled_code(tmp_path: Path) -> None:
    net = VideoUNet(1, 8, 4, width=8, multipliers=(1,), depths=(1,), attention=())
    Denoiser(net, Process(Cosine()), "v", data=Data((1, 4, 8, 8))).save(tmp_path / "run")
    result = CliRunner().invoke(
        app, ["sample", str(tmp_path / "run"), "-n", "2", "--steps", "2", "--compile", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0 and "compiled in" in result.output, result.output
    assert (tmp_path / "out" / "sheet.png").is_file()


def test_networks_are_compiled_within_the_block_alone() -> None:
    nets = [nn.Linear(1, 1), nn.Linear(1, 1)]
    with compiled(nets):
        assert all(net._compiled_call_impl is not None for net in nets)
    assert all(net._compiled_call_impl is None for net in nets)


def test_a_step_that_cannot_be_compiled_says_to_leave_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: nn.Module, *_: object, **__: object) -> None:
        raise InductorError(RuntimeError("no compiler here\nand a long trace"), None)

    monkeypatch.setattr(UNet, "forward", broken)
    with pytest.raises(RunError, match=r"torch.compile does not work here: .*no compiler here; no checkpoint. Leave"):
        recipe.train("digits", tmp_path / "run", steps=2, net="xs", report=False, precision="float32")
