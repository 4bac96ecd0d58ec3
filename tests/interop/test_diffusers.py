"""Pipelines made here with random weights: the same noise predictions and the same images as diffusers' own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein.errors import UserError
from ornstein.schedules import Cosine, Discrete

diffusers = pytest.importorskip("diffusers")

from ornstein.interop.diffusers import Clipped, DiffusersNet, load_pipeline, save_pipeline, times, wrap  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def unet(**options: Any):
    torch.manual_seed(0)
    settings = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    }
    return diffusers.UNet2DModel(**settings | options).eval()


def dit():
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        num_embeds_ada_norm=5,
    )  # fmt: skip
    for parameter in model.parameters():  # a fresh one answers 0
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [0, 1, 377, 998, 999])
@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2", "scaled_linear"])
def test_the_same_eps_at_every_timestep(beta_schedule: str, k: int) -> None:
    model, scheduler = unet(), diffusers.DDPMScheduler(beta_schedule=beta_schedule)
    d, x = wrap(model, scheduler), noise(2, 3, 8, 8)
    with torch.no_grad():
        theirs = model(x, k).sample
        ours = d(x, (k + 1) / 1000)
    torch.testing.assert_close(ours.eps, theirs, rtol=0, atol=1e-5)
    assert float(theirs.std()) > 0.05
    abar = float(scheduler.alphas_cumprod[k])
    x0 = (x - (1 - abar) ** 0.5 * theirs) / abar**0.5
    scale = max(1.0, float(x0.abs().max()))
    torch.testing.assert_close(ours.x0 / scale, x0 / scale, rtol=0, atol=2e-3 if k > 997 else 1e-4)


def test_between_timesteps_the_model_is_told_the_fraction() -> None:
    model, scheduler, x = unet(), diffusers.DDPMScheduler(), noise(2, 3, 8, 8)
    with torch.no_grad():
        theirs = model(x, torch.tensor([123.5])).sample
        ours = wrap(model, scheduler)(x, 124.5 / 1000).eps
        other = model(x, 124).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    assert float((theirs - other).abs().max()) > 5 * float((theirs - ours).abs().max())


@pytest.mark.parametrize(("theirs", "ours"), [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")])
def test_the_output_is_read_as_it_was_meant(theirs: str, ours: str) -> None:
    model, x = unet(), noise(2, 3, 8, 8)
    d = wrap(model, diffusers.DDPMScheduler(prediction_type=theirs))
    with torch.no_grad():
        out = getattr(d(x, 0.5), ours)
        torch.testing.assert_close(out, model(x, 499).sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("to_one", [False, True])
def test_the_same_images_as_the_pipeline(tmp_path: Path, spacing: str, clip: bool, to_one: bool) -> None:
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing, clip_sample=clip, set_alpha_to_one=to_one)
    pipeline = diffusers.DDIMPipeline(unet(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "pipeline")
    generator = torch.Generator().manual_seed(3)
    images = pipeline(batch_size=2, num_inference_steps=5, generator=generator, output_type="np").images
    # The pipeline stores clamped images, (x/2 + 1/2) in [0, 1]: and so do we here.
    start = noise(2, 3, 8, 8, seed=3)
    d = load_pipeline(tmp_path / "pipeline")
    d = Clipped(d) if clip else d
    own = orn.sample(d, (2, 3, 8, 8), "ddim", grid=times(pipeline.scheduler, 5), start=start)
    own = (own / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    # At 1/T a scheduler that clips and stays there clips once more, which is no step of ours.
    once_more = clip and not to_one and spacing == "leading"
    torch.testing.assert_close(own, torch.from_numpy(images), rtol=0, atol=2e-3 if once_more else 1e-4)
    assert float(own.std()) > 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "num_train_timesteps": 100},
    ],
    ids=["zero SNR, v", "cosine, sample", "short, v"],
)
def test_the_same_images_as_pipelines_of_other_chains_and_predictions(tmp_path: Path, options: dict[str, Any]) -> None:
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False, **options)
    pipeline = diffusers.DDIMPipeline(unet(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "pipeline")
    generator = torch.Generator().manual_seed(3)
    images = pipeline(batch_size=2, num_inference_steps=5, generator=generator, output_type="np").images
    d = load_pipeline(tmp_path / "pipeline")
    assert d.process.schedule.zero_terminal_snr == ("rescale_betas_zero_snr" in options)
    own = orn.sample(d, (2, 3, 8, 8), "ddim", grid=times(pipeline.scheduler, 5), start=noise(2, 3, 8, 8, seed=3))
    own = (own / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(own, torch.from_numpy(images), rtol=0, atol=1e-4)
    assert float(own.std()) > 0.05 and float(((own > 0) & (own < 1)).float().mean()) > 0.3
    d.save(tmp_path / "run")  # and it is a run
    again, start = orn.load(tmp_path / "run"), noise(2, 3, 8, 8, seed=4)
    one, two = (orn.sample(m, (2, 3, 8, 8), "flow-3m", 5, start=start) for m in (d, again))
    assert torch.equal(one, two) and bool(one.isfinite().all())
    if options["prediction_type"] == "v_prediction":  # a random network that predicts x0 is no smooth flow
        ways = (("ddim", 5), ("flow-3m", 10), ("flow-3m", 80))
        far, near, fine = (orn.sample(d, (2, 3, 8, 8), solver, steps, start=start) for solver, steps in ways)
        # Measured: 0.005 to 0.006 at zero SNR, 0.003 of the short chain, over several starts.
        assert float((near - fine).square().mean()) < 0.01 * float((far - fine).square().mean())


def test_classes_are_asked_for_as_diffusers_asks_for_them() -> None:
    model = unet(num_class_embeds=3)
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    x, labels = noise(3, 3, 8, 8), torch.tensor([2, 0, 1])
    theirs = x
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for k in scheduler.timesteps:
            theirs = scheduler.step(model(theirs, k, class_labels=labels).sample, k, theirs).prev_sample
    own = orn.sample(wrap(model, scheduler), x.shape, "ddim", grid="trailing", steps=4, start=x, cond={"label": labels})
    torch.testing.assert_close(own, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_noise_says_nothing_at_zero_snr() -> None:
    with pytest.raises(ValueError, match=r"zero terminal SNR.*predict v"):
        wrap(unet(), diffusers.DDIMScheduler(rescale_betas_zero_snr=True))


def test_a_pipeline_written_is_read_by_diffusers_and_by_us(tmp_path: Path) -> None:
    d = wrap(unet(), diffusers.DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"))
    save_pipeline(d, tmp_path / "out")
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    images = pipeline(batch_size=1, num_inference_steps=4, generator=generator, output_type="np").images
    again, start = load_pipeline(tmp_path / "out"), noise(1, 3, 8, 8, seed=1)
    own = orn.sample(again, (1, 3, 8, 8), "ddim", grid="trailing", steps=4, start=start)
    own = (own / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(own, torch.from_numpy(images), rtol=0, atol=1e-4)
    assert not list((tmp_path / "out").rglob("*.bin"))


def test_a_wrapped_model_is_a_run_like_any_other(tmp_path: Path) -> None:
    d = wrap(unet(num_class_embeds=3), diffusers.DDPMScheduler())
    d.save(tmp_path / "run")
    again = orn.load(tmp_path / "run")
    assert again.data == orn.Data((3, 8, 8), ("0", "1", "2"))
    labels = {"label": torch.tensor([0, 2])}
    one, two = (orn.sample(m, (2, 3, 8, 8), solver="dpmpp-3m", steps=3, cond=labels) for m in (d, again))
    assert torch.equal(one, two)
    other = orn.sample(d, (2, 3, 8, 8), solver="dpmpp-3m", steps=3, cond={"label": torch.tensor([1, 2])})
    assert float((one[0] - other[0]).abs().max()) > 1e-4 and torch.equal(one[1], other[1])
    with pytest.raises(ValueError, match="no null class"):
        orn.sample(d, (2, 3, 8, 8), steps=1)


def test_a_dit_has_a_null_class_and_a_learned_variance() -> None:
    model = dit()
    d, x = wrap(model, diffusers.DDIMScheduler()), noise(2, 4, 8, 8)
    label = torch.tensor([1, -1])
    with torch.no_grad():
        theirs = model(x, torch.tensor([499.0, 499.0]), class_labels=torch.tensor([1, 5])).sample
        ours = d(x, 0.5, label=label)
        free = d(x, 0.5)
    torch.testing.assert_close(ours.eps, theirs[:, :4], rtol=0, atol=1e-5)
    assert ours.variance_mix is not None
    torch.testing.assert_close(ours.variance_mix, (theirs[:, 4:] + 1) / 2, rtol=0, atol=1e-5)
    torch.testing.assert_close(free.eps[1], ours.eps[1])
    assert float((free.eps[0] - ours.eps[0]).abs().max()) > 1e-3


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_pipeline(tmp_path / "none")
    with pytest.raises(UserError, match=r"no file .*model_index"):
        load_pipeline(tmp_path)
    index = tmp_path / "model_index.json"
    for content, message in (
        ({"vae": ["diffusers", "AutoencoderKL"]}, "not a pipeline of a network"),
        ({"unet": ["diffusers", "UNet2DModel"]}, "it has unet"),
        (
            {"unet": ["diffusers", "UNet9"], "scheduler": ["diffusers", "DDIMScheduler"]},
            "diffusers are read, not UNet9",
        ),
        ({"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}, "cannot be read"),
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            load_pipeline(tmp_path)
    with pytest.raises(UserError, match="has no chain of betas"):
        wrap(unet(), diffusers.FlowMatchEulerDiscreteScheduler())
    with pytest.raises(UserError, match="'fourier'"):
        wrap(unet(time_embedding_type="fourier"), diffusers.DDPMScheduler())
    with pytest.raises(UserError, match="diffusers are read, not UNet1DModel"):
        wrap(diffusers.UNet1DModel(), diffusers.DDPMScheduler())
    net = orn.nets.UNet(3, 8, width=8, multipliers=(1,), depths=(1,))
    with pytest.raises(UserError, match="UNet is not one"):
        save_pipeline(orn.Denoiser(net, orn.Process(Cosine())), tmp_path / "out")
    wrapped = wrap(unet(), diffusers.DDPMScheduler())
    with pytest.raises(UserError, match="not Cosine"):
        save_pipeline(orn.Denoiser(wrapped.net, orn.Process(Cosine()), "eps"), tmp_path / "out")
    with pytest.raises(UserError, match="does not"):
        chain = orn.Process(Discrete.linear(1000), orn.noise.AR1(8, 0.5))
        save_pipeline(orn.Denoiser(wrapped.net, chain, "eps"), tmp_path / "out")


def test_the_package_does_not_import_diffusers() -> None:
    code = "import sys, ornstein, ornstein.cli; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["UNetSpatioTemporalConditionModel", "WanTransformer3DModel", "AutoencoderKL", "os"])
def test_a_folder_may_not_have_any_class_of_the_library_built(tmp_path, monkeypatch, name):
    """The name is checked before anything is built, in a pipeline folder and in a run."""

    def build(*_, **__):
        raise AssertionError("it was built")

    for method in ("from_config", "from_pretrained"):
        monkeypatch.setattr(diffusers.ModelMixin, method, classmethod(build), raising=False)
    index = {"unet": ["diffusers", name], "scheduler": ["diffusers", "DDIMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"not {name}"):
        load_pipeline(tmp_path)
    with pytest.raises(UserError, match=f"not {name}"):
        DiffusersNet({"_class_name": name}, [0.1, 0.2])
