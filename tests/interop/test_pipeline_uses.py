"""What else works on a pipeline: prompts as classes, latents, other noise, what is remembered."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ornstein as orn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from ornstein.interop.folder import open_pipeline
from ornstein.interop.memory import peak_activations, samples_at_once
from running import done, ornstein, refused

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
Folders = Callable[[str], Path]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "pixart", "flux-distilled"])
def test_prompts_as_classes_are_the_same_conditions(pipeline: Folders, name: str) -> None:
    model = open_pipeline(pipeline(name))
    if name == "flux-distilled":
        model = model.sized(32, 32)
    assert model.data is not None
    scale = {"guidance_scale": 2.0} if model.guided_by_condition else {}
    classes = model.prompted(["a cat", "dogs"], "bad", **scale)
    assert classes.data is not None and classes.data.classes == ("a cat", "dogs") and not model.data.classes
    x = noise(3, *model.data.shape)
    given = model.encode(["dogs", "a cat", "dogs"], "bad", **scale)
    one = orn.sample(model, x.shape, "ddim", 2, start=x, cond=given, guidance=3.0)
    two = orn.sample(classes, x.shape, "ddim", 2, start=x, cond={"label": [1, 0, 1]}, guidance=3.0)
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
    other = orn.sample(classes, x.shape, "ddim", 2, start=x, cond={"label": [0, 1, 0]}, guidance=3.0)
    assert float((other - one).abs().max()) > 2e-3


def test_latents_of_pictures_come_back_in_their_scale(pipeline: Folders) -> None:
    """Whatever an autoencoder's config says, encode and decode are those of the library."""
    for name in ("sd1", "sd3", "wan"):
        model = open_pipeline(pipeline(name))
        space, vae = model.space, model.parts["vae"]
        shape = (1, 3, 5, 32, 32) if name == "wan" else (1, 3, 64, 64)
        x = noise(*shape, seed=2).clamp(-1, 1)
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mode()
            pixels = vae.decode(z).sample
        mean, std = space.encode(x)
        assert mean.shape == std.shape and mean.shape[1] == space.latent_shape[0]
        torch.testing.assert_close(space.mean_of(mean), pixels, rtol=0, atol=1e-4)
        assert space.latent_size(*shape[2:]) == tuple(mean.shape[2:])


def test_noise_that_frames_share(pipeline: Folders) -> None:
    model = open_pipeline(pipeline("animatediff"))
    assert model.data is not None
    cond = model.encode(["a boat"])
    made = {}
    for c in (0.0, 0.9):
        chosen = model.with_noise(orn.noise.Mixed(16, c))
        made[c] = orn.sample(chosen, (1, *model.data.shape), "ddim", 3, cond=cond)
    white = orn.sample(model, (1, *model.data.shape), "ddim", 3, cond=cond)
    torch.testing.assert_close(made[0.0], white, rtol=1e-4, atol=1e-4)
    change = {c: float(x.diff(dim=2).square().mean()) for c, x in made.items()}
    assert change[0.9] < 0.5 * change[0.0]  # the frames share most of their noise
    with pytest.raises(ValueError):
        model.with_noise(orn.noise.Mixed(5, 0.5))


def test_what_is_remembered_of_the_text_follows_text_and_weights(pipeline: Folders) -> None:
    model = open_pipeline(pipeline("pixart"))
    plain = copy.deepcopy(model)
    x = noise(1, 4, 32, 32)
    texts = [model.encode([p]) for p in ("a cat", "a dog")]

    def fresh(cond: dict) -> Tensor:
        with torch.enable_grad():  # nothing is remembered where gradients are wanted
            return plain(x, 0.5, **cond).eps.detach()

    with torch.no_grad():
        for cond in (texts[0], texts[1], texts[0], copy.deepcopy(texts[0])):
            torch.testing.assert_close(model(x, 0.5, **cond).eps, fresh(cond), rtol=0, atol=1e-5)
        for each in (model, plain):
            for name, p in each.net.named_parameters():
                if "to_k" in name or "caption_projection" in name:
                    p.mul_(1.5)
        torch.testing.assert_close(model(x, 0.5, **texts[0]).eps, fresh(texts[0]), rtol=0, atol=1e-5)
        before = model(x, 0.5, **texts[0]).eps
        texts[0]["text"].mul_(2.0)
        assert float((model(x, 0.5, **texts[0]).eps - before).abs().max()) > 1e-6
    assert set(model.net.state_dict()) == set(plain.net.state_dict())


def test_peak_memory_is_that_of_a_chain_of_known_sizes() -> None:
    layers = torch.nn.Sequential(*(torch.nn.Linear(100, 100, bias=False) for _ in range(4))).to("meta")
    x = torch.empty(7, 100, device="meta")
    # one output is made while the one before it is still read
    assert peak_activations(lambda: layers(x), [layers]) in (2 * 7 * 100 * 4, 3 * 7 * 100 * 4)


