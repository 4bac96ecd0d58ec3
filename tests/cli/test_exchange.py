"""`ornstein lora | import | export` on tiny models, by the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import ornstein as orn
from ornstein.interop.lora import load_lora, parts_of, read_lora, with_base, write_lora
from ornstein.nets.lora import Lora, detach, trainable
from running import ornstein, refused


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = orn.nets.UNet(1, 8, width=16, multipliers=(1, 1), depths=(1, 1), attention=(8, 4))
    for parameter in net.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.05)
    d = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), data=orn.SampleSpec((1, 8, 8)))
    folder = tmp_path_factory.mktemp("own") / "run"
    d.save(folder, {"training": {"step": 3}})
    return folder


@pytest.fixture(scope="module")
def lora(run: Path) -> Path:
    d = orn.load(run)
    made = trainable(parts_of(d), ("qkv",), 2, 1.0, torch.Generator().manual_seed(0))
    for weight in made.values():
        nn.init.normal_(weight.up, std=1.0)
    made = Lora({n: w.layer for n, w in made.items()})
    detach(parts_of(d))
    return write_lora(with_base(made, d), run.parent / "lora.safetensors")


def done(*arguments: object) -> str:
    result = ornstein(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def picture(folder: Path) -> np.ndarray:
    return np.asarray(Image.open(folder / "grid.png"), dtype=int)


def test_info_convert_and_scale(lora: Path, tmp_path: Path) -> None:
    said = json.loads(done("lora", "info", lora, "--json"))
    assert (said["rank"], said["alpha"], said["dora"]) == ([2], [1.0], False)
    assert said["layers"] == {"unet": len(read_lora(lora).layers)} and len(said["base"]) == 64
    assert "not said" not in done("lora", "info", lora)
    done("lora", "convert", lora, "--to", "kohya", "--out", tmp_path / "k.safetensors")
    assert any(k.startswith("lora_unet_") for k in load_file(tmp_path / "k.safetensors"))
    done("lora", "convert", tmp_path / "k.safetensors", "--to", "diffusers", "--out", tmp_path)
    again = read_lora(tmp_path / "pytorch_lora_weights.safetensors")
    for name, layer in read_lora(lora).layers.items():
        assert torch.equal(again.layers[name].delta(), layer.delta())
    done("lora", "scale", lora, "--by", 0.5, "--out", tmp_path / "half.safetensors")
    assert json.loads(done("lora", "info", tmp_path / "half.safetensors", "--json"))["alpha"] == [0.5]
    refused(ornstein("lora", "scale", lora, "--by", 2, "--out", tmp_path / "half.safetensors"), 2, "exists")
    refused(ornstein("lora", "info", tmp_path / "none.safetensors"), 2, "none.safetensors")
    silent = {"unet.a.lora_A.weight": torch.ones(1, 4), "unet.a.lora_B.weight": torch.ones(4, 1)}
    save_file(silent, tmp_path / "silent.safetensors")
    assert "taken to be the rank" in " ".join(done("lora", "info", tmp_path / "silent.safetensors").split())


def test_a_lora_on_samples_is_the_lora_in_the_weights(run: Path, lora: Path, tmp_path: Path) -> None:
    common = ("-n", 2, "--steps", 2, "--solver", "ddim")
    done("sample", run, *common, "--out", tmp_path / "plain")
    done("sample", run, *common, "--out", tmp_path / "with", "--lora", f"{lora}:0.5")
    done("lora", "merge", lora, "--weights", 0.5, "--into", run, "--out", tmp_path / "merged")
    done("sample", tmp_path / "merged", *common, "--out", tmp_path / "in")
    assert np.array_equal(picture(tmp_path / "with"), picture(tmp_path / "in"))
    assert not np.array_equal(picture(tmp_path / "with"), picture(tmp_path / "plain"))
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["training"] == {"step": 3}
    stored = json.loads((tmp_path / "with" / "samples.json").read_text())["settings"]["lora"]
    assert stored[0][0] == f"{lora}:0.5" and len(stored[0][1]) == 64
    done("lora", "merge", lora, lora, "--weights", "0.75,-0.25", "--out", tmp_path / "sum.safetensors")
    d, other = orn.load(run), orn.load(run)
    load_lora(d, tmp_path / "sum.safetensors")
    load_lora(other, lora, 0.5)
    for name in read_lora(lora).layers:
        ours, expected = (parts_of(m).get_submodule(name).weight for m in (d, other))
        torch.testing.assert_close(ours, expected)
    refused(
        ornstein("lora", "merge", lora, "--into", tmp_path / "merged", "--out", tmp_path / "x"),
        2,
        "trained on the base",
    )
    done("lora", "merge", lora, "--into", tmp_path / "merged", "--out", tmp_path / "x", "--any-base")
    refused(ornstein("lora", "merge", lora, "--weights", "1,2", "--out", tmp_path / "y"), 2, "2 numbers for 1")
    refused(ornstein("lora", "merge", lora, "--into", run, "--out", tmp_path / "x"), 2, "exists")


def test_a_network_that_diffusers_has_not_is_refused_part_by_part(run: Path, tmp_path: Path) -> None:
    refused(ornstein("export", run, "--out", tmp_path / "out"), 2, "joins those of every block", "embeds the log-SNR")
    assert not (tmp_path / "out").exists()
    net = orn.nets.DiT(1, 8, width=16, depth=1, heads=2)
    d = orn.Denoiser(net, orn.Process(orn.schedules.Cosine(), orn.noise.AR1(8, 0.5)), data=orn.SampleSpec((1, 8, 8)))
    d.save(tmp_path / "dit")
    refused(
        ornstein("export", tmp_path / "dit", "--out", tmp_path / "out"), 2, "DiTTransformer2DModel", "register", "AR1"
    )


@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_becomes_a_run_and_a_pipeline_again(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    ).eval()  # fmt: skip
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "theirs")
    done("import", tmp_path / "theirs", "--out", tmp_path / "run")
    assert {"config.json", "model.safetensors"} <= {p.name for p in (tmp_path / "run").iterdir()}
    done("export", tmp_path / "run", "--to", "diffusers", "--out", tmp_path / "again")
    one, two = orn.load(tmp_path / "run"), orn.load(tmp_path / "again")
    x = torch.randn(2, 3, 8, 8)
    for t in (0.2, 0.9):
        assert torch.equal(one(x, t).x0, two(x, t).x0)
    pipe = diffusers.DDIMPipeline.from_pretrained(tmp_path / "again")
    for name, value in pipe.unet.state_dict().items():
        assert torch.equal(value, unet.state_dict()[name])
    refused(ornstein("import", tmp_path / "theirs", "--out", tmp_path / "run"), 2, "exists")
    refused(ornstein("import", tmp_path / "none", "--out", tmp_path / "x"), 2, "no such folder")
