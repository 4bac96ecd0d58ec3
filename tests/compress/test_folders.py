"""Fine-tuning of pruned folders of diffusers on the predictions of the large model."""

import numpy as np
import pytest
import torch
from PIL import Image

import ornstein as orn
from interop.conftest import pipeline as pipeline
from running import done, ornstein, refused

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve smooth pictures with captions."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for k in range(12):
        pixels = np.kron(draw.integers(0, 255, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text("a cat\na dog\n" if k % 2 else "a tree")
    return folder


def errors(said):
    words = said.split("error of held-out predictions ")[1].split()
    return float(words[0].rstrip(",")), float(words[2])


@pytest.fixture(scope="module")
def stable(pipeline, tmp_path_factory):
    """A pipeline wide enough to be halved."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("sd") / "large"
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(pipeline("sd1"))
    config = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
    torch.manual_seed(0)
    pipe.register_modules(unet=diffusers.UNet2DConditionModel.from_config(config | {"block_out_channels": (16, 32)}))
    pipe.save_pretrained(folder)
    return folder


def test_a_text_to_image_pipeline_learns_from_the_large_one(stable, pictures, tmp_path):
    """The error falls to 0.798 of what it was without vector instructions, and to less than 0.8 with AVX512."""
    words = ["compress", stable, "--data", pictures, "--batch", 4, "--device", "cpu"]
    out = tmp_path / "small"
    said = done(*words, "--steps", 24, "--learning-rate", 0.01, "--out", out)
    before, after = errors(said)
    assert after < 0.9 * before
    opened = diffusers.StableDiffusionPipeline.from_pretrained(out)
    large = diffusers.StableDiffusionPipeline.from_pretrained(stable)
    assert opened.unet.config.block_out_channels[0] < 16
    kept = large.text_encoder.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in opened.text_encoder.state_dict().items())
    done("sample", out, "--prompt", "a cat", "-n", 1, "--steps", 1, "--out", tmp_path / "o", "--device", "cpu")
    refused(ornstein(*words, "--steps", 5, "--out", out), "exists", "--resume")


def test_a_pixel_pipeline_learns_too_and_resumes_to_the_same_bits(pictures, tmp_path):
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=2, attention_head_dim=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    large = tmp_path / "large"
    diffusers.DDPMPipeline(model, diffusers.DDPMScheduler()).save_pretrained(large)
    about = {"data": str(pictures), "batch": 4, "learning_rate": 0.01, "device": "cpu", "criterion": "taylor"}
    whole = orn.compress(large, tmp_path / "whole", steps=8, **about)
    assert whole.macs / whole.full_macs == pytest.approx(0.5, rel=0.03)
    orn.compress(large, tmp_path / "parts", steps=8, checkpoint_every=3, **about)
    state = tmp_path / "parts" / "training" / "state"
    (state / "previous.safetensors").replace(state / "trainer.safetensors")  # killed after the last but one
    orn.compress(large, tmp_path / "parts", resume=True, device="cpu")
    ours, theirs = (diffusers.UNet2DModel.from_pretrained(tmp_path / n / "unet") for n in ("whole", "parts"))
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, 300).sample, orn.load(tmp_path / "whole").net.model(x, 300).sample)


def test_mistakes_are_one_line(stable, tmp_path):
    new = ("--out", tmp_path / "x")
    refused(ornstein("compress", stable, "--steps", 5, *new), "knows no data", "--data", "--steps 0")
    refused(ornstein("compress", stable, "--data", tmp_path, *new), "--steps or --minutes")
    refused(ornstein("compress", stable, "--data", tmp_path, "--steps", 5, *new), str(tmp_path))
    refused(ornstein("compress", stable, "--depth", 0.5, "--steps", 0, *new), "leave out --depth")
    refused(ornstein("compress", stable, "--method", "int8", *new), "leave out --method int8")
    refused(ornstein("compress", stable, "--steps", 5, "--resume", *new), "no compressed folder")
    assert not (tmp_path / "x" / "model_index.json").exists()
