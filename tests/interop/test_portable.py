"""Exports: what another program computes is what PyTorch does."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ornstein as orn
from ornstein.errors import UserError
from ornstein.interop import portable
from ornstein.nets import DiT, UNet, VideoUNet
from running import done, ornstein, refused

onnxruntime = pytest.importorskip("onnxruntime")
TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorials" / "compress.md"


def denoiser(net, shape, prediction="v", classes=(), schedule=None):
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=draw)
    process = orn.Process(schedule or orn.schedules.Cosine())
    return orn.Denoiser(net, process, prediction, data=orn.Data(shape, classes)).eval()


def small(**more):
    return denoiser(
        UNet(1, 8, width=8, multipliers=(1,), depths=(1,), **more), (1, 8, 8), classes=("a",) * more.get("classes", 0)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model with classes and two levels, and its ONNX folder."""
    folder = tmp_path_factory.mktemp("onnx")
    net = UNet(1, 8, 10, width=8, multipliers=(1, 2), depths=(1, 1), attention=(4,))
    denoiser(net, (1, 8, 8), classes=tuple("0123456789")).save(folder / "run")
    said = done("export", folder / "run", "--to", "onnx", "--out", folder / "small-onnx")
    assert "any batch and size" in said
    return folder


def test_onnx_computes_the_network_at_other_batches_and_sizes(run):
    d, session = orn.load(run / "run"), onnxruntime.InferenceSession(run / "small-onnx" / "model.onnx")
    for height, width in ((8, 8), (12, 20)):
        for batch in (1, 3, 7):
            x, log_snr = torch.randn(batch, 1, height, width), torch.randn(batch)
            label = torch.arange(batch) % 11 - 1
            (output,) = session.run(None, {"x": x.numpy(), "log_snr": log_snr.numpy(), "label": label.numpy()})
            with torch.no_grad():
                torch.testing.assert_close(torch.from_numpy(output), d.net(x, log_snr, label), rtol=0, atol=1e-4)


def test_the_sampler_of_the_page_makes_the_picture_of_sample(run, monkeypatch):
    monkeypatch.chdir(run)
    done(
        "sample",
        "run",
        "-n",
        10,
        "--solver",
        "ddim",
        "--steps",
        20,
        "--seed",
        7,
        "--out",
        "pictures",
        "--device",
        "cpu",
    )
    (block,) = re.findall(r"^```python\n(.*?)^```", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE)
    assert len([line for line in block.splitlines() if line.strip()]) <= 45
    names = {}
    exec(compile(block, "compress.md", "exec"), names)
    d = orn.load("run")
    theirs = orn.sample(d, (10, 1, 8, 8), "ddim", 20, seed=7, cond={"label": torch.arange(10)})
    assert float((torch.from_numpy(names["x"]) - theirs).abs().max()) < 1e-3
    written = np.asarray(Image.open(run / "three.png")).astype(int)
    ours = np.asarray(Image.open(next(run.glob("pictures/*3.png"))).convert("L")).astype(int)
    assert abs(written - ours).max() <= 1


@pytest.mark.parametrize(
    ("prediction", "schedule"), [("eps", "LinearBeta"), ("edm", "EDM"), ("flow", "Rectified"), ("x0", "Cosine")]
)
def test_the_table_is_the_denoiser(prediction, schedule):
    d = denoiser(
        UNet(1, 4, width=8, multipliers=(1,), depths=(1,)),
        (1, 4, 4),
        prediction,
        schedule=getattr(orn.schedules, schedule)(),
    )
    x = torch.randn(2, 1, 4, 4)
    for row in portable.sampling_table(d, 5)[:-1]:
        with torch.no_grad():
            output = d.net(row["scale"] * x, torch.full((2,), row["log_snr"]))
            expected = d(x, row["t"])
        for name in ("x0", "eps"):
            a, b = row[name]
            torch.testing.assert_close(a * x + b * output, getattr(expected, name), rtol=1e-3, atol=1e-3)


def test_torch_export_is_read_back(tmp_path):
    small().save(tmp_path / "run")
    done("export", tmp_path / "run", "--to", "torch-export", "--out", tmp_path / "net.pt2")
    program = torch.export.load(tmp_path / "net.pt2").module()
    d, x = orn.load(tmp_path / "run"), torch.randn(3, 1, 10, 6)
    with torch.no_grad():
        torch.testing.assert_close(program(x, torch.zeros(3)), d.net(x, torch.zeros(3)), rtol=1e-4, atol=1e-4)


def test_safetensors_are_a_run_without_a_training(tmp_path):
    small(classes=2).save(tmp_path / "run", {"training": {"steps": 3}})
    done("export", tmp_path / "run", "--to", "safetensors", "--out", tmp_path / "plain")
    assert sorted(f.name for f in (tmp_path / "plain").iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(orn.load(tmp_path / "plain").net.stem.weight, orn.load(tmp_path / "run").net.stem.weight)
    assert "training" not in json.loads((tmp_path / "plain" / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (lambda: DiT(3, 8, width=16, depth=1, heads=2), (3, 8, 8)),
        (lambda: UNet(1, 8, width=8, multipliers=(1, 2), depths=(1, 1), attention=(4,), text_width=6), (1, 8, 8)),
        (lambda: VideoUNet(1, 8, 3, width=8, multipliers=(1, 2), depths=(1, 1), attention=(4,)), (1, 3, 8, 8)),
    ],
    ids=["dit", "text", "video"],
)
def test_other_networks(net, shape, tmp_path):
    portable.export_onnx(denoiser(net(), shape), tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_a_result_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(portable, "TOLERANCE", -1.0)
    small().save(tmp_path / "run")
    result = ornstein("export", tmp_path / "run", "--to", "torch-export", "--out", tmp_path / "x.pt2")
    refused(result, "differs from PyTorch", code=1)
    assert not (tmp_path / "x.pt2").exists()


def test_mistakes_are_one_line(run, tmp_path, monkeypatch):
    refused(ornstein("export", run / "run", "--to", "onnx", "--out", run / "small-onnx"), "exists")
    refused(ornstein("export", tmp_path / "none", "--to", "onnx", "--out", tmp_path / "x"), "none")
    net = VideoUNet(1, 8, 3, width=8, multipliers=(1,), depths=(1,))
    d = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()))
    with pytest.raises(UserError, match="no sample spec"):
        portable.export_onnx(d, tmp_path / "x")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    refused(ornstein("export", run / "run", "--to", "onnx", "--out", tmp_path / "x"), "onnx", "[export]")
