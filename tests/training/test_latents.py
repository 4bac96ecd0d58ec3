"""Training on latents and of autoencoders: what is kept on disk, and that a resumed run is the same run."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import ornstein as orn
from ornstein import autoencoders
from ornstein.autoencoders import AUTOENCODERS, AutoencoderLoss
from ornstein.autoencoders.latent import LatentSpace
from ornstein.data import ImageSet, open_clips
from ornstein.errors import UserError
from ornstein.nets import UNet
from ornstein.training import TrainConfig, run_task
from ornstein.training.autoencoder import Autoencoding
from ornstein.training.latents import LatentDiffusion, encode_images
from ornstein.training.state import STATE


def images(n: int = 40, size: int = 8, seed: int = 0) -> ImageSet:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 1, size, size), generator=draw, dtype=torch.uint8)
    return ImageSet("toy", pixels, [f"{seed}-{i}" for i in range(n)], [1] * n, torch.arange(n) % 2, ["a", "b"])


def autoencoder(path, kind="kl", seed=0):
    torch.manual_seed(seed)
    model = AUTOENCODERS[kind](1, 8, width=16, depths=(1, 1, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    if kind == "vq":
        model.codebook.entries.normal_()
    autoencoders.save(model.eval(), path)
    return path


def config(**settings) -> TrainConfig:
    return TrainConfig(**{"steps": 6, "batch": 8, "checkpoint_every": 2, "warmup": 2} | settings)


@pytest.mark.parametrize("kind", ["kl", "vae", "vq"])
def test_latents_are_normalised(tmp_path, kind):
    latents = encode_images(autoencoder(tmp_path / "ae", kind), images(), tmp_path / "run")
    (both, labels) = latents.batch(torch.tensor([3, 1, 39]))
    mean, std = both.unbind(1)
    assert mean.shape == (3, *latents.space.latent_shape) and labels.tolist() == [1, 1, 1]
    expected = latents.space.encode(images().batch([3, 1, 39])[0])
    torch.testing.assert_close(mean, expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(std, expected[1], atol=1e-4, rtol=1e-4)
    # over all images and draws of q: mean 0 and variance 1 in every channel
    mean, std = latents.batch(range(40))[0].unbind(1)
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(mean.shape[1]), atol=1e-4, rtol=0)
    variance = (mean.square() + std.square()).mean((0, 2, 3))
    torch.testing.assert_close(variance, torch.ones(mean.shape[1]), atol=1e-3, rtol=0)


def test_clips_are_encoded_frame_by_frame(tmp_path):
    clips = open_clips("moving-digits", 3, 16)
    clips.indices = clips.indices[:5]
    torch.manual_seed(0)
    model = AUTOENCODERS["kl"](1, 16, width=16, depths=(1, 1, 1))
    autoencoders.save(model.eval(), tmp_path / "ae")
    latents = encode_images(tmp_path / "ae", clips, tmp_path / "run")
    both, labels = latents.batch([4, 0])
    x, expected = clips.batch([4, 0])
    assert labels is not None and labels.tolist() == expected.tolist()
    c, h, w = model.latent_shape
    assert both.shape == (2, 2, c, 3, h, w) and latents.space.shape == (1, 3, 16, 16)
    images_of = replace(latents.space, frames=None)
    for frame in range(3):
        for ours, alone in zip(both.unbind(1), images_of.encode(x[:, :, frame]), strict=True):
            torch.testing.assert_close(ours[:, :, frame], alone, atol=1e-4, rtol=1e-4)
        decoded = images_of.decode(both[:, 0, :, frame])
        torch.testing.assert_close(latents.space.decode(both[:, 0])[:, :, frame], decoded)
    mean, std = latents.batch(range(5))[0].unbind(1)
    variance = (mean.square() + std.square()).mean((0, 2, 3, 4))
    torch.testing.assert_close(variance, torch.ones(c), atol=1e-3, rtol=0)
    stored = LatentSpace.from_config(latents.space.to_config(), tmp_path)
    assert stored.shape == latents.space.shape and stored.latent_shape == (c, 3, h, w)


def test_latents_are_computed_once(tmp_path, monkeypatch):
    path = autoencoder(tmp_path / "ae")
    first = encode_images(path, images(), tmp_path / "run").batch(range(40))[0]
    calls = []
    was = AUTOENCODERS["kl"].encode
    monkeypatch.setattr(AUTOENCODERS["kl"], "encode", lambda self, x: (calls.append(len(x)), was(self, x))[1])
    again = encode_images(path, images(), tmp_path / "run").batch(range(40))[0]
    assert torch.equal(first, again) and not calls
    # other images, or another autoencoder: anew
    encode_images(path, images(seed=1), tmp_path / "run")
    assert sum(calls) == 40
    autoencoder(path, seed=5)
    other = encode_images(path, images(seed=1), tmp_path / "run")
    assert sum(calls) == 80
    assert other.space.fingerprint == autoencoders.fingerprint(path)


def test_other_images_than_the_autoencoders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"\(1, 8, 8\).*\(1, 16, 16\)"):
        encode_images(autoencoder(tmp_path / "ae"), images(size=16), tmp_path / "run")


def test_a_collapsed_autoencoder_is_refused(tmp_path):
    model = AUTOENCODERS["ae"](1, 8, width=16, depths=(1, 1, 1))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
    autoencoders.save(model, tmp_path / "ae")
    with pytest.raises(UserError, match="the same for all images"):
        encode_images(tmp_path / "ae", images(), tmp_path / "run")


def denoiser(space):
    torch.manual_seed(0)
    net = UNet(*space.latent_shape[:2], 2, width=16, multipliers=(1,), depths=(1,), attention=())
    data = orn.Data(space.latent_shape, ("a", "b"))
    return orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=data, space=space)


def test_a_latent_run_resumes_and_draws_anew_each_step(tmp_path):
    latents = encode_images(autoencoder(tmp_path / "ae"), images(), tmp_path / "run")

    def go(out, steps, resume=False):
        d = denoiser(latents.space)
        task = LatentDiffusion(d, config(steps=steps))
        return list(run_task(task, latents, config(steps=steps), tmp_path / out, resume))

    go("whole", 6)
    for state in run_task(LatentDiffusion(denoiser(latents.space), config()), latents, config(), tmp_path / "parts"):
        if state.step == 5:
            break  # the checkpoint of step 4 stands
    go("parts", 6, resume=True)
    a, b = load_file(tmp_path / "whole" / STATE), load_file(tmp_path / "parts" / STATE)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    # the same images with another draw of q(z|x) are another loss
    task = LatentDiffusion(denoiser(latents.space), config())
    both = latents.batch([0, 1])[0]
    certain = both.clone()
    certain[:, 1] = 0
    drawn, fixed = (task.loss(x, None, torch.Generator().manual_seed(3), 0.0)[0] for x in (both, certain))
    assert drawn != fixed
    loaded = orn.load(tmp_path / "whole")
    assert loaded.shape == (1, 8, 8) and loaded.data.shape == (4, 4, 4)


@pytest.mark.parametrize("kind", ["hvae", "vq"])
def test_an_autoencoders_run_resumes(tmp_path, kind):
    def task():
        torch.manual_seed(0)
        model = AUTOENCODERS[kind](1, 8, width=16, depths=(1, 1, 1), **({"codes": 16} if kind == "vq" else {}))
        return Autoencoding(AutoencoderLoss(model, adversarial_weight=0.1, adversarial_start=0.2, perceptual="random"))

    whole = list(run_task(task(), images(), config(), tmp_path / "whole"))
    for state in run_task(task(), images(), config(), tmp_path / "parts"):
        if state.step == 5:
            break
    list(run_task(task(), images(), config(), tmp_path / "parts", resume=True))
    a, b = load_file(tmp_path / "whole" / STATE), load_file(tmp_path / "parts" / STATE)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert any("discriminator" in name for name in a)
    assert len(whole) == 6
    # the folder is the autoencoder alone, by the averaged weights
    loaded = autoencoders.load(tmp_path / "whole")
    average = whole[-1].model.model
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), average.parameters(), strict=True))
    figures = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss", "mse", "rate_1", "generator", "discriminator", "perceptual"} <= figures.keys()
    assert ("usage" in figures) == (kind == "vq")


def test_another_loss_is_another_run(tmp_path):
    def task(weight):
        torch.manual_seed(0)
        return Autoencoding(AutoencoderLoss(AUTOENCODERS["kl"](1, 8, width=16, depths=(1, 1, 1)), kl_weight=weight))

    list(run_task(task(1.0), images(), config(steps=2), tmp_path))
    with pytest.raises(UserError, match=r"loss\.kl_weight = 1\.0, and 0\.5"):
        run_task(task(0.5), images(), config(), tmp_path, resume=True)
