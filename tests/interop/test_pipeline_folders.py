"""Pipeline folders as users have them: variants, shards, what is missing, and what is not loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ornstein as orn
from ornstein import checkpoint
from ornstein.errors import UserError

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from ornstein.interop.folder import open_pipeline
from ornstein.interop.pipeline import Pipeline
from running import done, ornstein, refused

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

Folders = Callable[[str], Path]


@pytest.fixture
def copied(pipeline: Folders, tmp_path: Path) -> Path:
    """A folder of its own of Stable Diffusion."""
    shutil.copytree(pipeline("sd1"), tmp_path / "sd1")
    return tmp_path / "sd1"


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_shards_and_variants_are_the_same_model(pipeline: Folders, tmp_path: Path) -> None:
    model = open_pipeline(pipeline("sd1"))
    model._pipe.unet.save_pretrained(tmp_path / "unet", max_shard_size="30KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    shards, half = tmp_path / "shards", tmp_path / "half"
    shutil.copytree(pipeline("sd1"), shards)
    shutil.rmtree(shards / "unet")
    shutil.copytree(tmp_path / "unet", shards / "unet")
    model._pipe.save_pretrained(half, variant="fp16")
    assert not list(half.glob("unet/diffusion_pytorch_model.safetensors"))
    for folder in (shards, half):
        again = open_pipeline(folder)
        for a, b in zip(model.net.parameters(), again.net.parameters(), strict=True):
            assert torch.equal(a, b)


def test_weights_in_half_precision_and_samples_in_float32(pipeline: Folders) -> None:
    model, half = open_pipeline(pipeline("sd1")), open_pipeline(pipeline("sd1"), torch.bfloat16)
    assert next(half.net.parameters()).dtype == torch.bfloat16
    x = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"solver": "ddim", "steps": 2, "start": x, "guidance": 2.0}
    ours, rounded = (orn.sample(m, x.shape, cond=m.encode(["a", "b"]), **options) for m in (model, half))
    assert rounded.dtype == half.decode(rounded).dtype == torch.float32
    assert 0 < float((ours - rounded).square().mean().sqrt()) < 0.05 * float(ours.std())


def test_pickled_weights_are_not_loaded(copied: Path) -> None:
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"\.bin is a pickle.*safe_serialization"):
        orn.load(copied)


def test_a_missing_encoder(copied: Path, pipeline: Folders) -> None:
    shutil.rmtree(copied / "text_encoder")
    with pytest.raises(UserError, match=r"has no text_encoder, which its model_index\.json lists"):
        orn.load(copied)
    edit(copied / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    model = orn.load(copied)
    assert isinstance(model, Pipeline)
    with pytest.raises(UserError, match="no text_encoder and tokenizer: prompts cannot be encoded"):
        model.encode(["a"])
    # states from elsewhere will do
    whole = open_pipeline(pipeline("sd1"))
    text = whole.encode(["a"])["text"]
    x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x, 0.5, text=text).eps, whole(x, 0.5, text=text).eps)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("CMStochasticIterativeScheduler", {}, "CMStochasticIterativeScheduler cannot be expressed"),
        ("DDIMScheduler", {"prediction_type": "sigma"}, "prediction_type 'sigma'"),
    ],
)
def test_a_scheduler_that_cannot_be_expressed_is_named(
    copied: Path, name: str, values: dict[str, Any], message: str
) -> None:
    edit(copied / "scheduler" / "scheduler_config.json", _class_name=name, **values)
    edit(copied / "model_index.json", scheduler=["diffusers", name])
    with pytest.raises(UserError, match=message):
        orn.load(copied)


def test_no_code_of_the_folder_is_run(copied: Path) -> None:
    edit(copied / "model_index.json", unet=["subprocess", "Popen"])
    with pytest.raises(UserError, match="code that is not of diffusers or transformers"):
        orn.load(copied)
    edit(copied / "model_index.json", unet=["diffusers", "UNet2DConditionModel"], _class_name="KandinskyPipeline")
    with pytest.raises(UserError, match=r"KandinskyPipeline, which is not read; known: .*StableDiffusionPipeline"):
        orn.load(copied)


@pytest.mark.parametrize("family", ["sd1", "sdxl-two-widths"])
def test_one_file_is_its_folder(pipeline: Folders, tmp_path: Path, family: str) -> None:
    """Weights in the layout of Stable Diffusion's authors; configs and tokenizers in the folder of the same name."""
    from interop.one_file import write_one_file

    model = orn.load(pipeline(family))
    assert isinstance(model, Pipeline)
    file = write_one_file(model._pipe, tmp_path / "kohya.safetensors")
    shutil.copytree(pipeline(family), tmp_path / "kohya", ignore=shutil.ignore_patterns("*.safetensors"))
    again = orn.load(file)
    assert isinstance(again, Pipeline)
    for part, module in model._pipe.components.items():
        if isinstance(module, torch.nn.Module):
            wanted, found = module.state_dict(), again._pipe.components[part].state_dict()
            assert wanted.keys() == found.keys() and all(torch.equal(wanted[k], found[k]) for k in wanted)
    assert again.process == model.process and again.data == model.data
    asked = ["--prompt", "a cat", "--negative", "bad", "--guidance", 3, "--steps", 2, "-n", 2]
    for path, out in ((pipeline(family), tmp_path / "a"), (file, tmp_path / "b")):
        done("sample", path, *asked, "--out", out)
    for name in ("00000.png", "00001.png"):
        assert np.array_equal(Image.open(tmp_path / "a" / name), Image.open(tmp_path / "b" / name))
    assert type(model._pipe).__name__ in done("info", file)
    config = tmp_path / "kohya" / "unet" / "config.json"
    edit(config, block_out_channels=[4, 16])
    with pytest.raises(UserError, match=r"are the configs in .*kohya/ those of its base model"):
        orn.load(file)
    shutil.rmtree(tmp_path / "kohya" / "tokenizer")
    with pytest.raises(UserError, match=r"kohya has no tokenizer, which its model_index\.json lists"):
        orn.load(file)
    shutil.rmtree(tmp_path / "kohya")
    refused(ornstein("info", file), "weights alone", "kohya/")