@pytest.mark.parametrize("name", ["sd1", "inpaint"])
def test_a_hole_is_filled_in_latents_and_the_rest_kept_to_the_bit(pipeline: Folders, tmp_path: Path, name: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (70, 64, 3), dtype=np.uint8)
    mask = np.zeros((70, 64), np.uint8)
    mask[20:40, 10:50] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    words = ["edit", "inpaint", pipeline(name), tmp_path / "a.png", "--mask", tmp_path / "m.png", "--prompt", "a cat"]
    said = done(*words, "--guidance", 2, "--negative", "dog", "--steps", 2, "-n", 2, "-o", tmp_path / "o")
    made = [np.asarray(Image.open(tmp_path / "o" / f"a-00{i}.png")) for i in range(2)]
    assert all(np.array_equal(each[mask == 0], picture[mask == 0]) for each in made)
    assert not np.array_equal(*made) and ("channels for the mask" in said) == (name == "inpaint")
    if name == "sd1":
        done("edit", "sdedit", *words[2:4], "--prompt", "a cat", "--steps", 2, "-o", tmp_path / "v.png")
        words[3] = tmp_path / "s.png"
        Image.fromarray(picture[:32, :32]).save(words[3])
        for method in ((), ("--method", "moments")):
            out = tmp_path / f"u{len(method)}.png"
            done("edit", "upscale", *words[2:4], "--factor", 2, "--prompt", "a", "--steps", 2, *method, "-o", out)
            assert Image.open(out).size == (64, 64)
        refused(ornstein("edit", "restore", *words[2:4], "--method", "ddnm", "--prompt", "a", "-o", out), "eigenvalues")
        refused(ornstein("edit", "sdedit", *words[2:4], "-o", tmp_path / "r"), "takes text")


def test_a_pipeline_is_pruned_into_a_pipeline(pipeline: Folders, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]

    pipe = StableDiffusionPipeline.from_pretrained(pipeline("sd1"))
    config = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
    pipe.register_modules(unet=UNet2DConditionModel.from_config(config | {"block_out_channels": (16, 32)}))
    pipe.save_pretrained(tmp_path / "sd")
    words = ["compress", tmp_path / "sd", "--steps", 0, "--out", tmp_path / "small"]
    refused(ornstein(*words, "--criterion", "taylor"), "needs data")
    share = float(done(*words, "--macs", 0.5).split("multiply-adds (")[1].split(")")[0])
    assert share == pytest.approx(0.5, rel=0.03)
    opened = StableDiffusionPipeline.from_pretrained(tmp_path / "small")
    assert opened.unet.config.block_out_channels[0] < 16
    done("sample", tmp_path / "small", "--prompt", "a cat", "-n", 1, "--steps", 2, "--out", tmp_path / "o")


def test_latents_without_a_decoder_are_refused(pipeline: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "sd1"
    shutil.copytree(pipeline("sd1"), folder)
    shutil.rmtree(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"vae": [None, None]}))
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    result = ornstein("edit", "sdedit", folder, tmp_path / "a.png", "--prompt", "a cat", "-o", tmp_path / "o")
    refused(result, "decoder", "vae")


@pytest.mark.parametrize(
    "name", ["sd1", "inpaint", "sdxl", "sd3", "flux-distilled", "pixart", "dit", "ldm", "animatediff", "wan"]
)
def test_samples_at_once_follow_the_memory_that_is_free(pipeline: Folders, name: str) -> None:
    model = open_pipeline(pipeline(name))
    one = samples_at_once(model, 0, guided=False)
    assert one == 1  # of less than one sample there is no fewer
    many = samples_at_once(model, 2**30, guided=False)
    assert 1 < many < 2**30 / (4 * math.prod(model.data.shape))  # a sample itself is the least that it holds
    assert samples_at_once(model, 2**31, guided=True) == pytest.approx(many, abs=1)
    if model.has_mask_channels:
        return  # it needs a picture
    # nothing of it is remembered: a sample after it is the one before it
    cond = model.encode(["a cat"]) if model.takes_text else {}
    x = noise(1, *model.data.shape)
    again = open_pipeline(pipeline(name))
    other = again.encode(["a cat"]) if again.takes_text else {}
    with torch.no_grad():
        torch.testing.assert_close(model(x, 0.5, **cond).eps, again(x, 0.5, **other).eps, rtol=0, atol=1e-6)


class _OfGaussian(torch.nn.Module):
    """The network of data N(0, 0.49): the exact eps, or v."""

    def __init__(self, prediction: str) -> None:
        super().__init__()
        self.prediction = prediction
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor, log_snr: Tensor, **_: Tensor) -> Tensor:
        a2 = log_snr.double().sigmoid().reshape(-1, *[1] * (x.ndim - 1))
        s2, variance = 1 - a2, 0.49
        eps = s2.sqrt() * x / (a2 * variance + s2)
        return eps if self.prediction == "eps" else a2.sqrt() * eps - s2.sqrt() * (x - s2.sqrt() * eps) / a2.sqrt()


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_the_likelihood_of_latents_under_the_schedule_of_a_pipeline(pipeline: Folders, name: str) -> None:
    model = open_pipeline(pipeline(name)).sized(16, 16)
    model.net = _OfGaussian(model.prediction)
    z = 0.7 * noise(2, *model.data.shape, seed=4).double()
    # without the last noise of the chain there is data of variance 0.49 + sigma(0)^2/alpha(0)^2
    # of a multiple of the identity one probe of signs is the trace
    found = orn.likelihood.ode(model, z, "hutchinson", probes=1, cond=model.encode(["a cat", "a dog"]))
    first = model.process.schedule.sigma(0.0) / model.process.schedule.alpha(0.0)
    wanted = torch.distributions.Normal(0.0, (0.49 + float(first) ** 2) ** 0.5).log_prob(z).flatten(1).sum(1)
    torch.testing.assert_close(found.value, wanted, rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_inversion_with_a_prompt_comes_back(pipeline: Folders, name: str) -> None:
    model = open_pipeline(pipeline(name))
    z = noise(1, *model.data.shape, seed=5)
    cond = model.encode(["a cat"])
    errors = []
    for steps in (8, 32):
        start = orn.invert(model, z, steps, cond=cond)
        back = orn.sample(model, z.shape, "ddim", steps, start=start, cond=cond)
        errors.append(float((back - z).square().mean().sqrt()))
    assert errors[1] < 0.5 * errors[0]
    other = orn.sample(model, z.shape, "ddim", 32, start=start, cond=model.encode(["a dog"]))
    assert float((other - back).abs().max()) > 1e-4  # the prompt of the way back counts
