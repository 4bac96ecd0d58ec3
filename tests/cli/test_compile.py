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
from torch import nn

from ornstein import Data, Denoiser, Process
from ornstein.compiling import cache_folder, compile_network
from ornstein.data.decode import to_array
from ornstein.errors import RunError
from ornstein.nets import UNet
from ornstein.oracles import GaussianMixture
from ornstein.schedules import Cosine

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