def test_one_file_without_configs_says_what_is_missing(tmp_path: Path, copied: Path) -> None:
    from safetensors.torch import save_file

    save_file({"model.diffusion_model.out.0.weight": torch.zeros(4)}, tmp_path / "kohya.safetensors")
    with pytest.raises(UserError, match=r"weights alone.*put the configs and tokenizers.*kohya/"):
        orn.load(tmp_path / "kohya.safetensors")
    save_file({"w": torch.zeros(4)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is not the file of a pipeline"):
        orn.load(tmp_path / "other.safetensors")


def test_a_hub_id_without_a_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"owner/name is neither a folder here nor to be had from the hub") as error:
        orn.load("owner/name")
    assert "\n" not in str(error.value)
    Path("runs").mkdir()  # a missing run is no hub id
    with pytest.raises(UserError, match="there is no such folder"):
        orn.load("runs/name")


def test_results_are_kept_beside_a_pipeline_and_follow_its_weights(copied: Path) -> None:
    assert checkpoint.run_folder(copied) == copied.parent / "sd1.ornstein"
    before = checkpoint.fingerprint(copied)
    edit(copied / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert checkpoint.fingerprint(copied) != before


def test_prompts_are_checked(pipeline: Folders) -> None:
    model = open_pipeline(pipeline("sd1"))
    with pytest.warns(UserWarning, match="a prompt of 102 tokens is cut to the 77 that text_encoder reads"):
        model.encode(["a" * 100])
    with pytest.raises(ValueError, match="2 prompts and 1 negative prompts"):
        model.encode(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="takes no condition 'guidance_scale'"):
        model.encode(["a"], guidance_scale=3.0)
    with pytest.raises(ValueError, match="no channels for a mask"):
        model.inpainting(torch.zeros(1, 3, 64, 64), torch.ones(1, 1, 64, 64))
    with pytest.raises(ValueError, match="multiple of 2"):
        model.sized(64, 65)
    with pytest.raises(UserError, match="a model without text"):
        open_pipeline(pipeline("dit")).encode(["a"])
    with pytest.raises(UserError, match="a pipeline is not stored as a run"):
        model.save("somewhere")
